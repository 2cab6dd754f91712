"""Names and versions → entries and live models."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from polyhead.server.errors import (
    BundleError,
    InvalidInput,
    ModelFailed,
    ModelNotFound,
    PolyheadError,
    Unavailable,
    WrongTask,
)
from polyhead.server.loader import LiveModel
from polyhead.server.repository import Entry, Lifecycle, Load, Policy, Repository, State
from polyhead.v1 import bundle_pb2
from tests import bundles

EMBED, GENERATE, CLASSIFY = bundle_pb2.TASK_EMBED, bundle_pb2.TASK_GENERATE, bundle_pb2.TASK_CLASSIFY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two embedders, one of them in versions 2 and 10, beside a generator; and what is to be ignored."""
    for target in ("a/2", "a/10", "b/1"):
        bundles.copy_models(tmp_path / "copies" / target, bundles.EMBEDDER)
        (tmp_path / "models" / target).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copies" / target / bundles.EMBEDDER / "1").rename(tmp_path / "models" / target)
    bundles.copy_models(tmp_path / "models", bundles.GENERATOR)
    for ignored in (".c-1.42/1", "c/0", "c/01", "c/latest", "c/-1", "d e/1", "_f/1"):
        (tmp_path / "models" / ignored).mkdir(parents=True)
    (tmp_path / "models" / "README.md").touch()
    return tmp_path / "models"


@pytest.fixture
def live(embedder: LiveModel, generator: LiveModel) -> Load:
    async def load(name: str, version: int, _: Path, manifest: bundle_pb2.Bundle) -> LiveModel:
        opened = generator if manifest.task == GENERATE else embedder
        return LiveModel(name, str(version), manifest, opened.tokenizer, opened.engine)

    return load


@pytest.fixture
def repository(folder: Path, live: Load) -> Repository:
    return Repository(folder, live, Policy(versions=None))


async def test_only_folders_that_look_like_a_model_are_one(repository: Repository) -> None:
    assert [(e.name, e.version) for e in repository.entries()] == [
        ("a", 2),
        ("a", 10),
        ("b", 1),
        (bundles.GENERATOR, 1),
    ]


async def test_each_version_is_told_of_when_it_is_ready_or_failed(folder: Path, live: Load) -> None:
    (folder / "a/10/bundle.json").unlink()
    changes: dict[tuple[str, int], State] = {}

    def on_change(_: Lifecycle, entry: Entry) -> None:
        changes[entry.name, entry.version] = entry.state

    repository = Repository(folder, live, Policy(versions=None), on_change)
    await repository.load()
    ready = State.READY
    assert changes == {("a", 2): ready, ("a", 10): State.FAILED, ("b", 1): ready, (bundles.GENERATOR, 1): ready}
    assert repository.serves("a")


async def test_an_empty_version_is_the_newest_that_serves(repository: Repository, folder: Path) -> None:
    (folder / "a/10/bundle.json").unlink()
    await repository.load()
    assert repository.find("a", "", EMBED).version == "2"
    with pytest.raises(ModelFailed, match=r"model 'a' version 10 failed to load: bundle\.json: is missing"):
        repository.find("a", "10", EMBED)


async def test_an_empty_version_is_the_newest_if_none_serves(repository: Repository, folder: Path) -> None:
    (folder / "a/10/bundle.json").unlink()
    (folder / "a/2/bundle.json").unlink()
    await repository.load()
    assert repository.entry("a").version == 10
    assert not repository.serves("a")


async def test_an_empty_name_is_the_only_model_of_the_task(repository: Repository) -> None:
    await repository.load()
    assert repository.find("", "", GENERATE).name == bundles.GENERATOR
    with pytest.raises(InvalidInput, match=r"model.name: must be given, as more than one model does embed: a, b"):
        repository.find("", "", EMBED)
    with pytest.raises(InvalidInput, match="more than one model serves: a, b, tiny-gpt"):
        repository.find("", "", None)
    with pytest.raises(ModelNotFound, match="no model does classify; there are: a, b, tiny-gpt"):
        repository.find("", "", CLASSIFY)


@pytest.mark.parametrize(
    ("name", "version", "error", "complaint"),
    [
        ("c", "", ModelNotFound, "no model 'c'; there are: a, b, tiny-gpt"),
        ("a", "3", ModelNotFound, "model 'a' has no version 3 loaded; it has: 2, 10"),
        ("a", "1" * 19, InvalidInput, "model.version: must be a version, a positive integer in decimal, or an alias"),
        (
            "a",
            "02",
            InvalidInput,
            "model.version: must be a version, a positive integer in decimal, or an alias, got '02'",
        ),
        (
            "a",
            "٢",
            InvalidInput,
            "model.version: must be a version, a positive integer in decimal, or an alias, got '٢'",
        ),
        (bundles.GENERATOR, "", WrongTask, "model 'tiny-gpt' version 1 does generate, not embed"),
    ],
)
async def test_a_model_that_is_not_there_or_does_something_else_is_refused(
    repository: Repository, name: str, version: str, error: type[PolyheadError], complaint: str
) -> None:
    await repository.load()
    with pytest.raises(error) as refusal:
        repository.find(name, version, EMBED)
    assert str(refusal.value).startswith(complaint)


async def test_before_it_is_loaded_a_model_is_unavailable(repository: Repository) -> None:
    with pytest.raises(Unavailable, match="model 'a' version 10 is still loading"):
        repository.find("a", "", EMBED)
    with pytest.raises(Unavailable, match="models are still loading: a, b, tiny-gpt"):
        repository.find("", "", EMBED)


async def test_what_nobody_foresaw_fails_a_model_without_telling_callers_why(folder: Path) -> None:
    async def load(*_: object) -> LiveModel:
        raise MemoryError("a secret\npath")

    repository = Repository(folder, load)
    with capture_logs() as logs:
        await repository.load()
    reasons = {(entry.state, entry.reason) for entry in repository.entries()}
    assert reasons == {(State.FAILED, "internal error; the server's log says more")}
    assert {type(line["exc_info"]) for line in logs} == {MemoryError}


async def test_memory_of_a_model_that_fails_is_there_for_others(folder: Path, live: Load) -> None:
    others = asyncio.Event()

    async def load(name: str, version: int, path: Path, manifest: bundle_pb2.Bundle) -> LiveModel:
        if name == "a":
            await others.wait()
            raise BundleError("no graph")
        return await live(name, version, path, manifest)

    def on_change(lifecycle: Lifecycle, _: Entry) -> None:
        if all(entry.state is not State.LOADING for entry in lifecycle.entries() if entry.name != "a"):
            others.set()

    repository = Repository(folder, load, Policy(max_memory=5, estimate=lambda _: 2), on_change)
    await repository.load()
    states = {(entry.name, entry.version): entry.state for entry in repository.entries() if entry.name != "a"}
    assert states == {("b", 1): State.READY, (bundles.GENERATOR, 1): State.READY}


async def test_latest_knows_only_the_greatest_version_of_each_model(folder: Path, embedder: LiveModel) -> None:
    async def load(name: str, version: int, _: Path, manifest: bundle_pb2.Bundle) -> LiveModel:
        return LiveModel(name, str(version), manifest, embedder.tokenizer, embedder.engine)

    repository = Repository(folder, load)
    await repository.load()
    assert [(e.name, e.version) for e in repository.entries()] == [("a", 10), ("b", 1), (bundles.GENERATOR, 1)]
    with pytest.raises(ModelNotFound, match="model 'a' has no version 2 loaded; it has: 10"):
        repository.find("a", "2", EMBED)


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    async def load(*_: object) -> LiveModel:
        raise AssertionError("nothing to load")

    with pytest.raises(PolyheadError, match=r"no models folder at .*nowhere"):
        Repository(tmp_path / "nowhere", load)
    with pytest.raises(PolyheadError, match=r"no model in .*: expected NAME/VERSION/bundle\.json"):
        Repository(tmp_path, load)
