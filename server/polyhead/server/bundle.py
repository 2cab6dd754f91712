"""Reads a bundle folder and believes nothing in it that it has not checked.

Three steps, each a BundleError with one line that names the file and what is wrong: the manifest by itself
(manifest.py), the files against the manifest (here), and, once onnxruntime has opened a graph, its signature against
the manifest (`check_signature`). Where a graph keeps weights outside its own file, onnxruntime refuses locations that
leave the bundle, and what is inside the bundle is listed and hashed like everything else.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf import json_format

from polyhead.server.errors import BundleError
from polyhead.server.manifest import MANIFEST_FILE, SCHEMA_VERSION, check_manifest
from polyhead.v1 import bundle_pb2

MAX_MANIFEST_BYTES = 16 * 2**20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VERSION = re.compile(r"[1-9][0-9]{0,17}")
"""What the folder of a bundle may be called, and that of a model."""

Signature = Sequence[tuple[str, str, Sequence[str]]]
"""Name, ONNX element type and shape of each tensor on one side of a graph."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder whose manifest makes sense and whose files are those that the manifest lists, byte for byte."""

    folder: Path
    manifest: bundle_pb2.Bundle

    @property
    def graph(self) -> Path:
        """The ONNX file of the only graph."""
        return self.folder / self.manifest.graphs[0].file

    @property
    def tokenizer(self) -> Path:
        """The `tokenizer.json`."""
        return self.folder / self.manifest.tokenizer.file

    def check_signature(self, inputs: Signature, outputs: Signature, graph: int = 0) -> None:
        """Compare what onnxruntime says of one of the graphs with what the manifest says. Raises BundleError."""
        self._check_graph(self.manifest.graphs[graph], inputs, outputs)

    def _check_graph(self, graph: bundle_pb2.Graph, inputs: Signature, outputs: Signature) -> None:
        for side, tensors, actual in (("inputs", graph.inputs, inputs), ("outputs", graph.outputs, outputs)):
            listed = {tensor.name: (tensor.type, tuple(tensor.shape)) for tensor in tensors}
            found = {name: (dtype, tuple(shape)) for name, dtype, shape in actual}
            for name in sorted(listed.keys() | found.keys()):
                if listed.get(name) != found.get(name):
                    raise BundleError(
                        f"{graph.file}: {side}: {name} is {describe(found.get(name))}, "
                        f"{MANIFEST_FILE} says {describe(listed.get(name))}"
                    )


def describe(tensor: tuple[str, tuple[str, ...]] | None) -> str:
    return f"{tensor[0]} [{', '.join(tensor[1])}]" if tensor else "absent"


def read_bundle(folder: Path) -> Bundle:
    """Read and verify the manifest and every file. Raises BundleError."""
    return verify(folder, read_manifest(folder))


def read_manifest(folder: Path) -> bundle_pb2.Bundle:
    """Parse and check `bundle.json` by itself. Raises BundleError.

    What a newer schema may have added is refused by its version, not as an unknown field.
    """
    try:
        fields = json.loads(read_text(folder / MANIFEST_FILE))
        check_schema_version(fields)
        manifest = json_format.ParseDict(fields, bundle_pb2.Bundle())
    except (ValueError, RecursionError, json_format.ParseError) as error:
        raise BundleError(f"{MANIFEST_FILE}: is not a manifest: {one_line(error)}") from error
    check_manifest(manifest)
    return manifest


def verify(folder: Path, manifest: bundle_pb2.Bundle) -> Bundle:
    """Check every file of the folder against its manifest. Raises BundleError."""
    check_sizes(folder, manifest)
    for file in manifest.files:
        check_hash(folder / file.path, file)
    return Bundle(folder, manifest)


def read_text(path: Path) -> str:
    if not path.is_file():
        raise BundleError(f"{path.name}: is missing")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path.name}: must be at most {MAX_MANIFEST_BYTES} bytes, has {path.stat().st_size}")
    return path.read_text(encoding="utf-8")


def check_schema_version(fields: Any) -> None:
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if not isinstance(version, int) or version < 1:
        raise BundleError(f"{MANIFEST_FILE}: schema_version must be a positive integer, got {version!r}")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{MANIFEST_FILE}: schema_version {version} is newer than this server knows ({SCHEMA_VERSION}); "
            "use a newer server or export again"
        )


def check_sizes(folder: Path, manifest: bundle_pb2.Bundle) -> None:
    """The folder holds exactly the listed files, each of the listed size, and nothing leads outside. Raises BundleError."""
    listed = {file.path: file for file in manifest.files}
    if len(listed) != len(manifest.files):
        raise BundleError(f"{MANIFEST_FILE}: files lists a path twice")
    for path in listed:
        check_path(path)
    present = set(files_in(folder)) - {MANIFEST_FILE}
    for path in sorted(listed.keys() ^ present):
        raise BundleError(f"{path}: is missing" if path in listed else f"{path}: is not listed in {MANIFEST_FILE}")
    for path, file in listed.items():
        check_size(folder / path, file)


def check_path(path: str) -> None:
    pure = PurePosixPath(path)
    if not path or "\\" in path or "\0" in path or pure.is_absolute() or ".." in pure.parts or str(pure) != path:
        raise BundleError(f"{MANIFEST_FILE}: files: {path!r} must be a plain path inside the bundle")


def files_in(folder: Path) -> Iterator[str]:
    """Paths, with forward slashes, of everything in the folder that is not a folder. Raises BundleError for links out."""
    root = folder.resolve()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise BundleError(f"{name}: is a link that leaves the bundle")
        if path.is_symlink() or not path.is_dir():
            yield name


def check_size(path: Path, file: bundle_pb2.File) -> None:
    if not path.is_file():
        raise BundleError(f"{file.path}: is not a regular file")
    size = path.stat().st_size
    if size != file.size:
        raise BundleError(f"{file.path}: has {size} bytes, {MANIFEST_FILE} says {file.size}")


def check_hash(path: Path, file: bundle_pb2.File) -> None:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != file.sha256:
        raise BundleError(f"{file.path}: SHA-256 is {digest}, {MANIFEST_FILE} says {file.sha256}")


def one_line(error: BaseException) -> str:
    """The text of an error, fit for a log line."""
    return " ".join(str(error).split()) or type(error).__name__
