"""Models that are loaded at their first request, and a limit for all."""

import asyncio
import shutil
from pathlib import Path

import grpc
import pytest

from polyhead.client import AsyncClient, ModelFailed
from polyhead.server.bundle import read_manifest
from polyhead.server.config import Settings
from polyhead.server.errors import Unavailable
from polyhead.server.loader import memory_needed
from polyhead.v1 import model_pb2
from tests.bundles import CLASSIFIER, EMBEDDER, GENERATOR
from tests.integration.conftest import Running, Start, endless, until
from tests.integration.repositories import POLL, answered_by, becomes, embed, listing
from tests.versions import add_version, made, remove_version

NAMES = ("a", "b", "c")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Three embedders of the same size, in one version each."""
    for name in NAMES:
        (tmp_path / "models" / name).mkdir(parents=True)
        shutil.copytree(made(EMBEDDER, 0), tmp_path / "models" / name / "1")
    return tmp_path / "models"


@pytest.fixture
def size() -> int:
    """Bytes that each of them takes."""
    return sum(path.stat().st_size for path in made(EMBEDDER, 0).glob("*") if path.suffix in (".onnx", ".data"))


async def states(running: Running) -> dict[str, str]:
    found = await listing(running)
    return {model.name: model_pb2.ModelState.Name(model.state).removeprefix("MODEL_STATE_") for model in found.values()}


async def test_a_model_on_demand_is_loaded_by_its_first_request(start: Start, models: Path) -> None:
    running = await start(models=models, on_demand=("a", "b"))
    assert await states(running) == {"a": "UNLOADED", "b": "UNLOADED", "c": "READY"}
    assert await answered_by(running, name="a") == "1"
    assert await states(running) == {"a": "READY", "b": "UNLOADED", "c": "READY"}


async def test_requests_that_come_meanwhile_share_the_load(start: Start, models: Path) -> None:
    running = await start(models=models, on_demand=("*",))
    answers = await asyncio.gather(*(answered_by(running, name="a") for _ in range(20)))
    assert answers == ["1"] * 20
    assert running.metric("model_loads_total", model="a", result="ready") == 1


async def test_a_request_waits_for_the_load_no_longer_than_its_deadline(start: Start, models: Path) -> None:
    running = await start(models=models, on_demand=("a",))
    await running.app.repository._admission.acquire()  # as if others were being loaded for long
    with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE_EXCEEDED"):
        await embed(running, name="a", seconds=0.1)
    running.app.repository._admission.release()
    assert await answered_by(running, name="a") == "1"
    assert running.metric("model_loads_total", model="a", result="ready") == 1


async def test_what_was_used_least_recently_makes_room(start: Start, models: Path, size: int) -> None:
    running = await start(models=models, on_demand=("*",), max_model_memory=size * 5 // 2)
    for name in ("a", "b", "a"):
        await answered_by(running, name=name)
    assert await states(running) == {"a": "READY", "b": "READY", "c": "UNLOADED"}
    await answered_by(running, name="c")
    await until(lambda: running.metric("model_memory_bytes", model="b", version="1") == 0)
    assert await states(running) == {"a": "READY", "b": "UNLOADED", "c": "READY"}
    assert await answered_by(running, name="b") == "1"
    assert await states(running) == {"a": "UNLOADED", "b": "READY", "c": "READY"}


async def test_what_stays_loaded_and_does_not_fit_says_what_it_needs(start: Start, models: Path, size: int) -> None:
    running = await start(models=models, max_model_memory=size * 5 // 2)
    assert await states(running) == {"a": "READY", "b": "READY", "c": "FAILED"}
    reason = (await listing(running))["c:1"].reason
    kib = f"{size / 1024:.4g} KiB"
    limit, taken = f"{size * 5 // 2 / 1024:.4g} KiB", f"{size * 2 / 1024:.4g} KiB"
    assert reason == f"needs about {kib} of memory; --max-model-memory is {limit}, of which a:1, b:1 take {taken}"


async def test_what_can_never_fit_on_demand_says_so_to_who_asks_for_it(start: Start, models: Path, size: int) -> None:
    running = await start(models=models, on_demand=("*",), max_model_memory=size // 2)
    with pytest.raises(grpc.aio.AioRpcError, match=r"FAILED_PRECONDITION[\s\S]*needs about .* of memory; --max-model"):
        await embed(running, name="a")


async def test_no_room_on_demand_is_told_to_who_asks_and_over_when_the_memory_is(
    start: Start, models: Path, size: int
) -> None:
    limit = size * 3 // 2
    shutil.rmtree(models / "c")
    running = await start(models=models, on_demand=("b",), max_model_memory=limit, allow_model_control=True)
    for _ in range(2):
        with pytest.raises(
            grpc.aio.AioRpcError, match=r"FAILED_PRECONDITION[\s\S]*failed to load: needs about .*, of which a:1 take"
        ):
            await embed(running, name="b")
        assert await states(running) == {"a": "READY", "b": "UNLOADED"}
    assert (await listing(running))["b:1"].reason.startswith("needs about ")
    async with AsyncClient(running.target) as client:
        with pytest.raises(ModelFailed, match="needs about"):
            await client.load_model("b")
        await client.unload_model("a")
    assert (await listing(running))["b:1"].reason == ""
    assert await answered_by(running, name="b") == "1"
    assert running.metric("model_loads_total", model="b", result="failed") == 0


async def test_what_stays_loaded_and_found_no_room_is_loaded_when_there_is(
    start: Start, models: Path, size: int
) -> None:
    running = await start(models=models, max_model_memory=size * 5 // 2, reload_seconds=POLL)
    assert await states(running) == {"a": "READY", "b": "READY", "c": "FAILED"}
    shutil.rmtree(models / "a")
    found = await becomes(running, "c", v1="READY")
    assert found["c:1"].reason == ""


async def test_a_model_on_demand_makes_no_room_for_its_own_reloading(start: Start, models: Path, size: int) -> None:
    running = await start(models=models, on_demand=("*",), max_model_memory=size * 3 // 2, allow_model_control=True)
    await answered_by(running, name="b")
    async with AsyncClient(running.target) as client:
        with pytest.raises(ModelFailed, match=r"failed to load: needs about .*, of which b:1 take"):
            await client.reload_model("b")
    assert (await states(running))["b"] == "READY"
    assert running.metric("model_loads_total", model="b", result="ready") == 1
    assert await answered_by(running, name="b") == "1"


async def test_a_changed_folder_that_does_not_fit_beside_costs_nothing(start: Start, models: Path, size: int) -> None:
    running = await start(models=models, on_demand=("b",), max_model_memory=size * 7 // 2, reload_seconds=POLL)
    before = (await embed(running, name="b")).embeddings
    remove_version(models, "b", 1)
    shutil.copytree(made(EMBEDDER, 1), models / "b" / ".1")
    (models / "b" / ".1").rename(models / "b" / "1")
    found = await becomes(running, "b", v1="READY")
    while not found["b:1"].reason:
        found = await becomes(running, "b", v1="READY")
    assert "still serves, but its folder has changed and failed to load: needs about" in found["b:1"].reason
    assert (await embed(running, name="b")).embeddings == before
    shutil.rmtree(models / "a")
    async with asyncio.timeout(20):
        while (await embed(running, name="b")).embeddings == before:
            pass


async def test_an_engine_that_died_is_replaced_where_two_do_not_fit(
    start: Start, models: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(BaseException):
        """What no engine can go on from."""

    def die(*_: object) -> None:
        raise Broken

    running = await start(models=models, max_model_memory=size * 7 // 2, allow_model_control=True)
    monkeypatch.setattr(running.app.repository.find("a", "", None).encoder._encoder, "run", die)
    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
        await embed(running, name="a")
    async with AsyncClient(running.target) as client:
        await client.reload_model("a")
    assert await answered_by(running, name="a") == "1"


async def test_an_order_that_is_overtaken_does_not_say_that_it_is_done(start: Start, models: Path) -> None:
    running = await start(models=models, on_demand=("a",), allow_model_control=True)
    repository = running.app.repository
    await repository._admission.acquire()  # as if others were being loaded for long
    loading = asyncio.create_task(repository.load_version("a", ""))
    await until(lambda: repository.entry("a").forced)
    await repository.unload_version("a", "")
    repository._admission.release()
    with pytest.raises(Unavailable, match="was unloaded again meanwhile"):
        await loading


async def test_a_model_that_has_to_go_ends_its_answers_first(start: Start, tmp_path: Path) -> None:
    for name in (GENERATOR, EMBEDDER):
        (tmp_path / name).mkdir()
        add_version(tmp_path, name, 1)
    settings = Settings(models=tmp_path, slots=2)
    manifests = {GENERATOR: "generate", EMBEDDER: "embed"}
    running = await start(models=tmp_path, on_demand=tuple(manifests), slots=2)
    needs = {}
    for entry in running.app.repository.entries():
        assert entry.manifest
        needs[entry.name] = memory_needed(entry.manifest, settings)
    tight = await start(models=tmp_path, on_demand=tuple(manifests), slots=2, max_model_memory=needs[GENERATOR] + 1)
    messages = aiter(tight.inference.Generate(endless(300)))
    tokens = len((await anext(messages)).token_ids)
    embedded = asyncio.create_task(answered_by(tight))
    async for message in messages:
        tokens += len(message.token_ids)
    assert (tokens, await embedded) == (300, "1")
    assert (await states(tight)) == {GENERATOR: "UNLOADED", EMBEDDER: "READY"}


async def test_more_requests_than_fit_at_once_are_all_answered(start: Start, models: Path, size: int) -> None:
    running = await start(models=models, on_demand=("*",), max_model_memory=size * 3 // 2)
    answers = await asyncio.gather(*(answered_by(running, name=name) for name in NAMES * 10))
    assert answers == ["1"] * 30


async def test_a_new_version_on_demand_takes_over_only_when_it_is_ready(start: Start, models: Path) -> None:
    running = await start(models=models, on_demand=("*",), reload_seconds=POLL)
    await answered_by(running, name="a")
    bad = models / "a" / ".2"
    shutil.copytree(models / "a" / "1", bad)
    (bad / "encoder.onnx").write_bytes(bytes((bad / "encoder.onnx").stat().st_size))
    bad.rename(models / "a" / "2")
    await becomes(running, "a", v1="READY", v2="FAILED")
    assert await answered_by(running, name="a") == "1"
    shutil.copytree(models / "a" / "1", models / "a" / ".3")
    (models / "a" / ".3").rename(models / "a" / "3")
    await becomes(running, "a", v3="READY")
    assert await answered_by(running, name="a") == "3"


async def test_a_model_on_demand_serves_in_the_eyes_of_health(start: Start, models: Path) -> None:
    running = await start(models=models, on_demand=("*",))
    assert running.app.repository.serves("a")
    assert not any(entry.model for entry in running.app.repository.entries())


def test_the_estimate_is_weights_and_slots() -> None:
    """A decoder's slots are the greater part of it, beside the lanes, of which there are four from four slots on; an encoder has none."""
    for name, slots in ((GENERATOR, True), (CLASSIFIER, False)):
        manifest = read_manifest(made(name, 0))
        few = memory_needed(manifest, Settings(models=Path("unused"), slots=4, prefix_slots=0))
        more = memory_needed(manifest, Settings(models=Path("unused"), slots=6, prefix_slots=0))
        cache = 2 * manifest.cache.layers * manifest.cache.kv_heads * manifest.cache.head_size * 4 * 1024
        assert more - few == (2 * (cache + 4 * manifest.limits.vocabulary_size) if slots else 0)
