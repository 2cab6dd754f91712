"""Every architecture of decoders that can be imported: exported, verified, and decoding as transformers does."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from shutil import copytree
from tempfile import mkdtemp
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from polyhead.export.huggingface import architectures
from polyhead.export.pipeline import ExportOptions, export_source, load_source
from polyhead.export.quantize import Quantization, QuantizationOptions
from polyhead.export.quantize_cache import calibration_samples, to_int8_cache
from polyhead.export.verify import Verification, answer
from polyhead.export.verify_command import verify_bundle
from polyhead.server.bundle import read_bundle
from polyhead.server.runtime.decoder import Decoder
from tests.parity.huggingface import DECODERS, POSITIONS, VOCABULARY, write_decoder

SMALL_SUITE = ("llama", "gemma2")
"""Scaled rotation and tied embeddings; windows and both soft caps. The long suite has all, and serves them over gRPC too
(tests/integration/test_imported_decoders.py)."""
STEPS = 40


@cache
def exported(name: str) -> tuple[Any, Path]:
    """transformers' model and the bundle of its checkpoint; made once a test run."""
    folder = Path(mkdtemp(prefix="polyhead-test-"))
    model = write_decoder(folder / "checkpoint", name)
    return model, export_source(load_source(folder / "checkpoint"), folder / "models" / "tiny")


@contextmanager
def open_decoder(folder: Path, slots: int) -> Iterator[Decoder]:
    bundle = read_bundle(folder)
    with closing(Decoder(bundle.graph, bundle.manifest, slots=slots, capacity=POSITIONS)) as decoder:
        yield decoder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SMALL_SUITE else pytest.mark.long) for name in DECODERS]
)
def test_a_mixed_batch_decodes_token_for_token_as_transformers_generates(name: str) -> None:
    model, bundle = exported(name)
    manifest = read_bundle(bundle).manifest
    assert manifest.traffic_independent
    assert manifest.limits.max_tokens == POSITIONS
    assert max(check.error for check in manifest.parity) < 2e-6
    random = np.random.default_rng(0)
    prompts = [random.integers(3, VOCABULARY, length).tolist() for length in (1, 2, 5, 31, 32, 33, 40, 90)]
    with open_decoder(bundle, len(prompts)) as decoder:
        answers = answer(decoder, prompts, STEPS)
    for prompt, row in zip(prompts, answers, strict=True):
        assert [*row.tokens, int(row.topk_ids[-1, 0])] == generate(model, prompt, STEPS + 1)


@torch.inference_mode()
def generate(model: Any, prompt: list[int], count: int) -> list[int]:
    """transformers' own greedy search, past end tokens."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, eos_token_id=None
    )
    tokens: list[int] = output[0].tolist()
    return tokens


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "llama" else pytest.mark.long) for name in DECODERS]
)
def test_each_decoder_can_have_an_int8_cache(name: str, tmp_path: Path) -> None:
    verification = verified_with_int8_cache(exported(name)[1], tmp_path)
    assert verification.traffic_independent
    assert max(check.error for check in verification.parity) < 0.05


def verified_with_int8_cache(exported: Path, folder: Path) -> Verification:
    """A bundle that was exported with fp32 slots gets int8 ones, and is held against its checkpoint again."""
    bundle = read_bundle(copytree(exported, folder / "int8"))
    to_int8_cache(bundle, calibration_samples(bundle))
    return verify_bundle(bundle, load_source(exported.parents[2] / "checkpoint").model)


@pytest.mark.long
@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("layers", [4, 8])
def test_decoders_of_more_layers_can_have_an_int8_cache(
    quantization: Quantization, layers: int, tmp_path: Path
) -> None:
    write_decoder(tmp_path / "checkpoint", "llama", num_hidden_layers=layers)
    options = ExportOptions(quantization=QuantizationOptions(quantization), cache="int8")
    bundle = export_source(load_source(tmp_path / "checkpoint"), tmp_path / "models" / "tiny", options)
    assert read_bundle(bundle).manifest.traffic_independent


def test_every_supported_decoder_is_held() -> None:
    assert {name.split("-")[0] for name in DECODERS} == architectures.DECODERS.keys()


def test_a_tied_table_is_stored_once_under_the_name_it_has_in_the_checkpoint() -> None:
    weights = ir.load(exported("llama")[1] / "decoder.onnx").graph.initializers
    tables = [name for name, weight in weights.items() if VOCABULARY in (weight.shape or ())]
    assert tables == ["model.embed_tokens.weight"]
