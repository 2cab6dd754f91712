"""What `bundle.json` says of a model, as far as it is known before anything is measured or written."""

import importlib.metadata
import platform
from typing import Final

import onnx_ir as ir
import tokenizers

from polyhead.export.errors import ExportError
from polyhead.export.quantize import Quantization
from polyhead.models.checkpoint import CheckpointConfig, Model, SpecialTokens
from polyhead.models.encoder import Classifier, Embedder
from polyhead.models.gpt import GPT
from polyhead.server.engine.batcher import padded_lengths
from polyhead.server.manifest import SCHEMA_VERSION
from polyhead.v1 import bundle_pb2

PREFILL_CHUNK = 32
"""Tokens; a longer chunk makes other rows wait longer for their next token, a shorter one uses the cores less well. With
135 M parameters in int8 one of 32 takes as long as a step of 16 rows, and 10 % more a token than one of 64."""

TOKENIZER_FILE = "tokenizer.json"
TASKS: Final = {
    "generate": bundle_pb2.TASK_GENERATE,
    "classify": bundle_pb2.TASK_CLASSIFY,
    "embed": bundle_pb2.TASK_EMBED,
}
QUANTIZATIONS: Final = {
    "none": bundle_pb2.QUANTIZATION_NONE,
    "int8": bundle_pb2.QUANTIZATION_INT8,
    "int4": bundle_pb2.QUANTIZATION_INT4,
}
MAKERS = ("polyhead", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "tokenizers")


def make_manifest(
    model: Model, config: CheckpointConfig, tokenizer_json: str, quantization: Quantization
) -> bundle_pb2.Bundle:
    """Everything but graphs, files and measurements. Raises ExportError where model, labels and tokenizer contradict each other.

    What training measured was measured in fp32, and is called so where the graph is something else.
    """
    suffix = "" if quantization == "none" else "_fp32"
    sizes = model.config
    manifest = bundle_pb2.Bundle(
        schema_version=SCHEMA_VERSION,
        task=TASKS[config.task],
        architecture=config.architecture,
        tokenizer=tokenizer_entry(config.special_tokens, tokenizer_json, sizes.vocabulary_size),
        limits=bundle_pb2.Limits(max_tokens=sizes.max_tokens, vocabulary_size=sizes.vocabulary_size),
        quantization=QUANTIZATIONS[quantization],
        quality={f"{name}{suffix}": figure for name, figure in config.quality.items()},
        made_with=_versions(),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    manifest.created_at.GetCurrentTime()
    if isinstance(model, GPT):
        _add_decoder(manifest, model)
    else:
        _add_encoder(manifest, model, config.labels)
    return manifest


def _add_decoder(manifest: bundle_pb2.Bundle, model: GPT) -> None:
    config = model.config
    manifest.limits.prefill_chunk = min(PREFILL_CHUNK, config.max_tokens)
    manifest.cache.MergeFrom(
        bundle_pb2.Cache(layers=config.layers, kv_heads=config.kv_heads, head_size=config.head_size, type="float")
    )
    manifest.sampling_defaults.temperature = 1.0


def _add_encoder(manifest: bundle_pb2.Bundle, model: Classifier | Embedder, labels: tuple[str, ...]) -> None:
    manifest.limits.padded_lengths.extend(padded_lengths(model.config.max_tokens))
    manifest.pooling = bundle_pb2.POOLING_MEAN
    if isinstance(model, Embedder):
        manifest.normalized = True
        manifest.limits.embedding_size = model.config.embedding_size
        return
    if len(labels) != model.config.classes:
        raise ExportError(
            f"labels: there must be one for each of the {model.config.classes} classes, got {len(labels)}"
        )
    manifest.labels.extend(labels)


def tokenizer_entry(special: SpecialTokens, tokenizer_json: str, vocabulary_size: int) -> bundle_pb2.Tokenizer:
    """The special tokens by id. Raises ExportError if one is missing or the tokenizer doesn't fit the model."""
    try:
        tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise ExportError(f"{TOKENIZER_FILE}: not a tokenizer: {error}") from error
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size > vocabulary_size:
        raise ExportError(f"{TOKENIZER_FILE}: has {size} tokens, the model knows {vocabulary_size}")

    def token_id(field: str, token: str | None) -> int | None:
        found: int | None = None if token is None else tokenizer.token_to_id(token)
        if token is not None and found is None:
            raise ExportError(f"special_tokens.{field}: {token!r} is not in {TOKENIZER_FILE}")
        return found

    return bundle_pb2.Tokenizer(
        file=TOKENIZER_FILE,
        bos_token_id=token_id("bos", special.bos),
        eos_token_ids=[token_id("eos", token) or 0 for token in special.eos],
        pad_token_id=token_id("pad", special.pad),
    )


def graph_entry(name: str, graph: ir.Model) -> bundle_pb2.Graph:
    """A graph that will be the file `NAME.onnx`, with its signature."""
    return bundle_pb2.Graph(
        name=name,
        file=f"{name}.onnx",
        inputs=map(_tensor, graph.graph.inputs),
        outputs=map(_tensor, graph.graph.outputs),
    )


def _tensor(value: ir.Value) -> bundle_pb2.Tensor:
    assert value.name is not None
    assert value.dtype is not None
    assert value.shape is not None
    shape = [str(size.value if isinstance(size, ir.SymbolicDim) else size) for size in value.shape]
    return bundle_pb2.Tensor(name=value.name, type=value.dtype.name.lower(), shape=shape)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in MAKERS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from sources that nobody installed
            continue
    return versions
