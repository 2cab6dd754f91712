"""Commands that other parts of the distribution bring, imported by name and only when called: a client has none of what
they need, and nobody shall wait for torch to read a help text.
"""

import importlib
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extra:
    """A command whose module has `main(argv) -> exit code`, and the extra of the distribution that it needs."""

    module: str
    extra: str
    help: str


EXTRAS = {
    "train": Extra("polyhead.train.__main__", "export", "train a model"),
    "compare-attention": Extra(
        "polyhead.train.compare_attention", "export", "train models with and without attention and draw how they differ"
    ),
    "export": Extra("polyhead.export.__main__", "export", "turn a checkpoint into a bundle that the server reads"),
    "verify": Extra(
        "polyhead.export.verify_command", "export", "check a bundle, against its checkpoint if it is named"
    ),
    "serve": Extra("polyhead.server.__main__", "server", "serve the bundles of a folder over gRPC"),
}


def run_extra(command: str, argv: list[str]) -> int:
    """The exit code of the command; 2 with a line that says what to install if something it imports is not there."""
    wanted = EXTRAS[command]
    try:
        code: int = importlib.import_module(wanted.module).main(argv)
    except ModuleNotFoundError as error:
        print(
            f"polyhead {command}: there is no module {error.name} here; the command comes with "
            f'pip install "polyhead[{wanted.extra}]"',
            file=sys.stderr,
        )
        return 2
    return code
