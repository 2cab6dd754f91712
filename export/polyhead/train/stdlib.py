"""The text that every machine with Python has: the source and docstrings of its standard library."""

import sysconfig
import tokenize
from pathlib import Path

from polyhead.train.errors import DataError

# Tests, tables of numbers, and packages that repeat others or are not in every Python.
_LEFT_OUT = frozenset({
    "site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "idlelib", "lib2to3",
    "distutils", "ensurepip", "turtledemo", "msilib", "__phello__",
})  # fmt: skip


def python_documents(folder: Path | None = None) -> list[str]:
    """One document a module of the running Python's standard library (or of `folder`), in order of their paths.

    Raises DataError where the library is there without its source, as in some small images.
    """
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in root.rglob("*.py") if not _LEFT_OUT & {*path.relative_to(root).parts})
    documents = [text for path in paths if (text := _source(path)).strip()]
    if not documents:
        raise DataError(f"{root}: no Python source to learn from; name a text with --data PATH")
    return documents


def _source(path: Path) -> str:
    """Text in the encoding that the module declares; empty if it declares a wrong one."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):
        return ""
