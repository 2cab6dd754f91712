"""Every architecture of encoders that can be imported, and the heads of sentence-transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from polyhead.export.errors import ExportError
from polyhead.export.exportable import ExportableEncoder
from polyhead.export.huggingface import architectures
from polyhead.export.pipeline import export_source, load_source
from polyhead.models.checkpoint import CheckpointError
from polyhead.server.bundle import read_bundle
from polyhead.v1 import bundle_pb2
from tests.parity.huggingface import (
    ENCODERS,
    LABELS,
    add_tokenizer_class,
    edit_json,
    write_classifier,
    write_embedder,
    write_modules,
)

SMALL_SUITE = ("bert",)
"""The others, each some ten seconds of processor time, are long tests."""

ALL = [pytest.param(name, marks=() if name in SMALL_SUITE else pytest.mark.long) for name in ENCODERS]


@pytest.mark.parametrize("name", ALL)
def test_a_classifier_is_imported_with_its_labels(name: str, tmp_path: Path) -> None:
    model = write_classifier(tmp_path / "checkpoint", name)
    source = load_source(tmp_path / "checkpoint")
    manifest = read_bundle(export_source(source, tmp_path / "models" / "tiny")).manifest
    assert tuple(manifest.labels) == tuple(LABELS.values())
    assert max(check.error for check in manifest.parity) < 2e-6
    assert manifest.traffic_independent
    ids = np.arange(3, 20)
    expected = model(torch.from_numpy(ids)[None]).logits.softmax(-1)[0].detach().numpy()
    np.testing.assert_allclose(encoder_of(source).reference(ids), expected, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", ENCODERS)
def test_an_embedder_is_imported_with_mean_pooling_unless_its_folder_says_otherwise(name: str, tmp_path: Path) -> None:
    model = write_embedder(tmp_path / "checkpoint", name)
    source = load_source(tmp_path / "checkpoint")
    manifest = read_bundle(export_source(source, tmp_path / "models" / "tiny")).manifest
    assert manifest.pooling == bundle_pb2.POOLING_MEAN
    assert not manifest.normalized
    assert max(check.error for check in manifest.parity) < 2e-6
    assert manifest.traffic_independent
    ids = np.arange(3, 20)
    expected = model(torch.from_numpy(ids)[None]).last_hidden_state.mean(1)[0].detach().numpy()
    np.testing.assert_allclose(encoder_of(source).reference(ids), expected, atol=1e-5)


def test_every_supported_encoder_is_held() -> None:
    assert ENCODERS.keys() == architectures.ENCODERS.keys()


def test_sentence_transformers_steps_give_what_that_library_gives(tmp_path: Path) -> None:
    """Three poolings side by side, a dense layer, length 1, and a longest input."""
    write_embedder(tmp_path, "bert")
    modes = ["cls", "weightedmean", "max"]
    write_sentence_modules(tmp_path, {"pooling_mode": modes, "embedding_dimension": 48})
    manifest = read_bundle(export_source(load_source(tmp_path), tmp_path / "models" / "tiny")).manifest
    assert manifest.normalized
    assert manifest.pooling == bundle_pb2.POOLING_UNSPECIFIED  # several
    assert (manifest.limits.max_tokens, manifest.limits.embedding_size) == (40, 24)
    assert manifest.traffic_independent
    library = sentence_transformer(tmp_path)
    for text in ("w1 w2 w3", "w5", " ".join(f"w{i}" for i in range(39))):
        ids = np.array([3 + int(word[1:]) for word in text.split()])
        np.testing.assert_allclose(
            encoder_of(load_source(tmp_path)).reference(ids), library.encode(text), rtol=1e-4, atol=1e-6
        )


def test_a_transformer_in_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    """As sentence-transformers wrote it before version 1."""
    write_embedder(tmp_path / "new", "bert", num_hidden_layers=1)
    write_sentence_modules(
        tmp_path / "new", {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}, dense=False
    )
    shutil.copytree(
        tmp_path / "new", tmp_path / "old" / "0_Transformer", ignore=shutil.ignore_patterns("modules.json", "?_*")
    )
    for name in ("modules.json", "1_Pooling", "2_Normalize"):
        (tmp_path / "new" / name).rename(tmp_path / "old" / name)
    entries = json.loads((tmp_path / "old" / "modules.json").read_text())
    entries[0]["path"] = "0_Transformer"
    (tmp_path / "old" / "modules.json").write_text(json.dumps(entries))
    (tmp_path / "old" / "config.json").write_text('{"__version__": "0.2.5"}')
    source = load_source(tmp_path / "old")
    assert source.task == "embed"
    assert source.model.sizes.max_tokens == 40
    ids = np.array([4, 5, 6])
    actual = encoder_of(source).reference(ids)
    np.testing.assert_allclose(actual, sentence_transformer(tmp_path / "old").encode("w1 w2 w3"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "flag", ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
)
def test_each_way_of_pooling_gives_what_sentence_transformers_gives(flag: str, tmp_path: Path) -> None:
    write_embedder(tmp_path, "bert", num_hidden_layers=1)
    write_sentence_modules(tmp_path, {"word_embedding_dimension": 48, f"pooling_mode_{flag}": True}, dense=False)
    actual = encoder_of(load_source(tmp_path)).reference(np.array([4, 5, 6]))
    np.testing.assert_allclose(actual, sentence_transformer(tmp_path).encode("w1 w2 w3"), rtol=1e-4, atol=1e-6)


def test_one_label_becomes_a_number_between_0_and_1(tmp_path: Path) -> None:
    model = write_classifier(tmp_path, "bert", id2label={0: "score"}, label2id={"score": 0})
    ids = np.arange(3, 9)
    expected = model(torch.from_numpy(ids)[None]).logits.sigmoid()[0].detach().numpy()
    np.testing.assert_allclose(encoder_of(load_source(tmp_path)).reference(ids), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "pooling", "message"),
    [
        (["Transformer", "LSTM"], {}, "second module must be a Pooling"),
        (["Transformer", "Pooling", "LayerNorm"], {"pooling_mode": "mean"}, "LayerNorm can't be imported"),
        (["Pooling"], {}, "first module must be a Transformer"),
        (["Transformer", "Pooling"], {"pooling_mode": "attention"}, "pooling_mode: must be among cls, mean"),
    ],
)
def test_steps_that_cannot_be_imported_are_named(
    steps: list[str], pooling: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_embedder(tmp_path, "bert", num_hidden_layers=1)
    (tmp_path / "1_Pooling").mkdir()
    edit_json(tmp_path / "1_Pooling" / "config.json", **pooling)
    entries = [
        {"idx": i, "path": "1_Pooling" if i else "", "type": f"some.where.{step}"} for i, step in enumerate(steps)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(entries))
    with pytest.raises((CheckpointError, ExportError), match=message):
        load_source(tmp_path)


def test_prompts_that_sentence_transformers_saved_are_named_and_not_applied(tmp_path: Path) -> None:
    """Whoever wants one puts it in front of the text: what that library does, too."""
    library = pytest.importorskip("sentence_transformers")
    write_embedder(tmp_path / "a", "bert", num_hidden_layers=1)
    add_tokenizer_class(tmp_path / "a")
    prompts = {"query": "w1 w2 ", "passage": "w7 ", "document": ""}
    made = library.SentenceTransformer(
        str(tmp_path / "a"), device="cpu", local_files_only=True, prompts=prompts, default_prompt_name="query"
    )
    made.set_pooling_include_prompt(False)
    made.save_pretrained(str(tmp_path / "b"))
    source = load_source(tmp_path / "b")
    assert source.ignored == (
        'config_sentence_transformers.json: default_prompt_name (query: "w1 w2 "), prompts (passage: "w7 "); '
        "1_Pooling/config.json: include_prompt: false"
    )
    assert source.training["ignored from 1_Pooling/config.json"] == "include_prompt: false"
    made.set_pooling_include_prompt(True)
    actual = encoder_of(source).reference(np.array([4, 5, 6]))
    np.testing.assert_allclose(actual, made.encode("w3"), rtol=1e-4, atol=1e-6)


def test_settings_of_sentence_transformers_that_say_nothing_are_not_named(tmp_path: Path) -> None:
    write_embedder(tmp_path, "bert", num_hidden_layers=1)
    write_sentence_modules(tmp_path, {"pooling_mode": "mean", "include_prompt": True}, dense=False)
    prompts = {"query": "", "document": ""}
    for settings in (
        {"prompts": prompts, "default_prompt_name": "query"},
        {"prompts": [1], "default_prompt_name": [2]},
    ):
        edit_json(tmp_path / "config_sentence_transformers.json", **settings)
        assert load_source(tmp_path).ignored == ""


def write_sentence_modules(folder: Path, pooling: dict[str, Any], dense: bool = True) -> None:
    """modules.json with pooling, a dense layer perhaps, and normalization."""
    names = ["Transformer", "Pooling", *(["Dense"] if dense else []), "Normalize"]
    write_modules(folder, *names)
    edit_json(folder / "sentence_bert_config.json", max_seq_length=40, do_lower_case=False)
    add_tokenizer_class(folder)
    edit_json(folder / "1_Pooling" / "config.json", **pooling)
    if dense:
        sizes = {"in_features": 144, "out_features": 24, "bias": True}
        edit_json(folder / "2_Dense" / "config.json", **sizes, activation_function="torch.nn.modules.activation.Tanh")
        weights = {"linear.weight": torch.randn(24, 144) * 0.1, "linear.bias": torch.randn(24)}
        save_file(weights, folder / "2_Dense" / "model.safetensors")


def sentence_transformer(folder: Path) -> Any:
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def encoder_of(source: Any) -> ExportableEncoder:
    assert isinstance(source.model, ExportableEncoder)
    return source.model
