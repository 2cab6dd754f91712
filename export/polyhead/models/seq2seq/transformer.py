"""The Transformer encoder-decoder of Vaswani et al. 2017, "Attention is all you need"; sections below are that paper's.

Projections of attention have no biases and the feed-forward layers have them, as there; one matrix embeds target tokens and
gives the output (section 3.4). Not as there are the learning rate, which `polyhead train` lets fall along a cosine after its
warm-up where section 5.3 has an inverse square root, and the norm before each sublayer unless `norm` is post. Shapes: B batch,
S source length, T target length, C width, H heads, D head size, V target vocabulary.
"""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyhead.models.attention import fused_attention, merge_heads, multi_head_attention, padding_mask, split_heads
from polyhead.models.encoder import Attend
from polyhead.models.seq2seq import decoding
from polyhead.models.seq2seq.results import Output
from polyhead.models.seq2seq.transformer_config import TransformerSeq2SeqConfig

SelfAttend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, query, key, value (B, T, C)) -> (B, T, C): attention to what of the target comes before, causality included."""
CrossAttend = Callable[[int, Tensor], Tensor]
"""(layer, query (B, T, C)) -> (B, T, C): attention to the source, whose keys and values the hook has."""
Sublayer = Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """The projections around attention (section 3.2.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))


class FeedForward(nn.Module):
    """Section 3.3."""

    def __init__(self, config: TransformerSeq2SeqConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """x + sublayer(norm(x)), or norm(x + sublayer(x)) as published (section 3.1)."""

    def __init__(self, config: TransformerSeq2SeqConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.norm = nn.LayerNorm(config.width, config.norm_epsilon)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, sublayer: Sublayer) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(sublayer(self.norm(x)))  # type: ignore[no-any-return]
        return self.norm(x + self.dropout(sublayer(x)))  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    def __init__(self, config: TransformerSeq2SeqConfig) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(config.width), FeedForward(config)
        self.attention_residual, self.mlp_residual = Residual(config), Residual(config)

    def forward(self, x: Tensor, lengths: Tensor, attend: Attend) -> Tensor:
        a = self.attention
        x = self.attention_residual(x, lambda y: a.output(attend(a.query(y), a.key(y), a.value(y), lengths)))
        return self.mlp_residual(x, self.mlp)  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    def __init__(self, config: TransformerSeq2SeqConfig) -> None:
        super().__init__()
        self.attention, self.cross, self.mlp = Attention(config.width), Attention(config.width), FeedForward(config)
        self.attention_residual, self.cross_residual, self.mlp_residual = (Residual(config) for _ in range(3))

    def forward(self, x: Tensor, layer: int, self_attend: SelfAttend, cross_attend: CrossAttend) -> Tensor:
        a, c = self.attention, self.cross
        x = self.attention_residual(x, lambda y: a.output(self_attend(layer, a.query(y), a.key(y), a.value(y))))
        x = self.cross_residual(x, lambda y: c.output(cross_attend(layer, c.query(y))))
        return self.mlp_residual(x, self.mlp)  # type: ignore[no-any-return]


class TransformerSeq2Seq(nn.Module):
    """Source and target token ids in, logits of each next target token out."""

    encoder_blocks: nn.ModuleList
    decoder_blocks: nn.ModuleList

    def __init__(self, config: TransformerSeq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.target_vocabulary_size, config.width)
        if not config.share_embeddings:
            self.source_embedding = nn.Embedding(config.source_vocabulary_size, config.width)
        self.source_positions = _positions(config, config.max_source_tokens)
        self.target_positions = _positions(config, config.max_target_tokens)
        self.encoder_blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.layers))
        self.decoder_blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))
        pre = config.norm == "pre"  # then what a stack gives is a sum that no norm has seen
        self.encoder_norm = nn.LayerNorm(config.width, config.norm_epsilon) if pre else nn.Identity()
        self.decoder_norm = nn.LayerNorm(config.width, config.norm_epsilon) if pre else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.apply(_initialize)

    # -- the source

    def encode(self, source: Tensor, lengths: Tensor, attend: Attend | None = None) -> Tensor:
        """source (B, S), lengths (B,) -> (B, S, C); what stands at padding has no meaning and influences nothing."""
        table = self.embedding if self.config.share_embeddings else self.source_embedding
        x = self._embed(table, source, self.source_positions(torch.arange(source.shape[1], device=source.device)))
        for block in self.encoder_blocks:
            x = block(x, lengths, attend or self.attend)
        return self.encoder_norm(x)  # type: ignore[no-any-return]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
        """Attention over every position that is not padding."""
        q, k, v = (split_heads(x, self.config.heads) for x in (query, key, value))
        return merge_heads(fused_attention(q, k, v, padding_mask(lengths, k.shape[-2])))

    def cross(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Encoded source (B, S, C) -> each decoder layer's key and value, (B, S, C) each: key_0, value_0, key_1, …"""
        blocks = [block.cross for block in self.decoder_blocks]
        return tuple(projection(hidden) for cross in blocks for projection in (cross.key, cross.value))  # type: ignore[union-attr,operator]

    # -- the answer

    def step(self, token: Tensor, position: Tensor, self_attend: SelfAttend, cross_attend: CrossAttend) -> Tensor:
        """Read one token (B,) of each answer, at its position (B,) -> logits (B, V). The hooks get T = 1."""
        x = self._embed(self.embedding, token[:, None], self.target_positions(position)[:, None])
        return self._decode(x, self_attend, cross_attend)[:, 0]

    def _embed(self, table: nn.Embedding, ids: Tensor, positions: Tensor) -> Tensor:
        x: Tensor = self.dropout(table(ids) * sqrt(self.config.width) + positions)  # section 3.4
        return x

    def _decode(self, x: Tensor, self_attend: SelfAttend, cross_attend: CrossAttend) -> Tensor:
        """(B, T, C) -> (B, T, V)."""
        for layer, block in enumerate(self.decoder_blocks):
            x = block(x, layer, self_attend, cross_attend)
        return F.linear(self.decoder_norm(x), self.embedding.weight)

    # -- a whole target

    def forward(self, source: Tensor, lengths: Tensor, target_in: Tensor, own_share: float = 0.0) -> Output:
        """Teacher forcing: target_in (B, T) begins with the begin token. Weights: the mean over the last layer's heads.

        own_share: that share of its tokens, drawn at random, is replaced by what the model writes after the true tokens
        before them: scheduled sampling in two passes (Mihaylova and Martins 2019, section 3).
        """
        memory = self.cross(self.encode(source, lengths))
        if own_share > 0:
            with torch.no_grad():
                own = self._teach(memory, lengths, target_in).logits.argmax(-1)
            replaced = torch.rand(target_in.shape, device=target_in.device) < own_share
            replaced[:, 0] = False
            target_in = torch.where(replaced, own.roll(1, 1), target_in)
        return self._teach(memory, lengths, target_in)

    def _teach(self, memory: tuple[Tensor, ...], lengths: Tensor, target_in: Tensor) -> Output:
        heads, last, weights = self.config.heads, self.config.layers - 1, []
        mask = padding_mask(lengths, memory[0].shape[1])

        def self_attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            q, k, v = (split_heads(x, heads) for x in (query, key, value))
            return merge_heads(fused_attention(q, k, v, causal=True))

        def cross_attend(layer: int, query: Tensor) -> Tensor:
            q, k, v = (split_heads(x, heads) for x in (query, memory[2 * layer], memory[2 * layer + 1]))
            if layer < last:
                return merge_heads(fused_attention(q, k, v, mask))
            mixture, seen = multi_head_attention(q, k, v, mask)
            weights.append(seen.mean(1))
            return merge_heads(mixture)

        positions = self.target_positions(torch.arange(target_in.shape[1], device=target_in.device))
        logits = self._decode(self._embed(self.embedding, target_in, positions), self_attend, cross_attend)
        return Output(logits, weights[0])

    def decoder(self, source: Tensor, lengths: Tensor, max_tokens: int) -> "TransformerDecoder":
        """Answers under way for these sources, of at most `max_tokens` steps."""
        return TransformerDecoder(self, source, lengths, max_tokens)

    def greedy(self, source: Tensor, lengths: Tensor, max_tokens: int, bos: int, eos: int) -> list[list[int]]:
        """An answer for each source (B, S), without its end token."""
        begin = torch.full_like(lengths, bos)
        return decoding.greedy(self.decoder(source, lengths, max_tokens), begin, max_tokens, eos)


class TransformerDecoder:
    """See `decoding.Decoder`. Keys and values of all steps are kept, so that a step costs one token."""

    @torch.inference_mode()
    def __init__(self, model: TransformerSeq2Seq, source: Tensor, lengths: Tensor, max_tokens: int) -> None:
        self.model, self.position = model, 0
        heads, (B, S) = model.config.heads, source.shape
        self.memory = [split_heads(x, heads).contiguous() for x in model.cross(model.encode(source, lengths))]
        self.mask = padding_mask(lengths, S)
        shape = (B, heads, max_tokens, model.config.width // heads)
        self.cache = [self.memory[0].new_empty(shape) for _ in range(2 * model.config.layers)]

    @torch.inference_mode()
    def step(self, token: Tensor) -> Tensor:
        logits = self.model.step(token, torch.full_like(token, self.position), self._self_attend, self._cross_attend)
        self.position += 1
        return logits

    def _self_attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (split_heads(x, self.model.config.heads) for x in (query, key, value))
        keys, values = self.cache[2 * layer], self.cache[2 * layer + 1]
        keys[:, :, self.position], values[:, :, self.position] = k[:, :, 0], v[:, :, 0]
        end = self.position + 1
        return merge_heads(fused_attention(q, keys[:, :, :end], values[:, :, :end]))

    def _cross_attend(self, layer: int, query: Tensor) -> Tensor:
        q = split_heads(query, self.model.config.heads)
        return merge_heads(fused_attention(q, self.memory[2 * layer], self.memory[2 * layer + 1], self.mask))

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        self.mask = self.mask[rows]
        self.memory = [tensor[rows] for tensor in self.memory]
        self.cache = [tensor[rows] for tensor in self.cache]


class SinusoidalPositions(nn.Module):
    """Section 3.5; sines in the first half of the dimensions and cosines in the second, which a product can't tell apart."""

    table: Tensor

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        frequencies = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("table", torch.cat((angles.sin(), angles.cos()), -1).float(), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """(...) -> (..., C)."""
        return self.table[positions]


def _positions(config: TransformerSeq2SeqConfig, count: int) -> nn.Module:
    if config.positions == "sinusoidal":
        return SinusoidalPositions(count, config.width)
    return nn.Embedding(count, config.width)


def _initialize(module: nn.Module) -> None:
    """Embeddings that have length 1 on average before they are scaled; Glorot and Bengio 2010 for the rest; biases zero."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
