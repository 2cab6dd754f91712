"""Loading, unloading and reloading by RPC."""

import asyncio
import shutil
from pathlib import Path

import grpc
import pytest

from polyhead.client import AsyncClient, ModelFailed, ModelNotFound, NotAllowed
from polyhead.server.errors import Unavailable
from polyhead.v1 import model_pb2
from tests.bundles import EMBEDDER, GENERATOR
from tests.integration.conftest import Running, Start, endless, until
from tests.integration.repositories import POLL, answered_by, becomes, embed, listing
from tests.versions import add_version, made, remove_version


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two versions of the embedder."""
    (tmp_path / "models" / EMBEDDER).mkdir(parents=True)
    for version in (1, 2):
        add_version(tmp_path / "models", EMBEDDER, version, variant=version - 1)
    return tmp_path / "models"


def client_of(running: Running) -> AsyncClient:
    return AsyncClient(running.target)


async def test_without_the_setting_nothing_can_be_changed_by_callers(start: Start, models: Path) -> None:
    running = await start(models=models)
    async with client_of(running) as client:
        for order in (client.load_model, client.unload_model, client.reload_model):
            with pytest.raises(NotAllowed, match="--allow-model-control"):
                await order(EMBEDDER)
    assert await answered_by(running) == "2"


async def test_a_version_is_loaded_and_unloaded_as_ordered(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=POLL, allow_model_control=True)
    async with client_of(running) as client:
        loaded = await client.load_model(EMBEDDER, version="1")
        assert (loaded.version, loaded.state) == ("1", "ready")
        assert loaded.memory_bytes > 0
        await becomes(running, v1="READY", v2="READY")
        assert [await answered_by(running, version) for version in ("", "1")] == ["2", "1"]
        await client.unload_model(EMBEDDER, version="2")
        await becomes(running, v1="READY", v2="UNLOADED")
        assert await answered_by(running) == "1"
        with pytest.raises(grpc.aio.AioRpcError, match=r"NOT_FOUND[\s\S]*version 2 is unloaded"):
            await embed(running, "2")
        assert (await client.load_model(EMBEDDER)).version == "2"
        assert await answered_by(running) == "2"


async def test_the_version_before_takes_over_from_one_that_is_unloaded(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=0, allow_model_control=True)
    async with client_of(running) as client:
        await client.unload_model(EMBEDDER, version="2")
    await becomes(running, v1="READY", v2="UNLOADED")
    assert await answered_by(running) == "1"


async def test_a_model_that_is_unloaded_stays_so_whatever_comes_until_it_is_loaded(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=0, allow_model_control=True)
    async with client_of(running) as client:
        await client.unload_model(EMBEDDER)
        await becomes(running, v2="UNLOADED")
        assert not await client.health(EMBEDDER)
        add_version(models, EMBEDDER, 3)
        await running.app.repository.refresh()
        assert not running.app.repository.serves(EMBEDDER)
        assert (await client.load_model(EMBEDDER)).version == "3"
        assert await client.health(EMBEDDER)
        await becomes(running, v3="READY")


async def test_unloading_waits_for_the_answers_that_run(start: Start, tmp_path: Path) -> None:
    (tmp_path / GENERATOR).mkdir()
    add_version(tmp_path, GENERATOR, 1)
    running = await start(models=tmp_path, allow_model_control=True)
    messages = aiter(running.inference.Generate(endless(900)))
    tokens = len((await anext(messages)).token_ids)
    async with client_of(running) as client:
        unloading = asyncio.create_task(client.unload_model(GENERATOR))
        await becomes(running, GENERATOR, v1="UNLOADED")
        assert not unloading.done()
        async for message in messages:
            tokens += len(message.token_ids)
        await unloading
    assert tokens == 900
    assert (await listing(running))[f"{GENERATOR}:1"].memory_bytes == 0


async def test_reloading_takes_what_the_folder_holds_now(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=0, allow_model_control=True)
    live = running.app.repository.find(EMBEDDER, "", None)
    async with client_of(running) as client:
        assert (await client.reload_model(EMBEDDER)).version == "2"
        assert running.app.repository.find(EMBEDDER, "", None) is not live
        add_version(models, EMBEDDER, 3)
        assert (await client.reload_model(EMBEDDER)).version == "3"
        await becomes(running, v3="READY")


async def test_a_version_that_can_not_be_reloaded_serves_on(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=0, allow_model_control=True)
    before = (await embed(running)).embeddings
    (models / EMBEDDER / "2" / "tokenizer.json").unlink()
    async with client_of(running) as client:
        with pytest.raises(ModelFailed, match=r"version 2 failed to load: tokenizer\.json: is missing"):
            await client.reload_model(EMBEDDER, version="2")
    assert (await embed(running)).embeddings == before
    model = (await listing(running))[f"{EMBEDDER}:2"]
    assert model.state == model_pb2.MODEL_STATE_READY
    assert model.reason.endswith("failed to load: tokenizer.json: is missing")


async def test_an_engine_that_died_is_replaced_by_reloading(
    start: Start, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(BaseException):
        """What no engine can go on from."""

    def die(*_: object) -> None:
        raise Broken

    running = await start(models=models, allow_model_control=True)
    live = running.app.repository.find(EMBEDDER, "", None)
    monkeypatch.setattr(live.encoder._encoder, "run", die)
    with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
        await embed(running)
    with pytest.raises(Unavailable, match="must be loaded again"):
        running.app.repository.find(EMBEDDER, "", None)
    async with client_of(running) as client:
        await client.reload_model(EMBEDDER)
    assert await answered_by(running) == "2"


async def test_what_is_not_in_the_folder_can_not_be_loaded(start: Start, models: Path) -> None:
    running = await start(models=models, allow_model_control=True)
    async with client_of(running) as client:
        with pytest.raises(ModelNotFound, match="no model 'nobody'; there are: tiny-embedder"):
            await client.load_model("nobody")
        with pytest.raises(ModelNotFound, match="has no version 7 in its folder; there are: 1, 2"):
            await client.load_model(EMBEDDER, version="7")
        with pytest.raises(ModelNotFound, match="has no version 7 loaded; it has: 2"):
            await client.unload_model(EMBEDDER, version="7")
        with pytest.raises(ValueError, match="version: must be empty or a positive integer in decimal, got 'x'"):
            await client.load_model(EMBEDDER, version="x")
        with pytest.raises(ValueError, match="name: must not be empty"):
            await client.load_model("")


async def test_an_order_to_load_takes_in_what_is_new_in_the_folder(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=0, allow_model_control=True)
    add_version(models, GENERATOR, 5)
    remove_version(models, EMBEDDER, 2)
    async with client_of(running) as client:
        assert (await client.load_model(GENERATOR)).version == "5"
    await becomes(running, v1="READY")


async def test_an_order_does_not_fail_what_is_still_being_copied(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=600, allow_model_control=True)
    await until(lambda: running.app.repository._watched)
    copied = models / GENERATOR / "1"
    copied.mkdir(parents=True)
    async with client_of(running) as client:
        await client.reload_model(EMBEDDER)
        found = await becomes(running, GENERATOR, v1="LOADING")
        while not found[f"{GENERATOR}:1"].reason:
            found = await becomes(running, GENERATOR, v1="LOADING")
        assert found[f"{GENERATOR}:1"].reason == "bundle.json: is missing"
        for path in made(GENERATOR, 0).iterdir():
            shutil.copy(path, copied)
        assert (await client.load_model(GENERATOR)).state == "ready"
    assert running.metric("model_loads_total", model=GENERATOR, result="failed") == 0
