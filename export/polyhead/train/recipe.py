"""What a recipe gives the training loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from polyhead.models.checkpoint import CheckpointConfig


@dataclass(frozen=True)
class Batch:
    """The arguments of `Recipe.loss`, on any device, and how many tokens they hold without padding."""

    tensors: tuple[Tensor, ...]
    tokens: int


class Recipe(Protocol):
    """What a recipe gives the loop."""

    @property
    def model(self) -> nn.Module:
        """The loop moves it to its device and trains all its parameters."""
        ...

    @property
    def deciding(self) -> str:
        """Name of the evaluation figure that says which checkpoint is best."""
        ...

    @property
    def higher_is_better(self) -> bool: ...

    @property
    def tokenizer_json(self) -> str: ...

    @property
    def source_tokenizer_json(self) -> str | None:
        """Of sources, where they have a vocabulary of their own."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Whatever a resumed training must have unchanged besides the settings, as JSON: model sizes, digest of the data."""
        ...

    def batch(self, step: int, progress: float = 0.0) -> Batch:
        """The batch of step 0, 1, …: its examples are a function of `step` (and the recipe's seed) alone. What changes in the
        course of a training may also depend on its `progress`, from 0 to 1 (`settings.progress`)."""
        ...

    @property
    def loss(self) -> Callable[..., Tensor]:
        """A batch's tensors, on the model's device -> scalar loss. Runs in training mode, under autocast."""
        ...

    def evaluate(self, device: torch.device) -> dict[str, float]:
        """Figures on held-out data, `deciding` among them. Runs in evaluation mode, without gradients."""
        ...

    def checkpoint_config(self, quality: dict[str, float]) -> CheckpointConfig:
        """`config.json` for weights that reached these figures."""
        ...
