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
"""Bytes of files from which on their pages are given back after every call; a call that gives back and reads again takes some 0.2 ms
longer."""


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
        self._mappings = [(begin, end - begin) for begin, end, path in _unwritten() if path.startswith(inside)]
        self._let_go()
        if sum(size for _, size in self._mappings) < WORTHWHILE:
            self._mappings.clear()

    def after_call(self) -> None:
        """Let go of what the call has read, unless all the files are small."""
        if self._mappings:
            self._let_go()

    def _let_go(self) -> None:
        for begin, size in self._mappings:
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
