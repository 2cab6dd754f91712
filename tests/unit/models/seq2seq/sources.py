"""Sources of several lengths, for tests of both kinds of models."""

import torch
from torch import Tensor
from torch.testing import assert_close

from polyhead.models.seq2seq import RNNSeq2Seq, TransformerSeq2Seq

SOURCES, TARGETS = 20, 24
"""Sizes of the vocabularies."""


def padded_sources(*lengths: int, padding: int = 0) -> tuple[Tensor, Tensor]:
    """Random sources (B, S), with `padding` more columns than the longest needs, and lengths (B,)."""
    generator = torch.Generator().manual_seed(len(lengths))
    source = torch.randint(SOURCES, (len(lengths), max(lengths) + padding), generator=generator)
    return source, torch.tensor(lengths)


def targets(rows: int, length: int) -> Tensor:
    return torch.randint(TARGETS, (rows, length), generator=torch.Generator().manual_seed(length))


@torch.inference_mode()
def assert_padding_and_other_rows_change_nothing(model: RNNSeq2Seq | TransformerSeq2Seq) -> None:
    (source, lengths), target = padded_sources(6, 1, 9, padding=3), targets(3, 4)
    batch = model(source, lengths, target)
    for row, length in enumerate(lengths.tolist()):
        one = slice(row, row + 1)
        alone = model(source[one, :length], lengths[one], target[one])
        assert_close(alone.logits[0], batch.logits[row])
        assert (alone.weights is None) == (batch.weights is None)
        if batch.weights is not None:
            assert_close(alone.weights[0], batch.weights[row, :, :length])
            assert not batch.weights[row, :, length:].any()
