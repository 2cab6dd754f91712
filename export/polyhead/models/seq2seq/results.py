"""What sequence-to-sequence models return. B batch, S source length, T target length, V target vocabulary, C channels."""

from typing import NamedTuple

from torch import Tensor


class Encoded(NamedTuple):
    """A source, read: all that the recurrent decoder needs of it."""

    memory: tuple[Tensor, ...]
    """Each (B, S, C), read by attention at every step and never written. Empty: the state is all there is."""
    state: tuple[Tensor, ...]
    """Each (B, ...) without a time dimension: what the decoder begins with and replaces at every step."""


class Step(NamedTuple):
    """One token further."""

    logits: Tensor
    """(B, V)"""
    state: tuple[Tensor, ...]
    weights: Tensor | None
    """(B, S): how much the step attended to each source position. None without attention."""


class Output(NamedTuple):
    """Teacher forcing: what the model expects after each of the tokens it was given."""

    logits: Tensor
    """(B, T, V)"""
    weights: Tensor | None
    """(B, T, S), as in Step."""
