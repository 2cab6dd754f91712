"""Tiny checkpoints, and a bundle of one that is exported once a test run."""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from polyhead.export.pipeline import export_checkpoint
from polyhead.models.checkpoint import CheckpointConfig, SpecialTokens, save_checkpoint
from polyhead.models.encoder import Classifier, ClassifierConfig
from polyhead.models.gpt import GPT, GPTConfig

WORDS = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(47))]
LABELS = ("calm", "glad", "sad")
SPECIAL = SpecialTokens("<s>", ("</s>", "w0"), "<pad>")


def tokenizer_json() -> str:
    text: str = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>")).to_str()
    return text


def gpt(config: GPTConfig | None = None) -> GPT:
    torch.manual_seed(0)
    return GPT(
        config or GPTConfig(len(WORDS), max_tokens=40, layers=1, heads=2, kv_heads=1, width=32, hidden=19)
    ).eval()


def gpt_config(model: GPT) -> CheckpointConfig:
    quality, training = {"validation_loss": 1.25}, {"recipe": "tiny", "note": "a | b"}
    return CheckpointConfig("generate", "gpt", asdict(model.config), SPECIAL, (), quality, training)


def write_gpt_checkpoint(folder: Path) -> Path:
    model = gpt()
    save_checkpoint(folder, gpt_config(model), model.state_dict(), tokenizer_json())
    return folder


def write_classifier_checkpoint(folder: Path, labels: tuple[str, ...] = LABELS) -> Path:
    torch.manual_seed(0)
    model = Classifier(
        ClassifierConfig(len(WORDS), max_tokens=12, layers=1, heads=2, width=20, hidden=24, classes=len(LABELS))
    )
    config = CheckpointConfig("classify", "encoder", asdict(model.config), SPECIAL, labels)
    save_checkpoint(folder, config, model.state_dict(), tokenizer_json())
    return folder


@cache
def gpt_bundle() -> Path:
    """`MODELS/tiny/1`. Read only."""
    folder = Path(mkdtemp(prefix="polyhead-test-"))
    return export_checkpoint(write_gpt_checkpoint(folder / "checkpoint"), folder / "models" / "tiny")
