"""Giving memory back to the system, and laying out what is kept in large pages."""

import ctypes
import errno
import mmap
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import structlog

log = structlog.get_logger(__name__)

SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)$")

_libc = ctypes.CDLL(None, use_errno=True)

_LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
_MADV_COLLAPSE = 25
"""Python's mmap does not know it yet."""

_IN_USE = 31 / 32
"""Share of a large page from which on it is taken up as a whole."""

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
        unwritten = (m for m in _mappings() if m.name.startswith(inside) and m.facts["Anonymous"] == "0 kB")
        mappings = [(m.begin, m.end - m.begin) for m in unwritten]
        _let_go(mappings)
        self._tables = [(begin, size) for begin, size in mappings if size >= WORTHWHILE]

    def after_call(self) -> None:
        """Let go of what the call has looked up."""
        _let_go(self._tables)


def use_large_pages() -> int:
    """Collapse the small pages that this process's weights and other lasting memory lie in into large ones; returns how many bytes lie
    in such now.

    A step of a small decoder reads all weights once, and translating addresses of small pages is a part of it (docs/decisions.md). Only
    what is nearly all written and nobody else's: to fill gaps would take up memory. Mappings that ask for small pages (a cache's,
    `cache.untouched_zeros`) keep them. Where Linux can't do it (before 6.1), where large pages are switched off, and elsewhere
    nothing happens. What changes meanwhile can cost memory, never content: the system collapses what is there at that moment.
    """
    try:
        if "[never]" in (_LARGE_PAGES / "enabled").read_text():
            return 0
        large = int((_LARGE_PAGES / "hpage_pmd_size").read_text())
        lasting = (m for m in _mappings() if m.permissions == "rw-p" and re.match(r"$|\[heap\]|\[anon:", m.name))
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
            return sum(
                _collapse(m.begin, m.end, large, pages) for m in lasting if "nh" not in m.facts["VmFlags"].split()
            )
    except OSError:
        return 0


def _collapse(begin: int, end: int, large: int, pages: BinaryIO) -> int:
    """Those large pages of a mapping that are worth it, in bytes. Raises OSError if the system knows no such thing."""
    begin, end = -(-begin // large) * large, end // large * large
    if begin >= end:
        return 0
    small = large // mmap.PAGESIZE  # in a large one
    # Eight bytes say of each small page where it is: bit 63, in memory, and 56, nobody else's (the page of zeros is everybody's).
    pages.seek(begin // mmap.PAGESIZE * 8)
    entries = np.frombuffer(pages.read((end - begin) // mmap.PAGESIZE * 8), np.uint64)
    own = (entries >> np.uint64(63)) & (entries >> np.uint64(56)) & np.uint64(1)
    collapsed = 0
    for place in np.flatnonzero(own[: len(own) // small * small].reshape(-1, small).mean(axis=1) >= _IN_USE).tolist():
        if _libc.madvise(ctypes.c_void_p(begin + place * large), ctypes.c_size_t(large), _MADV_COLLAPSE) == 0:
            collapsed += large
        elif ctypes.get_errno() == errno.EINVAL:
            raise OSError(errno.EINVAL, "this system collapses no pages")
    return collapsed


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


class _Mapping(NamedTuple):
    begin: int
    end: int
    permissions: str
    name: str
    """Of a file its path; in brackets what memory is for; or empty."""
    facts: dict[str, str]
    """What the system says of it besides, by its names."""


def _mappings() -> Iterator[_Mapping]:
    """Of this process; names of files may be any bytes."""
    if sys.platform != "linux":
        return
    mapping = None
    for line in SMAPS.read_text(errors="surrogateescape").split("\n"):
        if found := _MAPPING.match(line):
            if mapping:
                yield mapping
            mapping = _Mapping(int(found[1], 16), int(found[2], 16), found[3], found[4], {})
        elif mapping:
            fact, _, value = line.partition(":")
            mapping.facts[fact] = value.strip()
    if mapping:
        yield mapping
