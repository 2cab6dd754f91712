"""`polyhead compare-attention`, which is in `comparison.py`: that imports torch, and a module to be found shall not."""

import sys

from polyhead.train.__main__ import run_module


def main(argv: list[str]) -> int:
    """Returns the exit code: 0, 1 for a failure, 2 for wrong usage, 130 when interrupted."""
    return run_module("polyhead.train.comparison", "polyhead compare-attention", argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
