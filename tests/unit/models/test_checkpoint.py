import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from polyhead.models.checkpoint import (
    CheckpointConfig,
    CheckpointError,
    SpecialTokens,
    build_model,
    load_checkpoint,
    load_config,
    save_checkpoint,
)
from polyhead.models.encoder import ClassifierConfig, EmbedderConfig
from polyhead.models.gpt import GPTConfig
from polyhead.models.seq2seq import RNNSeq2SeqConfig, TransformerSeq2SeqConfig

ENCODER = {"vocabulary_size": 20, "max_tokens": 8, "layers": 1, "heads": 2, "width": 8, "hidden": 16}
CONFIGS = [
    CheckpointConfig(
        "generate",
        "gpt",
        asdict(GPTConfig(20, 8, layers=1, heads=2, kv_heads=1, width=8, hidden=16)),
        special_tokens=SpecialTokens(bos="<|bos|>", eos=("<|eos|>", "ø")),
        quality={"validation_loss": 1.5},
        training={"recipe": "gpt", "steps": 10},
    ),
    CheckpointConfig("generate", "rnn-seq2seq", asdict(RNNSeq2SeqConfig(20, 24, width=8, embedding_size=8))),
    CheckpointConfig(
        "generate",
        "transformer-seq2seq",
        asdict(TransformerSeq2SeqConfig(20, 24, layers=1, heads=1, width=8, hidden=16)),
    ),
    CheckpointConfig("classify", "encoder", asdict(ClassifierConfig(**ENCODER, classes=2)), labels=("no", "ja")),
    CheckpointConfig(
        "embed", "encoder", asdict(EmbedderConfig(**ENCODER, embedding_size=4)), SpecialTokens(pad="<|pad|>")
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path, CONFIGS[0], build_model(CONFIGS[0]).state_dict(), "{}")
    return tmp_path


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.task)
def test_what_was_saved_is_loaded_again(tmp_path: Path, config: CheckpointConfig) -> None:
    model = build_model(config)
    translates = "seq2seq" in config.architecture
    source_tokenizer = tokenizer_json(20) if translates else None
    save_checkpoint(tmp_path / "new", config, model.state_dict(), '{"tokens": "é"}', source_tokenizer)
    loaded_config, loaded = load_checkpoint(tmp_path / "new")
    assert loaded_config == config
    assert type(loaded) is type(model)
    assert not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert (tmp_path / "new" / "tokenizer.json").read_text("utf-8") == '{"tokens": "é"}'
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "config.json",
        "model.safetensors",
        *(["source_tokenizer.json"] if translates else []),
        "tokenizer.json",
    ]


def tokenizer_json(size: int) -> str:
    return str(Tokenizer(models.BPE({chr(65 + id): id for id in range(size)}, [])).to_str())


@pytest.mark.parametrize(
    ("source_tokenizer", "message"),
    [
        (
            None,
            r"/tokenizer.json: has 24 tokens, but model.source_vocabulary_size is 20, and there is no source_tokenizer.json$",
        ),
        (tokenizer_json(19), r"/source_tokenizer.json: has 19 tokens, but model.source_vocabulary_size is 20$"),
        (tokenizer_json(21), r"/source_tokenizer.json: has 21 tokens, but"),
        ("{}", r"/source_tokenizer.json: not a tokenizer: "),
    ],
)
def test_sources_are_not_read_with_another_vocabulary_than_the_model_learned(
    tmp_path: Path, source_tokenizer: str | None, message: str
) -> None:
    weights = build_model(CONFIGS[1]).state_dict()
    save_checkpoint(tmp_path, CONFIGS[1], weights, tokenizer_json(24), source_tokenizer)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / "config.json").read_text())
    change(document)
    (folder / "config.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.update(format="other"), "not a checkpoint written by polyhead train"),
        (lambda d: d.update(format_version=2), "format version 2 is not the one this release reads, 1"),
        (lambda d: d.pop("task"), "malformed: .*task"),
        (lambda d: d.pop("labels"), "malformed: .*labels"),
        (lambda d: d.update(extra=1), "malformed: .*extra"),
        (lambda d: d.update(special_tokens=None), "malformed"),
    ],
)
def test_a_configuration_that_cannot_be_read_names_its_file_and_fault(
    folder: Path, change: Callable[[dict[str, Any]], object], text: str
) -> None:
    edit(folder, change)
    with pytest.raises(CheckpointError, match=rf"config\.json: {text}"):
        load_config(folder)


@pytest.mark.parametrize("content", ["{", "[]", '"gpt"'])
def test_a_configuration_that_is_no_json_object_names_its_file(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        load_config(folder)


def test_a_folder_without_a_checkpoint_says_what_one_has(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file; a checkpoint folder has config"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda d: d.update(architecture="rnn"),
            r"no architecture 'rnn' for task 'generate'; there are gpt \(generate\)",
        ),
        (lambda d: d["model"].update(wings=2), r"config\.json: model: .*wings"),
        (lambda d: d["model"].update(heads=3), r"config\.json: model: width 8 must divide by twice the heads, 3"),
        (lambda d: d["model"].update(width=16), r"model\.safetensors: .*size mismatch"),
        (lambda d: d["model"].update(layers=2), r"model\.safetensors: .*Missing key"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_what_is_wrong(
    folder: Path, change: Callable[[dict[str, Any]], object], text: str
) -> None:
    edit(folder, change)
    with pytest.raises(CheckpointError, match=text):
        load_checkpoint(folder)


def test_truncated_weights_name_their_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        load_checkpoint(folder)


def test_saving_again_replaces_the_checkpoint(folder: Path) -> None:
    config = replace(CONFIGS[0], quality={"validation_loss": 1.0})
    save_checkpoint(folder, config, build_model(config).state_dict(), "{}")
    assert load_config(folder).quality == {"validation_loss": 1.0}
