"""Giving memory back to the system, and laying out what is kept in large pages."""

import ctypes
import errno
import mmap
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import structlog

log = structlog.get_logger(__name__)

SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ +(/.*)$")

_ANONYMOUS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0 +(?:\[(?:heap|anon:.*)\])?$")
_libc = ctypes.CDLL(None, use_errno=True)

_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
_MADV_COLLAPSE = 25
"""Python's mmap does not know it yet."""

_IN_USE = 31 / 32
"""Share of a large page from which on it is taken up as a whole."""

_BATCH = 16
"""Large pages looked at and collapsed at a time: a call that meets a busy page may leave the rest of its range, and each takes a while."""

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


def use_large_pages() -> int:
    """Collapse the small pages that this process's weights and other lasting memory lie in into large ones; returns how many bytes lie
    in such now, at least.

    A step of a small decoder reads all weights once, and translating addresses of small pages takes a good part of a tenth of it. Only
    what is nearly all written and nobody else's: to fill gaps would take up memory. Mappings that ask for small pages (a cache's,
    `cache.untouched_zeros`) keep them. Where Linux can't do it (before 6.1), where large pages are switched off, and elsewhere
    nothing happens. What changes meanwhile can cost memory, never content: the system collapses what is there at that moment.
    """
    try:
        if "[never]" in (_LARGE_PAGES / "enabled").read_text():
            return 0
        large = int((_LARGE_PAGES / "hpage_pmd_size").read_text())
        mappings = [(begin, end) for begin, end in _anonymous() if end - begin >= large]
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
            return sum(_collapse(begin, end, large, pages) for begin, end in mappings)
    except OSError:
        return 0


def _collapse(begin: int, end: int, large: int, pages: BinaryIO) -> int:
    """Those large pages of a mapping that are worth it, in bytes. Raises OSError if the system knows no such thing."""
    begin, end = -(-begin // large) * large, end // large * large
    small = large // mmap.PAGESIZE  # in a large one
    collapsed = 0
    for batch in range(begin, end, _BATCH * large):
        # Eight bytes say of each small page where it is: bit 63, in memory, and 56, nobody else's (the page of zeros is everybody's).
        pages.seek(batch // mmap.PAGESIZE * 8)
        entries = np.frombuffer(pages.read(min(_BATCH * large, end - batch) // mmap.PAGESIZE * 8), np.uint64)
        own = (entries >> np.uint64(63)) & (entries >> np.uint64(56)) & np.uint64(1)
        worthwhile = np.flatnonzero(own[: len(own) // small * small].reshape(-1, small).mean(axis=1) >= _IN_USE)
        for run in filter(len, np.split(worthwhile, np.flatnonzero(np.diff(worthwhile) > 1) + 1)):
            address, size = ctypes.c_void_p(batch + int(run[0]) * large), len(run) * large
            if _libc.madvise(address, ctypes.c_size_t(size), _MADV_COLLAPSE) == 0:
                collapsed += size
            elif ctypes.get_errno() == errno.EINVAL:
                raise OSError(errno.EINVAL, "this system collapses no pages")
    return collapsed


def _anonymous() -> Iterator[tuple[int, int]]:
    """Begin and end of each private mapping without a file that does not ask for small pages."""
    mapping = None
    for line in _mapped():
        if found := _ANONYMOUS.match(line):
            mapping = int(found[1], 16), int(found[2], 16)
        elif line.startswith("VmFlags:"):
            if mapping and "nh" not in line.split():
                yield mapping
            mapping = None


def _mapped() -> list[str]:
    """Lines on all mappings; names of files may be any bytes."""
    return SMAPS.read_text(errors="surrogateescape").splitlines()


def _let_go(mappings: list[tuple[int, int]]) -> None:
    """Each from an address on, so many bytes."""
    for begin, size in mappings:
        _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def settle() -> None:
    """After a model was loaded: give back what that left behind, and lay out what stays for speed. Never raises: the model serves as well
    without."""
    began = time.perf_counter()
    try:
        trim()
        log.debug("memory settled", large_pages_bytes=use_large_pages(), seconds=round(time.perf_counter() - began, 3))
    except Exception:
        log.exception("memory could not be settled")


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
    for line in _mapped():
        if found := _MAPPING.match(line):
            mapping = int(found[1], 16), int(found[2], 16), found[3]
        elif mapping and line.split() == ["Anonymous:", "0", "kB"]:
            yield mapping
            mapping = None
        elif not line[0].isupper():
            mapping = None
