"""Attention as single nodes of onnxruntime, put where the models call their `attend` hook.

Shapes: B rows, S positions, H query heads, G key/value heads, D head size, M capacity of a cache slot.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROTARY_HEAD_MULTIPLE = 16
"""onnxruntime's kernel rotates inside the attention node only if the head size divides by this."""


@dataclass(frozen=True)
class CacheInputs:
    """What a decoder's call says about its cache slots; the same for every layer (docs/architecture.md)."""

    seqlens_k: Tensor
    """(B,) int32: tokens each row has after this call, minus one."""
    query_seqlens: Tensor
    """(B,) int32: tokens each row brings, without padding."""
    capacity: Tensor
    """() int32: M."""


@dataclass(frozen=True)
class AttentionVariant:
    """What a layer's attention does besides scaled dot products over all tokens before."""

    scale: float
    """Of the dot products."""
    window: int | None = None
    """Each token sees so many, itself among them (Beltagy et al. 2020, section 3.1); None: all."""
    softcap: float = 0.0
    """c: scores become c · tanh(score / c) (Gemma 2, section 2); 0: they stay."""


def grouped_query_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: tuple[Tensor, Tensor],
    cache: CacheInputs,
    rotary: tuple[Tensor, Tensor] | None = None,
    variant: AttentionVariant | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`com.microsoft::GroupQueryAttention`: rotates, appends to the cache and attends causally, in one node.

    query (B, S, H·D), key and value (B, S, G·D), past keys and values (B, G, M, D), rotary tables (positions, D/2) for
    halves that are D/2 apart, as in `polyhead.models.attention.rotate`; none for queries and keys that were rotated before
    or never are, bias added to the scores (B, H, S, M). Returns (B, S, H·D) and the two present tensors, which the server binds
    to the memory of the past ones.
    """
    kv_heads, head_size = past[0].shape[1], past[0].shape[3]
    # Inputs 1-9 are these, 10 (positions) stays empty, 11 is the bias, 12-16 (sinks, scales of a quantized cache …) stay empty, 17
    # is query_seqlens.
    tables = rotary or (None, None)
    places = (*tables, None, bias, *(None,) * 5, cache.query_seqlens)
    inputs = (query, key, value, *past, cache.seqlens_k, cache.capacity, *places)
    variant = variant or AttentionVariant(scale=head_size**-0.5)
    mixed, keys, values = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        inputs,
        {
            "num_heads": query.shape[-1] // head_size,
            "kv_num_heads": kv_heads,
            "scale": variant.scale,
            "local_window_size": variant.window or -1,
            "softcap": variant.softcap,
            "do_rotary": int(rotary is not None),
            "rotary_interleaved": 0,
        },
        dtypes=(query.dtype, past[0].dtype, past[1].dtype),
        shapes=(query.shape, past[0].shape, past[1].shape),
        version=1,
    )
    return mixed, keys, values


def padded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    heads: int,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """`Attention` of ONNX 24 with each row's number of keys: every position looks at all that are not padding.

    query, key, value (B, S, H·D), lengths (B,) int32, bias added to the scores (S, S) -> (B, S, H·D). `scale` of the dot
    products: by default 1/√D.
    """
    inputs = (query, key, value, bias, None, None, lengths.to(torch.int64))
    scales = {} if scale is None else {"scale": scale}
    mixed, *_ = torch.onnx.ops.symbolic_multi_out(
        "Attention",
        inputs,
        {"q_num_heads": heads, "kv_num_heads": heads, **scales},
        dtypes=(query.dtype,),
        shapes=(query.shape,),
    )
    return mixed
