"""The text that a checkpoint keeps for measuring."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.models.checkpoint import HELD_OUT_CHARACTERS, HELD_OUT_FILE, save_held_out


def test_few_texts_are_kept_whole_a_line_each(tmp_path: Path) -> None:
    save_held_out(tmp_path, ["ein", "zwei", "drei"])
    assert (tmp_path / HELD_OUT_FILE).read_text("utf-8") == "ein\nzwei\ndrei"


@settings(max_examples=20)
@given(count=st.integers(1, 400), length=st.integers(4, 3000))
def test_of_many_texts_some_from_everywhere_are_kept_and_never_too_many(count: int, length: int) -> None:
    with TemporaryDirectory() as folder:
        save_held_out(Path(folder), [f"{number:04}".ljust(length, ".") for number in range(count)])
        kept = (Path(folder) / HELD_OUT_FILE).read_text("utf-8")
    assert 0 < len(kept) <= HELD_OUT_CHARACTERS
    numbers = [int(line[:4]) for line in kept.splitlines() if len(line) >= 4]
    assert max(numbers) >= 0.75 * (count - 1) - 2
