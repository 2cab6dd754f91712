"""What a checkpoint is called in a bundle."""

from pathlib import Path

import pytest

from polyhead.export.origin import Checkpoint


def test_a_folder_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert Checkpoint.from_folder(tmp_path / "mine") == Checkpoint.from_folder(Path()) == Checkpoint("mine")
    assert Checkpoint.from_folder(Path("/")) == Checkpoint("")


def test_a_copy_of_the_hub_is_called_as_there(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--owner--a--name" / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    assert Checkpoint.from_folder(folder) == Checkpoint("owner/a--name", "0123abc")
