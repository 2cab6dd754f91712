"""Tiny bundles with random weights, made by the real export: one that generates, one that classifies, one that embeds.

Making them takes half a minute, so they are kept in the machine's temporary folder under a hash of what they depend on.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyhead.models.checkpoint import Model

GENERATOR, CLASSIFIER, EMBEDDER = "tiny-gpt", "tiny-classifier", "tiny-embedder"
LABELS = ("calm", "glad", "sad")
EMBEDDING_SIZE = 8
GENERATOR_TOKENS = 1024
ENCODER_TOKENS = 32
PAD, BEGIN, END = "<pad>", "<s>", "</s>"
TEXTS = ["the cat sat on the mat and the dog sat on the cat"] * 4

ROOT = Path(__file__).parents[1]
SOURCES = (
    "export/polyhead/models",
    "export/polyhead/export",
    "server/polyhead/server/bundle.py",
    "tests/bundles.py",
    "tests/translators.py",
)


def models_folder() -> Path:
    """A models folder with version 1 of each tiny bundle. Read only: tests that change a bundle copy it first."""
    return _made() / "models"


def torch_model(name: str) -> "Model":
    """The very module that a bundle was exported from, in evaluation mode."""
    from polyhead.models.checkpoint import load_checkpoint

    return load_checkpoint(checkpoint(name))[1]


def checkpoint(name: str) -> Path:
    """The folder that a bundle was exported from. Read only."""
    return _made() / "checkpoints" / name


def _made() -> Path:
    return kept("bundles", write_bundles)


@cache
def kept(name: str, write: Callable[[Path], None]) -> Path:
    """The folder with `checkpoints` and `models` that `write` fills, made if this machine has none for these sources."""
    folder = Path(tempfile.gettempdir()) / f"polyhead-test-{name}-{fingerprint()}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix="polyhead-test-") as made:
            write(Path(made) / "made")
            with suppress(OSError):  # another run was faster
                (Path(made) / "made").rename(folder)
    return folder


def copy_models(target: Path, *names: str) -> Path:
    """The named bundles, or all, in a models folder of one's own."""
    for name in names or (GENERATOR, CLASSIFIER, EMBEDDER):
        shutil.copytree(models_folder() / name, target / name)
    return target


def fingerprint() -> str:
    digest = hashlib.sha256()
    for source in SOURCES:
        path = ROOT / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def write_bundles(folder: Path) -> None:
    """Train no weights, but export and verify everything: `checkpoints/NAME` becomes `models/NAME/1`."""
    import torch  # only who makes bundles pays for it

    from polyhead.export.pipeline import export_checkpoint
    from polyhead.models.checkpoint import CheckpointConfig, SpecialTokens, build_model, save_checkpoint
    from polyhead.train.tokenizer import train_bpe

    torch.manual_seed(0)
    tokenizer = train_bpe(TEXTS, 280, [PAD, BEGIN, END], begin=BEGIN)
    sizes = {"vocabulary_size": tokenizer.get_vocab_size(), "layers": 2, "heads": 2, "width": 32, "hidden": 32}
    special = SpecialTokens(bos=BEGIN, eos=(END,), pad=PAD)
    gpt = {**sizes, "max_tokens": GENERATOR_TOKENS, "kv_heads": 1}
    classifier = {**sizes, "max_tokens": ENCODER_TOKENS, "classes": len(LABELS)}
    embedder = {**sizes, "max_tokens": ENCODER_TOKENS, "embedding_size": EMBEDDING_SIZE}
    for name, config in {
        GENERATOR: CheckpointConfig("generate", "gpt", gpt, special),
        CLASSIFIER: CheckpointConfig("classify", "encoder", classifier, special, LABELS),
        EMBEDDER: CheckpointConfig("embed", "encoder", embedder, special),
    }.items():
        model = build_model(config)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):  # large enough for answers that vary
                module.weight.data.mul_(10)
        save_checkpoint(folder / "checkpoints" / name, config, model.state_dict(), tokenizer.to_str())
        export_checkpoint(folder / "checkpoints" / name, folder / "models" / name, 1)
