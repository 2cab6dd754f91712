"""transformers' encoder-decoder models: an encoder graph that ends with keys and values for every decoder layer, and one step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyhead.export.attention import AttentionVariant, CacheInputs, grouped_query_attention, padded_attention
from polyhead.export.errors import ExportError
from polyhead.export.huggingface.attention import attention_of, merge_heads, split_heads
from polyhead.export.huggingface.decoder import HEAD_MULTIPLE
from polyhead.export.huggingface.substitutes import substitutes
from polyhead.export.parity import Floats
from polyhead.export.seq2seq.attention import cross_attention, cross_attention_with_weights, mean_over_heads
from polyhead.export.seq2seq.exportable import ExportableSeq2Seq, Seq2SeqSizes, StepInputs, StepOutputs

RELATIVE_LIMIT = 512
"""Tokens of a source and of an answer where positions are only relative and the checkpoint names no limit."""


@dataclass
class Trace:
    """What the attention layers of a step take and leave behind."""

    inputs: StepInputs
    memory: list[Tensor]
    past: list[Tensor]
    present: dict[int, list[Tensor]] = field(default_factory=dict)
    weights: Tensor | None = None
    """(B, H, 1, S) of the last layer."""


class HuggingFaceSeq2Seq(ExportableSeq2Seq):
    """T5, BART, Marian and what is built like them."""

    model: Any
    memory_axis = 2

    def __init__(self, model: Any, max_tokens: int | None = None) -> None:
        """`max_tokens`: of sources and answers, fewer than the model can take. Raises ExportError for what the nodes can't do."""
        super().__init__()
        self.model = model
        decoder = model.get_decoder()
        self._layers = list(decoder.block if hasattr(decoder, "block") else decoder.layers)
        self._self = {id(attention_layers(layer)[0]): i for i, layer in enumerate(self._layers)}
        self._cross = [attention_layers(layer)[1] for layer in self._layers]
        self._heads, self._head_size = heads_of(self._cross[0])
        if self._head_size % HEAD_MULTIPLE:
            raise ExportError(
                f"head size {self._head_size} must be a multiple of {HEAD_MULTIPLE}: the fused attention takes no other"
            )
        self.caches = (len(self._layers), self._heads, self._head_size)
        self.sizes = sizes_of(model.config, max_tokens)

    def encode(self, input_ids: Tensor, lengths: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **more: Any) -> tuple[Tensor, None]:
            heads, scale = query.shape[1], scale_of(query, more.get("scaling"))
            q, k, v = (merge_heads(tensor) for tensor in (query, key, value))
            return split_heads(padded_attention(q, k, v, lengths, heads, scale, more.get("position_bias")), heads), None

        with attention_of(self.model, attend):
            hidden = self.model.get_encoder()(input_ids=input_ids).last_hidden_state
        projected = [linear(hidden) for module in self._cross for linear in projections_of(module)]
        return [split_heads(tensor, self._heads).transpose(1, 2) for tensor in projected], []

    def step(
        self, tokens: Tensor, inputs: StepInputs, memory: list[Tensor], state: list[Tensor], past: list[Tensor]
    ) -> StepOutputs:
        trace = Trace(inputs, memory, past)
        nothing = memory[0].new_zeros(
            tokens.shape[0], 1, self.model.config.d_model
        )  # where the source's states would be
        with attention_of(self.model, self._attend(trace)), positions_of(self.model.get_decoder(), inputs.positions):
            output = self.model(encoder_outputs=(nothing,), decoder_input_ids=tokens, use_cache=False)
        present = [tensor for _, written in sorted(trace.present.items()) for tensor in written]
        assert trace.weights is not None
        return StepOutputs(output.logits[:, 0], [], present, mean_over_heads(trace.weights))

    def _attend(self, trace: Trace) -> Any:
        """The attention function that puts a node on the caches, or on memory, for each layer of the decoder."""
        cache = CacheInputs(trace.inputs.positions, torch.ones_like(trace.inputs.positions), trace.inputs.capacity)
        lengths, cross = trace.inputs.source_lengths, [id(module) for module in self._cross]

        def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **more: Any) -> tuple[Tensor, None]:
            scale = scale_of(query, more.get("scaling"))
            if id(module) in cross:
                layer = cross.index(id(module))
                keys, values = trace.memory[2 * layer], trace.memory[2 * layer + 1]
                if layer < len(cross) - 1:
                    return cross_attention(query, keys, values, lengths, scale=scale).transpose(1, 2), None
                query = query * (scale * self._head_size**0.5)
                mixed, trace.weights = cross_attention_with_weights(query, keys, values, lengths)
                return mixed.transpose(1, 2), None
            layer = self._self[id(module)]
            flat = [merge_heads(tensor) for tensor in (query, key, value)]
            pair = trace.past[2 * layer], trace.past[2 * layer + 1]
            bias = relative_bias(self._first_self, trace) if more.get("position_bias") is not None else None
            mixed, *written = grouped_query_attention(
                flat[0], flat[1], flat[2], pair, cache, variant=AttentionVariant(scale), bias=bias
            )
            trace.present[layer] = written
            return split_heads(mixed, query.shape[1]), None

        return attend

    @property
    def _first_self(self) -> Any:
        """Which has the biases of relative positions for all layers."""
        return attention_layers(self._layers[0])[0]

    @torch.inference_mode()
    def reference(self, source: list[int], answer: list[int]) -> tuple[Floats, Floats | None]:
        output = self.model(
            input_ids=torch.tensor([source]),
            decoder_input_ids=torch.tensor([answer]),
            output_attentions=True,
            use_cache=False,
        )
        return output.logits[0].numpy(), output.cross_attentions[-1][0].mean(0).numpy()

    @contextmanager
    def tracing(self) -> Iterator[None]:
        with substitutes(self.model, self.sizes.max_source_tokens):
            yield


def attention_layers(layer: Any) -> tuple[Any, Any]:
    """A decoder layer's attention to its answer and to the source."""
    if hasattr(layer, "encoder_attn"):
        return layer.self_attn, layer.encoder_attn
    return layer.layer[0].SelfAttention, layer.layer[1].EncDecAttention


def projections_of(module: Any) -> tuple[nn.Module, nn.Module]:
    """Of keys and of values."""
    return (module.k_proj, module.v_proj) if hasattr(module, "k_proj") else (module.k, module.v)


def heads_of(module: Any) -> tuple[int, int]:
    """Their number and size."""
    if hasattr(module, "key_value_proj_dim"):
        return module.n_heads, module.key_value_proj_dim
    return module.num_heads, module.head_dim


def scale_of(query: Tensor, scaling: float | None) -> float:
    return query.shape[-1] ** -0.5 if scaling is None else float(scaling)


def relative_bias(first: Any, trace: Trace) -> Tensor:
    """(B, H, 1, M): what is added to the scores of each row's token with all tokens of its cache (Raffel et al. 2020, T5, section
    2.1)."""
    distance = torch.arange(trace.past[0].shape[2])[None] - trace.inputs.positions[:, None]  # (B, M)
    buckets = first._relative_position_bucket(
        distance,
        bidirectional=False,
        num_buckets=first.relative_attention_num_buckets,
        max_distance=first.relative_attention_max_distance,
    )
    return F.embedding(buckets, first.relative_attention_bias.weight).permute(0, 2, 1)[:, :, None]


@contextmanager
def positions_of(decoder: Any, positions: Tensor) -> Iterator[None]:
    """A decoder with a table of positions embeds these (B,) meanwhile, one for each row."""
    table: Any = getattr(decoder, "embed_positions", None)
    if table is None:
        yield
        return

    class Given(nn.Module):
        def forward(self, *_: Any, **__: Any) -> Tensor:
            return F.embedding(positions.to(torch.int64) + getattr(table, "offset", 0), table.weight)[:, None]

    decoder.embed_positions = Given()
    try:
        yield
    finally:
        decoder.embed_positions = table


def sizes_of(config: Any, max_tokens: int | None) -> Seq2SeqSizes:
    """Raises ExportError for `max_tokens` that the model can't take."""
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if max_tokens is not None and not 1 <= max_tokens <= (limit or max_tokens):
        raise ExportError(f"--max-tokens must be from 1 to {limit}, which the checkpoint can take, got {max_tokens}")
    length = max_tokens or limit or RELATIVE_LIMIT
    return Seq2SeqSizes(config.vocab_size, length, config.vocab_size, length)
