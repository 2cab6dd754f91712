"""What adapters cost: in a graph that has some without using them, and among the rows of a step.

    python -m tests.perf.adapters --out DIR [--shape 135m] [--quantize int8] [--rank 16] [--context 256]

Makes a checkpoint with random weights and two random adapters for all linear layers in its blocks, exports it to DIR with and
without them, and prints the processor milliseconds of the fastest call with one thread; the cases alternate in one run.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from polyhead.export.pipeline import ExportOptions, export_source, load_source
from polyhead.export.quantize import QuantizationOptions
from polyhead.models.checkpoint import load_checkpoint
from polyhead.server.runtime import threads
from polyhead.server.runtime.decoder import Decoder
from tests.adapters import write_adapter
from tests.perf.make_checkpoint import SHAPES, write_checkpoint
from tests.perf.step_time import fastest, open_decoder

LAYERS = ("query", "key", "value", "output", "gate", "up", "down")
ROWS = 16
CHUNK = 32

Run = tuple[int, int, str]
"""First slot, rows and adapter of a call."""
GROUPED: list[Run] = [(0, 12, ""), (12, 2, "one"), (14, 2, "two")]
SCATTERED: list[Run] = [
    (0, 4, ""),
    (4, 1, "one"),
    (5, 4, ""),
    (9, 1, "two"),
    (10, 4, ""),
    (14, 1, "one"),
    (15, 1, "two"),
]


def export(options: argparse.Namespace, name: str, adapters: Sequence[tuple[str, Path]]) -> Path:
    """The bundle, made unless it is there."""
    made: Path = options.out / "models" / name / "1"
    if not made.exists():
        given = ExportOptions(1, QuantizationOptions(options.quantize), adapters=tuple(adapters))
        export_source(load_source(options.out / "checkpoint"), made.parent, given)
    return made


def write_models(options: argparse.Namespace) -> tuple[Path, Path]:
    """The bundles without and with adapters."""
    checkpoint, adapters = options.out / "checkpoint", [(name, options.out / name) for name in ("one", "two")]
    if not checkpoint.exists():
        write_checkpoint(SHAPES[options.shape], checkpoint)
    model = load_checkpoint(checkpoint)[1]
    for seed, (_, folder) in enumerate(adapters):
        write_adapter(folder, model, LAYERS, seed=seed, r=options.rank)
    plain = export(options, f"plain-{options.quantize}", [])
    return plain, export(options, f"rank-{options.rank}-{options.quantize}", adapters)


def step(decoder: Decoder, context: int, runs: Sequence[Run]) -> Callable[[], object]:
    """A token for each row, in a call for each run."""

    def call() -> None:
        for first, rows, adapter in runs:
            decoder.decode(np.arange(rows), np.full(rows, context), 1, first=first, adapter=adapter)

    return call


def chunk(decoder: Decoder, context: int, adapter: str) -> Callable[[], object]:
    return lambda: decoder.prefill(0, [np.arange(CHUNK)], [context], 1, adapter=adapter)


def main(options: argparse.Namespace) -> None:
    threads.configure(1)
    bundles = write_models(options)
    plain, having = (open_decoder(folder, ROWS, options.context, CHUNK) for folder in bundles)
    context = options.context
    cases: dict[str, list[tuple[str, Callable[[], object]]]] = {}
    for rows in (1, ROWS):
        cases[f"step of {rows}"] = [
            ("without adapters", step(plain, context, [(0, rows, "")])),
            ("with two, unused", step(having, context, [(0, rows, "")])),
            ("all rows with one", step(having, context, [(0, rows, "one")])),
        ]
    cases[f"step of {ROWS}"] += [
        ("8 rows with each", step(having, context, [(0, 8, "one"), (8, 8, "two")])),
        ("12 without, 2 with each, neighbours", step(having, context, GROUPED)),
        ("12 without, 2 with each, scattered", step(having, context, SCATTERED)),
    ]
    cases[f"chunk of {CHUNK} tokens"] = [
        ("without adapters", chunk(plain, context, "")),
        ("with two, unused", chunk(having, context, "")),
        ("with one", chunk(having, context, "one")),
    ]
    cases["a slot's move"] = [("", lambda: having.memory.move(0, 1, context))]
    table = Table("", "", "ms", "", title=f"{options.shape}, {options.quantize}, rank {options.rank}, {context} tokens")
    for title, measured in cases.items():
        times = fastest([call for _, call in measured], time.thread_time, options.rounds, repeats=5)
        for (name, _), seconds in zip(measured, times, strict=True):
            table.add_row(title, name, f"{1000 * seconds:.1f}", f"{seconds / times[0]:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--quantize", choices=("none", "int8"), default="int8")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    main(parser.parse_args())
