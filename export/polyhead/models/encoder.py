"""A Transformer encoder (Vaswani et al. 2017, section 3) with a head that classifies or one that embeds sentences.

Pre-norm (Xiong et al. 2020), GELU (Hendrycks and Gimpel 2016), learned positions (Devlin et al. 2018, BERT, section 3)
and, where asked for, a window over neighbouring tokens before the first block (Collobert et al. 2011, section 3.2.1).
Shapes: B batch, T length with padding on the right, C width, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyhead.models.attention import fused_attention, merge_heads, padding_mask, split_heads

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(query, key, value (B, T, H·D), lengths (B,)) -> (B, T, H·D); export puts a fused node in its place."""


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder. Raises ValueError where they contradict each other."""

    vocabulary_size: int
    max_tokens: int = 128
    layers: int = 4
    heads: int = 4
    width: int = 128
    hidden: int = 512
    dropout: float = 0.1
    norm_epsilon: float = 1e-5
    window: int = 0
    """How many neighbouring tokens are seen together before the first block, an odd number; 0: each on its own."""

    def __post_init__(self) -> None:
        if self.window < 0 or (self.window and self.window % 2 == 0):
            raise ValueError(f"window must be an odd number of tokens, or 0 for none, not {self.window}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must divide by the heads, {self.heads}")


@dataclass(frozen=True)
class ClassifierConfig(EncoderConfig):
    classes: int = 2


@dataclass(frozen=True)
class EmbedderConfig(EncoderConfig):
    embedding_size: int = 128


class Block(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, config.norm_epsilon)
        self.query, self.key, self.value, self.output = (nn.Linear(config.width, config.width) for _ in range(4))
        self.mlp_norm = nn.LayerNorm(config.width, config.norm_epsilon)
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, lengths: Tensor, attend: Attend) -> Tensor:
        y = self.attention_norm(x)
        x = x + self.dropout(self.output(attend(self.query(y), self.key(y), self.value(y), lengths)))
        x = x + self.dropout(self.down(F.gelu(self.up(self.mlp_norm(x)))))
        return x


class Window(nn.Module):
    """What a token and its neighbours are together: an MLP over their vectors side by side, with zeros beyond the ends.

    N-grams of tokens are plain to see here; attention would have to learn first which tokens are neighbours.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.size = config.window
        self.norm = nn.LayerNorm(config.width, config.norm_epsilon)
        self.up = nn.Linear(config.window * config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        T, reach = x.shape[1], self.size // 2
        padding = torch.arange(T, device=x.device) >= lengths[:, None]  # (B, T)
        y = F.pad(self.norm(x).masked_fill(padding.unsqueeze(-1), 0.0), (0, 0, reach, reach))  # (B, T + 2·reach, C)
        together = torch.cat([y[:, i : i + T] for i in range(self.size)], dim=-1)  # (B, T, size·C)
        return x + self.dropout(self.down(F.gelu(self.up(together))))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Token ids in, one vector a token out."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.position = nn.Embedding(config.max_tokens, config.width)
        self.window = Window(config) if config.window else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)
        self.apply(_initialize)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
        """Attention over every position that is not padding; see `Attend`."""
        q, k, v = (split_heads(x, self.config.heads) for x in (query, key, value))
        dropout = self.config.dropout if self.training else 0.0
        return merge_heads(fused_attention(q, k, v, padding_mask(lengths, k.shape[-2]), dropout=dropout))

    def forward(self, input_ids: Tensor, lengths: Tensor, attend: Attend | None = None) -> Tensor:
        """input_ids (B, T), lengths (B,) of at least 1 -> (B, T, C); what stands at padding has no meaning."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.dropout(self.embedding(input_ids) + self.position(positions))
        if self.window is not None:
            x = self.window(x, lengths)
        for block in self.blocks:
            x = block(x, lengths, attend or self.attend)
        return self.norm(x)  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """An encoder whose mean vector is classified by a linear layer."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, config.classes)
        _initialize(self.head)

    def forward(self, input_ids: Tensor, lengths: Tensor, attend: Attend | None = None) -> Tensor:
        """input_ids (B, T), lengths (B,) -> logits (B, classes)."""
        pooled = mean_pooling(self.encoder(input_ids, lengths, attend), lengths)
        return self.head(self.dropout(pooled))  # type: ignore[no-any-return]


class Embedder(nn.Module):
    """An encoder whose mean vector, brought to length 1, stands for the sentence (Reimers and Gurevych 2019, section 3)."""

    def __init__(self, config: EmbedderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.projection = nn.Linear(config.width, config.embedding_size, bias=False)
        _initialize(self.projection)

    def forward(self, input_ids: Tensor, lengths: Tensor, attend: Attend | None = None) -> Tensor:
        """input_ids (B, T), lengths (B,) -> (B, embedding_size) of length 1."""
        pooled = mean_pooling(self.encoder(input_ids, lengths, attend), lengths)
        return F.normalize(self.projection(pooled), dim=-1)


def mean_pooling(x: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, C), lengths (B,) -> (B, C): the mean over each row's positions before its length.

    A product with weights of 1/length and 0, not a sum: in the exported graph its bits don't depend on B.
    """
    mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (B, T)
    weights = mask.to(x.dtype) / lengths[:, None].to(x.dtype)
    return (weights.unsqueeze(1) @ x).squeeze(1)


def _initialize(module: nn.Module) -> None:
    """Normal weights of deviation 0.02, biases zero (Devlin et al. 2018, as published)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
