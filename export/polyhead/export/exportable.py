"""What export asks of a model, whoever defined it: a graph to trace, and what torch makes of the same tokens.

Shapes: B rows, S positions, N wanted positions, V vocabulary, L layers, H query heads, G key/value heads, D head size.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from polyhead.export.attention import AttentionVariant, CacheInputs, grouped_query_attention
from polyhead.export.seq2seq.exportable import ExportableSeq2Seq

Floats = NDArray[np.float32]
Output = Literal["probabilities", "embeddings"]
Pooling = Literal["mean", "cls", "max", "mean_sqrt_length", "weighted_mean", "last"]


LEAST_TOKENS = 2
"""Of a decoder's longest input: it reads a single token as two, so that bits don't depend on what comes with it."""


@dataclass(frozen=True)
class DecoderSizes:
    """What the manifest says of a decoder's cache and limits."""

    vocabulary_size: int
    max_tokens: int
    layers: int
    kv_heads: int
    head_size: int


@dataclass(frozen=True)
class EncoderSizes:
    """What the manifest says of an encoder's limits; `outputs` are its labels or the length of its embedding."""

    vocabulary_size: int
    max_tokens: int
    outputs: int


class Slots:
    """The cache slots of a decoder that is being traced: each layer attends over its own, once."""

    def __init__(self, past: list[Tensor], cache: CacheInputs) -> None:
        """`past`: key and value of each layer in turn, (B, G, capacity, D)."""
        self._past = past
        self._cache = cache
        self._present: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary: tuple[Tensor, Tensor] | None = None,
        variant: AttentionVariant | None = None,
    ) -> Tensor:
        """(B, S, H·D) and twice (B, S, G·D) -> (B, S, H·D); see `grouped_query_attention`."""
        past = (self._past[2 * layer], self._past[2 * layer + 1])
        mixed, *present = grouped_query_attention(query, key, value, past, self._cache, rotary, variant)
        self._present[layer] = (present[0], present[1])
        return mixed

    @property
    def present(self) -> list[Tensor]:
        """In the order of `past`."""
        return [tensor for _, layer in sorted(self._present.items()) for tensor in layer]


class ExportableDecoder(nn.Module, ABC):
    """A decoder whose module is `self.model`."""

    model: nn.Module
    sizes: DecoderSizes
    takes_positions = False
    """Whether it rotates or embeds positions by itself, so that its graph has `position_ids`."""

    @abstractmethod
    def logits(self, input_ids: Tensor, logit_positions: Tensor, slots: Slots, position_ids: Tensor | None) -> Tensor:
        """Of the wanted positions: (B, S), (N,) indices into B·S, positions (B, S) -> (N, V). Traced."""

    @abstractmethod
    def reference(self, tokens: list[int], count: int) -> tuple[Floats, Floats]:
        """torch's logits (count, V) of the last positions of a sequence of T tokens, and keys and values as a slot holds
        them (2, L, G, T, D)."""

    def tracing(self) -> AbstractContextManager[None]:
        """Held while the graph is traced."""
        return nullcontext()


class ExportableEncoder(nn.Module, ABC):
    """An encoder with its head, whose module is `self.model`."""

    model: nn.Module
    sizes: EncoderSizes
    output: Output
    pooling: Pooling | None = "mean"
    normalized = False
    """Whether embeddings have length 1."""
    labels_tokens = False
    """Whether probabilities are those of each token."""
    takes_token_types = False
    """Whether it tells the two texts of a pair apart by `token_type_ids`, so that its graph has that input."""

    @abstractmethod
    def encode(self, input_ids: Tensor, lengths: Tensor, token_types: Tensor | None) -> Tensor:
        """(B, S) right-padded, (B,) int32, perhaps (B, S) -> (B, outputs), or (B, S, outputs) if it labels tokens. Traced."""

    @abstractmethod
    def reference(self, ids: NDArray[np.int64], token_types: NDArray[np.int64] | None = None) -> Floats:
        """torch's probabilities or embedding (outputs,) of one row (S,) without padding; (S, outputs) if it labels tokens."""

    def tracing(self) -> AbstractContextManager[None]:
        """Held while the graph is traced."""
        return nullcontext()


Exportable = ExportableDecoder | ExportableEncoder | ExportableSeq2Seq
