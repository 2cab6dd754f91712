"""Aliases: names for versions, with weights."""

import json
from collections import Counter
from pathlib import Path

import grpc
import pytest

from polyhead.v1 import inference_pb2 as pb
from polyhead.v1 import model_pb2
from tests.bundles import EMBEDDER, GENERATOR
from tests.integration.conftest import Running, Start, until
from tests.integration.repositories import POLL, answered_by, becomes, embed, listing
from tests.versions import add_version, remove_version

REQUEST_IDS = [f"request {number}" for number in range(200)]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Three versions of the embedder, of which 1 is stable and 2 has a tenth of the canary's requests."""
    (tmp_path / "models" / EMBEDDER).mkdir(parents=True)
    for version in (1, 2, 3):
        add_version(tmp_path / "models", EMBEDDER, version, variant=version - 1)
    write(tmp_path / "models", {"stable": 1, "canary": {"1": 90, "2": 10}})
    return tmp_path / "models"


def write(models: Path, aliases: object) -> None:
    half_written = models / EMBEDDER / ".aliases.json"
    half_written.write_text(aliases if isinstance(aliases, str) else json.dumps(aliases))
    half_written.rename(models / EMBEDDER / "aliases.json")


async def shares(running: Running, version: str) -> Counter[str]:
    return Counter([await answered_by(running, version, request_id=name) for name in REQUEST_IDS])


async def test_an_alias_reaches_its_versions_by_their_weights_and_the_answer_says_which(
    start: Start, models: Path
) -> None:
    running = await start(models=models)
    found = await becomes(running, v1="READY", v2="READY", v3="READY")
    assert [await answered_by(running, version) for version in ("stable", "", "2")] == ["1", "3", "2"]
    canary = await shares(running, "canary")
    assert set(canary) == {"1", "2"}
    assert 8 <= canary["2"] <= 35
    aliases = {key: {alias.name: alias.share for alias in model.aliases} for key, model in found.items()}
    assert aliases == {
        f"{EMBEDDER}:1": {"canary": 0.9, "stable": 1},
        f"{EMBEDDER}:2": {"canary": 0.1},
        f"{EMBEDDER}:3": {},
    }


async def test_a_request_id_always_goes_to_the_same_version(start: Start, models: Path) -> None:
    running = await start(models=models)
    routes = [[await answered_by(running, "canary", request_id=name) for name in REQUEST_IDS[:50]] for _ in range(2)]
    assert routes[0] == routes[1]


async def test_a_prompt_with_a_seed_always_goes_to_the_same_version(start: Start, tmp_path: Path) -> None:
    (tmp_path / GENERATOR).mkdir()
    for version in (1, 2):
        add_version(tmp_path, GENERATOR, version, variant=version - 1)
    (tmp_path / GENERATOR / "aliases.json").write_text('{"default": {"1": 1, "2": 1}}')
    running = await start(models=tmp_path)

    async def version_of(prompt: str, seed: int) -> str:
        request = pb.GenerateRequest(prompt=pb.Input(text=prompt), stopping=pb.StoppingCriteria(max_tokens=1))
        request.sampling.seed = seed
        return (await anext(aiter(running.inference.Generate(request)))).header.version

    asked = [("the cat", seed) for seed in range(20)] + [("the cat sat " * number, 0) for number in range(1, 10)]
    routes = [[await version_of(*question) for question in asked] for _ in range(2)]
    assert routes[0] == routes[1]
    assert set(routes[0][:20]) == set(routes[0][20:]) == {"1", "2"}


async def test_every_request_of_a_bulk_stream_is_routed_by_its_id(start: Start, models: Path) -> None:
    running = await start(models=models)
    model = pb.ModelReference(name=EMBEDDER, version="canary")
    requests = [pb.EmbedRequest(model=model, request_id=name, inputs=[pb.Input(text="a")]) for name in REQUEST_IDS]
    stream = running.inference.StreamEmbed(iter([pb.StreamEmbedRequest(request=request) for request in requests]))
    answers = [message.response.header async for message in stream]
    alone = [await answered_by(running, "canary", request_id=name) for name in REQUEST_IDS]
    assert [answer.version for answer in answers] == alone
    assert [answer.request_id for answer in answers] == REQUEST_IDS


async def test_aliases_are_read_again_when_they_change_and_hold_their_versions(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=POLL)
    write(models, {"stable": 2, "default": 2})
    await becomes(running, v2="READY", v3="READY")
    assert [await answered_by(running, version) for version in ("stable", "", "3")] == ["2", "2", "3"]
    (models / EMBEDDER / "aliases.json").unlink()
    await becomes(running, v3="READY")
    assert await answered_by(running) == "3"
    with pytest.raises(grpc.aio.AioRpcError, match=r"NOT_FOUND[\s\S]*has no alias 'stable'; it has: none"):
        await embed(running, "stable")


async def test_aliases_that_make_no_sense_leave_the_last_ones_and_say_why(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=POLL)
    write(models, '{"stable": 3, ')
    await until(lambda: running.app.repository.aliases(EMBEDDER).reason)
    assert await answered_by(running, "stable") == "1"
    with pytest.raises(
        grpc.aio.AioRpcError, match=r"NOT_FOUND[\s\S]*it has: canary, stable \(aliases.json: is not JSON"
    ):
        await embed(running, "blue")
    write(models, {"stable": 3})
    await becomes(running, v3="READY")
    assert await answered_by(running, "stable") == "3"


async def test_the_others_take_the_share_of_a_version_that_does_not_serve(start: Start, models: Path) -> None:
    (models / EMBEDDER / "2" / "bundle.json").unlink()
    running = await start(models=models)
    assert set(await shares(running, "canary")) == {"1"}
    assert (await listing(running))[f"{EMBEDDER}:2"].state == model_pb2.MODEL_STATE_FAILED


async def test_an_alias_of_which_no_version_is_there_says_so(start: Start, models: Path) -> None:
    running = await start(models=models, reload_seconds=POLL)
    for version in (1, 2):
        remove_version(models, EMBEDDER, version)
    await becomes(running, v3="READY")
    refusal = r"NOT_FOUND[\s\S]*alias 'canary' of model 'tiny-embedder' stands for version 1, 2, which is not there"
    with pytest.raises(grpc.aio.AioRpcError, match=refusal):
        await embed(running, "canary")
