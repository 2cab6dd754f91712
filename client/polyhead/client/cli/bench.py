"""The flags of `polyhead bench generate|classify|embed`."""

import argparse
import math
from pathlib import Path
from typing import Any

from polyhead.client.base import DEFAULT_TARGET, DEFAULT_TIMEOUT
from polyhead.client.bench.lengths import Lengths, parse_lengths
from polyhead.client.bench.settings import DEFAULT_SECONDS, DEFAULT_STREAMS, OPEN_LOOP_WARMUP
from polyhead.client.cli import bench_commands, generation
from polyhead.client.cli.values import at_least_one, count


def add_bench(group: Any) -> None:
    parser: argparse.ArgumentParser = group.add_parser(
        "bench", help="measure a server under load", description="Measure a server under load."
    )
    tasks = parser.add_subparsers(metavar="TASK", required=True)
    _add_generate(tasks)
    _add_encode(tasks, "classify")
    _add_encode(tasks, "embed")


def _add_generate(tasks: Any) -> None:
    parser = _add_task(tasks, "generate", "measure generation: prompts of random tokens, answers of a given length")
    parser.set_defaults(run=bench_commands.generate)
    load, when = _add_load(parser, "--streams", "requests under way at once")
    when.add_argument(
        "--trace",
        type=Path,
        metavar="FILE.csv",
        help="open loop: arrivals and lengths from columns TIMESTAMP, ContextTokens and GeneratedTokens",
    )
    load.add_argument(
        "--trace-scale", type=_positive, metavar="F", help="send the trace at F times its rate (default 1)"
    )
    load.add_argument("--trace-clip", action="store_true", help="shorten what is too long for the model")
    lengths = parser.add_argument_group(
        "lengths", "In tokens: N, N-M (all equally likely), normal:MEAN:DEVIATION or lognormal:MEDIAN:SIGMA."
    )
    lengths.add_argument("--prompt-tokens", type=_lengths, metavar="LENGTH", help="of a prompt (default 128)")
    lengths.add_argument(
        "--max-tokens", type=_lengths, metavar="LENGTH", help="of an answer, end tokens ignored (default 128)"
    )
    lengths.add_argument(
        "--shared-prefix", type=count, default=0, metavar="N", help="first N tokens that all prompts share (default 0)"
    )
    limits = parser.add_argument_group("goodput", "Count the requests that keep these limits.")
    limits.add_argument("--slo-ttft", type=_positive, metavar="SECONDS", help="time to first token")
    limits.add_argument("--slo-itl", type=_positive, metavar="SECONDS", help="mean time between a request's tokens")
    generation.add_sampling(parser)
    generation.add_beams(parser)
    generation.add_serving(parser)
    parser.add_argument(
        "--logprobs", type=count, metavar="N", help="ask for log-probabilities and N alternatives of each"
    )


def _add_encode(tasks: Any, task: str) -> None:
    what = {"classify": "classification", "embed": "embedding"}[task]
    parser = _add_task(tasks, task, f"measure {what}: inputs of random tokens, made-up words or a file")
    parser.set_defaults(run=bench_commands.encode, task=task)
    _add_load(parser, "--concurrency", "requests under way at once")
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument(
        "--inputs-per-request", type=at_least_one, default=1, metavar="N", help="inputs in each (default %(default)s)"
    )
    kind = inputs.add_mutually_exclusive_group()
    kind.add_argument(
        "--tokens",
        type=_lengths,
        metavar="LENGTH",
        help="random tokens in each: N, N-M, normal:… or lognormal:… (default 32)",
    )
    kind.add_argument(
        "--words", type=_lengths, metavar="LENGTH", help="made-up words in each, for the server to tokenize"
    )
    kind.add_argument("--texts", type=Path, metavar="FILE", help="the lines of this file, over and over")
    inputs.add_argument("--truncate", action="store_true", help="cut a text that is too long instead of refusing it")


def _add_task(tasks: Any, task: str, purpose: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = tasks.add_parser(task, help=purpose, description=f"{purpose.capitalize()}.")
    parser.add_argument(
        "--target",
        metavar="HOST:PORT",
        help=f"server to measure (default: environment variable POLYHEAD_TARGET, else {DEFAULT_TARGET})",
    )
    parser.add_argument("--model", metavar="NAME", help="model to use (default: the only one that does the task)")
    parser.add_argument("--model-version", metavar="N", help="its version (default: the newest that serves)")
    parser.add_argument(
        "--timeout",
        type=_positive,
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help="how long one request may take; nothing is retried (default %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the report too; needs polyhead[plot]")
    return parser


def _add_load(parser: argparse.ArgumentParser, closed: str, what: str) -> tuple[Any, Any]:
    """Returns the group of flags, and in it the one of those that exclude each other."""
    group = parser.add_argument_group("load")
    when = group.add_mutually_exclusive_group()
    when.add_argument(
        closed,
        dest="streams",
        type=at_least_one,
        metavar="N",
        help=f"closed loop: {what}, each followed by the next (default {DEFAULT_STREAMS})",
    )
    when.add_argument(
        "--rate", type=_positive, metavar="R", help="open loop: R requests a second, at random times (Poisson)"
    )
    group.add_argument("--requests", type=at_least_one, metavar="N", help="send N requests")
    group.add_argument(
        "--seconds",
        type=_positive,
        metavar="S",
        help=f"send for S seconds, then wait for what is under way (default {DEFAULT_SECONDS:g}, unless "
        "--requests or a trace says when to end)",
    )
    group.add_argument(
        "--warmup",
        type=count,
        metavar="N",
        help=f"requests before the measured ones (default: one a stream; {OPEN_LOOP_WARMUP} in an open loop)",
    )
    group.add_argument(
        "--seed", type=count, default=0, metavar="N", help="the same seed gives the same load (default %(default)s)"
    )
    return group, when


def _lengths(text: str) -> Lengths:
    try:
        return parse_lengths(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value
