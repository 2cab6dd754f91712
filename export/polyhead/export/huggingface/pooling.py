"""From a vector a token to one a text, as sentence-transformers names the ways."""

from collections.abc import Sequence

import torch
from torch import Tensor

from polyhead.export.exportable import Pooling


def pool(hidden: Tensor, lengths: Tensor, ways: Sequence[Pooling]) -> Tensor:
    """(B, S, C), (B,) -> (B, C · ways), side by side.

    Sums are products with a row of weights: in the exported graph their bits don't depend on B (docs/decisions.md).
    """
    mask = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]  # (B, S)
    parts = [_pool(hidden, mask, lengths[:, None].to(hidden.dtype), way) for way in ways]
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def _pool(hidden: Tensor, mask: Tensor, lengths: Tensor, way: Pooling) -> Tensor:
    if way == "cls":
        return hidden[:, 0]
    if way == "max":
        return hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)
    positions = torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype, device=hidden.device)
    weights = {
        "mean": mask / lengths,
        "mean_sqrt_length": mask / lengths.sqrt(),
        "weighted_mean": mask * positions / (lengths * (lengths + 1) / 2),  # 1 + 2 + … + length
        "last": (positions == lengths).to(hidden.dtype),
    }[way]
    return (weights.unsqueeze(1) @ hidden).squeeze(1)
