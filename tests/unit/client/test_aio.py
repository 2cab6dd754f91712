import asyncio
import inspect
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2

from polyhead.client import (
    AsyncClient,
    AsyncGenerationStream,
    Cancelled,
    Client,
    DeadlineExceeded,
    GenerationStream,
    InvalidInput,
    Message,
    ModelNotFound,
    Overloaded,
    PolyheadError,
    RetryPolicy,
    ServerError,
    Unavailable,
)
from tests.turns import started
from tests.unit.client.scripted_server import Failure, ScriptedServer, bad_request, retry_info

FULL = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue of 4 requests is full", (retry_info(0.02),))


async def wait_for_end(server: ScriptedServer) -> bool:
    """Whether an endless stream's caller has left, as the server sees it."""
    return await asyncio.to_thread(server.script.streams_ended.acquire, timeout=10)


def public(kind: type) -> dict[str, list[str]]:
    """Public methods and properties with the names of their parameters."""
    members = {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}
    return {name: list(inspect.signature(m).parameters) if callable(m) else [] for name, m in members.items()}


def test_both_clients_have_the_same_methods_and_parameters() -> None:
    assert public(AsyncClient) == public(Client)
    assert public(AsyncGenerationStream) == {k: v for k, v in public(GenerationStream).items() if k != "text"}


async def test_pieces_come_one_by_one_and_make_a_whole(async_client: AsyncClient) -> None:
    stream = async_client.generate("one two", model="m", seed=5, request_id="r")
    assert [piece.text async for piece in stream] == ["one", " two", ""]
    answer = await stream.result()
    assert (answer.text, answer.model, answer.seed, answer.request_id) == ("one two", "m", 5, "r")


async def test_messages_stand_for_a_prompt(async_client: AsyncClient) -> None:
    told: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one two"}]
    assert (await async_client.generate(messages=told).result()).text == "one two"


async def test_samples_come_in_turn_and_each_is_a_whole_answer(async_client: AsyncClient) -> None:
    stream = async_client.generate("one two", samples=2)
    with pytest.raises(ValueError, match=r"results\(\)"):
        await stream.result()
    assert [sample.text for sample in await stream.results()] == ["one two", "one two (1)"]


async def test_every_call_answers(server: ScriptedServer, async_client: AsyncClient) -> None:
    assert (await async_client.classify("a")).results[0].best.label == "short"
    assert (await async_client.embed(["ab", "c"])).embeddings == [[97.0, 98.0], [99.0]]
    assert [token.token for token in (await async_client.tokenize("ab")).results[0]] == ["<s>", "a", "b"]
    assert [model.name for model in await async_client.models()] == ["names", "torn"]
    assert (await async_client.model("names")).bundle is not None
    assert await async_client.health()
    server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not await async_client.health()


async def test_many_calls_share_one_client(async_client: AsyncClient) -> None:
    answers = await asyncio.gather(*(async_client.generate(f"text {n}").result() for n in range(50)))
    assert [answer.text for answer in answers] == [f"text {n}" for n in range(50)]


async def test_a_full_server_is_asked_again_when_it_says(server: ScriptedServer, async_client: AsyncClient) -> None:
    server.script.failures.extend([FULL, FULL])
    begin = time.monotonic()
    assert (await async_client.embed("a")).embeddings == [[97.0]]
    assert time.monotonic() - begin >= 2 * 0.02
    assert len(server.script.requests) == 3


async def test_a_stream_is_asked_for_again_before_its_first_message_only(
    server: ScriptedServer, async_client: AsyncClient
) -> None:
    server.script.failures.extend([FULL, Failure(grpc.StatusCode.UNAVAILABLE, "gone", after=1)])
    stream = async_client.generate("a b")
    assert (await anext(stream)).text == "a"
    with pytest.raises(Unavailable, match="gone"):
        await anext(stream)
    with pytest.raises(Unavailable, match="gone"):
        await stream.result()
    assert len(server.script.requests) == 2


async def test_attempts_and_deadline_bound_the_retries(server: ScriptedServer, async_client: AsyncClient) -> None:
    server.script.failures.extend([FULL] * 3)
    with pytest.raises(Overloaded):
        await async_client.classify("a")
    assert len(server.script.requests) == async_client.retry.attempts
    server.script.failures.append(Failure(grpc.StatusCode.UNAVAILABLE, "draining", (retry_info(3600),)))
    with pytest.raises(Unavailable) as caught:
        await async_client.generate("a").result()
    assert caught.value.retry_after == 3600


async def test_errors_are_typed_and_name_field_and_request(server: ScriptedServer, async_client: AsyncClient) -> None:
    detail = bad_request("inputs[0]", "must not be empty")
    server.script.failures.append(Failure(grpc.StatusCode.INVALID_ARGUMENT, "inputs[0]: empty", (detail,)))
    with pytest.raises(InvalidInput) as caught:
        await async_client.embed("a", request_id="r-9")
    assert (caught.value.field, caught.value.request_id) == ("inputs[0]", "r-9")
    with pytest.raises(ModelNotFound, match="there are names, torn"):
        await async_client.model("nobody")
    with pytest.raises(DeadlineExceeded):
        await async_client.generate("endless", timeout=0.2).result()


async def test_leaving_the_with_block_frees_the_server(server: ScriptedServer, async_client: AsyncClient) -> None:
    async with async_client.generate("endless") as stream:
        await anext(stream)
    assert await wait_for_end(server)
    assert [piece async for piece in stream] == []
    with pytest.raises(Cancelled):
        await stream.result()


async def test_a_dropped_stream_frees_the_server(server: ScriptedServer, async_client: AsyncClient) -> None:
    stream = async_client.generate("endless")
    await anext(stream)
    del stream
    assert await wait_for_end(server)


async def test_cancelling_the_task_frees_the_server(server: ScriptedServer, async_client: AsyncClient) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(async_client.generate("endless").result(), timeout=0.2)
    assert await wait_for_end(server)


async def test_a_stream_closed_by_another_task_just_ends(async_client: AsyncClient) -> None:
    stream = async_client.generate("endless")
    await anext(stream)
    reader = await started(anext(stream, None))
    await stream.close()
    assert await reader is None


async def test_a_stream_closed_while_it_waits_ends_at_once_and_is_not_asked_for_again(server: ScriptedServer) -> None:
    server.script.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (retry_info(60),)))
    waits = asyncio.Event()

    class ToldPolicy(RetryPolicy):
        def delay(self, error: PolyheadError, attempt: int) -> float | None:
            waits.set()
            return super().delay(error, attempt)

    async with asyncio.timeout(20), AsyncClient(server.target, timeout=300, retry=ToldPolicy()) as client:
        stream = client.generate("endless")
        reader = asyncio.ensure_future(anext(stream, None))
        await waits.wait()
        await stream.close()
        assert await reader is None
        assert (await client.embed("a", request_id="after")).embeddings
    assert [request.request_id for request in server.script.requests] == [stream.request_id, "after"]


async def test_closing_the_client_ends_what_runs_with_a_typed_error(server: ScriptedServer) -> None:
    client = AsyncClient(server.target)
    stream = client.generate("endless")
    await anext(stream)
    reader = asyncio.ensure_future(anext(stream))
    waiting = asyncio.ensure_future(client.embed("after 9"))
    await asyncio.to_thread(server.script.wait_for_requests, 2)
    await client.close()
    for task in (reader, waiting):
        with pytest.raises(Cancelled):
            await task
    server.script.release()


async def test_a_beam_search_gives_the_answers_it_found_best_first(async_client: AsyncClient) -> None:
    found = await async_client.generate("one two", beam_width=4, samples=3, return_alignment=True).results()
    assert [(answer.text, answer.score) for answer in found] == [("one two", -0.25), ("one two (1)", -0.5)]
    assert all(answer.alignment and answer.alignment.target_tokens == ("one", "two") for answer in found)


async def test_a_search_that_is_cut_short_is_no_answer(async_client: AsyncClient) -> None:
    async with async_client.generate("one", beam_width=4, samples=3) as stream:
        await anext(stream)
    with pytest.raises(Cancelled):
        await stream.results()
    with pytest.raises(ServerError, match="without a finish reason"):
        await async_client.generate("cut short", beam_width=4).result()


def test_a_client_may_be_made_before_the_loop_that_uses_it(server: ScriptedServer) -> None:
    client = AsyncClient(server.target, retry=RetryPolicy(attempts=1))

    async def use() -> list[list[float]]:
        async with client:
            return (await client.embed("a")).embeddings

    assert asyncio.run(use()) == [[97.0]]


def test_a_stream_may_outlive_its_loop(server: ScriptedServer) -> None:
    """Dropping it then neither raises nor warns."""
    kept: list[AsyncGenerationStream] = []

    async def use() -> None:
        client = AsyncClient(server.target)
        kept.append(client.generate("endless"))
        await anext(kept[0])

    asyncio.run(use())
    kept.clear()
    assert server.script.streams_ended.acquire(timeout=10)
