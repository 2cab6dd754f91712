"""Giving memory back to the system."""

import ctypes
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path

SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ +(/.*)$")


def trim() -> None:
    """Return what is free but kept for later; glibc alone keeps much of a model that is gone. Elsewhere nothing happens."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim:
        malloc_trim(0)


def let_go_of_files(folder: Path) -> None:
    """Let the system have the pages of files of a folder that were mapped and read: those that are needed again, such as rows of a
    token table, come back from the file. onnxruntime maps weights and packs most of them into memory of its own, but keeps the
    mapping. Mappings that were written to are left as they are; elsewhere than on Linux nothing happens."""
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for begin, end, path in list(_unwritten()):
        if path.startswith(f"{folder.resolve()}/"):
            madvise(begin, end - begin, mmap.MADV_DONTNEED)


def _unwritten() -> Iterator[tuple[int, int, str]]:
    """Begin, end and file of each mapping of this process without a page of its own."""
    mapping = None
    for line in SMAPS.read_text().splitlines():
        if found := _MAPPING.match(line):
            mapping = int(found[1], 16), int(found[2], 16), found[3]
        elif mapping and line.split() == ["Anonymous:", "0", "kB"]:
            yield mapping
            mapping = None
        elif not line[0].isupper():
            mapping = None
