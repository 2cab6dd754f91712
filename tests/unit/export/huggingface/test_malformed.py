"""Files of a checkpoint that say what they can't: one line with the file, the field, its limit and what was given."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from polyhead.export.__main__ import main
from polyhead.export.errors import ExportError
from polyhead.export.huggingface.folder import CheckpointFolder
from polyhead.export.huggingface.importer import import_source
from polyhead.models.checkpoint import CheckpointError
from tests.parity.huggingface import VOCABULARY, edit_json, tokenizer, write_decoder, write_embedder, write_modules


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    edit_json(tmp_path / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    (tmp_path / "tokenizer.json").write_text(tokenizer().to_str(), "utf-8")
    return tmp_path


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """An embedder of width 48 with a Dense behind its pooling."""
    write_embedder(tmp_path, "bert", num_hidden_layers=1)
    write_modules(tmp_path, "Transformer", "Pooling", "Dense")
    edit_json(tmp_path / "1_Pooling" / "config.json", pooling_mode="mean")
    edit_json(tmp_path / "2_Dense" / "config.json", in_features=48, out_features=24)
    weights = {"linear.weight": torch.zeros(24, 48), "linear.bias": torch.zeros(24)}
    save_file(weights, tmp_path / "2_Dense" / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 50.5}, "top_k: must be an integer of at least 0, is 50.5"),
        ({"top_k": -2}, "top_k: must be an integer of at least 0, is -2"),
        ({"temperature": "0.7"}, "temperature: must be a number, is '0.7'"),
        ({"temperature": math.nan}, "temperature: must be 0 to 100, is nan"),
        ({"top_p": True}, "top_p: must be a number, is True"),
        ({"top_p": 0}, "top_p: must be above 0 and at most 1, is 0"),
    ],
)
def test_sampling(fields: dict[str, Any], message: str, folder: Path) -> None:
    edit_json(folder / "generation_config.json", **fields)
    with pytest.raises(CheckpointError) as caught:
        CheckpointFolder(folder).sampling()
    assert str(caught.value) == f"{folder / 'generation_config.json'}: {message}"


def test_the_line_is_all_that_an_export_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_decoder(tmp_path, "llama-linear", num_hidden_layers=1)
    edit_json(tmp_path / "generation_config.json", temperature="0.7")
    capsys.readouterr()
    assert main([str(tmp_path), "--out", str(tmp_path / "models" / "x")]) == 1
    assert capsys.readouterr().err == (
        f"polyhead export: {tmp_path / 'generation_config.json'}: temperature: must be a number, is '0.7'\n"
    )


def test_what_transformers_would_stumble_over_is_read_first(tmp_path: Path) -> None:
    write_decoder(tmp_path, "llama-linear", num_hidden_layers=1)
    (tmp_path / "generation_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: must be a JSON object, is a list"):
        import_source(tmp_path)


def test_an_error_that_transformers_has_no_words_for_says_that_it_is_its(tmp_path: Path) -> None:
    write_decoder(tmp_path, "llama-linear", num_hidden_layers=1)
    edit_json(tmp_path / "config.json", num_attention_heads=0)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}: transformers can't load it: ZeroDivisionError: "):
        import_source(tmp_path)


@pytest.mark.parametrize(
    ("limit", "expected"), [(math.inf, None), (10**30, 10**30), (512.0, 512), (None, None), (-1, None)]
)
def test_a_tokenizers_limit_may_be_none_or_infinite(limit: Any, expected: int | None, folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", model_max_length=limit)
    assert CheckpointFolder(folder).tokenizer_limit == expected


@pytest.mark.parametrize("limit", ["512", 0.5, math.nan, [512]])
def test_a_tokenizers_limit_that_is_no_number_of_tokens(limit: Any, folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", model_max_length=limit)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: model_max_length: must be an? .*, is "):
        _ = CheckpointFolder(folder).tokenizer_limit


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([{"content": "<a>"}], r"added_tokens\[0\]\.id: must be an integer of at least 0, is missing"),
        ([{"id": 1}, "<a>"], r"added_tokens\[1\]: must be an object, is '<a>'"),
        ({"<a>": 1}, "added_tokens: must be a list, is {'<a>': 1}"),
    ],
)
def test_added_tokens(added: Any, message: str, folder: Path) -> None:
    edit_json(folder / "tokenizer.json", added_tokens=added)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: {message}"):
        CheckpointFolder(folder).tokenizer_json(VOCABULARY)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ([{"template": "{{ x }}"}], r"chat_template\[0\]: must be an object with a name and a template.*'{{ x }}'"),
        ([{"name": "default", "template": "x"}, 7], r"chat_template\[1\]: must be an object .*, is 7"),
        (7, "chat_template: must be a text, or a list of them with names, is 7"),
    ],
)
def test_chat_templates(template: Any, message: str, folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", chat_template=template)
    with pytest.raises(CheckpointError, match=rf"tokenizer_config\.json: {message}"):
        _ = CheckpointFolder(folder).chat_template


@pytest.mark.parametrize("given", ["LlamaForCausalLM", [7], {"a": 1}])
def test_architectures(given: Any, folder: Path) -> None:
    edit_json(folder / "config.json", architectures=given)
    with pytest.raises(CheckpointError, match=r"config\.json: architectures: must be a list of names of classes, is "):
        _ = CheckpointFolder(folder).architecture


@pytest.mark.parametrize("given", [{"first": "a"}, ["a"], {"0": "a", "x": "b"}])
def test_labels(given: Any, folder: Path) -> None:
    edit_json(folder / "config.json", id2label=given)
    with pytest.raises(CheckpointError, match=r"config\.json: id2label: must be an object with a label for each index"):
        CheckpointFolder(folder).labels()


@pytest.mark.parametrize("mode", [5, ["mean", 5], {"mean": True}, "attention", ["mean", "attention"]])
def test_pooling(mode: Any, sentences: Path) -> None:
    edit_json(sentences / "1_Pooling" / "config.json", pooling_mode=mode)
    with pytest.raises(CheckpointError, match=r"1_Pooling/config\.json: pooling_mode: must be among cls, mean.*, is "):
        import_source(sentences)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_features": None}, "in_features: must be an integer of at least 1, is missing"),
        ({"out_features": "24"}, "out_features: must be an integer of at least 1, is '24'"),
        ({"use_residual": True}, "use_residual: must be False, is True"),
        ({"module_input_name": "token_embeddings"}, "module_input_name: must be 'sentence_embedding', is 'token_emb"),
    ],
)
def test_a_dense_layer(fields: dict[str, Any], message: str, sentences: Path) -> None:
    edit_json(sentences / "2_Dense" / "config.json", **fields)
    with pytest.raises(CheckpointError, match=rf"2_Dense/config\.json: {message}"):
        import_source(sentences)


def test_a_dense_layer_that_does_not_fit_what_comes_before_it(sentences: Path) -> None:
    assert import_source(sentences).model.sizes.vocabulary_size == VOCABULARY
    edit_json(sentences / "1_Pooling" / "config.json", pooling_mode=["mean", "max"])
    with pytest.raises(ExportError, match=r"2_Dense/config\.json: in_features: must be 96, .*before it, is 48"):
        import_source(sentences)


def test_a_dense_layer_whose_weights_are_no_finite_numbers(sentences: Path) -> None:
    weights = {"linear.weight": torch.full((24, 48), math.nan), "linear.bias": torch.zeros(24)}
    save_file(weights, sentences / "2_Dense" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"2_Dense/model\.safetensors: weight has values that are no finite"):
        import_source(sentences)


def test_an_activation_that_needs_arguments(sentences: Path) -> None:
    edit_json(sentences / "2_Dense" / "config.json", activation_function="torch.nn.Linear")
    with pytest.raises(ExportError, match=r"without arguments, is torch\.nn\.Linear"):
        import_source(sentences)


def test_a_longest_input_of_sentence_transformers(sentences: Path) -> None:
    edit_json(sentences / "sentence_bert_config.json", max_seq_length="40")
    with pytest.raises(CheckpointError, match=r"sentence_bert_config\.json: max_seq_length: must be an integer"):
        import_source(sentences)
