"""What a models folder holds.

It holds `NAME/VERSION/`, VERSION a positive integer, and perhaps `NAME/aliases.json`; everything else in it, such as files
and folders whose name begins with a dot (half-written bundles), is ignored. What a link leads to outside of it is not looked
at: a version that is one is there only to be refused.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from polyhead.server.bundle import NAME, VERSION, read_manifest
from polyhead.server.errors import BundleError, PolyheadError
from polyhead.server.repository.aliases import ALIASES_FILE, MAX_ALIASES_BYTES, Source, Unread
from polyhead.v1 import bundle_pb2

MAX_FILES = 10_000
"""Of a version, folders in it included; it is not looked at any further. A bundle has about ten."""

Fingerprint: TypeAlias = frozenset[tuple[str, int, int]]
"""Path, size and time of change of every file, or of the link that leads elsewhere: changes whenever a folder is written to."""


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """`NAME/VERSION/` at the time of a scan."""

    path: Path
    fingerprint: Fingerprint


@dataclass(slots=True)
class ModelFolder:
    """`NAME/` at the time of a scan."""

    versions: dict[int, VersionFolder] = field(default_factory=dict)
    aliases: Source = None


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
    root = folder.resolve()
    for path in sorted(folder.iterdir()):
        if NAME.fullmatch(path.name) and path.is_dir():
            model = scan_model(path, root)
            if model.versions:
                models[path.name] = model
    return models


def scan_model(folder: Path, root: Path) -> ModelFolder:
    """What goes away while it is looked at is not there. `root`: the models folder, without links in its path."""
    model = ModelFolder(aliases=read_aliases(folder / ALIASES_FILE, root))
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return model
    for path in paths:
        if VERSION.fullmatch(path.name) and path.is_dir():
            model.versions[int(path.name)] = VersionFolder(path, fingerprint(path, root))
    return model


def read_aliases(path: Path, root: Path) -> Source:
    """Of a file in the models folder; of anything else, such as a pipe, that it is refused."""
    try:
        if not path.resolve(strict=True).is_relative_to(root):
            return Unread(f"{ALIASES_FILE}: is a link that leaves the models folder")
        with open(path, "rb", opener=without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return Unread(f"{ALIASES_FILE}: is not a regular file")
            return file.read(MAX_ALIASES_BYTES + 1)
    except IsADirectoryError:
        return Unread(f"{ALIASES_FILE}: is not a regular file")
    except (OSError, RuntimeError):  # gone, or a link to nothing or to itself
        return None


def without_waiting(path: str, flags: int) -> int:
    """Opens a pipe although nobody writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def fingerprint(folder: Path, root: Path) -> Fingerprint:
    """`root`: as `scan_model` takes it."""
    if not folder.resolve().is_relative_to(root):
        try:
            link = folder.lstat()
        except OSError:  # gone
            return frozenset()
        return frozenset({("", link.st_size, link.st_mtime_ns)})
    found = []
    for path in islice(walk(folder), MAX_FILES):
        try:
            status = path.stat()
        except OSError:  # gone, or a link to nothing
            continue
        if not stat.S_ISDIR(status.st_mode):
            found.append((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return frozenset(found)


def walk(folder: Path) -> Iterator[Path]:
    """Everything in a folder, without what links lead to; looks no further than it is asked to."""
    pending = [folder]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    yield Path(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
        except OSError:  # gone
            continue


def look_into(folder: Path, root: Path) -> bundle_pb2.Bundle:
    """The manifest of a version's folder, which must be inside the models folder `root`. Raises BundleError."""
    version = f"{folder.parent.name}/{folder.name}"
    if not folder.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{version}: is a link that leaves the models folder")
    if next(islice(walk(folder), MAX_FILES, None), None):
        raise BundleError(f"{version}: has more than {MAX_FILES} files; a bundle has about ten")
    return read_manifest(folder)
