"""Writing answers in PyTorch, a token a call, for many sources at once."""

from typing import Protocol

import torch
from torch import Tensor


class Decoder(Protocol):
    """B answers under way. Its caches are its own, so that the model stays a function."""

    def step(self, token: Tensor) -> Tensor:
        """The token (B,) that each answer goes on with -> logits (B, V) of the next."""
        ...

    def select(self, rows: Tensor) -> None:
        """Go on with these rows (N,), repeated or left out, as the new batch."""
        ...


@torch.inference_mode()
def greedy(decoder: Decoder, begin: Tensor, max_tokens: int, eos: int) -> list[list[int]]:
    """The likeliest token at every step, until `eos`, which is not returned, or `max_tokens`. begin (B,): the first inputs."""
    token, ended = begin, torch.zeros_like(begin, dtype=torch.bool)
    chosen: list[Tensor] = []
    for _ in range(max_tokens):
        token = decoder.step(token).argmax(-1)
        chosen.append(token)
        ended |= token == eos
        if ended.all():
            break
    rows = torch.stack(chosen, 1).tolist() if chosen else [[] for _ in begin]
    return [row[: row.index(eos)] if eos in row else row for row in rows]
