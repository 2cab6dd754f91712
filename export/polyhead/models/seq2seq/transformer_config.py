"""Sizes and choices of a Transformer encoder-decoder."""

from dataclasses import dataclass
from typing import Literal, get_args

Norm = Literal["pre", "post"]
Positions = Literal["sinusoidal", "learned"]
HEAD_SIZE_MULTIPLE = 8
"""The fused attention of exported graphs takes no other head size."""


@dataclass(frozen=True)
class TransformerSeq2SeqConfig:
    """Raises ValueError where the fields contradict each other."""

    source_vocabulary_size: int
    target_vocabulary_size: int
    max_source_tokens: int = 256
    max_target_tokens: int = 256
    layers: int = 3
    """Of the encoder, and of the decoder."""
    heads: int = 4
    width: int = 128
    hidden: int = 512
    norm: Norm = "pre"
    """pre: before each sublayer (Xiong et al. 2020); post: after each sum, as published, which needs a long warm-up."""
    positions: Positions = "sinusoidal"
    dropout: float = 0.1
    """Of embeddings and of what each sublayer adds (section 5.4)."""
    norm_epsilon: float = 1e-5
    """torch's; the paper names none (its published code had 1e-6)."""
    share_embeddings: bool = False
    """Whether source and target have one vocabulary and one matrix."""

    def __post_init__(self) -> None:
        for name, known in (("norm", get_args(Norm)), ("positions", get_args(Positions))):
            if (given := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {given!r}")
        for name in ("layers", "heads", "hidden", "max_source_tokens", "max_target_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.width < 1 or self.width % (HEAD_SIZE_MULTIPLE * self.heads):
            raise ValueError(
                f"width {self.width} must divide by {HEAD_SIZE_MULTIPLE} times the heads, {self.heads}: head sizes are "
                f"multiples of {HEAD_SIZE_MULTIPLE}"
            )
        if self.share_embeddings and self.source_vocabulary_size != self.target_vocabulary_size:
            raise ValueError(
                f"share_embeddings needs one vocabulary, not {self.source_vocabulary_size} source tokens and "
                f"{self.target_vocabulary_size} target tokens"
            )
