"""`polyhead export` from the outside: exit codes and what is printed."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import WhitespaceSplit

from polyhead.export import __main__ as command
from polyhead.export.__main__ import main
from polyhead.server.bundle import read_bundle
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
        (
            ["checkpoint", "--out", "models/x", "--version", "0"],
            "must be an integer of at least 1 with at most 18 digits, got '0'",
        ),
        (["checkpoint", "--out", "models/x", "--version", "two"], "got 'two'"),
        (["checkpoint", "--out", "models/x", "--version", "1" * 19], "with at most 18 digits"),
        (["checkpoint", "--out", "models/x", "--keep-fp32", "*"], "--keep-fp32 is for --quantize int8 or int4"),
        (["checkpoint", "--out", "models/x", "--block-size", "32"], "--block-size is for --quantize int4"),
        (["checkpoint", "--out", "models/x", "--quantize", "int8", "--block-size", "64"], "--block-size is for"),
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


def test_a_version_that_exists_is_found_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(command, "load_source")
    (tmp_path / "models" / "x" / "3").mkdir(parents=True)
    assert main(["checkpoint", "--out", str(tmp_path / "models" / "x"), "--version", "3"]) == 1
    error = capsys.readouterr().err
    assert error == f"polyhead export: {tmp_path}/models/x/3 exists; a version never changes, so take another one\n"


def test_manifest_and_card_say_how_the_bundle_was_made(tmp_path: Path) -> None:
    checkpoint = write_gpt_checkpoint(tmp_path / "gpt-of-mine")
    library = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    library.pre_tokenizer = WhitespaceSplit()
    library.save(str(checkpoint / "tokenizer.json"))
    (tmp_path / "text").write_text("w1 w2 w3 " * 10)
    options = ("--quantize", "int4", "--block-size", "16", "--keep-fp32", "*.down.*", "--keep-fp32", "*.query.*")
    arguments = [str(checkpoint), *options, "--max-loss", "9", "--eval-data", str(tmp_path / "text")]
    assert main([*arguments, "--out", str(tmp_path / "models" / "tiny")]) == 0
    folder = tmp_path / "models" / "tiny" / "1"
    origin = read_bundle(folder).manifest.origin
    assert (origin.checkpoint, origin.revision) == ("gpt-of-mine", "")
    assert (origin.block_size, list(origin.keep_fp32), origin.max_loss) == (16, ["*.down.*", "*.query.*"], 9)
    card = (folder / "MODEL.md").read_text("utf-8")
    for line in (
        "| quantization | int4, 16 weights a scale, fp32: *.down.* *.query.* |",
        "| checkpoint | gpt-of-mine |",
        "| largest loss accepted | 9 |",
        "| end tokens | 2, 3 |",
        "| chat template | no |",
        f"| made | {datetime.now(UTC):%Y-%m-%d} ",
        "| temperature | 1 |",
    ):
        assert line in card
    for file in ("MODEL.md", "bundle.json"):
        assert str(tmp_path) not in (folder / file).read_text("utf-8")


def test_labels_that_are_too_few_are_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_classifier_checkpoint(tmp_path / "checkpoint", labels=("calm", "glad"))
    assert main([str(checkpoint), "--out", str(tmp_path / "models" / "x")]) == 1
    assert capsys.readouterr().err == "polyhead export: labels: there must be one for each of the 3 classes, got 2\n"
    assert list((tmp_path / "models").iterdir()) == []
