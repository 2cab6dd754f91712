"""A Transformer encoder (Vaswani et al. 2017, section 3) with a head that classifies or one that embeds sentences.

Pre-norm (Xiong et al. 2020), GELU (Hendrycks and Gimpel 2016), learned positions (Devlin et al. 2018, BERT, section 3)
and, where asked for, n-grams of tokens at the input (Bojanowski et al. 2017, section 3.2; Clark et al. 2022, section 3.2).
Shapes: B batch, T length with padding on the right, C width, H heads.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyhead.models.attention import fused_attention, merge_heads, padding_mask, split_heads

HASH_FACTOR, LARGEST_HASH = 1_000_003, 2**31 - 1  # two primes whose product with an id stays far from 64 bits

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
    ngrams: int = 1
    """The longest n-gram of tokens that has a vector of its own at the input; 1: each token on its own."""
    ngram_buckets: int = 16_384
    """Vectors that all n-grams of 2 and more tokens share by their hash."""

    def __post_init__(self) -> None:
        if self.ngrams < 1:
            raise ValueError(f"ngrams must be at least 1, a token on its own, not {self.ngrams}")
        if not 1 <= self.ngram_buckets <= LARGEST_HASH:
            raise ValueError(f"ngram_buckets must be from 1 to {LARGEST_HASH}, not {self.ngram_buckets}")
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


class Ngrams(nn.Module):
    """The sum of a vector for each n-gram of 2 to `config.ngrams` tokens that ends at a token, found by a hash of its ids.

    N-grams overlap, so that words never seen are known by their parts; a token is seen whole or not at all. In training
    each vector is left out with the model's dropout, as a whole, so that none is relied on alone.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.longest, self.dropout = config.ngrams, config.dropout
        self.embedding = nn.Embedding(config.ngram_buckets, config.width)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C). What stands before a text is id 0."""
        hashes = torch.stack(list(ngram_hashes(input_ids, self.longest)), dim=-1)  # (B, T, N)
        vectors = self.embedding(hashes % self.embedding.num_embeddings)  # (B, T, N, C), looked up once: one gradient
        vectors = vectors * F.dropout(torch.ones_like(vectors[..., :1]), self.dropout, self.training)
        return sum(vectors.unbind(-2), torch.zeros(()))


class Encoder(nn.Module):
    """Token ids in, one vector a token out."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.position = nn.Embedding(config.max_tokens, config.width)
        self.ngrams = Ngrams(config) if config.ngrams > 1 else None
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
        x = self.embedding(input_ids) + self.position(positions)
        if self.ngrams is not None:
            x = x + self.ngrams(input_ids)
        x = self.dropout(x)
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


def ngram_hashes(input_ids: Tensor, longest: int) -> Iterator[Tensor]:
    """(B, T) -> for n = 2 to `longest` (B, T): at each token a number below LARGEST_HASH for the n-gram that ends there."""
    hashes = input_ids
    for reach in range(1, longest):
        before = F.pad(input_ids, (reach, 0))[:, : input_ids.shape[1]]
        hashes = (hashes * HASH_FACTOR + before + 1) % LARGEST_HASH  # 1: zeros before a text change the hash too
        yield hashes


def _initialize(module: nn.Module) -> None:
    """Normal weights of deviation 0.02, biases zero (Devlin et al. 2018, as published)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
