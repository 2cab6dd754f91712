"""Adapters of an exported model: as torch's with merged weights, on one graph with one set of base weights."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch

from polyhead.export.parity import tolerance_of
from polyhead.export.pipeline import ExportOptions, export_source, load_source
from polyhead.export.quantize import CacheType, Quantization, QuantizationOptions
from polyhead.export.verify import answer
from polyhead.export.verify_command import verify_bundle
from polyhead.server.bundle import Bundle, read_bundle
from polyhead.server.runtime.decoder import Decoder
from polyhead.server.runtime.encoder import Encoder
from tests.adapters import with_adapter, write_adapter
from tests.parity.huggingface import POSITIONS, VOCABULARY, write_classifier, write_decoder, write_embedder
from tests.parity.test_huggingface_decoders import generate

STEPS = 20


def export(folder: Path, quantization: Quantization = "none", slots: CacheType = "float") -> Bundle:
    """`folder/checkpoint` with all of `folder/adapters`."""
    adapters = tuple((path.name, path) for path in sorted((folder / "adapters").iterdir()))
    bits = QuantizationOptions(quantization, smallest_table=0)
    options = ExportOptions(quantization=bits, cache=slots, adapters=adapters)
    return read_bundle(export_source(load_source(folder / "checkpoint"), folder / "models" / "tiny", options))


@contextmanager
def open_decoder(bundle: Bundle, slots: int) -> Iterator[Decoder]:
    with closing(Decoder(bundle.graph, bundle.manifest, slots=slots, capacity=POSITIONS)) as decoder:
        yield decoder


def parity(bundle: Bundle) -> dict[str, float]:
    return {check.name: check.error for check in bundle.manifest.parity}


def llama(folder: Path) -> Any:
    """A decoder and three adapters: of other ranks and layers, one with other ranks in some layers, one beyond a group."""
    model = write_decoder(folder / "checkpoint", "llama")
    write_adapter(folder / "adapters" / "plain", model, ["q_proj", "v_proj"], seed=1)
    write_adapter(
        folder / "adapters" / "patterns", model, ["o_proj", "up_proj"], seed=2, r=8, use_rslora=True,
        rank_pattern={"up_proj": 3}, alpha_pattern={"layers.1.self_attn.o_proj": 5},
    )  # fmt: skip
    write_adapter(folder / "adapters" / "wide", model, ["k_proj", "down_proj", "q_proj"], seed=3, r=40)
    return model


def test_each_adapter_of_a_decoder_answers_as_torch_with_its_weights_merged_and_none_as_the_model() -> None:
    model, folder, bundle = exported()
    assert bundle.manifest.traffic_independent
    assert [(a.name, a.rank) for a in bundle.manifest.adapters] == [("patterns", 8), ("plain", 4), ("wide", 40)]
    assert max(parity(bundle).values()) < 2e-6
    assert {f"logits (adapter {name})" for name in ("plain", "patterns", "wide")} < parity(bundle).keys()
    random = np.random.default_rng(0)
    prompts = [random.integers(3, VOCABULARY, length).tolist() for length in (1, 2, 33, 50)]
    told = {}
    with open_decoder(bundle, len(prompts)) as decoder:
        for adapter in ("", "plain", "patterns", "wide"):
            told[adapter] = [full(row) for row in answer(decoder, prompts, STEPS, adapter)]
    assert told[""] == [generate(model, prompt, STEPS + 1) for prompt in prompts]
    for adapter in ("plain", "patterns", "wide"):
        with with_adapter(model, folder / "adapters" / adapter):
            assert told[adapter] == [generate(model, prompt, STEPS + 1) for prompt in prompts]
        assert told[adapter] != told[""]


@cache
def exported() -> tuple[Any, Path, Bundle]:
    """transformers' model, the folder with its adapters, and the bundle in fp32; made once a test run."""
    folder = Path(mkdtemp(prefix="polyhead-test-"))
    return llama(folder), folder, export(folder)


def full(row: Any) -> list[int]:
    return [*row.tokens, int(row.topk_ids[-1, 0])]


def test_without_an_adapter_a_graph_that_has_some_gives_the_bits_of_one_that_has_none(tmp_path: Path) -> None:
    _, folder, with_adapters = exported()
    plain = read_bundle(export_source(load_source(folder / "checkpoint"), tmp_path / "plain"))
    prompts = [[5, 6, 7], list(range(3, 40))]
    answers = []
    for bundle in (plain, with_adapters):
        with open_decoder(bundle, len(prompts)) as decoder:
            answers.append(answer(decoder, prompts, STEPS))
    assert all(one.same_bits(other) for one, other in zip(*answers, strict=True))


def test_adapters_of_gpt2_change_matrices_that_it_holds_transposed(tmp_path: Path) -> None:
    model = write_decoder(tmp_path / "checkpoint", "gpt2")
    folder = tmp_path / "adapters" / "one"
    write_adapter(folder, model, ["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    bundle = export(tmp_path)
    assert max(parity(bundle).values()) < 2e-6
    with open_decoder(bundle, 1) as decoder, with_adapter(model, folder):
        assert full(answer(decoder, [[3, 4, 5]], STEPS, "one")[0]) == generate(model, [3, 4, 5], STEPS + 1)


@pytest.mark.parametrize(
    ("quantization", "slots"),
    [
        pytest.param("int8", "int8", marks=pytest.mark.long),
        pytest.param("int8", "float", marks=pytest.mark.long),
        pytest.param("int4", "float", marks=pytest.mark.long),
    ],
)
def test_a_quantized_decoder_keeps_its_adapters_in_fp32_and_near_torch(
    quantization: Quantization, slots: CacheType, tmp_path: Path
) -> None:
    llama(tmp_path)
    bundle = export(tmp_path, quantization, slots)
    errors = {name: error for name, error in parity(bundle).items() if name.startswith("logits")}
    assert len(errors) == 4
    assert all(1e-3 < error <= tolerance_of(quantization, slots) for error in errors.values())
    assert bundle.manifest.traffic_independent or quantization == "int4"


def test_a_classifier_takes_adapters_that_bring_its_head_along(tmp_path: Path) -> None:
    model = write_classifier(tmp_path / "checkpoint", "bert")
    write_adapter(tmp_path / "adapters" / "with-head", model, ["query", "output.dense"], saved=["classifier"], seed=1)
    write_adapter(tmp_path / "adapters" / "without", model, ["query", "pooler.dense"], seed=2)
    bundle = export(tmp_path)
    assert max(parity(bundle).values()) < 2e-6
    assert bundle.manifest.traffic_independent
    ids = np.arange(3, 15)
    with closing(Encoder(bundle.graph, bundle.manifest)) as encoder:
        found = {
            name: encoder.run(ids[None], np.array([12], np.int32), adapter=name)[0]
            for name in ("", "with-head", "without")
        }
    np.testing.assert_allclose(found[""], probabilities(model, ids), atol=1e-6)
    for name in ("with-head", "without"):
        with with_adapter(model, tmp_path / "adapters" / name):
            np.testing.assert_allclose(found[name], probabilities(model, ids), atol=1e-6)
        assert np.abs(found[name] - found[""]).max() > 1e-3


@torch.inference_mode()
def probabilities(model: Any, ids: Any) -> Any:
    return model(torch.from_numpy(ids)[None]).logits.softmax(-1)[0].numpy()


@pytest.mark.long
def test_a_quantized_embedder_takes_adapters(tmp_path: Path) -> None:
    model = write_embedder(tmp_path / "checkpoint", "bert")
    write_adapter(tmp_path / "adapters" / "one", model, ["query", "key", "value"], strength=0.5)
    bundle = export(tmp_path, "int8")
    assert bundle.manifest.traffic_independent
    assert parity(bundle)["embeddings (adapter one)"] < 0.1


def test_a_bundle_can_be_verified_again_with_its_adapters() -> None:
    _, folder, bundle = exported()
    found = verify_bundle(bundle, load_source(folder / "checkpoint").model)
    assert found.parity == tuple(bundle.manifest.parity)
    assert verify_bundle(bundle, None).traffic_independent


@pytest.mark.long
def test_adapters_that_peft_wrote_give_what_peft_computes(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = write_decoder(tmp_path / "checkpoint", "llama")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], init_lora_weights=False, rank_pattern={"up_proj": 2},
        alpha_pattern={"up_proj": 5}, use_rslora=True, task_type="CAUSAL_LM",
    )  # fmt: skip
    wrapped = peft.get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path / "adapters" / "one")
    expected = generate(wrapped, [3, 4, 5], STEPS + 1)
    bundle = export(tmp_path)
    assert [adapter.rank for adapter in bundle.manifest.adapters] == [4]
    with open_decoder(bundle, 1) as decoder:
        assert full(answer(decoder, [[3, 4, 5]], STEPS, "one")[0]) == expected


@pytest.mark.long
def test_the_head_of_a_classifier_that_peft_wrote_gives_what_peft_computes(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = write_classifier(tmp_path / "checkpoint", "bert")
    config = peft.LoraConfig(r=4, target_modules=["query"], init_lora_weights=False, task_type="SEQ_CLS")
    wrapped = peft.get_peft_model(model, config)
    torch.nn.init.normal_(wrapped.base_model.model.classifier.modules_to_save["default"].bias)
    wrapped.save_pretrained(tmp_path / "adapters" / "one")
    ids = np.arange(3, 15)
    expected = probabilities(wrapped, ids)
    bundle = export(tmp_path)
    with closing(Encoder(bundle.graph, bundle.manifest)) as encoder:
        found = encoder.run(ids[None], np.array([12], np.int32), adapter="one")[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
