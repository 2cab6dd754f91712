"""Exported graphs in fewer bits: row-wise int8, and int4 in blocks.

Row-wise int8 takes one scale for each row of activations (a token) and one for each column of weights (Dettmers et al. 2022,
LLM.int8(), section 2.1, "vector-wise"), where onnxruntime's own dynamic quantization takes one for a whole batch, so that one
request would change another's answer. The products are exact integers: a row's bits don't depend on its neighbours.

Weights keep to 7 bits: x86 processors without VNNI add two products of 8 bits in 16, which saturates with 8-bit weights.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from polyhead.export.errors import ExportError
from polyhead.export.rewrite import (
    MICROSOFT,
    Editor,
    Floats,
    Linear,
    array,
    linear_layers,
    pack_projections,
    token_table,
)

Quantization = Literal["none", "int8", "int4"]
CacheType = Literal["float", "int8"]
"""Of a decoder's slots; see `quantize_cache.py`."""

LARGEST_WEIGHT = 63
"""Of 7 bits."""
LARGEST_ACTIVATION = 127
BLOCK = 32
"""Weights of a column that share a scale in int4, unless told otherwise."""
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""That MatMulNBits takes."""
SMALL_TABLE = 2**18
"""Bytes: fewer are not worth what a model that small loses, for there every token decides (docs/decisions.md)."""
INT8_ACTIVATIONS = 4
"""`accuracy_level` of MatMulNBits: activations become int8 in blocks, too."""


@dataclass(frozen=True)
class QuantizationOptions:
    """How weights lose bits."""

    kind: Quantization = "none"
    block_size: int = BLOCK
    """Of int4: weights of a column that share a scale; a power of two of at least 16."""
    keep_fp32: tuple[str, ...] = ()
    """Layers that stay as they are: names of weights as in the checkpoint, in shell patterns."""

    smallest_table: int = SMALL_TABLE
    """Bytes in fp32; a smaller table of token embeddings stays as it is, with the output layer that shares it."""

    def keeps(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.keep_fp32)

    def keeps_table(self, table: ir.Value) -> bool:
        return self.keeps(str(table.name)) or array(table).nbytes < self.smallest_table


def quantize_graph(model: ir.Model, options: QuantizationOptions) -> None:
    """Rewrite every linear layer and the token embeddings of an exported model, in place. Raises ExportError for a pattern
    that names no layer."""
    if options.kind == "none":
        return
    editor = Editor(model.graph)
    table = token_table(model.graph)
    tied = table.inputs[0]
    assert tied is not None
    check_patterns(options, [str(tied.name), *(layer.name for layer in linear_layers(model.graph))])
    pack_projections(editor, options.keeps)
    keeps_table = options.keeps_table(tied)
    if not keeps_table:
        quantize_table(editor, table)
    rows: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for layer in linear_layers(model.graph):
        if options.keeps(layer.name) or (keeps_table and layer.weight is tied):
            continue
        if options.kind == "int4":
            to_int4(editor, layer, options.block_size)
            continue
        source = layer.node.inputs[0]
        assert source is not None
        if source not in rows:  # layers that read the same rows share their quantization
            rows[source] = quantize_rows(editor, layer.node, source)
        to_row_int8(editor, layer, *rows[source], shared=layer.weight is tied)
    editor.drop_unused_weights()


def check_patterns(options: QuantizationOptions, names: list[str]) -> None:
    """Raises ExportError for a pattern that names none of the weights."""
    for pattern in options.keep_fp32:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ExportError(f"--keep-fp32 {pattern!r} names no layer; there are {names[0]}, {names[1]} … {names[-1]}")


def quantize_rows(editor: Editor, before: ir.Node, source: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Rows (…, C) to uint8 around 128, and each row's largest magnitude (…, 1).

    Row · 127 / largest is what is kept. For a row of zeros that is 0 / 0, whatever integer onnxruntime makes of it: the
    product is multiplied by that largest magnitude, 0.
    """
    last_axis = editor.constant("int8.last_axis", np.array([-1], np.int64))
    step = editor.constant("int8.step", np.float32(1 / LARGEST_ACTIVATION))
    zero = editor.constant("int8.zero", np.uint8(128))
    largest = editor.add(before, "ReduceMax", editor.add(before, "Abs", source), last_axis, keepdims=1)
    share = editor.add(before, "Div", source, largest)  # -1 to 1
    return editor.add(before, "QuantizeLinear", share, step, zero), largest


def to_row_int8(editor: Editor, layer: Linear, rows: ir.Value, largest: ir.Value, *, shared: bool) -> None:
    """A linear layer on quantized rows. `shared`: its matrix is the token table, which is stored once."""
    node, name = layer.node, layer.name
    if shared:
        weights = editor.add(node, "Transpose", editor.graph.initializers[f"{name}.int8"])  # when the server loads it
        scales = array(editor.graph.initializers[f"{name}.scale"])[:, 0]
    else:
        integers, scales = quantize_columns(layer.matrix())
        weights = editor.constant(f"{name}.int8", integers)
    one, zero = editor.constant("int8.one", np.float32(1)), editor.constant("int8.zero", np.uint8(128))
    columns = editor.constant(f"{name}.column_scale", (scales / LARGEST_ACTIVATION).astype(np.float32))
    product = editor.add(node, "MatMulIntegerToFloat", rows, weights, one, columns, zero, domain=MICROSOFT)
    result = editor.add(node, "Mul", product, largest)
    editor.replace(node, editor.add(node, "Add", result, layer.bias) if layer.bias else result)


def quantize_table(editor: Editor, gather: ir.Node) -> None:
    """Token embeddings as int8 with a scale for each token."""
    table, ids = gather.inputs
    assert table is not None
    assert ids is not None
    integers, scales = quantize_columns(array(table).T)
    stored = editor.constant(f"{table.name}.int8", np.ascontiguousarray(integers.T))
    scale = editor.constant(f"{table.name}.scale", scales[:, None])
    rows = editor.add(gather, "Cast", editor.add(gather, "Gather", stored, ids), to=ir.DataType.FLOAT)
    editor.replace(gather, editor.add(gather, "Mul", rows, editor.add(gather, "Gather", scale, ids)))


def to_int4(editor: Editor, layer: Linear, block_size: int) -> None:
    """A linear layer as MatMulNBits, which quantizes its rows by itself."""
    matrix = layer.matrix()
    blocks, scales = quantize_blocks(matrix, block_size)
    product = editor.add(
        layer.node,
        "MatMulNBits",
        layer.node.inputs[0],  # type: ignore[arg-type]
        editor.constant(f"{layer.name}.int4", blocks),
        editor.constant(f"{layer.name}.scale4", scales),
        domain=MICROSOFT,
        K=matrix.shape[0],
        N=matrix.shape[1],
        bits=4,
        block_size=block_size,
        accuracy_level=INT8_ACTIVATIONS,
    )
    editor.replace(layer.node, editor.add(layer.node, "Add", product, layer.bias) if layer.bias else product)


def quantize_columns(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """(K, N) -> integers (K, N) of at most 63 and scales (N,), their product near the matrix."""
    scales = _nonzero(np.abs(matrix).max(0) / np.float32(LARGEST_WEIGHT))
    return np.rint(matrix / scales).astype(np.int8), scales


def quantize_blocks(matrix: Floats, block_size: int = BLOCK) -> tuple[NDArray[np.uint8], Floats]:
    """(K, N) -> pairs of 4-bit numbers (N, blocks, block_size / 2), the first of a pair in the lower half, and scales (N, blocks).

    A number n stands for (n - 8) · scale. The largest magnitude of a block becomes -8 exactly, so the scale has its sign.
    """
    K, N = matrix.shape
    padded = np.pad(matrix.T, ((0, 0), (0, -K % block_size))).reshape(N, -1, block_size)
    largest = np.take_along_axis(padded, np.abs(padded).argmax(-1)[..., None], -1)  # (N, blocks, 1)
    scales = _nonzero(largest / np.float32(-8))
    numbers = np.clip(np.rint(padded / scales) + 8, 0, 15).astype(np.uint8)
    return numbers[..., 0::2] | numbers[..., 1::2] << 4, scales[..., 0]


def _nonzero(scales: Floats) -> Floats:
    """A column or block of zeros keeps any scale."""
    return np.where(scales == 0, np.float32(1), scales)
