"""`polyhead verify` from the outside."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from polyhead.export.counterpart import require_counterpart
from polyhead.export.errors import ExportError
from polyhead.export.pipeline import export_checkpoint, load_source
from polyhead.export.verify_command import main
from polyhead.models.checkpoint import save_checkpoint
from polyhead.models.gpt import GPTConfig
from polyhead.server.bundle import Bundle, read_manifest
from tests.unit.export.exports import (
    SPECIAL,
    WORDS,
    gpt,
    gpt_bundle,
    gpt_config,
    tokenizer_json,
    write_classifier_checkpoint,
)


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
    error = refused([str(gpt_bundle()), "--against", str(other)], capsys)
    assert error.endswith("other: task is classify, the bundle's is generate\n")


def other_checkpoint(folder: Path, **fields: int) -> str:
    sizes = {"max_tokens": 40, "layers": 1, "heads": 2, "kv_heads": 1, "width": 32, "hidden": 19, **fields}
    model = gpt(GPTConfig(len(WORDS), **sizes))
    save_checkpoint(folder, gpt_config(model), model.state_dict(), tokenizer_json())
    return str(folder)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"layers": 2}, "cache.layers is 2, the bundle's is 1"),
        ({"kv_heads": 2}, "cache.kv_heads is 2, the bundle's is 1"),
        ({"width": 64}, "cache.head_size is 32, the bundle's is 16"),
        ({"hidden": 20}, "parameters is "),
        ({"max_tokens": 39}, "limits.max_tokens is 39, the bundle's is 40"),
    ],
)
def test_another_size_of_the_same_architecture_is_noticed(
    fields: dict[str, int], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = other_checkpoint(tmp_path / "other", **fields)
    assert f"{other}: {complaint}" in refused([str(gpt_bundle()), "--against", other], capsys)


def test_a_bundle_for_shorter_inputs_than_its_checkpoint_takes_is_held_against_it(tmp_path: Path) -> None:
    assert main([str(gpt_bundle()), "--against", other_checkpoint(tmp_path / "other", max_tokens=80)]) == 0


def test_another_tokenizer_over_the_same_weights_is_noticed(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))
    (checkpoint / "tokenizer.json").write_text(json.dumps(document, indent=1), "utf-8")
    assert main([str(gpt_bundle()), "--against", str(checkpoint)]) == 0
    vocabulary = document["model"]["vocab"]
    vocabulary["w5"], vocabulary["w6"] = vocabulary["w6"], vocabulary["w5"]
    (checkpoint / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    error = refused([str(gpt_bundle()), "--against", str(checkpoint)], capsys)
    assert "tokenizer.json model vocab w5 is 9, the bundle's is 8" in error


def test_other_end_tokens_are_noticed(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = gpt()
    config = replace(gpt_config(model), special_tokens=replace(SPECIAL, eos=("</s>",)))
    save_checkpoint(checkpoint, config, model.state_dict(), tokenizer_json())
    error = refused([str(gpt_bundle()), "--against", str(checkpoint)], capsys)
    assert "tokenizer.eos_token_ids is [2], the bundle's is [2, 3]" in error


def test_other_labels_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = export_checkpoint(write_classifier_checkpoint(tmp_path / "one"), tmp_path / "models" / "moods")
    other = write_classifier_checkpoint(tmp_path / "other", labels=("calm", "sad", "glad"))
    error = refused([str(bundle), "--against", str(other)], capsys)
    assert """labels is ["calm", "sad", "glad"], the bundle's is ["calm", "glad", "sad"]""" in error


@pytest.mark.parametrize(
    ("theirs", "ours", "complaint"),
    [
        ("a\nb\n", "a\nc\n", "chat template line 2 is b, the bundle's is c"),
        (None, "a", "chat template is none, the bundle's is a"),
        ("a\nb", None, 'chat template is "a\\nb", the bundle\'s is none'),
    ],
)
def test_another_chat_template_is_noticed(
    theirs: str | None, ours: str | None, complaint: str, checkpoint: Path, tmp_path: Path
) -> None:
    source, copy = load_source(checkpoint), shutil.copytree(gpt_bundle(), tmp_path / "1")
    manifest = read_manifest(copy)
    if ours is not None:
        manifest.tokenizer.chat_template = "chat_template.jinja"
        (copy / "chat_template.jinja").write_text(ours)
    with pytest.raises(ExportError, match=f"^it: {re.escape(complaint)}$"):
        require_counterpart(Bundle(copy, manifest), replace(source, chat_template=theirs), "it")


def test_a_changed_file_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(gpt_bundle(), tmp_path / "1")
    document = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    (copy / "tokenizer.json").write_text(json.dumps({**document, "version": "2.0"}), "utf-8")
    assert "tokenizer.json: " in refused([str(copy)], capsys)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "neither a bundle nor a model's folder" in refused([str(tmp_path)], capsys)
