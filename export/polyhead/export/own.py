"""The models of polyhead.models, as export takes them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyhead.export.attention import ROTARY_HEAD_MULTIPLE, padded_attention
from polyhead.export.errors import ExportError
from polyhead.export.exportable import (
    LEAST_TOKENS,
    DecoderSizes,
    EncoderSizes,
    Exportable,
    ExportableDecoder,
    ExportableEncoder,
    Floats,
    Slots,
)
from polyhead.export.seq2seq.own import own_seq2seq
from polyhead.models.attention import rotate, split_heads
from polyhead.models.checkpoint import Model
from polyhead.models.encoder import Classifier, Embedder
from polyhead.models.gpt import GPT
from polyhead.models.seq2seq import RNNSeq2Seq, TransformerSeq2Seq


def own(model: Model) -> Exportable:
    """Raises ExportError if the attention kernel can't take the model's head size."""
    if isinstance(model, RNNSeq2Seq | TransformerSeq2Seq):
        return own_seq2seq(model)
    return OwnDecoder(model) if isinstance(model, GPT) else OwnEncoder(model)


class OwnDecoder(ExportableDecoder):
    """A GPT. Rotation is part of its attention nodes."""

    model: GPT

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model
        config = model.config
        if config.head_size % ROTARY_HEAD_MULTIPLE:
            raise ExportError(
                f"head size {config.head_size} (width {config.width} / heads {config.heads}) must be a multiple of "
                f"{ROTARY_HEAD_MULTIPLE}: the fused attention rotates no other"
            )
        if config.max_tokens < LEAST_TOKENS:
            raise ExportError(f"max_tokens must be at least {LEAST_TOKENS} for a decoder, is {config.max_tokens}")
        self.sizes = DecoderSizes(
            config.vocabulary_size, config.max_tokens, config.layers, config.kv_heads, config.head_size
        )

    def logits(self, input_ids: Tensor, logit_positions: Tensor, slots: Slots, position_ids: Tensor | None) -> Tensor:
        rotary = (self.model.cosine, self.model.sine)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return slots.attend(layer, query, key, value, rotary)

        hidden = self.model.hidden_states(input_ids, attend).flatten(0, 1)  # (B·S, C)
        wanted = hidden.index_select(0, logit_positions)  # (N, C): the output layer is the widest, so select before it
        return self.model.logits(wanted)

    @torch.inference_mode()
    def reference(self, tokens: list[int], count: int) -> tuple[Floats, Floats]:
        model, config, T = self.model, self.model.config, len(tokens)
        keys: list[Tensor] = []
        values: list[Tensor] = []

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys.append(rotate(split_heads(key, config.kv_heads), model.cosine[:T], model.sine[:T])[0])
            values.append(split_heads(value, config.kv_heads)[0])
            return model.attend(layer, query, key, value)

        hidden = model.hidden_states(torch.tensor([tokens]), attend)[0, -count:]
        return model.logits(hidden).numpy(), torch.stack((torch.stack(keys), torch.stack(values))).numpy()


class OwnEncoder(ExportableEncoder):
    """A classifier or an embedder."""

    model: Classifier | Embedder

    def __init__(self, model: Classifier | Embedder) -> None:
        super().__init__()
        self.model = model
        config = model.config
        outputs = model.config.embedding_size if isinstance(model, Embedder) else model.config.classes
        self.sizes = EncoderSizes(config.vocabulary_size, config.max_tokens, outputs)
        self.output = "embeddings" if isinstance(model, Embedder) else "probabilities"
        self.normalized = isinstance(model, Embedder)

    def encode(self, input_ids: Tensor, lengths: Tensor, token_types: Tensor | None) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
            return padded_attention(query, key, value, lengths, self.model.config.heads)

        return self._head(self.model(input_ids, lengths, attend))

    @torch.inference_mode()
    def reference(self, ids: NDArray[np.int64], token_types: NDArray[np.int64] | None = None) -> Floats:
        output = self._head(self.model(torch.from_numpy(ids)[None], torch.tensor([len(ids)])))[0]
        array: Floats = output.numpy()
        return array

    def _head(self, output: Tensor) -> Tensor:
        return output.softmax(-1) if self.output == "probabilities" else output
