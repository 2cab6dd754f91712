"""The folder `NAME/VERSION/` of a bundle: written beside its place, read as the server would, then renamed."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import json_format

from polyhead.export.errors import ExportError
from polyhead.server.bundle import NAME, VERSION, Bundle, read_bundle
from polyhead.server.errors import BundleError
from polyhead.server.loader import open_chat_template, open_source_tokenizer, open_tokenizer
from polyhead.server.manifest import MANIFEST_FILE
from polyhead.v1 import bundle_pb2


def choose_target(out: Path, version: int | None) -> Path:
    """`out/VERSION`, which does not exist. Raises ExportError."""
    if not NAME.fullmatch(out.name):
        raise ExportError(
            f"the model's name must be letters, digits, '.', '_' and '-', the first no sign, got {out.name!r}"
        )
    if version is None:
        taken = [int(path.name) for path in out.glob("*") if VERSION.fullmatch(path.name)]
        version = max(taken, default=0) + 1
    if not VERSION.fullmatch(str(version)):
        raise ExportError(f"version must be at least 1 and have at most 18 digits, got {version}")
    target = out / str(version)
    if target.exists():
        raise ExportError(f"{target} exists; a version never changes, so take another one")
    return target


@contextmanager
def half_written(target: Path) -> Iterator[Path]:
    """A hidden folder on the target's file system, which the server ignores; gone afterwards, whatever happens.

    Raises ExportError for what the disk or the server's own checks have against what is written there.
    """
    models = target.parent.parent
    folder = models / f".{target.parent.name}-{target.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True)
        yield folder
    except BundleError as error:
        raise ExportError(f"the server would refuse this bundle: {error}") from error
    except OSError as error:
        raise ExportError(f"{error.filename or models}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_manifest(folder: Path, manifest: bundle_pb2.Bundle) -> None:
    """List the folder's files in the manifest and write it."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        manifest.files.add(path=path.relative_to(folder).as_posix(), sha256=digest, size=path.stat().st_size)
    text = json_format.MessageToJson(manifest, preserving_proto_field_name=True, ensure_ascii=False)
    (folder / MANIFEST_FILE).write_text(text + "\n", "utf-8")


def publish(folder: Path, target: Path) -> None:
    """Read the bundle as the server would, make it durable, and give it its name. Raises BundleError, ExportError."""
    check_texts(read_bundle(folder))
    for path in (*folder.rglob("*"), folder):
        flush(path)
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        raise ExportError(f"{target} was written by somebody else meanwhile; take another version")
    folder.rename(target)
    flush(target.parent)


def check_texts(bundle: Bundle) -> None:
    """Open tokenizers and chat template as the server does. Raises BundleError."""
    open_chat_template(bundle, open_tokenizer(bundle))
    open_source_tokenizer(bundle)


def flush(path: Path) -> None:
    """Bring a file's bytes or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
