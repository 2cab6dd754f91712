"""`polyhead export` from the outside: exit codes and what is printed."""

from pathlib import Path

import pytest

from polyhead.export.__main__ import main
from tests.unit.export.exports import write_classifier_checkpoint, write_gpt_checkpoint


def test_an_export_prints_a_table_and_where_the_bundle_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_gpt_checkpoint(tmp_path / "checkpoint")
    assert main([str(checkpoint), "--out", str(tmp_path / "models" / "tiny"), "--version", "3"]) == 0
    printed = capsys.readouterr().out
    for text in ("logits", "greedy tokens", "tiny, version 3", "bits are the same alone and among others", "Wrote"):
        assert text in printed
    assert (tmp_path / "models" / "tiny" / "3" / "bundle.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["checkpoint"], "--out"),
        (["checkpoint", "--out", "models/-x"], "NAME must match"),
        (["checkpoint", "--out", "models/x", "--version", "0"], "must be an integer of at least 1, got '0'"),
        (["checkpoint", "--out", "models/x", "--version", "two"], "got 'two'"),
        (["checkpoint", "--out", "models/x", "--opset", "9"], "--opset"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_a_missing_checkpoint_is_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--out", str(tmp_path / "models" / "x")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("polyhead export: ")
    assert "no such file" in error
    assert error.count("\n") == 1


def test_labels_that_are_too_few_are_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_classifier_checkpoint(tmp_path / "checkpoint", labels=("calm", "glad"))
    assert main([str(checkpoint), "--out", str(tmp_path / "models" / "x")]) == 1
    assert capsys.readouterr().err == "polyhead export: labels: there must be one for each of the 3 classes, got 2\n"
    assert list((tmp_path / "models").iterdir()) == []
