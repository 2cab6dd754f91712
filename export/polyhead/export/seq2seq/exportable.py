"""What export asks of a sequence-to-sequence model, whoever defined it.

Shapes: B rows, S source positions, T target positions, V target vocabulary, H heads, D head size, M capacity of a cache.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from polyhead.export.parity import Floats


@dataclass(frozen=True)
class Seq2SeqSizes:
    """What the manifest says of a model's limits."""

    vocabulary_size: int
    """Of answers."""
    max_tokens: int
    """Of an answer."""
    source_vocabulary_size: int
    max_source_tokens: int


class StepInputs(NamedTuple):
    """What a step is told beside its tokens and what it keeps."""

    positions: Tensor
    """(B,) int32: of each token in its answer; the start token is at 0."""
    source_lengths: Tensor
    """(B,) int32"""
    capacity: Tensor
    """() int32: M."""


class StepOutputs(NamedTuple):
    logits: Tensor
    """(B, V)"""
    state: list[Tensor]
    present: list[Tensor]
    alignment: Tensor | None
    """(B, S); None of a model that does not attend to its source."""


class ExportableSeq2Seq(nn.Module, ABC):
    """An encoder and a decoder whose module is `self.model`."""

    model: nn.Module
    sizes: Seq2SeqSizes
    memory_axis = 1
    """Of the tensors of memory, along which the source's tokens lie."""
    caches: tuple[int, int, int] | None = None
    """Layers, heads and head size of the decoder's keys and values; None of a recurrent one, which has states instead."""
    has_alignment = True

    @abstractmethod
    def encode(self, input_ids: Tensor, lengths: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(B, S), (B,) int32 -> memory and the decoder's first states. Traced."""

    @abstractmethod
    def step(
        self, tokens: Tensor, inputs: StepInputs, memory: list[Tensor], state: list[Tensor], past: list[Tensor]
    ) -> StepOutputs:
        """One token (B, 1) of each answer; past: key and value of each layer in turn, (B, H, M, D). Traced."""

    @abstractmethod
    def reference(self, source: list[int], answer: list[int]) -> tuple[Floats, Floats | None]:
        """torch's logits (T, V) after each of the decoder's inputs, which begin with the start token, and what each attended
        to, (T, S)."""

    def tracing(self) -> AbstractContextManager[None]:
        """Held while the graphs are traced."""
        return nullcontext()
