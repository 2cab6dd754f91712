"""Versions that come, change and go while the server runs."""

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from polyhead.v1 import inference_pb2 as pb
from polyhead.v1 import model_pb2
from tests.bundles import CLASSIFIER, EMBEDDER, GENERATOR
from tests.integration.conftest import Running, Start, endless, until
from tests.integration.repositories import POLL, answered_by, becomes, embed, listing
from tests.versions import add_version, relist, remove_version

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Version 1 of the embedder."""
    (tmp_path / "models" / EMBEDDER).mkdir(parents=True)
    add_version(tmp_path / "models", EMBEDDER, 1)
    return tmp_path / "models"


async def health(running: Running, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(running.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=service))).status)


async def test_a_new_version_takes_over_and_the_old_one_goes(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=POLL)
    first = await embed(running)
    add_version(models, EMBEDDER, 2, variant=1)
    await becomes(running, v2="READY")
    second = await embed(running)
    assert (first.header.version, second.header.version) == ("1", "2")
    assert first.embeddings != second.embeddings
    assert await health(running, EMBEDDER) == await health(running, f"{EMBEDDER}/2") == SERVING
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await health(running, f"{EMBEDDER}/1")
    metrics = generate_latest(running.app.metrics.registry).decode()
    assert 'version="2"' in metrics
    assert 'version="1"' not in metrics
    assert running.metric("model_loads_total", model=EMBEDDER, result="ready") == 2
    with pytest.raises(grpc.aio.AioRpcError, match=r"NOT_FOUND[\s\S]*has no version 1 loaded; it has: 2"):
        await embed(running, "1")


async def test_an_answer_ends_on_the_version_it_began_on(start: Start, tmp_path: Path) -> None:
    (tmp_path / GENERATOR).mkdir()
    add_version(tmp_path, GENERATOR, 1)
    running = await start(models=tmp_path, reload_seconds=POLL)
    alone = endless(900)
    alone.sampling.seed = 5
    expected = [token async for response in running.inference.Generate(alone) for token in response.token_ids]
    stream = running.inference.Generate(alone)
    messages = aiter(stream)
    first = await anext(messages)
    add_version(tmp_path, GENERATOR, 2, variant=1)
    await until(lambda: running.app.repository.serves(GENERATOR, 2))
    states = {version: model.state for version, model in (await listing(running)).items()}
    assert states[f"{GENERATOR}:1"] == model_pb2.MODEL_STATE_UNLOADING
    assert (await anext(aiter(running.inference.Generate(endless(1))))).header.version == "2"
    tokens = [*first.token_ids, *[token async for response in messages for token in response.token_ids]]
    assert (first.header.version, tokens) == ("1", expected)
    async with asyncio.timeout(10):
        while f"{GENERATOR}:1" in await listing(running):
            pass


async def test_a_half_copied_version_is_waited_for(start: Start, models: Path, tmp_path: Path) -> None:
    running = await start(models=models, reload_seconds=POLL)
    (tmp_path / "whole" / EMBEDDER).mkdir(parents=True)
    whole = add_version(tmp_path / "whole", EMBEDDER, 2, variant=1)
    half = models / EMBEDDER / "2"
    half.mkdir()
    shutil.copy(whole / "bundle.json", half)
    found = await becomes(running, v1="READY", v2="LOADING")
    while not found[f"{EMBEDDER}:2"].reason:
        found = await becomes(running, v1="READY", v2="LOADING")
    assert found[f"{EMBEDDER}:2"].reason.endswith(": is missing")
    assert await answered_by(running) == "1"
    for path in whole.iterdir():
        shutil.copy(path, half)
    await becomes(running, v2="READY")
    assert await answered_by(running) == "2"


def without_manifest(folder: Path) -> str:
    (folder / "bundle.json").unlink()
    return "bundle.json: is missing"


def truncated(folder: Path) -> str:
    weights = next(folder.glob("*.data"))
    os.truncate(weights, weights.stat().st_size - 10)
    return f"{weights.name}: has {weights.stat().st_size} bytes, bundle.json says {weights.stat().st_size + 10}"


def tampered(folder: Path) -> str:
    weights = next(folder.glob("*.data"))
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    return f"{weights.name}: SHA-256 is "


def linked_file(folder: Path) -> str:
    tokenizer = folder / "tokenizer.json"
    tokenizer.rename(folder.parents[2] / "outside.json")
    tokenizer.symlink_to(folder.parents[2] / "outside.json")
    return "tokenizer.json: is a link that leaves the bundle"


def linked_version(folder: Path) -> str:
    folder.rename(folder.parents[2] / "outside")
    folder.symlink_to(folder.parents[2] / "outside")
    return f"{EMBEDDER}/2: is a link that leaves the models folder"


def outside_weights(folder: Path) -> str:
    next(folder.glob("*.data")).rename(folder.parent / "outside.data")
    graph = onnx.load(folder / "encoder.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../outside.data"
    onnx.save(graph, folder / "encoder.onnx")
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"] = [file for file in manifest["files"] if not file["path"].endswith(".data")]
    (folder / "bundle.json").write_text(json.dumps(manifest))
    relist(folder)
    return "encoder.onnx: not a graph that can be run: "


def without_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "tokenizer.json: is missing"


SPOILERS = [without_manifest, truncated, tampered, linked_file, linked_version, outside_weights, without_tokenizer]


@pytest.mark.parametrize("spoil", SPOILERS)
async def test_a_bad_version_leaves_the_old_one_serving_and_says_why(
    start: Start, models: Path, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    running = await start(models=models, reload_seconds=POLL)
    with capture_logs() as logs:
        bad = tmp_path / "bad" / EMBEDDER / "2"
        (tmp_path / "bad" / EMBEDDER).mkdir(parents=True)
        add_version(tmp_path / "bad", EMBEDDER, 2)
        reason = spoil(bad)
        if not bad.is_symlink():
            for outside in bad.parent.glob("*.data"):
                outside.rename(models / EMBEDDER / outside.name)
        bad.rename(models / EMBEDDER / "2")
        found = await becomes(running, v1="READY", v2="FAILED")
    assert found[f"{EMBEDDER}:2"].reason.startswith(reason)
    assert "\n" not in found[f"{EMBEDDER}:2"].reason
    assert await answered_by(running) == "1"
    assert [await health(running, name) for name in ("", EMBEDDER, f"{EMBEDDER}/1")] == [SERVING] * 3
    assert await health(running, f"{EMBEDDER}/2") == NOT_SERVING
    assert [line["reason"] for line in logs if line["event"] == "model failed"] == [found[f"{EMBEDDER}:2"].reason]
    assert running.metric("model_loads_total", model=EMBEDDER, result="failed") == 1
    with pytest.raises(grpc.aio.AioRpcError, match=r"FAILED_PRECONDITION[\s\S]*version 2 failed to load: "):
        await embed(running, "2")


async def test_a_version_that_failed_is_tried_again_when_its_folder_changes(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=POLL)
    shutil.copytree(models / EMBEDDER / "1", models / EMBEDDER / ".2")
    weights = next((models / EMBEDDER / ".2").glob("*.data"))
    weights.write_bytes(bytes(weights.stat().st_size))
    (models / EMBEDDER / ".2").rename(models / EMBEDDER / "2")
    await becomes(running, v1="READY", v2="FAILED")
    relist(models / EMBEDDER / "2")
    found = await becomes(running, v2="READY")
    assert found[f"{EMBEDDER}:2"].reason == ""


async def test_a_server_that_starts_with_a_bad_newest_version_serves_the_one_before(start: Start, models: Path) -> None:
    (models / EMBEDDER / "2").mkdir()
    running = await start(models=models, reload_seconds=0)
    await becomes(running, v1="READY", v2="FAILED")
    assert await answered_by(running) == "1"


async def test_a_version_whose_folder_goes_is_unloaded_when_the_one_before_serves(start: Start, models: Path) -> None:
    add_version(models, EMBEDDER, 2, variant=1)
    running = await start(models=models, reload_seconds=POLL)
    await becomes(running, v2="READY")
    answers = asyncio.create_task(keep_asking(running))
    remove_version(models, EMBEDDER, 2)
    await becomes(running, v1="READY")
    answers.cancel()
    assert set(await answers) <= {"1", "2"}
    assert await answered_by(running) == "1"


async def keep_asking(running: Running) -> list[str]:
    """Versions that answered, until cancelled. Raises what any request ends with."""
    versions: list[str] = []
    while not (task := asyncio.current_task()) or not task.cancelling():
        request = asyncio.ensure_future(answered_by(running))
        try:
            versions.append(await asyncio.shield(request))
        except asyncio.CancelledError:
            versions.append(await request)
    return versions


async def test_models_come_and_go(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=POLL)
    (models / CLASSIFIER).mkdir()
    add_version(models, CLASSIFIER, 7)
    await until(lambda: running.app.repository.serves(CLASSIFIER))
    assert (await running.inference.Classify(pb.ClassifyRequest(inputs=[pb.Input(text="a")]))).header.version == "7"
    shutil.rmtree(models / CLASSIFIER)
    async with asyncio.timeout(10):
        while CLASSIFIER in {model.name for model in (await listing(running)).values()}:
            pass
    lines = generate_latest(running.app.metrics.registry).decode().splitlines()
    left = {line.split("{")[0] for line in lines if CLASSIFIER in line}
    assert left - {"polyhead_model_loads_created"} == {"polyhead_model_loads_total"}
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await health(running, CLASSIFIER)


async def test_a_models_folder_that_is_out_of_reach_changes_nothing(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=0)
    shutil.move(models, models.parent / "elsewhere")
    await running.app.repository.refresh()
    assert await answered_by(running) == "1"
    shutil.move(models.parent / "elsewhere", models)
    await running.app.repository.refresh()
    assert await answered_by(running) == "1"


async def test_a_version_that_was_touched_but_is_the_same_is_not_loaded_again(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=0)
    live = running.app.repository.find(EMBEDDER, "", None)
    os.utime(models / EMBEDDER / "1" / "bundle.json", (1, 1))
    for _ in range(2):
        await running.app.repository.refresh()
        await until(lambda: not any(entry.successor for entry in running.app.repository.entries()))
    assert running.app.repository.find(EMBEDDER, "", None) is live


async def test_a_version_with_other_content_takes_over_from_itself(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=POLL)
    before = await embed(running)
    remove_version(models, EMBEDDER, 1)
    add_version(models, EMBEDDER, 1, variant=1)
    async with asyncio.timeout(20):
        while (after := await embed(running)).embeddings == before.embeddings:
            pass
    assert after.header.version == "1"
    assert running.metric("model_info", model=EMBEDDER, version="1", task="embed", architecture="encoder",
                          quantization="none") == 1  # fmt: skip


@pytest.mark.parametrize(("versions", "kept"), [("all", ["1", "2", "3"]), ("2", ["2", "3"]), ("latest", ["3"])])
async def test_as_many_versions_are_kept_as_the_setting_says(
    start: Start, models: Path, versions: str, kept: list[str]
) -> None:
    running = await start(models=models, reload_seconds=POLL, versions=versions)
    for version in (2, 3):
        add_version(models, EMBEDDER, version)
        await until(partial(running.app.repository.serves, EMBEDDER, version))
    await becomes(running, **{f"v{version}": "READY" for version in kept})
    assert [await answered_by(running, version) for version in kept] == kept
