"""Heads of imported encoders: labels of tokens, scores of pairs, and what makes scores of logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from transformers import BertConfig

from polyhead.export.errors import ExportError
from polyhead.export.exportable import ExportableEncoder
from polyhead.export.huggingface.encoder import activation_of
from polyhead.export.pipeline import ExportOptions, export_source, load_source
from polyhead.export.quantize import QuantizationOptions
from polyhead.server.bundle import read_bundle
from tests.parity.huggingface import (
    ENCODERS,
    LABELS,
    add_separators,
    add_tokenizer_class,
    edit_json,
    write_cross_encoder,
    write_modules,
    write_token_classifier,
)

TEXTS = "w1 w2 w3\nw5\nw9 w8 w7 w6\nw20 w4 w2\n"


@pytest.mark.long
@pytest.mark.parametrize("name", ENCODERS)
def test_a_token_classifier_is_imported_with_its_labels(name: str, tmp_path: Path) -> None:
    model = write_token_classifier(tmp_path / "checkpoint", name)
    source = load_source(tmp_path / "checkpoint")
    manifest = read_bundle(export_source(source, tmp_path / "models" / "tiny")).manifest
    assert manifest.labels_tokens
    assert tuple(manifest.labels) == tuple(LABELS.values())
    assert max(check.error for check in manifest.parity) < 2e-6
    assert manifest.traffic_independent
    ids = np.arange(3, 20)
    expected = model(torch.from_numpy(ids)[None]).logits.softmax(-1)[0].detach().numpy()
    np.testing.assert_allclose(encoder_of(source).reference(ids), expected, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", ENCODERS)
def test_a_cross_encoder_is_imported_and_told_which_text_is_which_if_it_has_an_embedding_for_it(
    name: str, tmp_path: Path
) -> None:
    write_cross_encoder(tmp_path / "checkpoint", name)
    source = load_source(tmp_path / "checkpoint")
    manifest = read_bundle(export_source(source, tmp_path / "models" / "tiny")).manifest
    has_types = name in ("bert", "electra", "roberta", "xlm-roberta", "camembert")  # by their tiny configurations
    assert ("token_type_ids" in [tensor.name for tensor in manifest.graphs[0].inputs]) == has_types
    assert max(check.error for check in manifest.parity) < 2e-6
    assert manifest.traffic_independent


@pytest.mark.long
@pytest.mark.parametrize(
    ("write", "figure"),
    [(write_token_classifier, "agreement_with_fp32"), (write_cross_encoder, "rank_agreement_with_fp32")],
)
def test_heads_are_quantized_and_measured(write: Any, figure: str, tmp_path: Path) -> None:
    write(tmp_path / "checkpoint", "bert")
    options = ExportOptions(quantization=QuantizationOptions("int8"), evaluation_text=TEXTS + "w1 w2\tw3\n")
    bundle = export_source(load_source(tmp_path / "checkpoint"), tmp_path / "models" / "tiny", options)
    manifest = read_bundle(bundle).manifest
    assert manifest.traffic_independent
    assert list(manifest.quality) == [figure]
    assert 0.5 < manifest.quality[figure] <= 1


def test_a_pair_is_scored_as_transformers_scores_it(tmp_path: Path) -> None:
    model = write_cross_encoder(tmp_path, "bert", num_hidden_layers=1)
    pair = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("w1 w2", "w3 w4 w5")
    ids, types = torch.tensor([pair.ids]), torch.tensor([pair.type_ids])
    expected = model(input_ids=ids, token_type_ids=types).logits.sigmoid()[0].detach().numpy()
    encoder = encoder_of(load_source(tmp_path))
    np.testing.assert_allclose(encoder.reference(ids[0].numpy(), types[0].numpy()), expected, atol=1e-6)
    assert abs(encoder.reference(ids[0].numpy()) - expected).max() > 1e-3  # types matter


@pytest.mark.parametrize(
    ("activation", "told"), [("Identity", True), ("Identity", False), ("Sigmoid", True), ("Tanh", True)]
)
def test_a_cross_encoder_that_sentence_transformers_saved_scores_as_there(
    activation: str, told: bool, tmp_path: Path
) -> None:
    """It is a modules.json with a Transformer alone, and the activation is in config_sentence_transformers.json only. `told`: the
    tokenizer tells the model which text is which."""
    library = pytest.importorskip("sentence_transformers")
    write_cross_encoder(tmp_path / "a", "bert", num_hidden_layers=1)
    add_tokenizer_class(tmp_path / "a")
    if not told:
        edit_json(tmp_path / "a" / "tokenizer_config.json", model_input_names=None)
    chosen = getattr(torch.nn, activation)()
    made = library.CrossEncoder(str(tmp_path / "a"), device="cpu", local_files_only=True, activation_fn=chosen)
    made.save_pretrained(str(tmp_path / "b"))
    assert (tmp_path / "b" / "modules.json").is_file()
    source = load_source(tmp_path / "b")
    assert source.task == "classify"
    assert encoder_of(source).takes_token_types == told
    assert score(source, tmp_path / "b") == pytest.approx(float(made.predict([("w1 w2", "w3 w4 w5")])[0]), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "transformer"),
    [({"model_type": "CrossEncoder"}, {}), ({}, {"transformer_task": "sequence-classification"})],
)
def test_a_cross_encoder_is_told_by_either_file_of_sentence_transformers(
    settings: dict[str, Any], transformer: dict[str, Any], tmp_path: Path
) -> None:
    model = write_cross_encoder(tmp_path, "bert", num_hidden_layers=1)
    write_modules(tmp_path, "Transformer")
    activation = {"activation_fn": "torch.nn.modules.linear.Identity"}
    edit_json(tmp_path / "config_sentence_transformers.json", **settings, **activation)
    edit_json(tmp_path / "sentence_bert_config.json", **transformer)
    source = load_source(tmp_path)
    assert source.task == "classify"
    pair = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("w1 w2", "w3 w4 w5")
    logits = model(input_ids=torch.tensor([pair.ids]), token_type_ids=torch.tensor([pair.type_ids])).logits
    assert score(source, tmp_path) == pytest.approx(logits.item(), abs=1e-6)


def test_a_cross_encoder_of_several_steps_is_refused(tmp_path: Path) -> None:
    write_cross_encoder(tmp_path, "bert", num_hidden_layers=1)
    write_modules(tmp_path, "Transformer", "LogitScore")
    edit_json(tmp_path / "config_sentence_transformers.json", model_type="CrossEncoder")
    with pytest.raises(ExportError, match=r"a cross-encoder .* Transformer alone, is \['Transformer', 'LogitScore'\]"):
        load_source(tmp_path)


def score(source: Any, folder: Path) -> float:
    """Of a pair of texts."""
    pair = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("w1 w2", "w3 w4 w5")
    found = encoder_of(source).reference(np.array(pair.ids), np.array(pair.type_ids))
    assert found.shape == (1,)
    return float(found[0])


def test_types_are_left_out_where_tokenizer_or_model_has_none(tmp_path: Path) -> None:
    write_cross_encoder(tmp_path / "one", "bert", num_hidden_layers=1, type_vocab_size=1)
    assert not encoder_of(load_source(tmp_path / "one")).takes_token_types
    write_cross_encoder(tmp_path / "none", "bert", num_hidden_layers=1)
    edit_json(tmp_path / "none" / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    assert not encoder_of(load_source(tmp_path / "none")).takes_token_types
    write_cross_encoder(tmp_path / "two", "bert", num_hidden_layers=1)
    assert encoder_of(load_source(tmp_path / "two")).takes_token_types
    path = tmp_path / "two" / "tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(path))
    library.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 1))  # all types are 0
    library.save(str(path))
    assert not encoder_of(load_source(tmp_path / "two")).takes_token_types


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_labels": 3}, "Softmax(dim=-1)"),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, "Softmax(dim=-1)"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "Sigmoid()"),
        ({"num_labels": 3, "problem_type": "regression"}, "Identity()"),
        ({"num_labels": 1}, "Sigmoid()"),
        ({"num_labels": 1, "problem_type": "regression"}, "Identity()"),
        ({"num_labels": 1, "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "Identity()"),
        ({"num_labels": 1, "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, "Tanh()"),
        ({"num_labels": 3, "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "Softmax(dim=-1)"),
        ({"num_labels": 3, "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, "Sigmoid()"),
        ({"num_labels": 3, "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Softmax"}}, "Softmax(dim=-1)"),
    ],
)  # fmt: skip
def test_scores_are_made_of_logits_as_the_checkpoint_says(fields: dict[str, Any], expected: str) -> None:
    assert str(activation_of(BertConfig(**fields))) == expected


def test_an_activation_beside_the_model_comes_before_one_in_its_configuration() -> None:
    fields: dict[str, Any] = {
        "num_labels": 1,
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
    }
    config = BertConfig(**fields)
    assert str(activation_of(config, "torch.nn.modules.activation.Tanh")) == "Tanh()"


def test_an_activation_that_is_not_torchs_is_refused() -> None:
    fields: dict[str, Any] = {"num_labels": 1, "sentence_transformers": {"activation_fn": "os.system"}}
    config = BertConfig(**fields)
    with pytest.raises(ExportError, match=r"must be a module of torch\.nn, is os\.system"):
        activation_of(config)


def test_a_tokenizer_that_joins_texts_takes_no_pairs(tmp_path: Path) -> None:
    from polyhead.server.tokenizer import takes_pairs
    from tests.parity.huggingface import tokenizer

    assert not takes_pairs(tokenizer())
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    add_separators(tmp_path)
    assert takes_pairs(tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")))


def encoder_of(source: Any) -> ExportableEncoder:
    assert isinstance(source.model, ExportableEncoder)
    return source.model
