"""`polyhead export CHECKPOINT --out MODELS/NAME`: write a verified bundle and show how far it is from torch."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from polyhead.export.bundle import choose_target
from polyhead.export.errors import ExportError
from polyhead.export.huggingface.hub import local_folder
from polyhead.export.origin import Checkpoint
from polyhead.export.pipeline import ExportOptions, export_source, load_source
from polyhead.export.quality import read_text
from polyhead.export.quantize import BLOCK, BLOCK_SIZES, CacheType, Quantization, QuantizationOptions
from polyhead.export.report import bits_line, parity_table
from polyhead.models.checkpoint import CheckpointError, Task
from polyhead.server.adapters import NAME as ADAPTER_NAME
from polyhead.server.bundle import NAME, VERSION, read_manifest


def main(argv: Sequence[str] | None = None) -> int:
    """0: written; 1: it failed, with a line that says why on standard error. Wrong usage exits with 2, as argparse does."""
    arguments = _parse(argv)
    began = time.perf_counter()
    try:
        choose_target(arguments.out, arguments.version)  # before the weights are read, which takes longer
        text = None if arguments.eval_data is None else read_text(arguments.eval_data)
        checkpoint = local_folder(arguments.checkpoint, arguments.revision)
        source = load_source(checkpoint, arguments.task, arguments.max_tokens)
        if source.ignored:
            print(f"polyhead export: ignored from {source.ignored}", file=sys.stderr)
        block_size = arguments.block_size or BLOCK
        bits = QuantizationOptions(arguments.quantize, block_size, tuple(arguments.keep_fp32))
        options = ExportOptions(
            arguments.version,
            bits,
            text,
            arguments.cache,
            arguments.max_loss,
            tuple(arguments.adapter),
            Checkpoint.from_folder(checkpoint),
        )
        folder = export_source(source, arguments.out, options)
    except (CheckpointError, ExportError) as error:
        print(f"polyhead export: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    _report(folder, time.perf_counter() - began)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Exits with 2 for options that would do nothing."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.keep_fp32 and arguments.quantize == "none":
        parser.error("--keep-fp32 is for --quantize int8 or int4; without it all weights stay in fp32")
    if arguments.block_size and arguments.quantize != "int4":
        parser.error("--block-size is for --quantize int4")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "polyhead export", description="Turn a checkpoint into a bundle that `polyhead serve` serves, and verify it."
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT",
        help="a folder that `polyhead train` wrote, one in Hugging Face layout, or OWNER/NAME on the hub",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=_model, required=True, metavar="MODELS/NAME", help="the model, in a models folder"
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a name on the hub")
    parser.add_argument("--version", type=_version, metavar="N", help="1 or more; default: one after the newest")
    parser.add_argument(
        "--task", choices=get_args(Task), help="instead of the one that the checkpoint's class stands for"
    )
    parser.add_argument(
        "--max-tokens", type=_positive, metavar="N", help="longest input, if shorter than the checkpoint's"
    )
    parser.add_argument(
        "--quantize",
        choices=get_args(Quantization),
        default="none",
        help="none: fp32, the default; int4: only decoders",
    )
    parser.add_argument(
        "--block-size", type=int, choices=BLOCK_SIZES, metavar="N",
        help=f"of int4: weights that share a scale, one of {', '.join(map(str, BLOCK_SIZES))}; default {BLOCK}",
    )  # fmt: skip
    parser.add_argument(
        "--keep-fp32", action="append", default=[], metavar="PATTERN",
        help="weights that keep their precision, by their name in the checkpoint, such as '*.down_proj.weight'; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--cache", choices=get_args(CacheType), default="float",
        help="what a decoder keeps of keys and values while it answers: float, the default, or int8, a quarter of the memory "
        "and the faster the longer the context; scales are calibrated on random tokens and the beginning "
        "of --eval-data, and only the rest of it is measured on",
    )  # fmt: skip
    parser.add_argument(
        "--max-loss", type=_share, metavar="X",
        help="write nothing if quantization costs more than this share: of perplexity for decoders, of labels for "
        "classifiers, of cosine and rank agreement for embedders",
    )  # fmt: skip
    parser.add_argument(
        "--adapter", type=_adapter, action="append", default=[], metavar="NAME=FOLDER",
        help="a LoRA adapter in peft's layout, which requests choose by NAME; all share the base weights; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--eval-data", type=Path, metavar="FILE",
        help="UTF-8 text to measure the bundle on; for classify and embed an input a line "
        "(default when quantizing: the text that the training held out)",
    )  # fmt: skip
    return parser


def _model(text: str) -> Path:
    path = Path(text)
    if not NAME.fullmatch(path.name):
        raise argparse.ArgumentTypeError(f"NAME must match {NAME.pattern}, got {path.name!r}")
    return path


def _adapter(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (equals and folder and ADAPTER_NAME.fullmatch(name)):
        raise argparse.ArgumentTypeError(f"must be NAME=FOLDER, NAME matching {ADAPTER_NAME.pattern}, got {text!r}")
    return name, Path(folder)


def _version(text: str) -> int:
    if not VERSION.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1 with at most 18 digits, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text!r}")
    return share


def _report(folder: Path, seconds: float) -> None:
    manifest = read_manifest(folder)
    console = Console()
    console.print(parity_table(f"{folder.parent.name}, version {folder.name}", manifest.parity))
    megabytes = sum(file.size for file in manifest.files) / 1e6
    for name, figure in sorted(manifest.quality.items()):
        console.print(f"{name} {figure:.4g}")
    console.print(bits_line(manifest.traffic_independent))
    console.print(f"Wrote {folder} ({megabytes:.1f} MB) in {seconds:.1f} s.")


if __name__ == "__main__":
    sys.exit(main())
