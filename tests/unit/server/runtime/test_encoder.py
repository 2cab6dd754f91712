"""The encoder graph of a bundle."""

from pathlib import Path

import numpy as np
import pytest

from polyhead.server.runtime.encoder import Encoder
from polyhead.v1 import bundle_pb2
from tests.unit.server.engine.graphs import VOCABULARY, WIDTH, manifest, write_encoder


def test_embeddings_come_with_length_one(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.onnx")
    encoder = Encoder(tmp_path / "encoder.onnx", manifest())
    rows = encoder.run(np.array([[1, 2, 0], [3, 4, 5]]), np.array([2, 3], np.int32))
    assert rows.shape == (2, WIDTH)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)


def test_probabilities_sum_to_one(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.onnx", "probabilities")
    encoder = Encoder(tmp_path / "encoder.onnx", manifest(task=bundle_pb2.TASK_CLASSIFY))
    rows = encoder.run(np.array([[1, 2, 0]]), np.array([2], np.int32))
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-6)


def test_padding_does_not_change_the_answer(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.onnx")
    encoder = Encoder(tmp_path / "encoder.onnx", manifest())
    short = encoder.run(np.array([[1, 2]]), np.array([2], np.int32))
    padded = encoder.run(np.array([[1, 2, 9, 9]]), np.array([2], np.int32))
    np.testing.assert_allclose(short, padded, rtol=1e-6)


def test_it_says_what_the_engine_needs_of_the_manifest(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.onnx")
    encoder = Encoder(tmp_path / "encoder.onnx", manifest((2, 16)))
    assert encoder.padded_lengths == (2, 16)
    assert encoder.pad_token_id == 0
    assert [name for name, _, _ in encoder.signature[0]] == ["input_ids", "lengths"]
    encoder.close()
    encoder.close()


def test_ids_outside_the_vocabulary_raise(tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder.onnx")
    encoder = Encoder(tmp_path / "encoder.onnx", manifest())
    with pytest.raises(Exception, match="out of data bounds"):
        encoder.run(np.array([[VOCABULARY]]), np.array([1], np.int32))
