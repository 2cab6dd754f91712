"""Checkpoints that can't be imported say why in one line; what can be chosen is kept within the checkpoint's limits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from polyhead.export.__main__ import main
from polyhead.export.errors import ExportError
from polyhead.export.huggingface.importer import import_source
from polyhead.models.checkpoint import CheckpointError, Task
from tests.parity.huggingface import POSITIONS, VOCABULARY, edit_json, write_classifier, write_decoder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    write_decoder(tmp_path, "llama-linear", num_hidden_layers=1)
    return tmp_path


def change_weights(folder: Path, **changed: torch.Tensor | None) -> None:
    """Replace weights by the end of their name; None takes one away."""
    path = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for ending, tensor in changed.items():
        (name,) = [name for name in weights if name.endswith(f"{ending}.weight")]
        del weights[name]
        if tensor is not None:
            weights[name] = tensor
    save_file(weights, path, {"format": "pt"})


def test_truncated_weights_are_refused(llama: Path) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=str(llama)):
        import_source(llama)


def test_a_weight_that_is_missing_is_named_and_never_made_up(llama: Path) -> None:
    change_weights(llama, up_proj=None)
    with pytest.raises(CheckpointError, match=r"1 weights are missing, such as model\.layers\.0\.mlp\.up_proj\.weight"):
        import_source(llama)


def test_a_weight_of_another_shape_is_named_with_both(llama: Path) -> None:
    change_weights(llama, up_proj=torch.zeros(81, 48))
    with pytest.raises(
        CheckpointError, match=r"up_proj\.weight has shape \[81, 48\], config\.json makes it \[80, 48\]"
    ):
        import_source(llama)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(llama: Path) -> None:
    change_weights(llama, embed_tokens=torch.zeros(50, 48), lm_head=torch.zeros(50, 48))
    edit_json(llama / "config.json", vocab_size=50)
    with pytest.raises(ExportError, match=rf"'w93' has id {VOCABULARY - 1}, the model knows 50 tokens, 0 to 49"):
        import_source(llama)


def test_a_tokenizer_with_an_id_that_the_model_does_not_know_is_refused_however_few_tokens_it_has(llama: Path) -> None:
    document = json.loads((llama / "tokenizer.json").read_text("utf-8"))
    document["model"]["vocab"]["w93"] = 5000
    (llama / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    with pytest.raises(ExportError, match=rf"tokenizer\.json: 'w93' has id 5000, the model knows {VOCABULARY} tokens"):
        import_source(llama)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_finite_number_is_named(value: float, llama: Path) -> None:
    weight = torch.zeros(80, 48)
    weight[3, 4] = value
    change_weights(llama, up_proj=weight)
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.weight has values that are no finite"):
        import_source(llama)


def test_an_unknown_rotation_of_positions_is_named_with_those_there_are(llama: Path) -> None:
    edit_json(llama / "config.json", rope_parameters={"rope_type": "wobble", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(
        CheckpointError, match=r"config\.json: rope_parameters\.rope_type: must be one of .*yarn.*, is 'wobble'"
    ):
        import_source(llama)


def test_an_unknown_architecture_names_those_there_are(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_json(llama / "config.json", model_type="mamba", architectures=["MambaForCausalLM"])
    assert main([str(llama), "--out", str(llama / "models" / "x")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for text in ("MambaForCausalLM can't be imported", "Llama", "GPT-NeoX", "ModernBERT"):
        assert text in error


@pytest.mark.parametrize(
    ("architecture", "task", "message"),
    [
        (
            "LlamaForCausalLM",
            "embed",
            "LlamaForCausalLM can't be imported to embed: of Llama, .* only models that generate",
        ),
        (
            "LlamaForSequenceClassification",
            None,
            "LlamaForSequenceClassification can't be imported to classify: of Llama",
        ),
        ("LlamaForSomething", None, "doesn't say a task"),
    ],
)
def test_a_task_that_the_checkpoint_does_not_do_is_refused(
    architecture: str, task: Task | None, message: str, llama: Path
) -> None:
    edit_json(llama / "config.json", architectures=[architecture])
    with pytest.raises(ExportError, match=message):
        import_source(llama, task)


@pytest.mark.parametrize(("fields", "message"), [({"head_dim": 12}, "head size 12 must be a multiple of 8")])
def test_a_head_size_that_attention_cannot_take_is_refused(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_decoder(tmp_path, "llama-linear", num_hidden_layers=1, **fields)
    with pytest.raises(ExportError, match=message):
        import_source(tmp_path)


def test_the_longest_input_can_be_shortened_and_never_lengthened(llama: Path) -> None:
    assert import_source(llama).model.sizes.max_tokens == POSITIONS
    assert import_source(llama, max_tokens=20).model.sizes.max_tokens == 20
    with pytest.raises(ExportError, match=rf"--max-tokens must be from 2 to {POSITIONS}, .* got {POSITIONS + 1}"):
        import_source(llama, max_tokens=POSITIONS + 1)


def test_a_decoder_of_one_token_is_refused_in_one_line_and_one_of_two_is_exported(
    llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(llama), "--out", str(llama / "models" / "x"), "--max-tokens", "1"]) == 1
    assert capsys.readouterr().err == (
        f"polyhead export: --max-tokens must be from 2 to {POSITIONS}, which the checkpoint can take, got 1\n"
    )
    assert main([str(llama), "--out", str(llama / "models" / "x"), "--max-tokens", "2"]) == 0


def test_the_tokenizer_can_name_a_shorter_limit_for_an_encoder(tmp_path: Path) -> None:
    write_classifier(tmp_path, "roberta")
    assert import_source(tmp_path).model.sizes.max_tokens == 64  # 66 positions, counted from behind the padding id 1
    edit_json(tmp_path / "tokenizer_config.json", model_max_length=32)
    assert import_source(tmp_path).model.sizes.max_tokens == 32


def test_a_hub_that_cannot_be_reached_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    assert main(["nobody/nothing-at-all", "--out", "models/x"]) == 1
    error = capsys.readouterr().err
    assert "nobody/nothing-at-all: no such file or folder here, and the hub gave none" in error
    assert error.count("\n") == 1


def test_an_export_tells_which_settings_it_ignores_and_so_does_the_card(
    llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(llama / "generation_config.json", bad_words_ids=[[5]], min_length=4)
    assert main([str(llama), "--out", str(llama / "models" / "x")]) == 0
    assert capsys.readouterr().err == (
        "polyhead export: ignored from generation_config.json: bad_words_ids, min_length\n"
    )
    card = (llama / "models" / "x" / "1" / "MODEL.md").read_text("utf-8")
    assert "| ignored from generation_config.json | bad_words_ids, min_length |" in card


def test_an_export_that_ignores_nothing_says_nothing(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(llama), "--out", str(llama / "models" / "x")]) == 0
    assert capsys.readouterr().err == ""
    assert "ignored" not in (llama / "models" / "x" / "1" / "MODEL.md").read_text("utf-8")
