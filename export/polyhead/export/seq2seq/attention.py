"""A decoder's look at its source as one node: `Attention` of ONNX 24 with each row's number of keys."""

import torch
from torch import Tensor

PROBABILITIES = 3
"""`qk_matmul_output_mode`: what comes out beside the mixture is the weights after the softmax."""


def cross_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """query (B, H, T, D), key and value (B, H, S, D), lengths (B,) int32, bias added to the scores (B, H, T, S) -> the mixture
    (B, H, T, D) and, if wanted, weights (B, H, T, S). `scale` of the dot products: by default 1/√D."""
    inputs = (query, key, value, bias, None, None, lengths.to(torch.int64))
    B, H, T, _ = query.shape
    shapes: list[tuple[int, ...]] = [query.shape]
    if weights:  # outputs 1 and 2, the keys and values with past ones, are left out only where nothing comes behind
        shapes += [key.shape, value.shape, (B, H, T, key.shape[2])]
    outputs = torch.onnx.ops.symbolic_multi_out(
        "Attention",
        inputs,
        {
            **({} if scale is None else {"scale": scale}),
            **({"qk_matmul_output_mode": PROBABILITIES} if weights else {}),
        },
        dtypes=(query.dtype,) * len(shapes),
        shapes=shapes,
    )
    return outputs[0], outputs[3] if weights else None
