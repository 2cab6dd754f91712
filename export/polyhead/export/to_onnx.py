"""Models to ONNX graphs with the signatures of docs/architecture.md, by torch's dynamo exporter."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from polyhead.export.attention import ROTARY_HEAD_MULTIPLE, CacheInputs, grouped_query_attention, padded_attention
from polyhead.export.errors import ExportError
from polyhead.models.encoder import Classifier, Embedder
from polyhead.models.gpt import GPT

OPSET = 24
"""The first with attention over rows of different lengths; for the attention of 25 onnxruntime has no CPU kernel."""

_BATCH, _SEQUENCE, _CAPACITY, _POSITIONS = (torch.export.Dim(n) for n in ("batch", "sequence", "capacity", "positions"))


class DecoderGraph(nn.Module):
    """A GPT over cache slots, with the inputs and outputs of `decoder.onnx`."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        seqlens_k: Tensor,
        query_seqlens: Tensor,
        capacity: Tensor,
        logit_positions: Tensor,
        top_k: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        cache = CacheInputs(seqlens_k, query_seqlens, capacity)
        rotary = (self.model.cosine, self.model.sine)
        present: list[Tensor] = []

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            slots = (past[2 * layer], past[2 * layer + 1])
            mixed, *updated = grouped_query_attention(query, key, value, slots, cache, rotary)
            present.extend(updated)
            return mixed

        hidden = self.model.hidden_states(input_ids, attend).flatten(0, 1)  # (B·S, C)
        wanted = hidden.index_select(0, logit_positions)  # (N, C): the output layer is the widest, so select before it
        logits = self.model.logits(wanted)  # (N, V)
        return (*_top_k(logits, top_k), _logsumexp(logits), logits, *present)


def _logsumexp(logits: Tensor) -> Tensor:
    """(N, V) -> (N,): log Σ exp, which is the largest logit minus the largest log-probability.

    onnxruntime vectorizes LogSoftmax, so this is eight times as fast as its ReduceLogSumExp at (16, 49152) and nearer to
    float64. No Log node: that one gives an element other bits at the end of a vector register than inside, so with N.
    """
    return logits.amax(-1) - logits.log_softmax(-1).amax(-1)


def _top_k(logits: Tensor, top_k: Tensor) -> tuple[Tensor, Tensor]:
    """(N, V), (1,) -> values and ids (N, top_k): torch can't express a k known only at run time, ONNX can."""
    values, ids = torch.onnx.ops.symbolic_multi_out(
        "TopK",
        (logits, top_k),
        {"axis": -1, "largest": 1, "sorted": 1},
        dtypes=(logits.dtype, torch.int64),
        shapes=((logits.shape[0], 1), (logits.shape[0], 1)),
    )
    return values, ids


def export_decoder(model: GPT) -> ir.Model:
    """The graph of `decoder.onnx`. Raises ExportError if the attention kernel can't take the model's head size."""
    config = model.config
    if config.head_size % ROTARY_HEAD_MULTIPLE:
        raise ExportError(
            f"head size {config.head_size} (width {config.width} / heads {config.heads}) must be a multiple of "
            f"{ROTARY_HEAD_MULTIPLE}: the fused attention rotates no other"
        )
    rows, length, slot = 3, 4, config.max_tokens
    shape = (rows, config.kv_heads, slot, config.head_size)
    example = (
        torch.zeros(rows, length, dtype=torch.int64),
        torch.full((rows,), length - 1, dtype=torch.int32),
        torch.full((rows,), length, dtype=torch.int32),
        torch.tensor(slot, dtype=torch.int32),
        torch.zeros(5, dtype=torch.int64),
        torch.ones(1, dtype=torch.int64),
        [torch.zeros(shape) for _ in range(2 * config.layers)],
    )
    row, positions = {0: _BATCH}, {0: _POSITIONS}
    slots = [{0: _BATCH, 2: _CAPACITY}] * (2 * config.layers)
    names = [f"{kind}.{layer}" for layer in range(config.layers) for kind in ("key", "value")]
    graph = _export(
        DecoderGraph(model),
        example,
        ({0: _BATCH, 1: _SEQUENCE}, row, row, {}, positions, {}, slots),
        [
            "input_ids",
            "seqlens_k",
            "query_seqlens",
            "capacity",
            "logit_positions",
            "top_k",
            *(f"past.{n}" for n in names),
        ],
        ["topk_values", "topk_ids", "logsumexp", "logits", *(f"present.{n}" for n in names)],
    )
    for output in graph.graph.outputs[:2]:  # torch took the k of the example for a fixed size
        output.shape = ir.Shape(["positions", "top_k"])
    return graph


class EncoderGraph(nn.Module):
    """An encoder and its head, with the inputs and the output of `encoder.onnx`."""

    def __init__(self, model: Classifier | Embedder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
            return padded_attention(query, key, value, lengths, self.model.config.heads)

        output: Tensor = self.model(input_ids, lengths, attend)
        return output.softmax(-1) if isinstance(self.model, Classifier) else output


def export_encoder(model: Classifier | Embedder) -> ir.Model:
    """The graph of `encoder.onnx`."""
    rows, length = 3, 4
    example = (torch.zeros(rows, length, dtype=torch.int64), torch.full((rows,), length, dtype=torch.int32))
    output = "probabilities" if isinstance(model, Classifier) else "embeddings"
    dynamic = ({0: _BATCH, 1: _SEQUENCE}, {0: _BATCH})
    return _export(EncoderGraph(model), example, dynamic, ["input_ids", "lengths"], [output])


def _export(
    module: nn.Module, example: tuple[Any, ...], dynamic: tuple[Any, ...], inputs: Sequence[str], outputs: Sequence[str]
) -> ir.Model:
    """Export and fold. A weight keeps its name in the model's `state_dict()`, with `.T` added where it was transposed."""
    with _quiet(), torch.inference_mode():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=dynamic,
            input_names=inputs,
            output_names=outputs,
            verbose=False,
            optimize=False,
        )
        assert program is not None
        _name_weights(program.model.graph)
        program.optimize()
    _drop_metadata(program.model)
    return program.model


def _name_weights(graph: ir.Graph) -> None:
    """`model.blocks.0.up.weight` becomes `blocks.0.up.weight`; what folding makes of its transpose `….weight.T`."""
    for weight in list(graph.initializers.values()):
        weight.name = str(weight.name).removeprefix("model.")
    for node in graph:
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is not None and source.is_initializer():
            node.outputs[0].name = f"{source.name}.T"


def _drop_metadata(model: ir.Model) -> None:
    """Stack traces with paths of the machine that exported, four times the size of the graph."""
    ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)):
        value.metadata_props.clear()
    model.producer_name, model.producer_version = "polyhead", None


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of operators of packages nobody asked for, and of itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
