"""`polyhead verify BUNDLE [--against CHECKPOINT]`: is a bundle still what was exported, and does it compute what it should?"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from polyhead.export.adapter_inputs import read_written
from polyhead.export.counterpart import require_counterpart
from polyhead.export.errors import ExportError, ParityError
from polyhead.export.exportable import Exportable, ExportableDecoder, ExportableEncoder
from polyhead.export.huggingface.folder import is_hugging_face
from polyhead.export.huggingface.hub import local_folder
from polyhead.export.manifest import QUANTIZATIONS, TASKS
from polyhead.export.parity import tolerance_of
from polyhead.export.pipeline import VERIFIED_ROWS, VERIFIED_TOKENS, load_source, open_verified
from polyhead.export.report import bits_line, parity_table
from polyhead.export.seq2seq.exportable import ExportableSeq2Seq
from polyhead.export.seq2seq.verify import run_seq2seq, verify_seq2seq
from polyhead.export.verify import Verification, run_decoder, run_encoder, verify_decoder, verify_encoder
from polyhead.export.verify_adapters import verify_with_adapters
from polyhead.models.checkpoint import CheckpointError
from polyhead.server.bundle import VERSION, Bundle, read_bundle
from polyhead.server.errors import BundleError
from polyhead.server.manifest import MANIFEST_FILE
from polyhead.server.runtime.decoder import Decoder
from polyhead.server.runtime.encoder import Encoder
from polyhead.v1.bundle_pb2 import TASK_GENERATE


def main(argv: Sequence[str] | None = None) -> int:
    """0: the bundle is as it should be; 1: it isn't, with a line that says why on standard error."""
    arguments = _parser().parse_args(argv)
    console = Console()
    try:
        bundle = read_bundle(newest(arguments.bundle))
        source = None if arguments.against is None else counterpart(bundle, arguments.against)
        found = verify_bundle(bundle, source)
        if not found.traffic_independent and bundle.manifest.traffic_independent:
            raise ParityError("the bundle promises the same bits in any traffic, and this machine doesn't keep it")
    except (BundleError, CheckpointError, ExportError) as error:
        print(f"polyhead verify: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    when = "when it was exported" if source is None else f"against {arguments.against}"
    parity = bundle.manifest.parity if source is None else found.parity
    console.print(parity_table(f"{bundle.folder}, {when}", parity))
    console.print(bits_line(found.traffic_independent))
    console.print(f"All {len(bundle.manifest.files)} files are what {MANIFEST_FILE} lists.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "polyhead verify",
        description="Check a bundle: its files, its graph, that a row's bits don't depend on its neighbours, and, where a "
        "checkpoint is named, that it computes what torch makes of that.",
    )
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="MODELS/NAME/VERSION, or MODELS/NAME for its newest version"
    )
    parser.add_argument(
        "--against", metavar="CHECKPOINT", help="what it was exported from: a folder, or a name on the hub"
    )
    return parser


def newest(folder: Path) -> Path:
    """Itself if it is a bundle, else its newest version. Raises BundleError."""
    if (folder / MANIFEST_FILE).is_file():
        return folder
    versions = [int(path.name) for path in folder.glob("*") if VERSION.fullmatch(path.name)]
    if not versions:
        raise BundleError(f"{folder}: neither a bundle nor a model's folder with versions of it")
    return folder / str(max(versions))


def counterpart(bundle: Bundle, checkpoint: str) -> Exportable:
    """The model of a checkpoint that a bundle may have been made from. Raises CheckpointError, ExportError."""
    folder = local_folder(checkpoint)
    task = next(task for task, value in TASKS.items() if value == bundle.manifest.task)
    source = load_source(folder, task if is_hugging_face(folder) else None)
    require_counterpart(bundle, source, checkpoint)
    return source.model


def verify_bundle(bundle: Bundle, model: Exportable | None) -> Verification:
    """Open the graph as the server does and hold it against the model, if there is one; see `verify`. Raises BundleError,
    ParityError."""
    manifest = bundle.manifest
    quantization = next(kind for kind, value in QUANTIZATIONS.items() if value == manifest.quantization)
    tolerance = tolerance_of(quantization, "int8" if manifest.cache.type == "int8" else "float")
    if manifest.HasField("seq2seq"):
        with closing(open_verified(bundle)) as decoder:
            if isinstance(model, ExportableSeq2Seq):
                return verify_seq2seq(model, decoder, tolerance)
            return Verification((), run_seq2seq(decoder, manifest.seq2seq.source_vocabulary_size).independent)
    adapters = [read_written(bundle.folder, adapter) for adapter in manifest.adapters]
    names = ["", *(adapter.name for adapter in adapters)]
    if manifest.task == TASK_GENERATE:
        capacity = min(VERIFIED_TOKENS, manifest.limits.max_tokens)
        with closing(Decoder(bundle.graph, manifest, slots=VERIFIED_ROWS, capacity=capacity)) as decoder:
            bundle.check_signature(*decoder.signature)
            if isinstance(model, ExportableDecoder):
                return verify_with_adapters(
                    model.model, adapters, lambda adapter: verify_decoder(model, decoder, tolerance, adapter)
                )
            return Verification((), all(run_decoder(decoder, name).independent for name in names))
    with closing(Encoder(bundle.graph, manifest)) as encoder:
        bundle.check_signature(*encoder.signature)
        if isinstance(model, ExportableEncoder):
            return verify_with_adapters(
                model.model, adapters, lambda adapter: verify_encoder(model, encoder, tolerance, adapter)
            )
        runs = [run for name in names for run in run_encoder(encoder, manifest.limits.vocabulary_size, name)]
        return Verification((), all(run.independent for run in runs))


if __name__ == "__main__":
    sys.exit(main())
