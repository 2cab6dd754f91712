"""The flags of every command."""

import argparse
import sys
from typing import Any, NoReturn

from polyhead.client.base import DEFAULT_TARGET, DEFAULT_TIMEOUT
from polyhead.client.cli import commands
from polyhead.client.cli.extras import EXTRAS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line in place of argparse's usage and error."""
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"polyhead {version('polyhead')}")
        raise SystemExit(0)


def build_parser() -> argparse.ArgumentParser:
    """A parser whose result has `run`, the command to call with it."""
    parser = _Parser(prog="polyhead", description="Call a Polyhead server; train, export and serve models.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    group = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_generate(group)
    _add_classify(group)
    _add_embed(group)
    _add_tokenize(group)
    _add_models(group)
    _add_health(group)
    for name, extra in EXTRAS.items():
        group.add_parser(name, help=extra.help)  # listed here, run before anything is parsed
    return parser


def _add_generate(group: Any) -> None:
    parser = _add_texts(group, "generate", "continue prompts", "what to continue")
    parser.set_defaults(run=commands.generate)
    sampling = parser.add_argument_group("sampling", "What is not given is decided by the model's bundle.")
    sampling.add_argument("--temperature", type=float, metavar="T", help="0 to 100; 0: always the likeliest token")
    sampling.add_argument("--top-k", type=_count, metavar="K", help="only the K likeliest tokens; 0: no limit")
    sampling.add_argument(
        "--top-p", type=float, metavar="P", help="only the likeliest tokens that together reach this probability"
    )
    sampling.add_argument(
        "--min-p", type=float, metavar="P", help="only tokens at least P times as likely as the likeliest"
    )
    sampling.add_argument(
        "--repetition-penalty", type=float, metavar="R", help="above 1: tokens that were there before get less likely"
    )
    sampling.add_argument("--seed", type=_count, help="the same seed and request give the same answer")
    stopping = parser.add_argument_group("stopping")
    stopping.add_argument("--max-tokens", type=_count, metavar="N", help="end after N tokens (default: the server's)")
    stopping.add_argument("--min-tokens", type=_count, metavar="N", help="do not end before N tokens (default 0)")
    stopping.add_argument("--stop", action="append", metavar="STRING", help="end before STRING; may be repeated")
    stopping.add_argument("--ignore-eos", action="store_true", help="go on after the model's end tokens")
    parser.add_argument(
        "--logprobs", type=_count, metavar="N", help="show each token's log-probability and N likeliest alternatives"
    )


def _add_classify(group: Any) -> None:
    parser = _add_texts(group, "classify", "score texts against a model's labels", "what to classify")
    parser.set_defaults(run=commands.classify)
    parser.add_argument(
        "--top-k",
        type=_count,
        metavar="K",
        help=f"only the K best labels (default: all with --json, else {commands.SHOWN_LABELS})",
    )
    parser.add_argument("--truncate", action="store_true", help="cut a text that is too long instead of refusing it")


def _add_embed(group: Any) -> None:
    parser = _add_texts(group, "embed", "turn texts into vectors", "what to embed")
    parser.set_defaults(run=commands.embed)
    parser.add_argument("--truncate", action="store_true", help="cut a text that is too long instead of refusing it")


def _add_tokenize(group: Any) -> None:
    parser = _add_texts(group, "tokenize", "show how a model splits texts into tokens", "what to split")
    parser.set_defaults(run=commands.tokenize)
    parser.add_argument(
        "--no-special-tokens", action="store_true", help="without the begin, separator and end tokens of an input"
    )


def _add_models(group: Any) -> None:
    parser = _add_command(group, "models", "list the models of a server")
    parser.set_defaults(run=commands.models)


def _add_health(group: Any) -> None:
    parser = _add_command(group, "health", "ask whether a server takes requests: exit code 0 if it does, else 1")
    parser.set_defaults(run=commands.health)
    parser.add_argument("--model", default="", metavar="NAME", help="ask about this model (default: the whole server)")


def _add_command(group: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = group.add_parser(name, help=purpose, description=f"{purpose.capitalize()}.")
    parser.add_argument(
        "--target",
        metavar="HOST:PORT",
        help=f"server to call (default: environment variable POLYHEAD_TARGET, else {DEFAULT_TARGET})",
    )
    parser.add_argument(
        "--timeout",
        type=_positive_seconds,
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help="how long one call may take, retries included (default %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    return parser


def _add_texts(group: Any, name: str, purpose: str, what: str) -> argparse.ArgumentParser:
    parser = _add_command(group, name, purpose)
    parser.add_argument("texts", nargs="+", metavar="TEXT", help=f"{what}; - reads the lines of standard input")
    parser.add_argument("--model", metavar="NAME", help="model to use (default: the only one that does the task)")
    parser.add_argument("--model-version", metavar="N", help="its version (default: the newest that serves)")
    parser.add_argument(
        "--concurrency",
        type=_at_least_one,
        default=32,
        metavar="N",
        help="texts to have on the way at once; answers come in the order of the texts (default %(default)s)",
    )
    return parser


def _count(text: str) -> int:
    return _whole_number(text, least=0)


def _at_least_one(text: str) -> int:
    return _whole_number(text, least=1)


def _whole_number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, not {text!r}")
    return int(text)


def _positive_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return seconds
