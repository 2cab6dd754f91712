"""Every way in which an answer ends frees its slots, is counted once under its code, and changes nobody else's answer."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from polyhead.client import (
    AsyncClient,
    AsyncGenerationStream,
    Cancelled,
    DeadlineExceeded,
    Generation,
    RetryPolicy,
    TokenLogprob,
    Unavailable,
)
from polyhead.server.app import App, serve
from polyhead.server.config import Settings
from tests import bundles
from tests.integration.conftest import Running, Start, until

SLOTS = 3  # one for the neighbour, two for who ends
MODEL = {"model": bundles.GENERATOR, "version": "1"}


def client_of(app: App) -> AsyncClient:
    return AsyncClient(f"127.0.0.1:{app.port}", retry=RetryPolicy(attempts=1))


def neighbour_stream(client: AsyncClient) -> AsyncGenerationStream:
    """Goes on for longer than anybody else in these tests."""
    return client.generate("the dog sat", seed=7, max_tokens=600, ignore_eos=True, logprobs=2)


@dataclass(frozen=True)
class Answer:
    """What must be the same bits whatever happens beside it."""

    text: str
    tokens: tuple[TokenLogprob, ...]

    @classmethod
    def of(cls, generation: Generation) -> "Answer":
        return cls(generation.text, generation.logprobs)


@pytest.fixture(scope="module")
def alone(models_folder: Path) -> Answer:
    """The neighbour's answer from a server that does nothing else."""

    async def ask() -> Answer:
        async with serve(Settings(models=models_folder, port=0, metrics_port=None)) as app, client_of(app) as client:
            await app.loaded
            return Answer.of(await neighbour_stream(client).result())

    return asyncio.run(ask())


async def cancelled(running: Running, client: AsyncClient) -> dict[str, int]:
    stream = client.generate("the cat", samples=2, max_tokens=900, ignore_eos=True)
    await anext(stream)
    await stream.close()
    return {"CANCELLED": 1}


@asynccontextmanager
async def all_slots_taken(client: AsyncClient) -> AsyncIterator[None]:
    """Until the block ends, by a call that is then cancelled."""
    async with client.generate("a", samples=SLOTS - 1, max_tokens=1000, ignore_eos=True, logprobs=20) as holder:
        await anext(holder)
        yield


async def cancelled_in_the_queue(running: Running, client: AsyncClient) -> dict[str, int]:
    async with all_slots_taken(client):
        stream = client.generate("the cat")
        await until(lambda: running.metric("queue_size", **MODEL) == 1)
        await stream.close()
        await until(lambda: running.metric("queue_size", **MODEL) == 0)
    return {"CANCELLED": 2}


async def disconnected(running: Running, client: AsyncClient) -> dict[str, int]:
    async with client_of(running.app) as other:
        stream = other.generate("the cat", samples=2, max_tokens=900, ignore_eos=True)
        await anext(stream)
    with pytest.raises(Cancelled):
        await stream.results()
    return {"CANCELLED": 1}


async def late(running: Running, client: AsyncClient) -> dict[str, int]:
    stream = client.generate("the cat", samples=2, max_tokens=1000, ignore_eos=True, logprobs=20, timeout=0.4)
    assert (await anext(stream)).token_ids
    with pytest.raises(DeadlineExceeded):
        await stream.results()
    return {"DEADLINE_EXCEEDED": 1}


async def late_in_the_queue(running: Running, client: AsyncClient) -> dict[str, int]:
    async with all_slots_taken(client):
        with pytest.raises(DeadlineExceeded):
            await client.generate("the cat", timeout=0.3).result()
        await until(lambda: running.metric("queue_size", **MODEL) == 0)
    return {"CANCELLED": 1, "DEADLINE_EXCEEDED": 1}


async def stopped(running: Running, client: AsyncClient) -> dict[str, int]:
    greedy = await client.generate("the cat", temperature=0, max_tokens=8, ignore_eos=True).result()
    stop = greedy.text[2:9]  # from inside one token into another
    answer = await client.generate("the cat", temperature=0, max_tokens=900, stop=stop, ignore_eos=True).result()
    assert (answer.finish_reason, answer.text) == ("stop", greedy.text[:2])
    return {"OK": 2}


async def ended_by_a_stop_token(running: Running, client: AsyncClient) -> dict[str, int]:
    greedy = await client.generate("the cat", temperature=0, max_tokens=8, ignore_eos=True).result()
    token = greedy.token_ids[4]
    expected = greedy.token_ids[: greedy.token_ids.index(token) + 1]
    answer = await client.generate(
        "the cat", temperature=0, max_tokens=900, stop_token_ids=token, ignore_eos=True
    ).result()
    assert (answer.finish_reason, answer.token_ids) == ("stop", expected)
    assert greedy.text.startswith(answer.text)
    assert len(answer.text) < len(greedy.text)
    return {"OK": 2}


async def ended_by_the_model(running: Running, client: AsyncClient) -> dict[str, int]:
    end = next(token.id for token in (await client.tokenize(bundles.END, bundles.GENERATOR)).results[0][1:])
    answer = await client.generate("the cat", max_tokens=900, min_tokens=5, logit_bias={end: 100}).result()
    assert (answer.finish_reason, len(answer.token_ids)) == ("eos", 6)
    return {"OK": 1}


async def full_length(running: Running, client: AsyncClient) -> dict[str, int]:
    answers = await client.generate("the cat", samples=2, max_tokens=9, ignore_eos=True).results()
    assert [(answer.finish_reason, len(answer.token_ids)) for answer in answers] == [("length", 9)] * 2
    return {"OK": 1}


End = Callable[[Running, AsyncClient], Awaitable[dict[str, int]]]


@pytest.mark.parametrize(
    "end",
    [
        cancelled,
        cancelled_in_the_queue,
        disconnected,
        late,
        late_in_the_queue,
        stopped,
        ended_by_a_stop_token,
        ended_by_the_model,
        full_length,
    ],
)
async def test_an_end_frees_the_slot_is_counted_once_and_leaves_the_neighbour_alone(
    start: Start, alone: Answer, end: End
) -> None:
    running = await start(slots=SLOTS)
    async with client_of(running.app) as client:
        neighbour = neighbour_stream(client)
        await anext(neighbour)
        codes = Counter(await end(running, client))
        assert running.metric("requests_running", **MODEL) > 0, "the neighbour runs for longer"
        assert Answer.of(await neighbour.result()) == alone
    codes["OK"] += 1
    await until(lambda: is_idle(running.app) and counted(running.app).total() >= codes.total())
    assert counted(running.app) == codes
    gone = {"cancelled": codes["CANCELLED"], "deadline": codes["DEADLINE_EXCEEDED"]}
    for reason, count in gone.items():
        assert running.metric("cancelled_total", **MODEL, method="Generate", reason=reason) == count


CALLER = """
import sys
from polyhead.client import Client
for piece in Client(sys.argv[1]).generate("the cat", max_tokens=1000, ignore_eos=True):
    print(piece.token_ids, flush=True)
"""


async def test_a_caller_who_is_killed_frees_the_slot_and_is_counted_once(running: Running) -> None:
    """A process that gets no chance to say that it leaves."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", CALLER, running.target, stdout=PIPE)
    try:
        assert process.stdout
        assert await asyncio.wait_for(process.stdout.readline(), 60)
    finally:
        process.kill()
        await process.communicate()
    await until(lambda: is_idle(running.app) and counted(running.app))
    assert counted(running.app) == {"CANCELLED": 1}


async def test_a_drain_answers_what_runs_and_what_waits_and_refuses_the_rest(start: Start, alone: Answer) -> None:
    running = await start(slots=1)
    async with client_of(running.app) as client:
        runs = neighbour_stream(client)
        await anext(runs)
        waits = neighbour_stream(client)
        await until(lambda: running.metric("queue_size", **MODEL) == 1)
        drain = asyncio.create_task(running.app.drain())
        await until_refused(client)
        answers = [Answer.of(await stream.result()) for stream in (runs, waits)]
        await drain
    assert answers == [alone, alone]
    assert is_idle(running.app)
    assert counted(running.app) == {"OK": 2}
    refused = {"model": "", "version": "", "method": "Classify", "code": "UNAVAILABLE"}
    assert running.metric("requests_total", **refused) == 1


async def test_what_outlasts_the_drain_is_cut_and_counted_once(models_folder: Path) -> None:
    settings = Settings(models=models_folder, port=0, metrics_port=None, slots=4, drain_seconds=0.01)
    long: dict[str, Any] = {"samples": 4, "max_tokens": 1000, "ignore_eos": True, "logprobs": 20}
    async with serve(settings) as app:
        await app.loaded
        client = client_of(app)
        runs = client.generate("a", **long)
        await anext(runs)
        waits = client.generate("a", **long)
        await until(lambda: sample(app, "queue_size") == 1)
        await app.drain()
    async with client:
        for stream in (runs, waits):
            with pytest.raises(Unavailable):
                await stream.results()
    assert counted(app) == {"UNAVAILABLE": 2}
    assert (sample(app, "slots_used"), sample(app, "queue_size"), sample(app, "requests_running")) == (0, 0, 0)


async def until_refused(client: AsyncClient) -> None:
    """The server drains from some moment on; at the latest after 10 seconds."""
    async with asyncio.timeout(10):
        with suppress(Unavailable):
            while True:
                await client.classify("a")


def sample(app: App, name: str) -> float:
    return app.metrics.registry.get_sample_value(f"polyhead_{name}", MODEL) or 0.0


def is_idle(app: App) -> bool:
    """No slot is used, nobody waits, and the engine agrees."""
    if any(sample(app, name) for name in ("slots_used", "requests_running", "queue_size")):
        return False
    for entry in app.repository.entries():
        if entry.name == bundles.GENERATOR and entry.model:
            entry.model.generator.check_integrity()
    return True


def counted(app: App) -> Counter[str]:
    """Calls of Generate that ended, by code."""
    codes: Counter[str] = Counter()
    for family in app.metrics.registry.collect():
        for found in family.samples:
            if found.name == "polyhead_requests_total" and found.labels["method"] == "Generate":
                codes[found.labels["code"]] += int(found.value)
    return codes
