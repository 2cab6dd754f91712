"""Weights in fewer bits, and what linear layers on quantized rows compute."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from polyhead.export.errors import ExportError
from polyhead.export.own import OwnDecoder
from polyhead.export.quantize import (
    BLOCK_SIZES,
    LARGEST_WEIGHT,
    QuantizationOptions,
    quantize_blocks,
    quantize_columns,
    quantize_graph,
    quantize_rows,
    to_row_int8,
)
from polyhead.export.rewrite import Editor, linear_layers
from polyhead.export.to_onnx import export_decoder
from tests.unit.export.exports import gpt

Floats = NDArray[np.float32]
shapes = st.tuples(st.integers(1, 70), st.integers(1, 9))


def matrix(shape: tuple[int, int], size: float) -> Floats:
    values: Floats = np.random.default_rng(shape).normal(scale=size, size=shape).astype(np.float32)
    return values


@given(shapes, st.floats(1e-6, 1e6))
def test_a_column_keeps_to_7_bits_and_is_off_by_half_a_step_at_most(shape: tuple[int, int], size: float) -> None:
    weights = matrix(shape, size)
    integers, scales = quantize_columns(weights)
    assert np.abs(integers).max() == LARGEST_WEIGHT
    assert np.all(np.abs(integers * scales - weights) <= scales * 0.501)


@given(shapes, st.floats(1e-6, 1e6))
def test_a_block_is_off_by_half_a_step_or_a_whole_one_at_its_far_end(shape: tuple[int, int], size: float) -> None:
    weights = matrix(shape, size)
    pairs, scales = quantize_blocks(weights)
    numbers = np.stack((pairs & 15, pairs >> 4), -1).reshape(*scales.shape, 32).astype(np.float32) - 8
    back = (numbers * scales[..., None]).reshape(len(scales), -1).T
    error = np.abs(back[: shape[0]] - weights)
    steps = np.repeat(np.abs(scales), 32, axis=1).T[: shape[0]]
    far_end = weights / np.repeat(scales, 32, axis=1).T[: shape[0]] > 7
    assert np.all(error <= steps * np.where(far_end, 1.001, 0.501))
    assert np.all(back[shape[0] :] == 0)


def test_columns_and_blocks_of_zeros_stay_zero() -> None:
    integers, scales = quantize_columns(np.zeros((4, 2), np.float32))
    assert not np.any(integers * scales)
    pairs, block_scales = quantize_blocks(np.zeros((4, 2), np.float32))
    assert np.all(pairs == 0x88)
    assert np.isfinite(block_scales).all()


def test_a_layer_multiplies_integers_exactly_and_rows_of_zeros_give_the_bias() -> None:
    weights, rows = matrix((33, 5), 1.0), matrix((4, 33), 3.0)
    rows[2] = 0
    bias = np.arange(5, dtype=np.float32)
    integers, scales = quantize_columns(weights)
    largest = np.abs(rows).max(-1, keepdims=True)
    whole = np.rint(rows / np.where(largest == 0, 1, largest) * 127)
    expected = (whole @ integers.astype(np.float64)) * (scales / 127) * largest + bias
    actual = run_int8_layer(weights, bias, rows)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-5)
    assert np.array_equal(actual[2], bias)


def test_a_neighbour_a_million_times_larger_changes_no_bit() -> None:
    weights, rows = matrix((33, 5), 1.0), matrix((4, 33), 1.0)
    bias = np.zeros(5, np.float32)
    alone = run_int8_layer(weights, bias, rows[:1])
    rows[1:] *= 1e6
    assert np.array_equal(run_int8_layer(weights, bias, rows)[:1], alone)


@pytest.mark.parametrize("rows", [1, 2, 17])
def test_the_error_of_a_layer_is_that_of_its_bits(rows: int) -> None:
    weights, inputs = matrix((64, 48), 1.0), matrix((rows, 64), 1.0)
    exact = inputs @ weights
    error = np.linalg.norm(run_int8_layer(weights, np.zeros(48, np.float32), inputs) - exact) / np.linalg.norm(exact)
    assert 1e-3 < error < 0.03


def run_int8_layer(weights: Floats, bias: Floats, rows: Floats) -> Floats:
    """rows (M, K) through a Gemm with weights (K, N) and bias (N,) that was rewritten as row-wise int8."""
    floats = ir.TensorType(ir.DataType.FLOAT)
    source = ir.Value(name="rows", type=floats, shape=ir.Shape(["m", len(weights)]))
    graph = ir.Graph([source], [], nodes=[], opset_imports={"": 24}, name="layer")
    editor = Editor(graph)
    inputs = (source, editor.constant("w", np.ascontiguousarray(weights.T)), editor.constant("b", bias))
    node = ir.node("Gemm", inputs, {"transB": 1})
    node.outputs[0].name, node.outputs[0].type = "y", floats
    node.outputs[0].shape = ir.Shape(["m", weights.shape[1]])
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    (layer,) = linear_layers(graph)
    to_row_int8(editor, layer, *quantize_rows(editor, node, source), shared=False)
    editor.drop_unused_weights()
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    output: Floats = session.run(None, {"rows": rows})[0]
    return output


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_smaller_blocks_cost_less_precision(block_size: int) -> None:
    weights = matrix((512, 5), 1.0)
    pairs, scales = quantize_blocks(weights, block_size)
    assert scales.shape == (5, 512 // block_size)
    assert pairs.shape == (5, 512 // block_size, block_size // 2)
    numbers = np.stack((pairs & 15, pairs >> 4), -1).reshape(*scales.shape, block_size).astype(np.float32) - 8
    error = np.linalg.norm((numbers * scales[..., None]).reshape(5, -1).T - weights) / np.linalg.norm(weights)
    assert 0.03 < error < 0.15


def test_layers_that_are_kept_stay_and_a_pattern_that_names_none_is_refused() -> None:
    graph = export_decoder(OwnDecoder(gpt()))
    with pytest.raises(ExportError, match=r"--keep-fp32 'nothing\*' names no layer; there are embedding.weight"):
        quantize_graph(graph, QuantizationOptions("int8", keep_fp32=("nothing*",)))
    quantize_graph(graph, QuantizationOptions("int8", keep_fp32=("*.down.weight", "embedding.weight")))
    floats = {
        name.removesuffix(".T")
        for name, weight in graph.graph.initializers.items()
        if weight.dtype == ir.DataType.FLOAT and len(weight.shape or ()) == 2
    }
    assert {name for name in floats if "weight" in name} == {"embedding.weight", "blocks.0.mlp.down.weight"}


def test_a_small_token_table_stays_in_fp32_with_the_output_layer_that_shares_it() -> None:
    graph = export_decoder(OwnDecoder(gpt()))
    quantize_graph(graph, QuantizationOptions("int8"))
    (table,) = [weight for name, weight in graph.graph.initializers.items() if name.startswith("embedding.weight")]
    assert table.dtype == ir.DataType.FLOAT
    assert len(table.uses()) == 2
