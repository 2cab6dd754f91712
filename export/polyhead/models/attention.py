"""Attention as pure functions over tensors; modules elsewhere only hold weights.

Shapes: B batch, T target (query) length, S source (key) length, H query heads, G key/value heads, D head size, K key size.
A mask is boolean and True where a query may look. Everything broadcasts over leading dimensions.
"""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

Score = Callable[[Tensor, Tensor], Tensor]
"""(..., T, K), (..., S, K) -> (..., T, S): how well each query fits each key."""


def dot_score(query: Tensor, key: Tensor) -> Tensor:
    """Luong et al. 2015, section 3.1, "dot"."""
    return query @ key.transpose(-2, -1)


def scaled_dot_score(query: Tensor, key: Tensor) -> Tensor:
    """Vaswani et al. 2017, section 3.2.1: the dot product's variance grows with the key size, so divide by its root."""
    return dot_score(query, key) / sqrt(query.shape[-1])


def general_score(weight: Tensor) -> Score:
    """Luong et al. 2015, section 3.1, "general": q · W k, with W (K of queries, K of keys)."""

    def score(query: Tensor, key: Tensor) -> Tensor:
        return dot_score(query, F.linear(key, weight))

    return score


def additive_score(query_weight: Tensor, key_weight: Tensor | None, vector: Tensor) -> Score:
    """Bahdanau et al. 2014, appendix A.1.2: v · tanh(W q + U k), with W and U (A, K) and v (A). None: keys are U k already."""

    def score(query: Tensor, key: Tensor) -> Tensor:
        q = F.linear(query, query_weight).unsqueeze(-2)  # (..., T, 1, A)
        k = (key if key_weight is None else F.linear(key, key_weight)).unsqueeze(-3)  # (..., 1, S, A)
        # Of all forms of this product onnxruntime takes a matrix of one row, with the transposition in the same node, fastest.
        return (vector[None] @ torch.tanh(q + k).transpose(-2, -1)).squeeze(-2)  # (..., T, S)

    return score


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, score: Score = scaled_dot_score
) -> tuple[Tensor, Tensor]:
    """Mix values by how well their keys fit each query (Vaswani et al. 2017, equation 1, for any score).

    query (..., T, K), key (..., S, K), value (..., S, V), mask broadcastable to (..., T, S).
    Returns the mixture (..., T, V) and the weights (..., T, S), which sum to 1 over S. A query that may look nowhere
    gets zeros in both.
    """
    scores = score(query, key)
    weights = scores.softmax(-1) if mask is None else masked_softmax(scores, mask)
    return weights @ value, weights


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of scores (..., T, S) over the positions that the mask allows; zeros where it allows none."""
    hidden = ~mask
    return scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0.0)


def causal_mask(targets: int, sources: int, device: torch.device | None = None) -> Tensor:
    """(T, S): the last query may look at every source, the one before at all but the last, and so on."""
    return torch.ones(targets, sources, dtype=torch.bool, device=device).tril(sources - targets)


def padding_mask(lengths: Tensor, sources: int) -> Tensor:
    """(B,) lengths -> (B, 1, 1, S): True at positions before each row's length, for all heads and queries."""
    return (torch.arange(sources, device=lengths.device) < lengths[:, None])[:, None, None, :]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, H·D) -> (B, H, T, D)."""
    return x.view(*x.shape[:-1], heads, -1).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, H·D)."""
    return x.transpose(-3, -2).flatten(-2)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """(B, G, S, D) -> (B, H, S, D): each key/value head serves H/G query heads (Ainslie et al. 2023, GQA, section 2.2)."""
    return x if x.shape[-3] == heads else x.repeat_interleave(heads // x.shape[-3], dim=-3)


def multi_head_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scaled dot attention in every head at once (Vaswani et al. 2017, section 3.2.2), without the projections.

    query (B, H, T, D), key and value (B, G, S, D) with G dividing H. Returns (B, H, T, D) and weights (B, H, T, S).
    """
    heads = query.shape[-3]
    return attention(query, repeat_heads(key, heads), repeat_heads(value, heads), mask)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """The mixture of `multi_head_attention` by torch's fused kernel: for training, where nobody asks for the weights."""
    heads = query.shape[-3]
    key, value = repeat_heads(key, heads), repeat_heads(value, heads)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, dropout_p=dropout)


def rotary_tables(positions: int, head_size: int, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each (positions, D/2), of Su et al. 2021 (RoFormer), section 3.4.2."""
    frequencies = theta ** (-torch.arange(0, head_size, 2, dtype=torch.float64) / head_size)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate x (B, H, T, D) by its positions' angles, tables (T, D/2); dimension i is paired with i + D/2."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
