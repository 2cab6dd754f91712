"""A GPT-style decoder: Radford et al. 2019 (GPT-2) with what came after it.

Pre-norm (Xiong et al. 2020) RMSNorm (Zhang and Sennrich 2019), rotary positions (Su et al. 2021), grouped key/value heads
(Ainslie et al. 2023), SwiGLU (Shazeer 2020), no biases, and one matrix for token embedding and output (Press and Wolf 2017).
Shapes: B batch, T length, C width, H query heads, G key/value heads, D head size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyhead.models.attention import fused_attention, merge_heads, rotary_tables, rotate, split_heads

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, query (B, T, H·D), key (B, T, G·D), value (B, T, G·D)) -> (B, T, H·D), positions and causality included.

Training computes it with torch; export puts a fused attention node with a cache in its place."""


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT. Raises ValueError where they contradict each other."""

    vocabulary_size: int
    max_tokens: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    width: int = 128
    hidden: int = 352
    dropout: float = 0.0
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must divide by twice the heads, {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must divide by kv_heads {self.kv_heads}")

    @property
    def head_size(self) -> int:
        return self.width // self.heads


class SelfAttention(nn.Module):
    """The projections around attention."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key = nn.Linear(config.width, config.kv_heads * config.head_size, bias=False)
        self.value = nn.Linear(config.width, config.kv_heads * config.head_size, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        return self.output(attend(layer, self.query(x), self.key(x), self.value(x)))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """Shazeer 2020, equation 6: a gated feed-forward layer."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.hidden, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.attention = SelfAttention(config)
        self.mlp_norm = nn.RMSNorm(config.width, config.norm_epsilon)
        self.mlp = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, layer: int, attend: Attend) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), layer, attend))
        x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x


class GPT(nn.Module):
    """Token ids in, logits of each next token out."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.norm_epsilon)
        cosine, sine = rotary_tables(config.max_tokens, config.head_size, config.rope_theta)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        """Normal weights of deviation 0.02; what feeds the residual stream less by the root of its additions (GPT-2, section 2.3)."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, Block):
            for linear in (module.attention.output, module.mlp.down):
                nn.init.normal_(linear.weight, std=0.02 / (2 * self.config.layers) ** 0.5)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention of a whole sequence that begins at position 0; see `Attend`."""
        T = query.shape[1]
        cosine, sine = self.cosine[:T], self.sine[:T]
        q = rotate(split_heads(query, self.config.heads), cosine, sine)  # (B, H, T, D)
        k = rotate(split_heads(key, self.config.kv_heads), cosine, sine)  # (B, G, T, D)
        v = split_heads(value, self.config.kv_heads)
        dropout = self.config.dropout if self.training else 0.0
        return merge_heads(fused_attention(q, k, v, causal=True, dropout=dropout))

    def hidden_states(self, input_ids: Tensor, attend: Attend | None = None) -> Tensor:
        """input_ids (B, T) -> (B, T, C): what the output layer reads."""
        x: Tensor = self.embedding(input_ids)
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, attend or self.attend)
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden_states: Tensor) -> Tensor:
        """(..., C) -> (..., V)."""
        return F.linear(hidden_states, self.embedding.weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        """input_ids (B, T), T at most `max_tokens` -> logits (B, T, V)."""
        return self.logits(self.hidden_states(input_ids))

    @torch.inference_mode()
    def generate(self, prompt: list[int], max_tokens: int, end_tokens: frozenset[int] = frozenset()) -> list[int]:
        """Greedy continuation of one prompt by recomputing the whole sequence each step: slow and plainly right."""
        ids = list(prompt)
        for _ in range(max_tokens):
            ids.append(int(self(torch.tensor([ids], device=self.cosine.device))[0, -1].argmax()))
            if ids[-1] in end_tokens:
                break
        return ids[len(prompt) :]
