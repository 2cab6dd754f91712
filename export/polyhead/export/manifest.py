"""What `bundle.json` says of a model, as far as it is known before anything is measured or written."""

import importlib.metadata
import platform
from typing import Final

import onnx_ir as ir

from polyhead.export.errors import ExportError
from polyhead.export.exportable import DecoderSizes, ExportableDecoder, ExportableEncoder, Pooling
from polyhead.export.quantize import Quantization
from polyhead.export.seq2seq.exportable import ExportableSeq2Seq
from polyhead.export.source import SOURCE_TOKENIZER_FILE, Source
from polyhead.models.checkpoint import Task
from polyhead.server.engine.batcher import padded_lengths
from polyhead.server.manifest import SCHEMA_VERSION
from polyhead.v1 import bundle_pb2

PREFILL_CHUNK = 32
"""Tokens; a longer chunk makes other rows wait longer for their next token, a shorter one uses the cores less well. With
135 M parameters in int8 one of 32 takes as long as a step of 16 rows, and 10 % more a token than one of 64."""

TASKS: Final[dict[Task, bundle_pb2.Task.ValueType]] = {
    "generate": bundle_pb2.TASK_GENERATE,
    "classify": bundle_pb2.TASK_CLASSIFY,
    "embed": bundle_pb2.TASK_EMBED,
}
POOLINGS: Final[dict[Pooling | None, bundle_pb2.Pooling.ValueType]] = {
    None: bundle_pb2.POOLING_UNSPECIFIED,
    "mean": bundle_pb2.POOLING_MEAN,
    "cls": bundle_pb2.POOLING_CLS,
    "max": bundle_pb2.POOLING_MAX,
    "mean_sqrt_length": bundle_pb2.POOLING_MEAN_SQRT_LENGTH,
    "weighted_mean": bundle_pb2.POOLING_WEIGHTED_MEAN,
    "last": bundle_pb2.POOLING_LAST,
}
QUANTIZATIONS: Final[dict[Quantization, bundle_pb2.Quantization.ValueType]] = {
    "none": bundle_pb2.QUANTIZATION_NONE,
    "int8": bundle_pb2.QUANTIZATION_INT8,
    "int4": bundle_pb2.QUANTIZATION_INT4,
}
MAKERS = ("polyhead", "torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "tokenizers", "transformers")


def make_manifest(source: Source, quantization: Quantization) -> bundle_pb2.Bundle:
    """Everything but graphs, files and measurements. Raises ExportError where model and labels contradict each other.

    What training measured was measured in fp32, and is called so where the graph is something else.
    """
    suffix = "" if quantization == "none" else "_fp32"
    sizes = source.model.sizes
    manifest = bundle_pb2.Bundle(
        schema_version=SCHEMA_VERSION,
        task=TASKS[source.task],
        architecture=source.architecture,
        tokenizer=source.tokenizer,
        limits=bundle_pb2.Limits(max_tokens=sizes.max_tokens, vocabulary_size=sizes.vocabulary_size),
        quantization=QUANTIZATIONS[quantization],
        quality={f"{name}{suffix}": figure for name, figure in source.quality.items()},
        made_with=_versions(),
        parameters=sum(parameter.numel() for parameter in source.model.parameters()),
        license=source.license,
    )
    manifest.created_at.GetCurrentTime()
    if isinstance(source.model, ExportableSeq2Seq):
        _add_seq2seq(manifest, source, source.model)
    elif isinstance(source.model, ExportableDecoder):
        _add_decoder(manifest, source.model.sizes, source.sampling)
    else:
        _add_encoder(manifest, source.model, source.labels)
    return manifest


def _add_decoder(manifest: bundle_pb2.Bundle, sizes: DecoderSizes, sampling: bundle_pb2.SamplingDefaults) -> None:
    manifest.limits.prefill_chunk = min(PREFILL_CHUNK, sizes.max_tokens)
    manifest.cache.MergeFrom(
        bundle_pb2.Cache(layers=sizes.layers, kv_heads=sizes.kv_heads, head_size=sizes.head_size, type="float")
    )
    manifest.sampling_defaults.MergeFrom(sampling)


def _add_seq2seq(manifest: bundle_pb2.Bundle, source: Source, model: ExportableSeq2Seq) -> None:
    manifest.seq2seq.max_source_tokens = model.sizes.max_source_tokens
    manifest.seq2seq.source_vocabulary_size = model.sizes.source_vocabulary_size
    manifest.seq2seq.start_token_id = source.start_token_id
    if source.source_tokenizer_json is not None:
        manifest.seq2seq.source_tokenizer = SOURCE_TOKENIZER_FILE
    manifest.sampling_defaults.MergeFrom(source.sampling)


def _add_encoder(manifest: bundle_pb2.Bundle, model: ExportableEncoder, labels: tuple[str, ...]) -> None:
    manifest.limits.padded_lengths.extend(padded_lengths(model.sizes.max_tokens))
    manifest.pooling = POOLINGS[model.pooling]
    if model.output == "embeddings":
        manifest.normalized = model.normalized
        manifest.limits.embedding_size = model.sizes.outputs
        return
    if len(labels) != model.sizes.outputs:
        raise ExportError(f"labels: there must be one for each of the {model.sizes.outputs} classes, got {len(labels)}")
    manifest.labels.extend(labels)
    manifest.labels_tokens = model.labels_tokens


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
