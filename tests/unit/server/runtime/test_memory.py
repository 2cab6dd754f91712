"""Pages of mapped files are given back, and what was written into a mapping is kept; memory in use lies in large pages."""

import mmap
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from polyhead.server.runtime.cache import untouched_zeros
from polyhead.server.runtime.memory import SMAPS, WORTHWHILE, FilePages, use_large_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")

PAGES = 64


def resident_kilobytes(path: Path) -> int:
    lines = iter(SMAPS.read_text(errors="surrogateescape").splitlines())
    return next(
        int(next(line for line in lines if line.startswith("Rss:")).split()[1]) for line in lines if str(path) in line
    )


def test_pages_of_a_folders_files_are_given_back_unless_they_were_written_to(tmp_path: Path) -> None:
    content = b"w" * PAGES * mmap.PAGESIZE
    mapped = {}
    for name in ("read", "written"):
        (tmp_path / name).write_bytes(content)
        with (tmp_path / name).open("rb") as file:
            mapped[name] = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        assert mapped[name][:] == content
    mapped["written"][0] = ord("x")
    assert resident_kilobytes(tmp_path / "read") == PAGES * mmap.PAGESIZE // 1024
    FilePages(tmp_path)
    assert resident_kilobytes(tmp_path / "read") == 0
    assert mapped["read"][:] == content
    assert mapped["written"][0] == ord("x")


@pytest.mark.parametrize(("size", "goes"), [(WORTHWHILE, True), (WORTHWHILE - mmap.PAGESIZE, False)])
def test_what_a_call_reads_of_large_files_goes_again(tmp_path: Path, size: int, goes: bool) -> None:
    table = tmp_path / "table"
    with table.open("wb") as file:
        file.truncate(size)
    with table.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    files = FilePages(tmp_path)
    assert not any(mapped[:: mmap.PAGESIZE])
    assert resident_kilobytes(table) == size // 1024
    files.after_call()
    assert resident_kilobytes(table) == (0 if goes else size // 1024)


PAGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


def bytes_in_large_pages(address: int) -> int:
    """Of the mapping there."""
    inside = False
    for line in SMAPS.read_text(errors="surrogateescape").splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return 1024 * int(line.split()[1])
    raise LookupError(hex(address))


def own_bytes(address: int, size: int) -> int:
    """In memory, and nobody else's."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
        pages.seek(address // mmap.PAGESIZE * 8)
        entries = np.frombuffer(pages.read(size // mmap.PAGESIZE * 8), np.uint64)
    return mmap.PAGESIZE * int((entries >> np.uint64(56) & np.uint64(1)).sum())


@pytest.mark.skipif(
    not PAGE_SIZE.exists() or "[madvise]" not in PAGE_SIZE.with_name("enabled").read_text(),
    reason="this system has no large pages, or gives and merges them by itself",
)
def test_only_what_is_written_and_asks_for_no_small_pages_comes_to_lie_in_large_ones() -> None:
    large = int(PAGE_SIZE.read_text())
    memory = mmap.mmap(-1, 4 * large, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    place = np.frombuffer(memory, np.uint8)
    start = -place.ctypes.data % large
    written, read, sparse = (place[start + i * large : start + (i + 1) * large] for i in range(3))
    written[:] = content = np.random.default_rng(0).integers(0, 256, large, np.uint8)
    sparse[:: 2 * mmap.PAGESIZE] = 1
    assert not read[:: mmap.PAGESIZE].any()
    small = untouched_zeros((4 * large,), np.uint8)
    small[:] = 1
    if not use_large_pages():
        pytest.skip("this system collapses no pages")
    assert bytes_in_large_pages(place.ctypes.data) >= large
    assert bytes_in_large_pages(small.ctypes.data) == 0
    assert own_bytes(read.ctypes.data, large) == 0
    assert own_bytes(sparse.ctypes.data, large) == large // 2
    assert np.array_equal(written, content)


def test_names_of_mapped_files_may_be_any_bytes(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9")
    path.write_bytes(b"x" * mmap.PAGESIZE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:1] == b"x"
        assert resident_kilobytes(path) == mmap.PAGESIZE // 1024
        FilePages(tmp_path)
        assert resident_kilobytes(path) == 0
        use_large_pages()  # raises nothing either
