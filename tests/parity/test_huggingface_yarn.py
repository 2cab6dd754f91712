"""YaRN past `max_position_embeddings`: factor times the original length, with the numbers that transformers computes there."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from polyhead.export.pipeline import export_source, load_source
from polyhead.export.verify import answer
from polyhead.server.bundle import read_bundle
from polyhead.server.runtime.decoder import Decoder
from tests.parity.huggingface import POSITIONS, VOCABULARY, write_decoder

LENGTH = 4 * POSITIONS - 10


def recipe(folder: Path, factor: float = 4.0, original: int = POSITIONS) -> torch.nn.Module:
    """As Qwen's model cards say: rope_scaling is added, and max_position_embeddings stays."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": factor, "original_max_position_embeddings": original}
    model: torch.nn.Module = write_decoder(folder, "qwen3", num_hidden_layers=1, rope_parameters=rope)
    return model


@pytest.mark.parametrize(
    ("factor", "original", "limit"),
    [
        (4.0, POSITIONS, 4 * POSITIONS),
        (2.0, POSITIONS // 2, POSITIONS),
        (4.0, POSITIONS // 8, POSITIONS),
        (1.5, 111, 166),
    ],
)
def test_the_longest_input_is_what_yarn_was_made_for(factor: float, original: int, limit: int, tmp_path: Path) -> None:
    recipe(tmp_path, factor, original)
    assert load_source(tmp_path).model.sizes.max_tokens == limit


@pytest.mark.long
def test_answers_past_the_positions_of_the_configuration_are_those_of_transformers(tmp_path: Path) -> None:
    model = recipe(tmp_path / "checkpoint")
    bundle = read_bundle(export_source(load_source(tmp_path / "checkpoint"), tmp_path / "models" / "tiny"))
    assert bundle.manifest.limits.max_tokens == 4 * POSITIONS
    prompt = np.random.default_rng(0).integers(3, VOCABULARY, LENGTH).tolist()
    with closing(Decoder(bundle.graph, bundle.manifest, slots=1, capacity=4 * POSITIONS)) as decoder:
        (row,) = answer(decoder, [prompt], 8)
    with torch.inference_mode():
        logits = model(torch.tensor([row.tokens])).logits[0, LENGTH - 1 :]
    assert row.topk_ids[:, 0].tolist() == logits.argmax(-1).tolist()
    np.testing.assert_allclose(row.topk_values[:, 0], logits.amax(-1).numpy(), rtol=1e-5, atol=1e-5)
