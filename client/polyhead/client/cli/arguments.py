"""The flags of every command."""

import argparse
import sys
from typing import Any, NoReturn

from polyhead.client.base import DEFAULT_TARGET, DEFAULT_TIMEOUT
from polyhead.client.cli import bench, commands, generation, models
from polyhead.client.cli.extras import EXTRAS
from polyhead.client.cli.values import at_least_one, count, model_version, positive_seconds


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
    bench.add_bench(group)
    for name, extra in EXTRAS.items():
        group.add_parser(name, help=extra.help)  # listed here, run before anything is parsed
    return parser


def _add_generate(group: Any) -> None:
    parser = _add_texts(group, "generate", "continue prompts", "what to continue", nargs="*")
    parser.set_defaults(run=commands.generate, refuse=parser.error)
    generation.add_options(parser)
    _add_adapter(parser)


def _add_classify(group: Any) -> None:
    parser = _add_texts(group, "classify", "score texts against a model's labels", "what to classify")
    parser.set_defaults(run=commands.classify, refuse=parser.error)
    parser.add_argument(
        "--top-k",
        type=count,
        metavar="K",
        help=f"only the K best labels (default: all with --json, else {commands.SHOWN_LABELS})",
    )
    parser.add_argument(
        "--pairs",
        action="store_true",
        help="compare two texts: arguments in twos, such as a query and a passage; in a line of standard input with a tab between",
    )
    parser.add_argument("--truncate", action="store_true", help="cut a text that is too long instead of refusing it")
    _add_adapter(parser)


def _add_embed(group: Any) -> None:
    parser = _add_texts(group, "embed", "turn texts into vectors", "what to embed")
    parser.set_defaults(run=commands.embed)
    parser.add_argument("--truncate", action="store_true", help="cut a text that is too long instead of refusing it")
    _add_adapter(parser)


def _add_tokenize(group: Any) -> None:
    parser = _add_texts(group, "tokenize", "show how a model splits texts into tokens", "what to split")
    parser.set_defaults(run=commands.tokenize)
    parser.add_argument(
        "--no-special-tokens", action="store_true", help="without the begin, separator and end tokens of an input"
    )


def _add_models(group: Any) -> None:
    parser = _add_command(group, "models", "list, describe, load and unload the models of a server")
    parser.set_defaults(run=models.models)
    what = parser.add_mutually_exclusive_group()
    for flag, purpose in {
        "--describe": "show all that is known of a model",
        "--load": "have a version in memory (default: the newest) and wait until it serves",
        "--unload": "take a version out of memory (default: all, also those to come) and wait until it is gone",
        "--reload": "load a version afresh (default: the newest) beside the one that serves, and let it take over",
    }.items():
        what.add_argument(flag, type=model_version, metavar="NAME[:VERSION]", help=purpose)


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
        type=positive_seconds,
        default=DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help="how long one call may take, retries included (default %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    return parser


def _add_adapter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", metavar="NAME", help="one of the model's adapters (default: the model as it is)")


def _add_texts(group: Any, name: str, purpose: str, what: str, nargs: str = "+") -> argparse.ArgumentParser:
    parser = _add_command(group, name, purpose)
    parser.add_argument("texts", nargs=nargs, metavar="TEXT", help=f"{what}; - reads the lines of standard input")
    parser.add_argument("--model", metavar="NAME", help="model to use (default: the only one that does the task)")
    parser.add_argument(
        "--model-version", metavar="VERSION", help="its version, or an alias (default: the newest that serves)"
    )
    parser.add_argument(
        "--concurrency",
        type=at_least_one,
        default=32,
        metavar="N",
        help="texts to have on the way at once; answers come in the order of the texts (default %(default)s)",
    )
    return parser
