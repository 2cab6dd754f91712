"""A recipe small enough for tests: a GPT with dropout that learns to count."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polyhead.models.checkpoint import CheckpointConfig
from polyhead.models.gpt import GPT, GPTConfig
from polyhead.train.recipe import Batch

VOCABULARY = 20


class CountingRecipe:
    deciding = "validation_loss"
    higher_is_better = False
    tokenizer_json = "{}"
    source_tokenizer_json = None

    def __init__(self, **identity: Any) -> None:
        torch.manual_seed(0)
        self.model = GPT(GPTConfig(VOCABULARY, 16, layers=1, heads=2, kv_heads=1, width=16, hidden=32, dropout=0.2))
        self.identity = identity
        self.evaluations = 0

    def batch(self, step: int, progress: float = 0.0) -> Batch:
        starts = torch.randint(VOCABULARY, (4, 1), generator=torch.Generator().manual_seed(step))
        tokens = (starts + torch.arange(17)) % VOCABULARY
        return Batch((tokens[:, :-1], tokens[:, 1:]), 64)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.model(inputs).flatten(0, 1).float(), targets.flatten())

    def evaluate(self, device: torch.device) -> dict[str, float]:
        self.evaluations += 1
        torch.rand(self.evaluations)  # an evaluation may draw random numbers; training must not notice
        return {"validation_loss": self.loss(*self.batch(1_000_000).tensors).item()}

    def checkpoint_config(self, quality: dict[str, float]) -> CheckpointConfig:
        return CheckpointConfig("generate", "gpt", asdict(self.model.config), quality=quality)
