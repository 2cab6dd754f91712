"""Weights that are no numbers make answers that are none; whoever made them hears of it before anything is exported."""

import torch
from torch import nn

from polyhead.models.checkpoint import CheckpointError


def check_finite(model: nn.Module, where: str) -> None:
    """Raises CheckpointError that names the first weight of `model`, from `where`, with a NaN or an infinity in it."""
    for name, weight in model.named_parameters():
        if weight.numel() and not all(bool(end.isfinite()) for end in torch.aminmax(weight.detach())):
            raise CheckpointError(f"{where}: {name} has values that are no finite numbers (NaN or infinity)")
