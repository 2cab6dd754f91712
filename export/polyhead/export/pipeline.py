"""From a checkpoint or a model to a verified bundle."""

from contextlib import closing
from pathlib import Path

import onnx_ir as ir

from polyhead.export.bundle import choose_target, half_written, publish, write_manifest
from polyhead.export.card import model_card
from polyhead.export.manifest import TOKENIZER_FILE, graph_entry, make_manifest
from polyhead.export.to_onnx import export_decoder, export_encoder
from polyhead.export.verify import Verification, verify_decoder, verify_encoder
from polyhead.models.checkpoint import CheckpointConfig, CheckpointError, Model, load_checkpoint
from polyhead.models.gpt import GPT
from polyhead.server.bundle import Bundle
from polyhead.server.runtime.decoder import Decoder
from polyhead.server.runtime.encoder import Encoder
from polyhead.v1 import bundle_pb2

CARD_FILE = "MODEL.md"
VERIFIED_ROWS = 8
"""Prompts that decode together while a decoder is verified."""


def export_checkpoint(checkpoint: Path, out: Path, version: int | None = None) -> Path:
    """Export a checkpoint folder to the models folder's `out`; see `export_model`. Raises CheckpointError, ExportError."""
    config, model = load_checkpoint(checkpoint)
    path = checkpoint / TOKENIZER_FILE
    try:
        tokenizer_json = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return export_model(model, config, tokenizer_json, out, version)


def export_model(
    model: Model, config: CheckpointConfig, tokenizer_json: str, out: Path, version: int | None = None
) -> Path:
    """Export a model, verify the graph against it, and write the bundle `out/VERSION`; returns that folder.

    `out` is `MODELS/NAME`; `version` is at least 1, by default one more than the newest there. Nothing is visible under
    `out` until all of it is. Raises ExportError for a bad name, a version that exists, a model that can't be exported,
    or, as ParityError, one whose graph computes something else.
    """
    target = choose_target(out, version)
    model = model.cpu().float().eval()
    with half_written(target) as folder:
        manifest = make_manifest(model, config, tokenizer_json)
        graph = export_decoder(model) if isinstance(model, GPT) else export_encoder(model)
        entry = graph_entry("decoder" if isinstance(model, GPT) else "encoder", graph)
        manifest.graphs.append(entry)
        ir.save(graph, folder / entry.file, external_data=f"{entry.file}.data")
        (folder / TOKENIZER_FILE).write_text(tokenizer_json, "utf-8")
        verification = verify(model, folder, manifest)
        manifest.parity.extend(verification.parity)
        manifest.traffic_independent = verification.traffic_independent
        (folder / CARD_FILE).write_text(model_card(out.name, target.name, manifest, config), "utf-8")
        write_manifest(folder, manifest)
        publish(folder, target)
    return target


def verify(model: Model, folder: Path, manifest: bundle_pb2.Bundle) -> Verification:
    """Open the graph in `folder` as the server will and compare it with the model. Raises ParityError, BundleError."""
    bundle = Bundle(folder, manifest)
    if isinstance(model, GPT):
        slots, capacity = VERIFIED_ROWS, manifest.limits.max_tokens
        with closing(Decoder(bundle.graph, manifest, slots=slots, capacity=capacity)) as decoder:
            bundle.check_signature(*decoder.signature)
            return verify_decoder(model, decoder)
    with closing(Encoder(bundle.graph, manifest)) as encoder:
        bundle.check_signature(*encoder.signature)
        return verify_encoder(model, encoder)
