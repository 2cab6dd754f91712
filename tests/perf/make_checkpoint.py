"""Write a checkpoint with random weights in the shape of a real one, for measurements that need no sense in the answers.

    python tests/perf/make_checkpoint.py --shape 135m --out DIR

`135m` has the sizes of SmolLM-135M, a small Llama; `1m` has about a million parameters, less than an engine's own overhead.
The tokenizer is a byte-level BPE of as many entries as the model knows. The same shape gives the same bytes every time.
"""

import argparse
import random
import string
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from polyhead.models.checkpoint import CheckpointConfig, SpecialTokens, save_checkpoint
from polyhead.models.gpt import GPT, GPTConfig

SHAPES = {
    "135m": GPTConfig(49_152, max_tokens=2048, layers=30, heads=9, kv_heads=3, width=576, hidden=1536),
    "1m": GPTConfig(2048, max_tokens=1024, layers=4, heads=4, kv_heads=2, width=128, hidden=352),
}
BEGIN, END = "<s>", "</s>"
SPACE = "Ġ"
"""How byte-level BPE writes a space."""


def write_checkpoint(config: GPTConfig, folder: Path) -> int:
    """Write a GPT of these sizes; returns how many parameters it has."""
    torch.manual_seed(0)
    model = GPT(config)
    described = CheckpointConfig(
        "generate", "gpt", asdict(config), SpecialTokens(BEGIN, (END,)), training={"recipe": "random weights"}
    )
    save_checkpoint(folder, described, model.state_dict(), make_tokenizer(config.vocabulary_size).to_str())
    return sum(parameter.numel() for parameter in model.parameters())


def make_tokenizer(size: int) -> Tokenizer:
    """Special tokens, bytes, pairs of letters (the first may be a space), then as many pairs of pairs as fit, drawn by chance."""
    letters = string.ascii_lowercase
    merges = [(first, second) for first in SPACE + letters for second in letters]
    pairs = [first + second for first, second in merges]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fours = size - 2 - len(alphabet) - len(pairs)
    chosen = random.Random(0).sample(range(len(pairs) ** 2), fours)
    merges += [(pairs[number // len(pairs)], pairs[number % len(pairs)]) for number in chosen]
    entries = [BEGIN, END, *alphabet, *(first + second for first, second in merges)]
    tokenizer = Tokenizer(models.BPE({entry: index for index, entry in enumerate(entries)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BEGIN, END])
    assert tokenizer.get_vocab_size() == size
    return tokenizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    parameters = write_checkpoint(SHAPES[options.shape], options.out)
    print(f"{options.out}: {parameters:,} parameters")
