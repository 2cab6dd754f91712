"""Contradictions that a manifest can have."""

from collections.abc import Callable

import pytest

from polyhead.server.bundle import read_manifest
from polyhead.server.errors import BundleError
from polyhead.server.manifest import check_manifest
from polyhead.v1 import bundle_pb2
from polyhead.v1.bundle_pb2 import Bundle
from tests import bundles


def manifest(name: str) -> Bundle:
    return read_manifest(bundles.models_folder() / name / "1")


def set_shape(tensor: bundle_pb2.Tensor, *shape: str) -> None:
    tensor.ClearField("shape")
    tensor.shape.extend(shape)


def tensor(tensors: object, name: str) -> bundle_pb2.Tensor:
    return next(tensor for tensor in tensors if tensor.name == name)  # type: ignore[attr-defined, no-any-return]


DECODER: list[tuple[Callable[[Bundle], object], str]] = [
    (lambda m: m.ClearField("task"), "task must be one of generate, classify, embed; got none"),
    (lambda m: setattr(m, "task", 7), "task must be one of generate, classify, embed; got 7"),
    (lambda m: m.ClearField("quantization"), "quantization must be one of none, int8, int4; got nothing"),
    (lambda m: m.ClearField("graphs"), "graphs must be decoder, got []"),
    (lambda m: setattr(m.graphs[0], "name", "encoder"), "graphs must be decoder, got ['encoder']"),
    (lambda m: setattr(m.graphs[0], "file", "x.onnx"), "graphs[0].file is 'x.onnx', which is not among files"),
    (lambda m: setattr(m.tokenizer, "file", ""), "tokenizer.file is '', which is not among files"),
    (lambda m: setattr(m.limits, "max_tokens", 0), "limits.max_tokens must be at least 1, got 0"),
    (lambda m: setattr(m.limits, "vocabulary_size", 0), "limits.vocabulary_size must be at least 1, got 0"),
    (lambda m: setattr(m.limits, "prefill_chunk", 0), "limits.prefill_chunk must be at least 1, got 0"),
    (lambda m: setattr(m.tokenizer, "bos_token_id", 9999), "tokenizer.bos_token_id must be below the vocabulary size"),
    (lambda m: m.tokenizer.eos_token_ids.append(9999), "tokenizer.eos_token_ids[1] must be below the vocabulary size"),
    (lambda m: m.ClearField("cache"), "cache is missing; a decoder needs it"),
    (lambda m: setattr(m.cache, "kv_heads", 0), "cache.kv_heads must be at least 1, got 0"),
    (lambda m: setattr(m.cache, "type", "float16"), "cache.type must be 'float' or 'int8', got 'float16'"),
    (lambda m: setattr(m.cache, "type", "int8"), "cache.key_scales must be 2 positive numbers with cache type 'int8', got []"),
    (lambda m: m.cache.value_scales.append(1), "cache.value_scales must be 0 positive numbers with cache type 'float', got [1.0]"),
    (lambda m: setattr(m.cache, "layers", 3), "graphs[0].inputs must be "),
    (lambda m: setattr(m.cache, "head_size", 8), "graphs[0].inputs past.key.0 must be float ['any', '1', 'any', '8']"),
    (lambda m: setattr(m.sampling_defaults, "top_p", 0), "sampling_defaults.top_p must be above 0 and at most 1, got 0"),
    (lambda m: setattr(m.sampling_defaults, "temperature", float("nan")), "sampling_defaults.temperature must be 0 to 100, got nan"),
    (lambda m: setattr(tensor(m.graphs[0].inputs, "capacity"), "type", "int64"), "graphs[0].inputs capacity must be int32 []"),
    (lambda m: set_shape(tensor(m.graphs[0].inputs, "input_ids"), "4", "sequence"),
     "graphs[0].inputs input_ids must be int64 ['any', 'any']"),
    (lambda m: m.graphs[0].outputs.pop(), "graphs[0].outputs must be "),
    (lambda m: m.graphs[0].outputs.add(name="logits"), "graphs[0].outputs must be "),
]  # fmt: skip


def with_adapter(manifest: Bundle) -> None:
    """A first one, as if the graph had inputs for it."""
    manifest.adapters.add(name="one", file="adapters/one.safetensors", rank=4)
    manifest.files.add(path="adapters/one.safetensors")
    manifest.graphs[0].inputs.add(name="adapter.up.a.0", type="float", shape=["32", "up.rank.0"])
    manifest.graphs[0].inputs.add(name="adapter.up.b", type="float", shape=["up.rank", "32"])


ADAPTERS: list[tuple[Callable[[Bundle], object], str]] = [
    (lambda m: m.adapters.add(name="one"), "adapters must be sorted and differ, their names "),
    (lambda m: m.adapters.add(name="a"), "adapters must be sorted and differ, their names "),
    (lambda m: setattr(m.adapters[0], "name", "../one"), "adapters must be sorted and differ, their names "),
    (lambda m: setattr(m.adapters[0], "file", "one"), "adapters[0].file is 'one', which is not among files"),
    (lambda m: setattr(m.adapters[0], "rank", 0), "adapters[0].rank must be at least 1, got 0"),
    (lambda m: m.ClearField("adapters"), "adapters are none, and the graph has 2 inputs for adapters"),
    (lambda m: [m.graphs[0].inputs.pop() for _ in range(2)], "adapters are ['one'], and the graph has 0 inputs for adapters"),
    (lambda m: m.graphs[0].inputs.pop(), "graphs[0].inputs adapter.up must have ['a.0', 'b'] and perhaps bias, got ['a.0']"),
    (lambda m: m.graphs[0].inputs.add(name="adapter.up.c"), "graphs[0].inputs adapter.up.c must be adapter.LAYER.a.0 and so on"),
    (lambda m: setattr(m.graphs[0].inputs[-1], "type", "int8"), "graphs[0].inputs adapter.up.b must be float, all sizes but the rank"),
    (lambda m: set_shape(m.graphs[0].inputs[-1], "4", "32"), "graphs[0].inputs adapter.up.b must be float, all sizes but the rank"),
    (lambda m: m.seq2seq.SetInParent(), "graphs must be encoder and decoder"),
]  # fmt: skip
EMBEDDER: list[tuple[Callable[[Bundle], object], str]] = [
    (lambda m: m.cache.SetInParent(), "cache is for decoders only"),
    (lambda m: m.tokenizer.ClearField("pad_token_id"), "tokenizer.pad_token_id is missing; an encoder needs it"),
    (lambda m: m.limits.ClearField("padded_lengths"), "limits.padded_lengths must ascend from at least 1 to max_tokens"),
    (lambda m: m.limits.padded_lengths.append(4), "limits.padded_lengths must ascend"),
    (lambda m: m.limits.padded_lengths.insert(0, 0), "limits.padded_lengths must ascend"),
    (lambda m: setattr(m.limits, "max_tokens", 31), "limits.padded_lengths must ascend from at least 1 to max_tokens 31"),
    (lambda m: setattr(m.limits, "embedding_size", 0), "limits.embedding_size must be at least 1, got 0"),
    (lambda m: setattr(m.limits, "embedding_size", 9), "graphs[0].outputs embeddings must be float ['any', '9'], got float ['batch', '8']"),
    (lambda m: setattr(m, "labels_tokens", True), "labels_tokens is for models that classify only"),
    (lambda m: setattr(m, "task", bundle_pb2.TASK_CLASSIFY), "labels must be there and differ from each other, got []"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [(bundles.GENERATOR, *case) for case in DECODER] + [(bundles.EMBEDDER, *case) for case in EMBEDDER],
)
def test_a_contradiction_is_refused_by_the_field_that_has_it(
    name: str, change: Callable[[Bundle], object], complaint: str
) -> None:
    spoilt = manifest(name)
    change(spoilt)
    with pytest.raises(BundleError) as refusal:
        check_manifest(spoilt)
    assert str(refusal.value).startswith(f"bundle.json: {complaint}")


def test_two_classes_of_one_name_are_refused() -> None:
    spoilt = manifest(bundles.CLASSIFIER)
    spoilt.labels[1] = spoilt.labels[0]
    with pytest.raises(BundleError, match="labels must be there and differ"):
        check_manifest(spoilt)


def test_labels_of_tokens_have_one_dimension_more() -> None:
    spoilt = manifest(bundles.CLASSIFIER)
    spoilt.labels_tokens = True
    with pytest.raises(
        BundleError, match=r"probabilities must be float \['any', 'any', '3'\], got float \['batch', '3'\]"
    ):
        check_manifest(spoilt)
    set_shape(spoilt.graphs[0].outputs[0], "batch", "sequence", "3")
    check_manifest(spoilt)


def test_a_graph_may_take_token_types() -> None:
    taken = manifest(bundles.CLASSIFIER)
    taken.graphs[0].inputs.add(name="token_type_ids", type="int64", shape=["batch", "sequence"])
    check_manifest(taken)


def test_a_decoder_graph_that_does_without_position_ids_or_with_them_is_taken() -> None:
    with_them = manifest(bundles.GENERATOR)
    if not any(tensor.name == "position_ids" for tensor in with_them.graphs[0].inputs):
        with_them.graphs[0].inputs.add(name="position_ids", type="int64", shape=["batch", "sequence"])
    check_manifest(with_them)
    without = manifest(bundles.GENERATOR)
    kept = [tensor for tensor in without.graphs[0].inputs if tensor.name != "position_ids"]
    without.graphs[0].ClearField("inputs")
    without.graphs[0].inputs.extend(kept)
    check_manifest(without)


@pytest.mark.parametrize("name", [bundles.GENERATOR, bundles.EMBEDDER])
@pytest.mark.parametrize(("change", "complaint"), ADAPTERS)
def test_a_contradiction_about_adapters_is_refused(
    name: str, change: Callable[[Bundle], object], complaint: str
) -> None:
    spoilt = manifest(name)
    with_adapter(spoilt)
    check_manifest(spoilt)
    change(spoilt)
    with pytest.raises(BundleError) as refusal:
        check_manifest(spoilt)
    assert str(refusal.value).startswith(f"bundle.json: {complaint}")
