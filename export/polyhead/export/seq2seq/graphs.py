"""Sequence-to-sequence models to two ONNX graphs with the signatures of docs/architecture.md."""

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from polyhead.export.seq2seq.exportable import ExportableSeq2Seq, StepInputs
from polyhead.export.to_onnx import logsumexp, to_graph, top_k_of

_BATCH, _SOURCE, _TARGET = (Dim(name) for name in ("batch", "source", "target"))
_ROWS, _LENGTH, _CAPACITY = 3, 5, 8
"""While tracing; any numbers do."""


class EncoderGraph(nn.Module):
    """The inputs and outputs of `encoder.onnx`."""

    def __init__(self, source: ExportableSeq2Seq) -> None:
        super().__init__()
        self.source = source

    def forward(self, input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        memory, state = self.source.encode(input_ids, lengths)
        return (*memory, *state)


class StepGraph(nn.Module):
    """The inputs and outputs of `decoder.onnx`."""

    def __init__(self, source: ExportableSeq2Seq) -> None:
        super().__init__()
        self.source = source

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        source_lengths: Tensor,
        capacity: Tensor,
        top_k: Tensor,
        memory: list[Tensor],
        state: list[Tensor],
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        told = StepInputs(positions, source_lengths, capacity)
        logits, after, present, alignment = self.source.step(input_ids, told, memory, state, past)
        seen = () if alignment is None else (alignment,)
        return (*top_k_of(logits, top_k), logsumexp(logits), logits, *seen, *after, *present)


def export_seq2seq(source: ExportableSeq2Seq) -> tuple[ir.Model, ir.Model]:
    """The graphs of `encoder.onnx` and `decoder.onnx`."""
    with source.tracing():
        memory, state = _examples(source)
        return _encoder(source, len(memory), len(state)), _decoder(source, memory, state)


def _encoder(source: ExportableSeq2Seq, memory: int, state: int) -> ir.Model:
    example = (torch.zeros(_ROWS, _LENGTH, dtype=torch.int64), torch.full((_ROWS,), _LENGTH, dtype=torch.int32))
    dynamic = ({0: _BATCH, 1: _SOURCE}, {0: _BATCH})
    outputs = [*(f"memory.{i}" for i in range(memory)), *(f"state.{i}" for i in range(state))]
    return to_graph(EncoderGraph(source), example, dynamic, ["input_ids", "lengths"], outputs)


def _decoder(source: ExportableSeq2Seq, memory: list[Tensor], state: list[Tensor]) -> ir.Model:
    layers, heads, head_size = source.caches or (0, 1, 1)
    example: tuple[Any, ...] = (
        torch.zeros(_ROWS, 1, dtype=torch.int64),
        torch.ones(_ROWS, dtype=torch.int32),
        torch.ones(_ROWS, dtype=torch.int32),  # tensors of their own: one that came twice would be one input
        torch.tensor(_CAPACITY, dtype=torch.int32),
        torch.ones(1, dtype=torch.int64),
        memory,
        state,
        [torch.zeros(_ROWS, heads, _CAPACITY, head_size) for _ in range(2 * layers)],
    )
    row = {0: _BATCH}
    kept = {0: _BATCH, source.memory_axis: _SOURCE}
    slots = [kept] * len(memory), [row] * len(state), [{0: _BATCH, 2: _TARGET}] * (2 * layers)
    dynamic: tuple[Any, ...] = (row, row, row, {}, {}, *slots)
    states = [f"state.{i}" for i in range(len(state))]
    caches = [f"{kind}.{layer}" for layer in range(layers) for kind in ("key", "value")]
    inputs = ["input_ids", "positions", "source_lengths", "capacity", "top_k"]
    inputs += [*(f"memory.{i}" for i in range(len(memory))), *states, *(f"past.{name}" for name in caches)]
    outputs = ["topk_values", "topk_ids", "logsumexp", "logits", *(["alignment"] if source.has_alignment else [])]
    outputs += [*(f"new.{name}" for name in states), *(f"present.{name}" for name in caches)]
    graph = to_graph(StepGraph(source), example, dynamic, inputs, outputs)
    _name_sizes(graph, source)
    _drop_unused_inputs(graph, inputs[1:4])
    return graph


@torch.inference_mode()
def _examples(source: ExportableSeq2Seq) -> tuple[list[Tensor], list[Tensor]]:
    """Memory and states of some source, which tell their number and shapes."""
    ids = torch.zeros(_ROWS, _LENGTH, dtype=torch.int64)
    memory, state = source.encode(ids, torch.full((_ROWS,), _LENGTH, dtype=torch.int32))
    return [tensor.detach().clone() for tensor in memory], [tensor.detach().clone() for tensor in state]


def _name_sizes(graph: ir.Model, source: ExportableSeq2Seq) -> None:
    """Sizes that torch gave names of its own, or took from the example for fixed."""
    named = {
        "memory": {source.memory_axis: "source"},
        "past": {2: "target"},
        "present": {2: "target"},
        "alignment": {1: "source"},
        "topk_values": {1: "top_k"},
        "topk_ids": {1: "top_k"},
    }
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        if value.shape is not None and len(value.shape) and value.name != "top_k":
            sizes = {0: "batch", **named.get(str(value.name).partition(".")[0], {})}
            value.shape = ir.Shape([sizes.get(axis, size) for axis, size in enumerate(value.shape)])


def _drop_unused_inputs(graph: ir.Model, names: list[str]) -> None:
    """Recurrent decoders have no use for positions, and without attention none for lengths."""
    for value in [value for value in graph.graph.inputs if value.name in names and not value.uses()]:
        graph.graph.inputs.remove(value)
