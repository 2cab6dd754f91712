"""`polyhead train RECIPE`: each recipe is a module with `add_arguments(parser)` and `run(args) -> exit code`."""

import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from importlib import import_module
from typing import Protocol, cast

from polyhead.train.errors import TrainError

RECIPES = {
    "gpt": "a decoder that continues text",
    "classifier": "an encoder that tells which label a text has",
    "embedder": "an encoder that puts texts of like meaning close together",
    "seq2seq": "an encoder-decoder that translates, recurrent or a Transformer",
}
USAGE = "usage: polyhead train RECIPE [options]; polyhead train RECIPE --help lists them\n\nrecipes:\n" + "\n".join(
    f"  {name:<12}{text}" for name, text in RECIPES.items()
)


class RecipeModule(Protocol):
    __doc__: str | None

    def add_arguments(self, parser: ArgumentParser) -> None: ...

    def run(self, args: Namespace) -> int: ...


class OptionsModule(Protocol):
    def use_threads(self, args: Namespace) -> None: ...


def main(argv: list[str]) -> int:
    """Run a recipe; returns the exit code: 0, 1 for a failure, 2 for wrong usage, 130 when interrupted."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] not in RECIPES:
        return _fail("polyhead train", f"no recipe {argv[0]!r}; there are {', '.join(RECIPES)}", 2)
    return run_module(f"polyhead.train.{argv[0]}", "polyhead train", argv[1:], argv[0])


def run_module(name: str, command: str, argv: list[str], *recipe: str) -> int:
    """Run what a module does, as `command recipe`; returns the exit code, see main."""
    # Threads that wait for each other sleep instead of spinning: where other programs want the cores too, spinning made
    # a step on two threads seven times slower. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        module = cast(RecipeModule, import_module(name))  # it imports torch: only now
        program = " ".join((command, *recipe))
        parser = ArgumentParser(program, description=module.__doc__, formatter_class=RawDescriptionHelpFormatter)
        module.add_arguments(parser)
        args = parser.parse_args(argv)
        cast(OptionsModule, import_module("polyhead.train.options")).use_threads(args)
        return module.run(args)
    except SystemExit as exit:  # argparse: --help or wrong usage
        return exit.code if isinstance(exit.code, int) else 2
    except KeyboardInterrupt:
        return _fail(command, "interrupted before the first step", 130)
    except TrainError as error:
        return _fail(command, str(error), error.exit_code)
    except OSError as error:
        return _fail(command, f"{error.filename or 'input or output'}: {error.strerror or error}", 1)


def _fail(command: str, text: str, code: int) -> int:
    print(f"{command}: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
