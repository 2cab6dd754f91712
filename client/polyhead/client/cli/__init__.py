"""The `polyhead` command.

Exit codes: 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C. An error is one line on standard error that says what
to do. Programs that read `--json` find one object a line.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence

from polyhead.client.cli.arguments import build_parser
from polyhead.client.cli.extras import EXTRAS, run_extra
from polyhead.client.cli.failures import LocalFailure, explain
from polyhead.client.errors import PolyheadError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's own) and returns its exit code; raises SystemExit as argparse does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # text that a terminal can't show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in EXTRAS:
        return _guarded(lambda: run_extra(arguments[0], arguments[1:]))
    options = build_parser().parse_args(arguments)
    return _guarded(lambda: options.run(options))


def _guarded(run: Callable[[], int]) -> int:
    try:
        code = run()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who read our output (`| head`) has enough. Python flushes standard output once more when it ends: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (PolyheadError, UnicodeDecodeError, LocalFailure) as error:
        print(explain(error), file=sys.stderr)
        return 1
