"""What a models folder holds, and when a version's folder has changed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from polyhead.server.errors import BundleError, PolyheadError
from polyhead.server.repository.scan import fingerprint, look_into, scan, scan_all
from tests.bundles import EMBEDDER
from tests.versions import add_version


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / EMBEDDER).mkdir()
    for version in (2, 10):
        add_version(tmp_path, EMBEDDER, version)
    return tmp_path


def test_versions_and_aliases_are_found_and_everything_else_is_ignored(models: Path) -> None:
    (models / EMBEDDER / "aliases.json").write_text("{}")
    for ignored in (".half-written/1", f"{EMBEDDER}/02", f"{EMBEDDER}/latest", "no-version/x", "d e/1"):
        (models / ignored).mkdir(parents=True)
    (models / EMBEDDER / "3").touch()
    found = scan(models)
    assert set(found) == {EMBEDDER}
    assert set(found[EMBEDDER].versions) == {2, 10}
    assert found[EMBEDDER].aliases == b"{}"


def test_a_folder_without_models_is_refused_but_may_become_one(tmp_path: Path) -> None:
    with pytest.raises(PolyheadError, match=r"no model in .*: expected NAME/VERSION/bundle\.json"):
        scan(tmp_path)
    assert scan_all(tmp_path) == {}
    with pytest.raises(PolyheadError, match=r"no models folder at .*nowhere"):
        scan(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "new").touch(),
        lambda folder: os.utime(folder / "bundle.json", (1, 1)),
    ],
)
def test_whatever_is_written_changes_the_fingerprint(models: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint(models / EMBEDDER / "2")
    assert fingerprint(models / EMBEDDER / "2") == before
    change(models / EMBEDDER / "2")
    assert fingerprint(models / EMBEDDER / "2") != before


def test_a_version_that_is_a_link_may_lead_nowhere_but_inside(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    inside, outside = models / EMBEDDER / "11", models / EMBEDDER / "12"
    inside.symlink_to("10")
    outside.symlink_to(tmp_path_factory.mktemp("elsewhere"))
    assert look_into(inside, models).parameters > 0
    with pytest.raises(BundleError, match=f"^{EMBEDDER}/12: is a link that leaves the models folder$"):
        look_into(outside, models)
