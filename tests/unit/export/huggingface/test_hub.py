"""What is fetched from a hub: chosen of its list of files, with the library's two functions in the place of a hub."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from polyhead.export.__main__ import main
from polyhead.export.huggingface.hub import local_folder, wanted_files
from polyhead.models.checkpoint import CheckpointError

BESIDE = ["README.md", "chat_template.jinja", "config.json", "tokenizer.json"]
CODE = [".gitattributes", "LICENSE", "modeling_x.py", "original/consolidated.00.pth"]
NAME = "owner/name"


def test_a_checkpoint_is_fetched_with_its_card_and_without_code_or_pickle() -> None:
    names = [*BESIDE, *CODE, "model.safetensors", "pytorch_model.bin", "tf_model.h5"]
    assert wanted_files(NAME, names) == sorted([*BESIDE, "model.safetensors"])


def test_weights_are_fetched_once() -> None:
    parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    others = ["consolidated.safetensors", "model.fp16.safetensors", "onnx/model.safetensors", "onnx/config.json"]
    assert wanted_files(NAME, [*BESIDE, *parts, index, *others]) == sorted([*BESIDE, *parts, index])
    assert wanted_files(NAME, ["model.safetensors", *parts]) == ["model.safetensors"]


def test_steps_of_sentence_transformers_come_along() -> None:
    steps = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "modules.json"]
    assert wanted_files(NAME, [*steps, "model.safetensors"]) == sorted([*steps, "model.safetensors"])
    old = ["0_Transformer/config.json", "0_Transformer/model.safetensors", "modules.json"]
    assert wanted_files(NAME, old) == old


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["config.json", "pytorch_model.bin"],
            r"pytorch_model\.bin is pickle.*AutoConfig.*save_pretrained.*export name$",
        ),
        (["pytorch_model-00001-of-00002.bin"], r"pytorch_model-00001-of-00002\.bin is pickle"),
        (["modules.json", "pytorch_model.bin"], r"pytorch_model\.bin is pickle.*import SentenceTransformer as M"),
        (["modules.json", "model.safetensors", "2_Dense/pytorch_model.bin"], r"2_Dense/pytorch_model\.bin is pickle"),
        (["config.json", "model.gguf"], r"has no weights \(model\.safetensors\) on the hub"),
        (["1_Dense/model.safetensors", "training_args.bin"], r"has no weights \(model\.safetensors\) on the hub"),
    ],
)
def test_what_has_no_weights_as_safetensors_is_refused_before_anything_is_fetched(
    names: list[str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"^owner/name: {message}"):
        wanted_files(NAME, names)


def test_pickle_beside_safetensors_is_passed_over() -> None:
    names = ["2_Dense/model.safetensors", "2_Dense/pytorch_model.bin", "model.safetensors", "training_args.bin"]
    assert wanted_files(NAME, names) == ["2_Dense/model.safetensors", "model.safetensors"]


def test_a_revision_is_asked_for_and_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def info(name: str, *, revision: str | None) -> Any:
        asked.append((name, revision))
        names = ["config.json", "model.safetensors", "model.onnx"]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert local_folder(NAME, "v2") == tmp_path
    assert asked == [(NAME, "v2"), (NAME, "v2", ["config.json", "model.safetensors"])]


def test_what_was_fetched_before_is_found_without_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def info(name: str, *, revision: str | None) -> Any:
        raise OSError("no route\nto host")

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        assert local_files_only
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert local_folder(NAME) == tmp_path


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--revision is for names on the hub"):
        local_folder(str(tmp_path), "v2")
    with pytest.raises(CheckpointError, match="--revision is for names on the hub"):
        local_folder(str(tmp_path / "nothing"), "v2")
    assert local_folder(str(tmp_path)) == tmp_path


def test_the_command_line_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "models" / "x"), "--revision", "v2"]) == 1
    assert capsys.readouterr().err == (
        f"polyhead export: {tmp_path}: --revision is for names on the hub (OWNER/NAME), and this is a path\n"
    )
