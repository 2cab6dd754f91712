"""Inputs for adapters in an exported graph, and the files of adapters in a bundle; see `polyhead.server.adapters`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from safetensors.numpy import load_file, save_file

from polyhead.export.adapters import Adapter, Change, Floats
from polyhead.export.errors import ExportError
from polyhead.export.rewrite import MICROSOFT, Editor, Linear, linear_layers
from polyhead.server.adapters import GROUP, PREFIX, parts
from polyhead.v1 import bundle_pb2

FOLDER = "adapters"
UP, DOWN = 2.0, 0.5
"""Factors of the two products, exact and 1 together: onnxruntime has a kernel for one row that rounds otherwise, and takes it only
for products without a factor."""


def add_adapters(model: ir.Model, adapters: Sequence[Adapter]) -> None:
    """Let each layer that one of them changes add what an adapter's inputs say. Raises ExportError for a layer that is no product
    with a matrix in the graph."""
    editor = Editor(model.graph)
    layers: dict[str, list[Linear]] = {}
    for found in linear_layers(model.graph):
        layers.setdefault(found.name.removesuffix(".weight"), []).append(found)
    for adapter in adapters:
        for name in adapter.changes:
            if name not in layers:
                raise ExportError(
                    f"adapter {adapter.name}: {name} is no product of its own in the exported graph: its weight is shared, as that "
                    "of an output layer with the token embeddings, or only applied to constants"
                )
    for name, same in layers.items():
        changes = [adapter.changes[name] for adapter in adapters if name in adapter.changes]
        if changes:
            columns, rows, bias = _inputs(model.graph, name, same[0], changes)
            for layer in same:
                _add_change(editor, layer, columns, rows, bias)


def _inputs(
    graph: ir.Graph, name: str, layer: Linear, changes: Sequence[Change]
) -> tuple[list[ir.Value], ir.Value, ir.Value | None]:
    """The graph's new inputs for a layer. Each rank has a name of its own, as onnxruntime reuses memory by names of sizes."""
    inputs, outputs = layer.matrix().shape
    groups = -(-max(change.b.shape[0] for change in changes) // GROUP)
    columns = [_input(f"{PREFIX}{name}.a.{i}", inputs, f"{name}.rank.{i}") for i in range(groups)]
    rows = _input(f"{PREFIX}{name}.b", f"{name}.rank", outputs)
    bias = _input(f"{PREFIX}{name}.bias", outputs) if any(change.bias is not None for change in changes) else None
    graph.inputs.extend([*columns, rows, *([] if bias is None else [bias])])
    return columns, rows, bias


def _input(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def _add_change(
    editor: Editor, layer: Linear, columns: Sequence[ir.Value], rows: ir.Value, bias: ir.Value | None
) -> None:
    """y becomes y + (x·a)·b + bias; `layer` stays what computes y, for quantization to replace."""
    node = layer.node
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    shares = [editor.add(node, "FusedMatMul", x, column, domain=MICROSOFT, alpha=UP) for column in columns]
    low = shares[0] if len(shares) == 1 else editor.add(node, "Concat", *shares, axis=-1)
    change = editor.add(node, "FusedMatMul", low, rows, domain=MICROSOFT, alpha=DOWN)
    if bias is not None:
        change = editor.add(node, "Add", change, bias)
    total = ir.node("Add", [change, change])
    editor.graph.insert_after(node, total)
    result = total.outputs[0]
    result.name, result.type, result.shape = y.name, y.type, y.shape
    y.name = f"{y.name}.without_adapter"
    y.replace_all_uses_with(result, replace_graph_outputs=True)
    total.replace_input_with(0, y)


def arrays_of(adapter: Adapter) -> dict[str, Floats]:
    """By the names of the inputs; of what it does not change nothing."""
    arrays: dict[str, Floats] = {}
    for layer, change in adapter.changes.items():
        for i, start in enumerate(range(0, change.a.shape[1], GROUP)):
            arrays[f"{PREFIX}{layer}.a.{i}"] = np.ascontiguousarray(change.a[:, start : start + GROUP])
        arrays[f"{PREFIX}{layer}.b"] = np.ascontiguousarray(change.b)
        if change.bias is not None:
            arrays[f"{PREFIX}{layer}.bias"] = change.bias
    return arrays


def write_adapters(folder: Path, adapters: Iterable[Adapter]) -> list[bundle_pb2.Adapter]:
    """Write `adapters/NAME.safetensors` for each; what the manifest says of them."""
    entries = []
    for adapter in sorted(adapters, key=lambda adapter: adapter.name):
        file = f"{FOLDER}/{adapter.name}.safetensors"
        (folder / FOLDER).mkdir(exist_ok=True)
        save_file(arrays_of(adapter), folder / file)
        entries.append(bundle_pb2.Adapter(name=adapter.name, file=file, rank=adapter.rank))
    return entries


def read_written(folder: Path, entry: bundle_pb2.Adapter) -> Adapter:
    """An adapter as its bundle, which was checked, has it."""
    arrays = load_file(folder / entry.file)
    return Adapter(
        entry.name, entry.rank, {layer: _change(arrays, layer, of) for layer, of in parts(list(arrays)).items()}
    )


def _change(arrays: Mapping[str, Floats], layer: str, found: Sequence[str]) -> Change:
    groups = sorted((part for part in found if part.startswith("a.")), key=lambda part: int(part[2:]))
    a = np.concatenate([arrays[f"{PREFIX}{layer}.{part}"] for part in groups], axis=1)
    return Change(a, arrays[f"{PREFIX}{layer}.b"], arrays.get(f"{PREFIX}{layer}.bias"))
