"""Command-line options that recipes share. An option left out is None, so that the preset's value holds."""

from argparse import ArgumentParser, Namespace, _ArgumentGroup
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from polyhead.train.data import FORMATS, DataOptions
from polyhead.train.errors import UsageError
from polyhead.train.loop import Resume
from polyhead.train.settings import CLOCKS, LoopSettings

Settings = TypeVar("Settings")


def add_data_arguments(parser: ArgumentParser, labels: bool = False) -> None:
    """--data and how to read it; with --label-column if the recipe learns labels."""
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="PATH", help="file, folder or glob; plain, .gz or .zip")
    group.add_argument("--test-data", metavar="PATH", help="evaluate on this instead of a held-out part of the data")
    group.add_argument("--format", choices=FORMATS, default="auto", help="of the data (auto: by file name)")
    group.add_argument(
        "--text-column", default="text", metavar="NAME", help="or number, where there is no header (text)"
    )
    if labels:
        group.add_argument("--label-column", default="label", metavar="NAME", help="or number (label)")
    group.add_argument("--encoding", default="utf-8", metavar="NAME", help="of the data (utf-8)")


def data_options(args: Namespace) -> DataOptions:
    """What add_data_arguments was given."""
    label_column = getattr(args, "label_column", DataOptions.label_column)
    return DataOptions(args.format, args.text_column, label_column, args.encoding)


def add_loop_arguments(parser: ArgumentParser, recipe: str) -> None:
    """--out, --resume and the settings of the loop."""
    group = parser.add_argument_group("training")
    group.add_argument("--out", type=Path, default=Path("runs") / recipe, metavar="DIR", help=f"(runs/{recipe})")
    group.add_argument("--steps", type=int)
    group.add_argument(
        "--max-seconds", type=float, metavar="S", help="end in good order after so long, data preparation aside"
    )
    group.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        help="what --max-seconds counts: wall (the default), or processor time of all threads, which other programs don't use up",
    )
    add_threads_argument(group)
    group.add_argument("--batch-size", type=int)
    group.add_argument("--learning-rate", type=float, help="the peak, after warm-up")
    group.add_argument("--warmup-steps", type=int)
    group.add_argument("--weight-decay", type=float, help="of matrices")
    group.add_argument("--eval-every", type=int, metavar="STEPS")
    group.add_argument("--seed", type=int)
    group.add_argument("--device", help="auto, cpu, cuda (auto)")
    group.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), help="of autocast (auto: mixed on a GPU)"
    )
    begin = group.add_mutually_exclusive_group()
    begin.add_argument(
        "--resume", action="store_true", help="go on with the training in --out, perhaps for more --steps"
    )
    begin.add_argument("--restart", action="store_true", help="replace the training in --out")


def add_threads_argument(group: _ArgumentGroup) -> None:
    group.add_argument("--threads", type=int, metavar="N", help="that compute (as many as torch finds cores)")


def use_threads(args: Namespace) -> None:
    """What add_threads_argument was given. Raises UsageError below 1."""
    if (threads := getattr(args, "threads", None)) is not None:
        if threads < 1:
            raise UsageError(f"--threads must be at least 1, not {threads}")
        torch.set_num_threads(threads)


def resume_mode(args: Namespace) -> Resume:
    return "require" if args.resume else "restart" if args.restart else "auto"


def loop_settings(args: Namespace, preset: LoopSettings) -> LoopSettings:
    """The preset's settings with the given options in their place. Raises UsageError for values out of range."""
    settings = override(preset, args)
    if args.clock is not None and settings.max_seconds is None:
        raise UsageError("--clock is what --max-seconds counts, and there is none")
    return settings


def override(preset: Settings, args: Namespace, **names: str) -> Settings:
    """A settings dataclass with every field replaced whose option was given; `names` maps fields to options of other names.

    Raises UsageError where the dataclass refuses a value.
    """
    given: dict[str, Any] = {}
    for field in fields(preset):  # type: ignore[arg-type]
        if (value := getattr(args, names.get(field.name, field.name), None)) is not None:
            given[field.name] = value
    try:
        return replace(preset, **given)  # type: ignore[type-var]
    except ValueError as error:
        raise UsageError(str(error)) from error
