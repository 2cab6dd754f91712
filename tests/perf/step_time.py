"""How long decode steps and prefill chunks of decoder bundles take, in the runtime alone; bundles alternate in one run.

    python tests/perf/step_time.py MODELS/A/1 MODELS/B/1 [--rows 1 4 8 16] [--chunks 32 128] [--context 256]

Prints the milliseconds of the fastest call, which others on the machine disturbed least, and in brackets the speed relative
to the first bundle. With `--threads 1` processor time counts: on a busy machine it alone tells bundles apart.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from polyhead.server.bundle import read_bundle
from polyhead.server.runtime import threads
from polyhead.server.runtime.decoder import Decoder

TOP_K = 1
"""What the engine asks of a graph for greedy answers."""


def open_decoder(folder: Path, rows: int, context: int, longest_chunk: int) -> Decoder:
    """With `context` tokens in each of `rows` slots."""
    bundle = read_bundle(folder)
    decoder = Decoder(bundle.graph, bundle.manifest, slots=rows, capacity=context + max(2, longest_chunk))
    ids = np.random.default_rng(0).integers(0, decoder.vocabulary_size, context)
    for start in range(0, context, 64):
        decoder.prefill(0, [ids[start : start + 64]], [start], 1)
    for slot in range(rows):
        decoder.memory.commit(0, slot, context)
    return decoder


def decode_step(decoder: Decoder, rows: int, context: int) -> Callable[[], object]:
    """A call that decodes one token in each of `rows` slots."""
    tokens, past = np.arange(rows), np.full(rows, context)
    return lambda: decoder.decode(tokens, past, TOP_K)


def prefill_chunk(decoder: Decoder, length: int, context: int) -> Callable[[], object]:
    """A call that appends `length` tokens to one lane."""
    return lambda: decoder.prefill(0, [np.arange(length)], [context], TOP_K)


def fastest(
    calls: Sequence[Callable[[], object]], clock: Callable[[], float], rounds: int, repeats: int
) -> list[float]:
    """Seconds of each call's fastest run; in a round each call runs `repeats` times after one that nobody counts."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for index, call in enumerate(calls):
            call()
            for _ in range(repeats):
                began = clock()
                call()
                best[index] = min(best[index], clock() - began)
    return best


def main(options: argparse.Namespace) -> None:
    threads.configure(options.threads)
    longest = max(options.chunks, default=0)
    decoders = [open_decoder(folder, max(options.rows), options.context, longest) for folder in options.bundles]
    clock: Callable[[], float] = time.thread_time if options.threads == 1 else time.perf_counter
    work = {f"decode, {rows} rows": partial(decode_step, rows=rows) for rows in options.rows}
    work |= {f"prefill, {length} tokens": partial(prefill_chunk, length=length) for length in options.chunks}
    names = (f"{folder.parent.name}/{folder.name}" for folder in options.bundles)
    table = Table("", *names, title=f"milliseconds at {options.context} tokens of context")
    for name, make in work.items():
        calls = [make(decoder, context=options.context) for decoder in decoders]
        times = fastest(calls, clock, options.rounds, options.repeats)
        table.add_row(name, *(f"{1000 * time:.1f} ({times[0] / time:.2f})" for time in times))
    Console(width=140).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 8, 16])
    parser.add_argument("--chunks", type=int, nargs="*", default=[])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    main(parser.parse_args())
