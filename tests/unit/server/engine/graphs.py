"""A tiny encoder graph for tests of what runs on it: embed, mean over the real tokens, a layer, softmax or length 1."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from polyhead.v1 import bundle_pb2

VOCABULARY = 50
HIDDEN = 24
WIDTH = 6

PROGRAM = """
    vectors = Gather (table, input_ids)
    shape = Shape (input_ids)
    sequence = Gather (shape, one)
    positions = Range (zero, sequence, one)
    long_lengths = Cast <to: int = 7> (lengths)
    columns = Unsqueeze (long_lengths, axis_one)
    real = Less (positions, columns)
    weights = Cast <to: int = 1> (real)
    weight_rows = Unsqueeze (weights, axis_one)
    sums = MatMul (weight_rows, vectors)
    pooled = Squeeze (sums, axis_one)
    counts = Cast <to: int = 1> (columns)
    mean = Div (pooled, counts)
    scores = MatMul (mean, layer)
"""
FINAL = {
    "probabilities": "probabilities = Softmax <axis: int = -1> (scores)",
    "embeddings": "embeddings = LpNormalization <axis: int = -1, p: int = 2> (scores)",
}


def write_encoder(path: Path, output: str = "embeddings") -> None:
    """`output`: `embeddings` or `probabilities`."""
    random = np.random.default_rng(0)
    constants = {
        "table": random.standard_normal((VOCABULARY, HIDDEN), np.float32),
        "layer": random.standard_normal((HIDDEN, WIDTH), np.float32),
        "zero": np.int64(0),
        "one": np.int64(1),
        "axis_one": np.array([1]),
    }
    graph = onnx.parser.parse_graph(
        "encoder (int64[batch, sequence] input_ids, int32[batch] lengths)"
        f" => (float[batch, {WIDTH}] {output}) {{ {PROGRAM} {FINAL[output]} }}"
    )
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def manifest(padded_lengths: tuple[int, ...] = (4, 8, 16), task: int = bundle_pb2.TASK_EMBED) -> bundle_pb2.Bundle:
    made = bundle_pb2.Bundle(task=bundle_pb2.Task.ValueType(task))
    made.limits.padded_lengths.extend(padded_lengths)
    made.tokenizer.pad_token_id = 0
    return made
