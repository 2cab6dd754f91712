"""What a models folder holds, and when a version's folder has changed."""

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from polyhead.server.errors import BundleError, PolyheadError
from polyhead.server.repository.aliases import Aliases, Unread
from polyhead.server.repository.scan import fingerprint, look_into, scan, scan_all
from tests.bundles import EMBEDDER
from tests.versions import add_version

MODULE = import_module("polyhead.server.repository.scan")  # the package has its function under this name


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
    before = fingerprint(models / EMBEDDER / "2", models)
    assert fingerprint(models / EMBEDDER / "2", models) == before
    change(models / EMBEDDER / "2")
    assert fingerprint(models / EMBEDDER / "2", models) != before


def test_a_version_that_is_a_link_may_lead_nowhere_but_inside(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    inside, outside = models / EMBEDDER / "11", models / EMBEDDER / "12"
    inside.symlink_to("10")
    outside.symlink_to(tmp_path_factory.mktemp("elsewhere"))
    assert look_into(inside, models).parameters > 0
    with pytest.raises(BundleError, match=f"^{EMBEDDER}/12: is a link that leaves the models folder$"):
        look_into(outside, models)


def test_what_a_link_out_of_the_tree_leads_to_is_not_walked(
    models: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path_factory.mktemp("elsewhere")
    (outside / "1").mkdir()
    (models / EMBEDDER / "12").symlink_to(outside)
    (models / "linked").symlink_to(outside)
    walked: list[Path] = []

    def walk(folder: Path) -> Iterator[Path]:
        walked.append(folder)
        return iter(())

    monkeypatch.setattr(MODULE, "walk", walk)
    before = scan_all(models)
    (outside / "more").touch()
    (outside / "1" / "more").touch()
    (link,) = before[EMBEDDER].versions[12].fingerprint
    assert link[0] == ""
    assert {path.name for path in walked} == {"2", "10"}
    assert scan_all(models)[EMBEDDER].versions[12].fingerprint == {link}
    (models / EMBEDDER / "12").unlink()
    (models / EMBEDDER / "12").symlink_to(outside / "1")
    assert scan_all(models)[EMBEDDER].versions[12].fingerprint != {link}


def test_a_version_of_very_many_files_is_refused_without_looking_at_all_of_them(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODULE, "MAX_FILES", 20)
    for number in range(20):
        (models / EMBEDDER / "2" / f"{number}").touch()
    assert len(fingerprint(models / EMBEDDER / "2", models)) <= 20
    with pytest.raises(BundleError, match=f"^{EMBEDDER}/2: has more than 20 files; a bundle has about ten$"):
        look_into(models / EMBEDDER / "2", models)
    assert look_into(models / EMBEDDER / "10", models).parameters > 0


def linked_aliases(path: Path, outside: Path) -> None:
    (outside / "secret").write_text("{}")
    path.symlink_to(outside / "secret")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (linked_aliases, "is a link that leaves the models folder"),
        (lambda path, _: os.mkfifo(path), "is not a regular file"),
        (lambda path, _: path.mkdir(), "is not a regular file"),
    ],
)
def test_aliases_are_read_of_a_regular_file_in_the_models_folder_only(
    models: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make: Callable[[Path, Path], object],
    reason: str,
) -> None:
    make(models / EMBEDDER / "aliases.json", tmp_path_factory.mktemp("elsewhere"))
    source = scan(models)[EMBEDDER].aliases
    assert source == Unread(f"aliases.json: {reason}")
    known = Aliases({"stable": {2: 1}}, b"")
    assert known.reread(source) == Aliases(known.routes, source, f"aliases.json: {reason}")


def test_aliases_may_be_a_link_inside_the_models_folder(models: Path) -> None:
    (models / EMBEDDER / "current.json").write_text("{}")
    (models / EMBEDDER / "aliases.json").symlink_to("current.json")
    assert scan(models)[EMBEDDER].aliases == b"{}"
