"""`polyhead verify` from the outside."""

import json
import shutil
from pathlib import Path

import pytest

from polyhead.export.verify_command import main
from polyhead.models.checkpoint import save_checkpoint
from tests.unit.export.exports import gpt, gpt_bundle, gpt_config, tokenizer_json, write_classifier_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What the bundle was exported from."""
    model = gpt()
    save_checkpoint(tmp_path / "checkpoint", gpt_config(model), model.state_dict(), tokenizer_json())
    return tmp_path / "checkpoint"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("polyhead verify: ")
    assert error.count("\n") == 1
    return error


def test_a_bundle_is_held_against_its_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(gpt_bundle()), "--against", str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    for text in ("logits", "greedy tokens", "bits are the same", "All 4 files"):
        assert text in printed


def test_without_a_checkpoint_files_and_bits_are_checked_for_the_newest_version(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([str(gpt_bundle().parent)]) == 0
    printed = capsys.readouterr().out
    assert "when it was exported" in printed.replace("\n", " ")
    assert "bits are the same" in printed


def test_a_checkpoint_with_other_weights_is_noticed(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = gpt()
    model.norm.weight.data += 0.01
    save_checkpoint(checkpoint, gpt_config(model), model.state_dict(), tokenizer_json())
    assert "disagree" in refused([str(gpt_bundle()), "--against", str(checkpoint)], capsys)


def test_a_checkpoint_of_another_kind_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_classifier_checkpoint(tmp_path / "other")
    assert "is a encoder for classify" in refused([str(gpt_bundle()), "--against", str(other)], capsys)


def test_a_changed_file_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(gpt_bundle(), tmp_path / "1")
    document = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    (copy / "tokenizer.json").write_text(json.dumps({**document, "version": "2.0"}), "utf-8")
    assert "tokenizer.json: " in refused([str(copy)], capsys)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "neither a bundle nor a model's folder" in refused([str(tmp_path)], capsys)
