"""The client library against the real server."""

import asyncio
import math

import pytest

from polyhead.client import AsyncClient, Client, InvalidInput, ModelNotFound, Overloaded, RetryPolicy, WrongTask
from tests.bundles import CLASSIFIER, EMBEDDER, EMBEDDING_SIZE, GENERATOR, LABELS
from tests.integration.conftest import Running, Start


def target(running: Running) -> str:
    return f"127.0.0.1:{running.app.port}"


async def test_both_clients_get_the_same_answers(running: Running) -> None:
    def ask(client: Client) -> tuple[object, ...]:
        answer = client.generate("the cat", seed=1, max_tokens=12, logprobs=2).result()
        embedded, classified = client.embed(["the dog", "a mat"]), client.classify("the cat sat")
        tokens = client.tokenize("the cat", GENERATOR).results
        return answer.text, answer.token_ids, answer.logprobs, embedded.embeddings, classified.results, tokens

    async def ask_async(client: AsyncClient) -> tuple[object, ...]:
        answer = await client.generate("the cat", seed=1, max_tokens=12, logprobs=2).result()
        embedded, classified = await client.embed(["the dog", "a mat"]), await client.classify("the cat sat")
        tokens = (await client.tokenize("the cat", GENERATOR)).results
        return answer.text, answer.token_ids, answer.logprobs, embedded.embeddings, classified.results, tokens

    with Client(target(running)) as client:
        answers = await asyncio.to_thread(ask, client)
    async with AsyncClient(target(running)) as async_client:
        assert await ask_async(async_client) == answers


async def test_a_stream_is_the_whole_answer_in_pieces(running: Running) -> None:
    async with AsyncClient(target(running)) as client:
        stream = client.generate("the cat", max_tokens=20, ignore_eos=True, temperature=0)
        pieces = [piece async for piece in stream]
        answer = await stream.result()
    assert len(pieces) > 1
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert (answer.finish_reason, len(answer.token_ids), answer.usage.generated_tokens) == ("length", 20, 20)
    assert (answer.model, answer.version, answer.seed) == (GENERATOR, "1", stream.seed)
    assert answer.timing.time_to_first_token_seconds is not None
    assert 0 < answer.timing.time_to_first_token_seconds <= answer.timing.total_seconds


async def test_results_have_labels_best_first_and_vectors_of_the_models_size(running: Running) -> None:
    async with AsyncClient(target(running)) as client:
        classified = await client.classify(["the cat", "a dog"], CLASSIFIER)
        embedded = await client.embed("the cat", EMBEDDER)
    for result in classified.results:
        scores = [label.score for label in result.labels]
        assert {label.label for label in result.labels} == set(LABELS)
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)
    (vector,) = embedded.embeddings
    assert len(vector) == EMBEDDING_SIZE
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)


async def test_models_and_health_are_those_of_the_server(running: Running) -> None:
    async with AsyncClient(target(running)) as client:
        models = {model.name: model for model in await client.models()}
        assert {(name, model.task, model.state) for name, model in models.items()} == {
            (GENERATOR, "generate", "ready"),
            (CLASSIFIER, "classify", "ready"),
            (EMBEDDER, "embed", "ready"),
        }
        model = await client.model(CLASSIFIER)
        assert model.bundle is not None
        assert tuple(model.bundle.labels) == LABELS
        assert await client.health()
        assert await client.health(GENERATOR)
        with pytest.raises(ModelNotFound):
            await client.health("nobody")


async def test_refusals_are_typed_and_say_what_to_do(running: Running) -> None:
    async with AsyncClient(target(running)) as client:
        with pytest.raises(InvalidInput) as refused:
            await client.generate("a", temperature=500, request_id="r-1").result()
        assert refused.value.field == "sampling.temperature"
        assert "500" in refused.value.message
        assert refused.value.request_id == "r-1"
        with pytest.raises(ModelNotFound, match=GENERATOR):
            await client.generate("a", model="nobody").result()
        with pytest.raises(WrongTask, match="embed"):
            await client.generate("a", model=EMBEDDER).result()


async def test_a_full_server_refuses_at_once_and_patience_gets_every_answer(start: Start) -> None:
    running = await start(slots=1, max_queue_requests=1)

    async def flood(retry: RetryPolicy) -> list[object]:
        async with AsyncClient(target(running), retry=retry) as client:
            calls = [client.generate("a", max_tokens=30, ignore_eos=True).result() for _ in range(8)]
            return list(await asyncio.gather(*calls, return_exceptions=True))

    refused = [answer for answer in await flood(RetryPolicy(attempts=1)) if isinstance(answer, Overloaded)]
    assert refused
    assert all(error.retry_after is not None for error in refused)
    answered = await flood(RetryPolicy(attempts=100, initial_backoff=0.02, max_backoff=0.1))
    assert not [answer for answer in answered if isinstance(answer, Exception)]


async def test_closing_a_stream_gives_its_slot_to_the_next(start: Start) -> None:
    running = await start(slots=1)
    async with AsyncClient(target(running)) as client:
        async with client.generate("a", max_tokens=1000, ignore_eos=True) as stream:
            await anext(stream)
            waiting = asyncio.create_task(client.generate("b", max_tokens=2, ignore_eos=True).result())
        assert len((await waiting).token_ids) == 2
