"""Pages of mapped files are given back, and what was written into a mapping is kept; memory in use lies in large pages."""

import mmap
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.server.runtime.cache import untouched_zeros
from polyhead.server.runtime.memory import SMAPS, WORTHWHILE, FilePages, use_large_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")

PAGES = 64


def resident_kilobytes(path: Path) -> int:
    lines = iter(SMAPS.read_text().splitlines())
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


LARGE = 2 * 1024 * 1024


def anonymous() -> mmap.mmap:
    return mmap.mmap(-1, 8 * LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def address_of(memory: Any) -> int:
    return np.frombuffer(memory, np.uint8).ctypes.data


def resident_pages(memory: mmap.mmap) -> int:
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
        pages.seek(address_of(memory) // mmap.PAGESIZE * 8)
        entries = np.frombuffer(pages.read(len(memory) // mmap.PAGESIZE * 8), np.uint64)
    return int((entries >> np.uint64(63)).sum())


def bytes_in_large_pages(address: int) -> int:
    """Of the mapping there."""
    lines = iter(SMAPS.read_text().splitlines())
    for line in lines:
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return 1024 * int(line.split()[1])
    raise LookupError(hex(address))


def test_memory_in_use_comes_to_lie_in_large_pages_and_what_is_free_or_asks_for_small_ones_is_left_alone() -> None:
    full, sparse, small = anonymous(), anonymous(), untouched_zeros((8 * LARGE,), np.uint8)
    full[:] = content = np.random.default_rng(0).bytes(len(full))
    sparse[:: 2 * mmap.PAGESIZE] = b"s" * (len(sparse) // (2 * mmap.PAGESIZE))
    small[:] = 1
    if not use_large_pages():
        pytest.skip("this system collapses no pages")
    assert bytes_in_large_pages(address_of(full)) >= 7 * LARGE
    assert bytes_in_large_pages(small.ctypes.data) == 0
    assert resident_pages(sparse) == len(sparse) // (2 * mmap.PAGESIZE)
    assert full[:] == content
