"""Giving memory back to the system."""

import ctypes
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ +(/.*)$")

_libc = ctypes.CDLL(None)

WORTHWHILE = 16 * 1024 * 1024
"""Bytes of a mapping from which on its pages are given back after every call: those of token tables. Each of the many small ones would
take a call some microseconds longer."""


class FilePages:
    """Pages of a folder's files that onnxruntime has mapped, which the system can have back.

    It packs most weights into memory of its own but keeps the mapping, and of token tables, which it can't pack, all that a call looks up
    stays: with every row, the system may map 2 MiB around it. What is needed again comes from the file, or from the memory that the
    system keeps it in. Elsewhere than on Linux nothing happens.
    """

    def __init__(self, folder: Path) -> None:
        """Of the files that are mapped now. Owned by who owns the sessions that did it: addresses mean something else once they are
        closed. Lets go of what was read so far. Mappings that were written to are left as they are."""
        inside = f"{folder.resolve()}/"
        mappings = [(begin, end - begin) for begin, end, path in _unwritten() if path.startswith(inside)]
        _let_go(mappings)
        self._tables = [(begin, size) for begin, size in mappings if size >= WORTHWHILE]

    def after_call(self) -> None:
        """Let go of what the call has looked up."""
        _let_go(self._tables)


def _let_go(mappings: list[tuple[int, int]]) -> None:
    """Each from an address on, so many bytes."""
    for begin, size in mappings:
        _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def trim() -> None:
    """Return what is free but kept for later; glibc alone keeps much of a model that is gone. Elsewhere nothing happens."""
    malloc_trim = getattr(_libc, "malloc_trim", None)
    if malloc_trim:
        malloc_trim(0)


def _unwritten() -> Iterator[tuple[int, int, str]]:
    """Begin, end and file of each mapping without a page of this process's own."""
    if sys.platform != "linux":
        return
    mapping = None
    for line in SMAPS.read_text().splitlines():
        if found := _MAPPING.match(line):
            mapping = int(found[1], 16), int(found[2], 16), found[3]
        elif mapping and line.split() == ["Anonymous:", "0", "kB"]:
            yield mapping
            mapping = None
        elif not line[0].isupper():
            mapping = None
