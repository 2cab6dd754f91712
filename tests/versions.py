"""More versions of the tiny bundles: the same graphs with other weights, so that every version answers otherwise."""

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests import bundles

_made = TemporaryDirectory(prefix="polyhead-test-")


def add_version(models: Path, name: str, version: int, variant: int = 0) -> Path:
    """Put a version of a tiny bundle into a models folder, all at once; variants answer otherwise. Gives its folder."""
    copy, folder = models / name / f".{version}.half-written", models / name / str(version)
    shutil.copytree(made(name, variant), copy)
    copy.rename(folder)
    return folder


def remove_version(models: Path, name: str, version: int) -> None:
    """Take a version away, all at once."""
    gone = models / name / f".{version}.gone"
    (models / name / str(version)).rename(gone)
    shutil.rmtree(gone)


@cache
def made(name: str, variant: int) -> Path:
    """A bundle whose weights are larger than those of the exported one by a tenth for each number of the variant."""
    folder = Path(_made.name) / f"{name}-{variant}"
    shutil.copytree(bundles.models_folder() / name / "1", folder)
    if variant:
        weights = next(folder.glob("*.data"))
        weights.write_bytes((np.fromfile(weights, np.float32) * (1 + variant / 10)).astype(np.float32).tobytes())
        relist(folder)
    return folder


def relist(folder: Path) -> None:
    """Make the manifest's list of files true again."""
    manifest = json.loads((folder / "bundle.json").read_text())
    for file in manifest["files"]:
        path = folder / file["path"]
        file |= {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "bundle.json").write_text(json.dumps(manifest))
