"""A checkpoint folder: `config.json`, `model.safetensors`, `tokenizer.json`, perhaps `source_tokenizer.json`
(docs/architecture.md). Never pickle."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from polyhead.models.encoder import Classifier, ClassifierConfig, Embedder, EmbedderConfig
from polyhead.models.gpt import GPT, GPTConfig
from polyhead.models.seq2seq import RNNSeq2Seq, RNNSeq2SeqConfig, TransformerSeq2Seq, TransformerSeq2SeqConfig

FORMAT_VERSION = 1
SOURCE_TOKENIZER_FILE = "source_tokenizer.json"
"""Beside the three files of a model that reads a source, if what it reads has a vocabulary of its own."""
HELD_OUT_FILE = "held_out.txt"
"""Beside the three files, perhaps: text the model never learned from, for measuring what becomes of it."""
HELD_OUT_CHARACTERS = 65_536
Task = Literal["generate", "classify", "embed"]
Model = GPT | Classifier | Embedder | RNNSeq2Seq | TransformerSeq2Seq

_MODELS: dict[tuple[str, str], tuple[type[Any], type[Any]]] = {
    ("generate", "gpt"): (GPTConfig, GPT),
    ("generate", "rnn-seq2seq"): (RNNSeq2SeqConfig, RNNSeq2Seq),
    ("generate", "transformer-seq2seq"): (TransformerSeq2SeqConfig, TransformerSeq2Seq),
    ("classify", "encoder"): (ClassifierConfig, Classifier),
    ("embed", "encoder"): (EmbedderConfig, Embedder),
}


class CheckpointError(Exception):
    """A checkpoint that can't be read; the text names the file and what is wrong with it."""


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens with a meaning, as the vocabulary writes them."""

    bos: str | None = None
    eos: tuple[str, ...] = ()
    pad: str | None = None


@dataclass(frozen=True)
class CheckpointConfig:
    """What `config.json` says besides its format."""

    task: Task
    architecture: str
    model: dict[str, Any]
    """Fields of the model's configuration dataclass."""
    special_tokens: SpecialTokens = SpecialTokens()
    labels: tuple[str, ...] = ()
    quality: dict[str, float] = field(default_factory=dict)
    """Measured on held-out data."""
    training: dict[str, Any] = field(default_factory=dict)
    """What made it: recipe, data, steps, seed."""


def build_model(config: CheckpointConfig) -> Model:
    """A model of that architecture with fresh weights. Raises CheckpointError for one that doesn't exist here."""
    try:
        make_config, make_model = _MODELS[config.task, config.architecture]
        return make_model(make_config(**config.model))  # type: ignore[no-any-return]
    except KeyError:
        known = ", ".join(f"{architecture} ({task})" for task, architecture in _MODELS)
        raise CheckpointError(
            f"no architecture {config.architecture!r} for task {config.task!r}; there are {known}"
        ) from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: model: {error}") from error


def save_checkpoint(
    folder: Path,
    config: CheckpointConfig,
    weights: dict[str, torch.Tensor],
    tokenizer_json: str,
    source_tokenizer_json: str | None = None,
) -> None:
    """Write all files, each beside its name first and then renamed, the configuration last; whenever the process ends, there
    is a whole checkpoint or none. source_tokenizer_json: of sources with a vocabulary of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"format": "polyhead", "format_version": FORMAT_VERSION, **asdict(config)}
    texts = {
        "tokenizer.json": tokenizer_json,
        **({} if source_tokenizer_json is None else {SOURCE_TOKENIZER_FILE: source_tokenizer_json}),
        "config.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n",
    }
    save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, folder / "model.safetensors.tmp")
    for name, text in texts.items():
        (folder / f"{name}.tmp").write_text(text, "utf-8")
    for name in ("model.safetensors", *texts):
        (folder / f"{name}.tmp").replace(folder / name)


def save_held_out(folder: Path, texts: Sequence[str]) -> None:
    """Write texts on lines of their own: every n-th, so that they make about HELD_OUT_CHARACTERS, and not more."""
    every = max(1, -(-sum(map(len, texts)) // HELD_OUT_CHARACTERS))
    (folder / HELD_OUT_FILE).write_text("\n".join(texts[::every])[:HELD_OUT_CHARACTERS], "utf-8")


def load_config(folder: Path) -> CheckpointConfig:
    """Read `config.json`. Raises CheckpointError if it is missing, foreign, newer or malformed."""
    path = folder / "config.json"
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; a checkpoint folder has config.json, model.safetensors and tokenizer.json"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(document, dict) or document.pop("format", None) != "polyhead":
        raise CheckpointError(f"{path}: not a checkpoint written by polyhead train")
    if (version := document.pop("format_version", None)) != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format version {version} is not the one this release reads, {FORMAT_VERSION}")
    try:
        special = document.pop("special_tokens")
        tokens = SpecialTokens(special["bos"], tuple(special["eos"]), special["pad"])
        return CheckpointConfig(**{**document, "special_tokens": tokens, "labels": tuple(document["labels"])})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: malformed: {error}") from error


def load_checkpoint(folder: Path) -> tuple[CheckpointConfig, Model]:
    """Read a checkpoint into a model in evaluation mode. Raises CheckpointError naming the file and what is wrong."""
    config = load_config(folder)
    model = build_model(config)
    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
    except Exception as error:  # safetensors raises its own, undocumented types
        raise CheckpointError(f"{path}: {error}") from error
    try:
        nn.Module.load_state_dict(model, weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from error
    if isinstance(model, RNNSeq2Seq | TransformerSeq2Seq):
        _check_source_tokenizer(folder, model.config.source_vocabulary_size)
    return config, model.eval()


def _check_source_tokenizer(folder: Path, vocabulary_size: int) -> None:
    """Raise CheckpointError if sources would be read with another vocabulary than the one that the model learned."""
    own = folder / SOURCE_TOKENIZER_FILE
    path = own if own.exists() else folder / "tokenizer.json"
    try:
        size = Tokenizer.from_str(path.read_text("utf-8")).get_vocab_size()
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path}: not a tokenizer: {error}") from error
    if size != vocabulary_size:
        missing = "" if path == own else f", and there is no {SOURCE_TOKENIZER_FILE}"
        raise CheckpointError(
            f"{path}: has {size} tokens, but model.source_vocabulary_size is {vocabulary_size}{missing}"
        )
