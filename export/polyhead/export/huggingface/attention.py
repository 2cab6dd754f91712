"""Another attention function in transformers' models: the one place where export takes part in what they compute."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from polyhead.export.huggingface.load import EAGER

NAME = "polyhead"

AttentionFunction = Callable[..., tuple[Tensor, None]]
"""(module, query (B, H, S, D), key and value (B, G, S, D), mask, scaling=…, …) -> (B, S, H, D) and no weights. transformers
makes no mask for a function it doesn't know."""


@contextmanager
def attention_of(model: Any, function: AttentionFunction) -> Iterator[None]:
    """Every attention layer of a model calls `function` meanwhile."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, function)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(EAGER)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, S, D) -> (B, S, H·D)."""
    return x.transpose(1, 2).flatten(2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, H·D) -> (B, S, H, D)."""
    return x.view(*x.shape[:-1], heads, -1)
