"""What a models folder holds.

It holds `NAME/VERSION/`, VERSION a positive integer, and perhaps `NAME/aliases.json`; everything else in it, such as files
and folders whose name begins with a dot (half-written bundles), is ignored.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from polyhead.server.bundle import read_manifest
from polyhead.server.errors import BundleError, PolyheadError
from polyhead.server.repository.aliases import ALIASES_FILE, MAX_ALIASES_BYTES
from polyhead.v1 import bundle_pb2

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VERSION = re.compile(r"[1-9][0-9]{0,17}")

Fingerprint: TypeAlias = frozenset[tuple[str, int, int]]
"""Path, size and time of change of every file: changes whenever a folder is written to."""


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """`NAME/VERSION/` at the time of a scan."""

    path: Path
    fingerprint: Fingerprint


@dataclass(slots=True)
class ModelFolder:
    """`NAME/` at the time of a scan."""

    versions: dict[int, VersionFolder] = field(default_factory=dict)
    aliases: bytes | None = None
    """Content of `aliases.json`; None if there is none."""


def scan(folder: Path) -> dict[str, ModelFolder]:
    """Every model of a models folder that has a version, by name. Raises PolyheadError when there is none."""
    if not folder.is_dir():
        raise PolyheadError(f"no models folder at {folder}")
    models = scan_all(folder)
    if not models:
        raise PolyheadError(f"no model in {folder}: expected NAME/VERSION/bundle.json with VERSION 1, 2, …")
    return models


def scan_all(folder: Path) -> dict[str, ModelFolder]:
    """Every model that has a version, by name; perhaps none. Raises OSError when the folder can't be read."""
    models: dict[str, ModelFolder] = {}
    for path in sorted(folder.iterdir()):
        if NAME.fullmatch(path.name) and path.is_dir():
            model = scan_model(path)
            if model.versions:
                models[path.name] = model
    return models


def scan_model(folder: Path) -> ModelFolder:
    """What goes away while it is looked at is not there."""
    model = ModelFolder(aliases=read_aliases(folder / ALIASES_FILE))
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return model
    for path in paths:
        if VERSION.fullmatch(path.name) and path.is_dir():
            model.versions[int(path.name)] = VersionFolder(path, fingerprint(path))
    return model


def read_aliases(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_ALIASES_BYTES + 1)
    except OSError:
        return None


def fingerprint(folder: Path) -> Fingerprint:
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                status = path.stat()
            except OSError:  # gone, or a link to nothing
                continue
            found.append((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return frozenset(found)


def look_into(folder: Path, root: Path) -> bundle_pb2.Bundle:
    """The manifest of a version's folder, which must be inside the models folder `root`. Raises BundleError."""
    if not folder.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{folder.parent.name}/{folder.name}: is a link that leaves the models folder")
    return read_manifest(folder)
