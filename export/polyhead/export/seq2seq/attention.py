"""A decoder's look at its source."""

import torch
from torch import Tensor

from polyhead.models.attention import multi_head_attention, padding_mask


def cross_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """As one node, `Attention` of ONNX 24 with each row's number of keys.

    query (B, H, T, D), key and value (B, H, S, D), lengths (B,) int32, bias added to the scores (B, H, T, S) -> the mixture
    (B, H, T, D). `scale` of the dot products: by default 1/√D.
    """
    inputs = (query, key, value, bias, None, None, lengths.to(torch.int64))
    (mixed,) = torch.onnx.ops.symbolic_multi_out(
        "Attention",
        inputs,
        {} if scale is None else {"scale": scale},
        dtypes=(query.dtype,),
        shapes=(query.shape,),
    )
    return mixed


def cross_attention_with_weights(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain nodes, and its weights (B, H, T, S): the fused node can give them, but the length that ONNX infers for
    them is 0."""
    return multi_head_attention(query, key, value, padding_mask(lengths, key.shape[2]))


def mean_over_heads(weights: Tensor) -> Tensor:
    """(B, H, 1, S) -> (B, S), as a product: onnxruntime's ReduceMean gives a row other bits in another batch."""
    heads = weights.shape[1]
    return (weights.new_full((1, heads), 1 / heads) @ weights[:, :, 0])[:, 0]
