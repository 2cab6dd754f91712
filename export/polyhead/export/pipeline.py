"""From a checkpoint or a model to a verified bundle."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from polyhead.export.adapter_inputs import add_adapters, write_adapters
from polyhead.export.adapters import Adapter, read_adapter
from polyhead.export.bundle import check_texts, choose_target, half_written, publish, write_manifest
from polyhead.export.card import model_card
from polyhead.export.errors import ExportError
from polyhead.export.exportable import Exportable, ExportableDecoder, ExportableEncoder
from polyhead.export.huggingface.folder import is_hugging_face
from polyhead.export.huggingface.importer import import_source
from polyhead.export.manifest import graph_entry, make_manifest
from polyhead.export.origin import Checkpoint, make_origin
from polyhead.export.parity import tolerance_of
from polyhead.export.quality import (
    encoder_quality,
    evaluation_windows,
    loss_of,
    perplexity,
    read_text,
    torch_perplexity,
)
from polyhead.export.quantize import CacheType, Quantization, QuantizationOptions, quantize_graph
from polyhead.export.quantize_cache import calibration_samples, split_text, to_int8_cache
from polyhead.export.seq2seq.exportable import ExportableSeq2Seq
from polyhead.export.seq2seq.graphs import export_seq2seq
from polyhead.export.seq2seq.quality import seq2seq_quality
from polyhead.export.seq2seq.verify import verify_seq2seq
from polyhead.export.source import SOURCE_TOKENIZER_FILE, TOKENIZER_FILE, Source, own_source
from polyhead.export.to_onnx import export_decoder, export_encoder
from polyhead.export.verify import Verification, compare_run, run_decoder, verify_encoder
from polyhead.export.verify_adapters import verify_with_adapters
from polyhead.models.checkpoint import (
    HELD_OUT_FILE,
    CheckpointConfig,
    CheckpointError,
    Model,
    Task,
    load_checkpoint,
)
from polyhead.server.bundle import Bundle
from polyhead.server.runtime.decoder import Decoder
from polyhead.server.runtime.encoder import Encoder
from polyhead.server.runtime.seq2seq import Seq2SeqDecoder
from polyhead.v1 import bundle_pb2

CARD_FILE = "MODEL.md"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
NOT_QUANTIZED = QuantizationOptions()
VERIFIED_ROWS = 8
"""Prompts that decode together while a decoder is verified."""
VERIFIED_TOKENS = 256
"""Tokens that each of them can have; more would take memory that a checkpoint's own size doesn't account for."""


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported."""

    version: int | None = None
    """At least 1; by default one more than the newest there."""
    quantization: QuantizationOptions = NOT_QUANTIZED
    evaluation_text: str | None = None
    """What the graph and torch are both measured on; for classifiers and embedders an input a line. An int8 cache is
    calibrated on its beginning, and measured on the rest."""
    cache: CacheType = "float"
    """What a decoder's slots hold."""
    max_loss: float | None = None
    """Of `quality.loss_of`; what loses more is not written."""
    adapters: tuple[tuple[str, Path], ...] = ()
    """Name and folder of each LoRA adapter that requests can choose."""
    checkpoint: Checkpoint | None = None
    """What the model was read from, if it was."""


@dataclass(frozen=True)
class Measurement:
    """What a graph was found to compute, beside the model in torch."""

    verification: Verification
    quality: dict[str, float]


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    version: int | None = None,
    quantization: Quantization = "none",
    eval_data: Path | None = None,
) -> Path:
    """Export a checkpoint folder to the models folder's `out`; see `load_source` and `export_source`.

    Raises CheckpointError, ExportError.
    """
    text = None if eval_data is None else read_text(eval_data)
    options = ExportOptions(
        version, QuantizationOptions(quantization), text, checkpoint=Checkpoint.from_folder(checkpoint)
    )
    return export_source(load_source(checkpoint), out, options)


def load_source(checkpoint: Path, task: Task | None = None, max_tokens: int | None = None) -> Source:
    """A checkpoint folder of `polyhead train`, or one in Hugging Face layout, for which `task` and `max_tokens` can say
    otherwise than the checkpoint. Raises CheckpointError, ExportError."""
    if is_hugging_face(checkpoint):
        return import_source(checkpoint, task, max_tokens)
    if task or max_tokens:
        raise ExportError(f"{checkpoint}: --task and --max-tokens are for checkpoints in Hugging Face layout")
    config, model = load_checkpoint(checkpoint)
    path = checkpoint / TOKENIZER_FILE
    try:
        tokenizer_json = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    held_out, sources = checkpoint / HELD_OUT_FILE, checkpoint / SOURCE_TOKENIZER_FILE
    text = read_text(held_out) if held_out.exists() else None
    source_tokenizer_json = read_text(sources) if sources.exists() else None
    return own_source(model, config, tokenizer_json, text or None, source_tokenizer_json)


def export_model(
    model: Model, config: CheckpointConfig, tokenizer_json: str, out: Path, options: ExportOptions | None = None
) -> Path:
    """Export a model of polyhead.models; see `export_source`."""
    return export_source(own_source(model, config, tokenizer_json), out, options)


def export_source(source: Source, out: Path, options: ExportOptions | None = None) -> Path:
    """Export a model, verify the graph against it, and write the bundle `out/VERSION`; returns that folder.

    `out` is `MODELS/NAME`. Nothing is visible under `out` until all of it is. A quantized graph is evaluated on the text of
    the options, or else on what training kept out; a graph in fp32 only on the former. Raises ExportError for a bad name, a
    version that exists, a model that can't be exported or quantized so, a text for evaluation that is too short, or, as
    ParityError, a graph that computes something else.
    """
    options = options or ExportOptions()
    kind = options.quantization.kind
    if options.evaluation_text is None and (kind, options.cache) != ("none", "float"):
        options = replace(options, evaluation_text=source.held_out)
    if options.max_loss is not None and options.evaluation_text is None:
        raise ExportError("--max-loss needs a text to measure on: --eval-data FILE")
    if options.cache == "int8" and not isinstance(source.model, ExportableDecoder):
        raise ExportError(
            "an int8 cache is for decoders; models that read a source keep theirs in fp32, and others have none"
        )
    adapters = read_adapters(source, options.adapters)
    target = choose_target(out, options.version)
    with half_written(target) as folder:
        manifest = make_manifest(source, kind)
        manifest.origin.MergeFrom(make_origin(options.checkpoint, options.quantization, options.max_loss))
        write_tokenizer(source, folder, manifest)
        check_texts(Bundle(folder, manifest))  # before the graphs, which take longer
        manifest.graphs.extend(write_graphs(source.model, folder, options.quantization, adapters))
        manifest.adapters.extend(write_adapters(folder, adapters))
        bundle = Bundle(folder, manifest)
        if options.cache == "int8":
            options = calibrate_cache(bundle, options)
        measured = measure(source, bundle, options, adapters)
        manifest.parity.extend(measured.verification.parity)
        manifest.traffic_independent = measured.verification.traffic_independent
        manifest.quality.update(measured.quality)
        check_loss(measured.quality, options.max_loss)
        (folder / CARD_FILE).write_text(model_card(out.name, target.name, manifest, source), "utf-8")
        write_manifest(folder, manifest)
        publish(folder, target)
    return target


def check_loss(quality: Mapping[str, float], limit: float | None) -> None:
    """Raises ExportError, with what was measured, where the bits cost more than the limit."""
    if limit is not None and not (loss := loss_of(quality)) <= limit:
        measured = ", ".join(f"{name} {figure:.4g}" for name, figure in sorted(quality.items()))
        raise ExportError(f"the loss is {loss:.4g}, more than --max-loss {limit:g}: {measured}")


def read_adapters(source: Source, folders: Sequence[tuple[str, Path]]) -> list[Adapter]:
    """Raises ExportError, CheckpointError; see `read_adapter`."""
    names = [name for name, _ in folders]
    if len(set(names)) < len(names):
        raise ExportError(f"adapters must have different names, got {', '.join(names)}")
    if names and isinstance(source.model, ExportableSeq2Seq):
        raise ExportError(
            "adapters are for decoders and encoders, not for models that read a source and write an answer"
        )
    classifies = source.task == "classify"
    return [read_adapter(name, folder, source.model.model, classifies=classifies) for name, folder in folders]


def write_tokenizer(source: Source, folder: Path, manifest: bundle_pb2.Bundle) -> None:
    """The tokenizer and, where there is one, the chat template."""
    (folder / TOKENIZER_FILE).write_text(source.tokenizer_json, "utf-8")
    if source.source_tokenizer_json is not None:
        (folder / SOURCE_TOKENIZER_FILE).write_text(source.source_tokenizer_json, "utf-8")
    if source.chat_template is not None:
        (folder / CHAT_TEMPLATE_FILE).write_text(source.chat_template, "utf-8")
        manifest.tokenizer.chat_template = CHAT_TEMPLATE_FILE


def write_graphs(
    model: Exportable, folder: Path, quantization: QuantizationOptions, adapters: Sequence[Adapter]
) -> Iterator[bundle_pb2.Graph]:
    """Save each graph and its weights, and let go of them. Raises ExportError for a model that can't be exported so."""
    if quantization.kind == "int4" and isinstance(model, ExportableEncoder):
        raise ExportError("int4 is for models that generate; take int8 for classifiers and embedders")
    if isinstance(model, ExportableSeq2Seq):
        graphs = dict(zip(("encoder", "decoder"), export_seq2seq(model), strict=True))
    elif isinstance(model, ExportableDecoder):
        graphs = {"decoder": export_decoder(model)}
    else:
        graphs = {"encoder": export_encoder(model)}
    for name in list(graphs):
        add_adapters(graphs[name], adapters)
        yield write_graph(name, graphs.pop(name), folder, quantization)


def write_graph(name: str, graph: ir.Model, folder: Path, quantization: QuantizationOptions) -> bundle_pb2.Graph:
    quantize_graph(graph, quantization)
    entry = graph_entry(name, graph)
    ir.save(graph, folder / entry.file, external_data=f"{entry.file}.data")
    return entry


def calibrate_cache(bundle: Bundle, options: ExportOptions) -> ExportOptions:
    """Give a decoder an int8 cache; returns options whose text for evaluation is what the cache was not calibrated on."""
    if options.evaluation_text is None:
        to_int8_cache(bundle, calibration_samples(bundle))
        return options
    beginning, rest = split_text(bundle, options.evaluation_text)
    to_int8_cache(bundle, calibration_samples(bundle, beginning))
    return replace(options, evaluation_text=rest)


def measure(source: Source, bundle: Bundle, options: ExportOptions, adapters: Sequence[Adapter]) -> Measurement:
    """Open the graph as the server will and compare it with the model. Raises ExportError, ParityError, BundleError."""
    manifest, text = bundle.manifest, options.evaluation_text
    tolerance = tolerance_of(options.quantization.kind, options.cache)
    model, tokenizer_json = source.model, source.tokenizer_json
    if isinstance(model, ExportableSeq2Seq):
        return measure_seq2seq(source, model, bundle, options)
    if isinstance(model, ExportableDecoder):
        return measure_decoder(model, bundle, tokenizer_json, tolerance, text, adapters)
    with closing(Encoder(bundle.graph, manifest)) as encoder:
        bundle.check_signature(*encoder.signature)
        verification = verify_with_adapters(
            model.model, adapters, lambda adapter: verify_encoder(model, encoder, tolerance, adapter)
        )
        return Measurement(
            verification, encoder_quality(model, encoder, tokenizer_json, text) if text is not None else {}
        )


def measure_decoder(
    model: ExportableDecoder,
    bundle: Bundle,
    tokenizer_json: str,
    tolerance: float,
    text: str | None,
    adapters: Sequence[Adapter],
) -> Measurement:
    """First all that the graph computes and then all that torch does, so that the memory of one is free for the other."""
    manifest, quality = bundle.manifest, {}
    capacity = min(VERIFIED_TOKENS, manifest.limits.max_tokens)
    with closing(Decoder(bundle.graph, manifest, slots=VERIFIED_ROWS, capacity=capacity)) as decoder:
        bundle.check_signature(*decoder.signature)
        runs = {name: run_decoder(decoder, name) for name in ("", *(adapter.name for adapter in adapters))}
        if text is not None:
            windows = evaluation_windows(decoder, model.sizes.max_tokens, tokenizer_json, text)
            quality["perplexity"] = perplexity(decoder, windows)
    if text is not None:
        quality["perplexity_fp32"] = torch_perplexity(model, windows)
    verification = verify_with_adapters(
        model.model, adapters, lambda adapter: compare_run(model, runs[adapter], tolerance)
    )
    return Measurement(verification, quality)


def measure_seq2seq(source: Source, model: ExportableSeq2Seq, bundle: Bundle, options: ExportOptions) -> Measurement:
    """The same of a model with two graphs."""
    manifest, text = bundle.manifest, options.evaluation_text
    with closing(open_verified(bundle)) as decoder:
        verification = verify_seq2seq(model, decoder, tolerance_of(options.quantization.kind, "float"))
        if text is None:
            return Measurement(verification, {})
        readers = source.source_tokenizer_json or source.tokenizer_json, source.tokenizer_json
        end_token = next(iter(manifest.tokenizer.eos_token_ids), None)
        return Measurement(verification, seq2seq_quality(model, decoder, readers, end_token, text))


def open_verified(bundle: Bundle) -> Seq2SeqDecoder:
    """With as many slots as verification takes. Raises BundleError."""
    limits = bundle.manifest.limits, bundle.manifest.seq2seq
    decoder = Seq2SeqDecoder(
        bundle.folder,
        bundle.manifest,
        slots=VERIFIED_ROWS,
        capacity=min(VERIFIED_TOKENS, limits[0].max_tokens),
        source_capacity=min(VERIFIED_TOKENS, limits[1].max_source_tokens),
    )
    for number, signature in enumerate(decoder.signatures):
        bundle.check_signature(*signature, graph=number)
    return decoder
