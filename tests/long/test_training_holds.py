"""What training promises, on real data. `pytest -s` shows the figures."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from polyhead.models.checkpoint import load_checkpoint
from polyhead.models.gpt import GPT
from polyhead.train.__main__ import main
from polyhead.train.gpt import sample

SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "shakespeare" / "input.txt"
PUBLISHED = 1.88
"""nanoGPT's README, for its setting for a CPU: 4 layers, 4 heads, 128 wide, context 64, batch 12, 2,000 steps."""


@pytest.mark.long
@pytest.mark.skipif(
    not SHAKESPEARE.exists(), reason=f"needs {SHAKESPEARE.name} of tiny shakespeare beside the repository"
)
def test_the_small_character_preset_ends_at_a_validation_loss_of_1_85_or_less(tmp_path: Path) -> None:
    """Over every whole window of the last tenth of the text; nanoGPT takes the mean of 20 random batches of it."""
    assert main(["gpt", "--preset=char-small", "--data", str(SHAKESPEARE), "--out", str(tmp_path / "run")]) == 0
    config, model = load_checkpoint(tmp_path / "run")
    print(f"validation loss {config.quality['validation_loss']:.4f}, nanoGPT {PUBLISHED}")
    assert (config.training["steps"], config.training["batch_size"], config.training["context"]) == (2000, 12, 64)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 820_000
    assert config.quality["validation_loss"] <= 1.85


@pytest.mark.long
def test_the_default_learns_python_from_the_standard_library(tmp_path: Path) -> None:
    """Held-out modules cost little more than two bits a byte, and what it makes up has the words of Python."""
    assert main(["gpt", "--out", str(tmp_path / "run")]) == 0
    config, model = load_checkpoint(tmp_path / "run")
    tokenizer = Tokenizer.from_file(str(tmp_path / "run" / "tokenizer.json"))
    assert isinstance(model, GPT)
    texts = "\n".join(sample(model, tokenizer, "def", seed) for seed in range(4))
    print(f"{config.quality}\n{texts}")
    assert config.quality["bits_per_byte"] < 2.25  # 2.20 after the 500 steps
    assert all(word in texts for word in ("self", "return", "if ", '"""'))
