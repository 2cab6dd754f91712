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

from polyhead.export.attention import CacheInputs
from polyhead.export.exportable import ExportableDecoder, ExportableEncoder, Slots
from polyhead.export.fold import fold

OPSET = 24
"""The first with attention over rows of different lengths; for the attention of 25 onnxruntime has no CPU kernel."""

_EXAMPLE_CAPACITY = 64
"""Tokens of a slot while tracing; any number does."""

_BATCH, _SEQUENCE, _CAPACITY, _POSITIONS = (torch.export.Dim(n) for n in ("batch", "sequence", "capacity", "positions"))


class DecoderGraph(nn.Module):
    """A decoder over cache slots, with the inputs and outputs of `decoder.onnx`."""

    def __init__(self, source: ExportableDecoder) -> None:
        super().__init__()
        self.source = source

    def forward(
        self,
        input_ids: Tensor,
        seqlens_k: Tensor,
        query_seqlens: Tensor,
        capacity: Tensor,
        logit_positions: Tensor,
        top_k: Tensor,
        past: list[Tensor],
        position_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        slots = Slots(past, CacheInputs(seqlens_k, query_seqlens, capacity))
        logits = self.source.logits(input_ids, logit_positions, slots, position_ids)  # (N, V)
        return (*top_k_of(logits, top_k), logsumexp(logits), logits, *slots.present)


def logsumexp(logits: Tensor) -> Tensor:
    """(N, V) -> (N,): log Σ exp, which is the largest logit minus the largest log-probability.

    onnxruntime vectorizes LogSoftmax, so this is eight times as fast as its ReduceLogSumExp at (16, 49152) and nearer to
    float64. No Log node: that one gives an element other bits at the end of a vector register than inside, so with N.
    """
    return logits.amax(-1) - logits.log_softmax(-1).amax(-1)


def top_k_of(logits: Tensor, top_k: Tensor) -> tuple[Tensor, Tensor]:
    """(N, V), (1,) -> values and ids (N, top_k): torch can't express a k known only at run time, ONNX can."""
    values, ids = torch.onnx.ops.symbolic_multi_out(
        "TopK",
        (logits, top_k),
        {"axis": -1, "largest": 1, "sorted": 1},
        dtypes=(logits.dtype, torch.int64),
        shapes=((logits.shape[0], 1), (logits.shape[0], 1)),
    )
    return values, ids


def export_decoder(source: ExportableDecoder) -> ir.Model:
    """The graph of `decoder.onnx`."""
    sizes = source.sizes
    rows, length, slot = 3, 4, min(sizes.max_tokens, _EXAMPLE_CAPACITY)
    shape = (rows, sizes.kv_heads, slot, sizes.head_size)
    example: list[Any] = [
        torch.zeros(rows, length, dtype=torch.int64),
        torch.full((rows,), length - 1, dtype=torch.int32),
        torch.full((rows,), length, dtype=torch.int32),
        torch.tensor(slot, dtype=torch.int32),
        torch.zeros(5, dtype=torch.int64),
        torch.ones(1, dtype=torch.int64),
        [torch.zeros(shape) for _ in range(2 * sizes.layers)],
    ]
    row, positions = {0: _BATCH}, {0: _POSITIONS}
    tokens = {0: _BATCH, 1: _SEQUENCE}
    slots = [{0: _BATCH, 2: _CAPACITY}] * (2 * sizes.layers)
    dynamic: list[Any] = [tokens, row, row, {}, positions, {}, slots]
    names = [f"{kind}.{layer}" for layer in range(sizes.layers) for kind in ("key", "value")]
    inputs = ["input_ids", "seqlens_k", "query_seqlens", "capacity", "logit_positions", "top_k"]
    inputs += [f"past.{name}" for name in names]
    outputs = ["topk_values", "topk_ids", "logsumexp", "logits", *(f"present.{name}" for name in names)]
    if source.takes_positions:
        example.append(torch.zeros(rows, length, dtype=torch.int64))
        dynamic.append(tokens)
        inputs.append("position_ids")
    with source.tracing():
        graph = to_graph(DecoderGraph(source), tuple(example), tuple(dynamic), inputs, outputs)
    for output in graph.graph.outputs[:2]:  # torch took the k of the example for a fixed size
        output.shape = ir.Shape(["positions", "top_k"])
    return graph


class EncoderGraph(nn.Module):
    """An encoder and its head, with the inputs and the output of `encoder.onnx`."""

    def __init__(self, source: ExportableEncoder) -> None:
        super().__init__()
        self.source = source

    def forward(self, input_ids: Tensor, lengths: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        return self.source.encode(input_ids, lengths, token_type_ids)


def export_encoder(source: ExportableEncoder) -> ir.Model:
    """The graph of `encoder.onnx`."""
    rows, length = 3, 4
    tokens, inputs = {0: _BATCH, 1: _SEQUENCE}, ["input_ids", "lengths"]
    example: list[Any] = [torch.zeros(rows, length, dtype=torch.int64), torch.full((rows,), length, dtype=torch.int32)]
    dynamic: list[Any] = [tokens, {0: _BATCH}]
    if source.takes_token_types:
        inputs.append("token_type_ids")
        example.append(torch.zeros(rows, length, dtype=torch.int64))
        dynamic.append(tokens)
    with source.tracing():
        return to_graph(EncoderGraph(source), tuple(example), tuple(dynamic), inputs, [source.output])


def to_graph(
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
        _name_weights(program.model.graph, module)
        fold(program.model)
    _drop_metadata(program.model)
    return program.model


def _name_weights(graph: ir.Graph, module: nn.Module) -> None:
    """`source.model.blocks.0.up.weight` becomes `blocks.0.up.weight`; what folding makes of its transpose `….weight.T`. One
    that the model knows by several names gets the first of them, which is how a checkpoint stores it."""
    tensors = dict(module.named_parameters(remove_duplicate=False))
    first = {id(tensor): name for name, tensor in module.named_parameters()}
    for weight in list(graph.initializers.values()):
        if not weight.uses():
            del graph.initializers[str(weight.name)]
            continue
        name = str(weight.name)
        name = first[id(tensors[name])] if name in tensors else name
        weight.name = name.removeprefix("source.model.")
    transposed: dict[tuple[ir.Value, tuple[int, ...]], ir.Value] = {}
    for node in graph:
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or not source.is_initializer():
            continue
        key = (source, tuple(node.attributes.get_ints("perm", ())))
        if key in transposed:  # by one layer that is used twice
            node.outputs[0].replace_all_uses_with(transposed[key])
            continue
        transposed[key] = node.outputs[0]
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
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
