"""Quantized graphs: near torch, and in int8 a row's bits don't depend on its neighbours'."""

from functools import cache
from pathlib import Path
from shutil import copytree
from tempfile import mkdtemp

import numpy as np
import onnx_ir as ir
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.export.errors import ParityError
from polyhead.export.own import OwnDecoder
from polyhead.export.parity import TOLERANCES, tolerance_of
from polyhead.export.quality import evaluation_windows, perplexity, torch_perplexity
from polyhead.export.quantize import CacheType, Quantization, QuantizationOptions, quantize_graph
from polyhead.export.quantize_cache import calibration_samples, to_int8_cache
from polyhead.export.to_onnx import export_decoder
from polyhead.export.verify import answer, verify_decoder
from polyhead.server.bundle import Bundle
from polyhead.server.runtime.decoder import Decoder
from polyhead.v1 import bundle_pb2
from tests.parity.graphs import CAPACITY, CHUNK, VOCABULARY, gpt

tokens = st.integers(0, VOCABULARY - 1)


@cache
def graph(quantization: Quantization) -> Path:
    model = export_decoder(OwnDecoder(gpt()))
    quantize_graph(model, QuantizationOptions(quantization, smallest_table=0))
    path = Path(mkdtemp(prefix="polyhead-test-")) / "decoder.onnx"
    ir.save(model, path, external_data="decoder.onnx.data")
    return path


@cache
def decoder(quantization: Quantization, cache: CacheType = "float") -> Decoder:
    config = gpt().config
    limits = bundle_pb2.Limits(max_tokens=CAPACITY, vocabulary_size=VOCABULARY, prefill_chunk=CHUNK)
    slots = bundle_pb2.Cache(layers=config.layers, kv_heads=config.kv_heads, head_size=config.head_size, type="float")
    path = graph(quantization)
    entry = bundle_pb2.Graph(name="decoder", file=path.name)
    bundle = Bundle(path.parent, bundle_pb2.Bundle(limits=limits, cache=slots, graphs=[entry]))
    if cache == "int8":
        bundle = Bundle(
            Path(copytree(path.parent, mkdtemp(prefix="polyhead-test-"), dirs_exist_ok=True)), bundle.manifest
        )
        to_int8_cache(bundle, calibration_samples(bundle))
        bundle.check_signature(*open_decoder(bundle).signature)
    return open_decoder(bundle)


def open_decoder(bundle: Bundle) -> Decoder:
    return Decoder(bundle.graph, bundle.manifest, slots=8, capacity=CAPACITY)


@pytest.mark.parametrize(
    ("quantization", "slots", "above"),
    [("int8", "float", 1e-2), ("int4", "float", 5e-2), ("none", "int8", 1e-3), ("int8", "int8", 1e-2)],
)
def test_a_quantized_decoder_is_as_near_to_torch_as_its_bits_allow(
    quantization: Quantization, slots: CacheType, above: float
) -> None:
    tolerance = tolerance_of(quantization, slots)
    verification = verify_decoder(OwnDecoder(gpt()), decoder(quantization, slots), tolerance)
    errors = {check.name: check.error for check in verification.parity}
    assert above < errors["logits"] <= tolerance
    assert verification.traffic_independent or quantization == "int4"


def test_what_reads_prompts_stays_fp32_beside_an_int8_cache() -> None:
    prompt = np.arange(CHUNK)
    plain, beside = (decoder("none", slots).prefill(0, [prompt], [0], 1).logits.copy() for slots in ("float", "int8"))
    assert np.array_equal(plain, beside)


def test_a_quantized_graph_is_refused_where_fp32_was_promised() -> None:
    with pytest.raises(ParityError, match=r"the worst tensor is .*; the first to differ is present\.key\.0"):
        verify_decoder(OwnDecoder(gpt()), decoder("int8"), TOLERANCES["none"])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(tokens, min_size=1, max_size=50), min_size=2, max_size=8))
@pytest.mark.parametrize(("quantization", "slots"), [("int8", "float"), ("int8", "int8"), ("none", "int8")])
def test_in_int8_a_row_gets_the_same_bits_alone_as_among_others(
    quantization: Quantization, slots: CacheType, prompts: list[list[int]]
) -> None:
    together = answer(decoder(quantization, slots), prompts, steps=4)
    for prompt, expected in zip(prompts, together, strict=True):
        assert answer(decoder(quantization, slots), [prompt], steps=4)[0].same_bits(expected)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_no_matrix_stays_in_fp32_and_the_tied_table_is_stored_once(quantization: Quantization) -> None:
    weights = [weight.const_value for weight in ir.load(graph(quantization)).graph.initializers.values()]
    matrices = [tensor for tensor in weights if tensor and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2]
    assert {tensor.name for tensor in matrices if min(tensor.numpy().shape) > 16} <= {"cosine", "sine"}
    tables = [tensor for tensor in weights if tensor and VOCABULARY in tensor.shape and tensor.dtype.itemsize == 1]
    assert len(tables) == (1 if quantization == "int8" else 2)  # embeddings in int8, output layer in int4


def test_perplexity_of_the_graph_is_that_of_torch_but_for_the_bits() -> None:
    words = {f"w{i}": i for i in range(VOCABULARY)}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    text = " ".join(f"w{i}" for i in np.random.default_rng(0).integers(0, VOCABULARY, 300))
    figures = figures_of(decoder("none"), library.to_str(), text)
    assert figures["perplexity"] == pytest.approx(figures["perplexity_fp32"], rel=1e-5)
    quantized = figures_of(decoder("int8"), library.to_str(), text)
    assert quantized["perplexity_fp32"] == figures["perplexity_fp32"]
    assert quantized["perplexity"] == pytest.approx(figures["perplexity"], rel=0.2)
    assert quantized["perplexity"] != figures["perplexity"]
    with_slots = figures_of(decoder("none", "int8"), library.to_str(), text)
    assert with_slots["perplexity"] == pytest.approx(figures["perplexity"], rel=0.05)
    assert with_slots["perplexity"] != figures["perplexity"]


def figures_of(decoder: Decoder, tokenizer_json: str, text: str) -> dict[str, float]:
    """Of the GPT."""
    source = OwnDecoder(gpt())
    windows = evaluation_windows(decoder, source.sizes.max_tokens, tokenizer_json, text)
    return {"perplexity": perplexity(decoder, windows), "perplexity_fp32": torch_perplexity(source, windows)}
