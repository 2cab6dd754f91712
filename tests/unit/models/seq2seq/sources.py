"""Sources of several lengths, for tests of both kinds of models."""

import torch
from torch import Tensor

SOURCES, TARGETS = 20, 24
"""Sizes of the vocabularies."""


def padded_sources(*lengths: int, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Random sources (B, S), with `padding` more columns than the longest needs, and lengths (B,)."""
    generator = torch.Generator().manual_seed(len(lengths))
    source = torch.randint(SOURCES, (len(lengths), max(lengths) + padding), generator=generator)
    return source, torch.tensor(lengths)


def targets(rows: int, length: int) -> Tensor:
    return torch.randint(TARGETS, (rows, length), generator=torch.Generator().manual_seed(length))
