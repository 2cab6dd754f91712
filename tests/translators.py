"""Tiny sequence-to-sequence bundles with random weights, made by the real export and kept like those of `bundles.py`."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bundles import BEGIN, END, PAD, kept

if TYPE_CHECKING:
    from polyhead.models.seq2seq import RNNSeq2Seq, TransformerSeq2Seq

FIXED, ATTENTION, DEEP, TRANSFORMER = "tiny-rnn", "tiny-rnn-attention", "tiny-deep", "tiny-transformer"
SOURCE_TOKENS, ANSWER_TOKENS = 200, 40
SOURCE_TEXT, TARGET_TEXT = "abcdefghijklmnopqrstuvwxyzéü ", "0123456789-"

_RNN = {"width": 24, "embedding_size": 16}
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    FIXED: ("rnn-seq2seq", {**_RNN, "cell": "lstm", "attention": "none"}),
    ATTENTION: ("rnn-seq2seq", {**_RNN, "attention": "additive"}),
    DEEP: (
        "rnn-seq2seq",
        {**_RNN, "cell": "lstm", "layers": 2, "attention": "general", "input_feeding": True, "residual": True},
    ),
    TRANSFORMER: ("transformer-seq2seq", {"layers": 2, "heads": 3, "width": 48, "hidden": 64}),
}


def translators_folder() -> Path:
    """A models folder with version 1 of each. Read only."""
    return kept("translators", _write) / "models"


@cache
def torch_translator(name: str) -> "RNNSeq2Seq | TransformerSeq2Seq":
    """The very module that a bundle was exported from, in evaluation mode."""
    from polyhead.models.checkpoint import load_checkpoint
    from polyhead.models.seq2seq import RNNSeq2Seq, TransformerSeq2Seq

    model = load_checkpoint(kept("translators", _write) / "checkpoints" / name)[1]
    assert isinstance(model, RNNSeq2Seq | TransformerSeq2Seq)
    return model


def _write(folder: Path) -> None:
    import torch

    from polyhead.export.pipeline import export_checkpoint
    from polyhead.models.checkpoint import CheckpointConfig, SpecialTokens, build_model, save_checkpoint
    from polyhead.train.tokenizer import character_tokenizer

    torch.manual_seed(0)
    special = [PAD, BEGIN, END]
    read = character_tokenizer([SOURCE_TEXT], special, end=END)
    write = character_tokenizer([TARGET_TEXT], special)
    sizes = {
        "source_vocabulary_size": read.get_vocab_size(),
        "target_vocabulary_size": write.get_vocab_size(),
        "max_source_tokens": SOURCE_TOKENS,
        "max_target_tokens": ANSWER_TOKENS,
    }
    for name, (architecture, fields) in CONFIGURATIONS.items():
        config = CheckpointConfig("generate", architecture, {**sizes, **fields}, SpecialTokens(BEGIN, (END,), PAD))
        model = build_model(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:  # large enough for answers that vary
                parameter.data.mul_(2.5)
        checkpoint = folder / "checkpoints" / name
        save_checkpoint(checkpoint, config, model.state_dict(), write.to_str())
        (checkpoint / "source_tokenizer.json").write_text(read.to_str(), "utf-8")
        export_checkpoint(checkpoint, folder / "models" / name, 1)
