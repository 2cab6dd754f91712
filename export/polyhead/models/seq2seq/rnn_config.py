"""Sizes and choices of a recurrent encoder-decoder."""

from dataclasses import dataclass
from typing import Literal, get_args

Cell = Literal["gru", "lstm"]
AttentionScore = Literal["none", "dot", "scaled-dot", "general", "additive"]


@dataclass(frozen=True)
class RNNSeq2SeqConfig:
    """Raises ValueError where the fields contradict each other."""

    source_vocabulary_size: int
    target_vocabulary_size: int
    max_source_tokens: int = 256
    max_target_tokens: int = 256
    cell: Cell = "gru"
    layers: int = 1
    """Of the encoder, and of the decoder."""
    width: int = 256
    """Of the decoder's state, and of the encoder's: two directions have half of it each."""
    embedding_size: int = 128
    """Of tokens, and of what the output layer reads: it is the target's embedding matrix once more (Press and Wolf 2017)."""
    bidirectional: bool = True
    """Whether the encoder also reads from right to left (Bahdanau et al. 2014, section 3.2)."""
    attention: AttentionScore = "additive"
    """none: the encoder's last state is all that the decoder knows of the source."""
    input_feeding: bool = False
    """Whether a step reads what the last one told the output layer (Luong et al. 2015, section 3.3)."""
    residual: bool = False
    """Whether each layer but the first adds to what it read (Wu et al. 2016, section 3.1)."""
    dropout: float = 0.0
    """Of embeddings, between layers, and before the output layer."""
    share_embeddings: bool = False
    """Whether source and target have one vocabulary and one matrix."""

    def __post_init__(self) -> None:
        for name, known in (("cell", get_args(Cell)), ("attention", get_args(AttentionScore))):
            if (given := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {given!r}")
        for name in ("layers", "max_source_tokens", "max_target_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("width", "embedding_size"):
            if getattr(self, name) < 8 or getattr(self, name) % 8:
                raise ValueError(f"{name} must be a multiple of 8, not {getattr(self, name)}")
        if self.input_feeding and self.attention == "none":
            raise ValueError("input_feeding needs attention, and attention is none")
        if self.share_embeddings and self.source_vocabulary_size != self.target_vocabulary_size:
            raise ValueError(
                f"share_embeddings needs one vocabulary, not {self.source_vocabulary_size} source tokens and "
                f"{self.target_vocabulary_size} target tokens"
            )
