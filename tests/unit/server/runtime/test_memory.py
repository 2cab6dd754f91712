"""Pages of mapped files are given back, and what was written into a mapping is kept."""

import mmap
import sys
from pathlib import Path

import pytest

from polyhead.server.runtime.memory import SMAPS, WORTHWHILE, FilePages

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
