"""The sequence-to-sequence models of polyhead.models, as export takes them."""

import torch
from torch import Tensor

from polyhead.export.attention import CacheInputs, grouped_query_attention, padded_attention
from polyhead.export.parity import Floats
from polyhead.export.seq2seq.attention import cross_attention, cross_attention_with_weights, mean_over_heads
from polyhead.export.seq2seq.exportable import ExportableSeq2Seq, Seq2SeqSizes, StepInputs, StepOutputs
from polyhead.models.attention import merge_heads, split_heads
from polyhead.models.seq2seq import RNNSeq2Seq, RNNSeq2SeqConfig, TransformerSeq2Seq, TransformerSeq2SeqConfig


def own_seq2seq(model: RNNSeq2Seq | TransformerSeq2Seq) -> ExportableSeq2Seq:
    return OwnRNN(model) if isinstance(model, RNNSeq2Seq) else OwnTransformer(model)


class OwnRNN(ExportableSeq2Seq):
    """A recurrent encoder-decoder, with or without attention."""

    model: RNNSeq2Seq

    def __init__(self, model: RNNSeq2Seq) -> None:
        super().__init__()
        self.model = model
        self.sizes = _sizes(model.config)
        self.has_alignment = model.config.attention != "none"

    def encode(self, input_ids: Tensor, lengths: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        memory, state = self.model.encode(input_ids, lengths)
        return list(memory), list(state)

    def step(
        self, tokens: Tensor, inputs: StepInputs, memory: list[Tensor], state: list[Tensor], past: list[Tensor]
    ) -> StepOutputs:
        logits, after, weights = self.model.step(tokens[:, 0], inputs.source_lengths, tuple(memory), tuple(state))
        return StepOutputs(logits, list(after), [], weights)

    def reference(self, source: list[int], answer: list[int]) -> tuple[Floats, Floats | None]:
        return _teach(self.model, source, answer)


class OwnTransformer(ExportableSeq2Seq):
    """A Transformer encoder-decoder."""

    model: TransformerSeq2Seq
    memory_axis = 2

    def __init__(self, model: TransformerSeq2Seq) -> None:
        super().__init__()
        self.model = model
        self.sizes = _sizes(model.config)
        self.caches = (model.config.layers, model.config.heads, model.config.width // model.config.heads)

    def encode(self, input_ids: Tensor, lengths: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        heads = self.model.config.heads

        def attend(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
            return padded_attention(query, key, value, lengths, heads)

        memory = self.model.cross(self.model.encode(input_ids, lengths, attend))
        return [split_heads(tensor, heads) for tensor in memory], []

    def step(
        self, tokens: Tensor, inputs: StepInputs, memory: list[Tensor], state: list[Tensor], past: list[Tensor]
    ) -> StepOutputs:
        heads, last = self.model.config.heads, self.model.config.layers - 1
        cache = CacheInputs(inputs.positions, torch.ones_like(inputs.positions), inputs.capacity)
        present: list[Tensor] = []
        seen: list[Tensor] = []

        def self_attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            mixed, *written = grouped_query_attention(query, key, value, (past[2 * layer], past[2 * layer + 1]), cache)
            present.extend(written)
            return mixed

        def cross_attend(layer: int, query: Tensor) -> Tensor:
            q, k, v = split_heads(query, heads), memory[2 * layer], memory[2 * layer + 1]
            if layer < last:
                return merge_heads(cross_attention(q, k, v, inputs.source_lengths))
            mixed, weights = cross_attention_with_weights(q, k, v, inputs.source_lengths)
            seen.append(mean_over_heads(weights))
            return merge_heads(mixed)

        logits = self.model.step(tokens[:, 0], inputs.positions.to(torch.int64), self_attend, cross_attend)
        return StepOutputs(logits, [], present, seen[0])

    def reference(self, source: list[int], answer: list[int]) -> tuple[Floats, Floats | None]:
        return _teach(self.model, source, answer)


def _sizes(config: RNNSeq2SeqConfig | TransformerSeq2SeqConfig) -> Seq2SeqSizes:
    return Seq2SeqSizes(
        config.target_vocabulary_size, config.max_target_tokens, config.source_vocabulary_size, config.max_source_tokens
    )


@torch.inference_mode()
def _teach(
    model: RNNSeq2Seq | TransformerSeq2Seq, source: list[int], answer: list[int]
) -> tuple[Floats, Floats | None]:
    output = model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([answer]))
    return output.logits[0].numpy(), None if output.weights is None else output.weights[0].numpy()
