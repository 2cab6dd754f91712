"""Threads for long work, and the bounded queue before them."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from polyhead.server.errors import Overloaded
from polyhead.server.rpc.workers import LARGE_ANSWER_NUMBERS, LONG_TEXT_CHARACTERS, THREADS, Workers
from tests.turns import started


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def begin(workers: Workers, gate: threading.Event) -> "asyncio.Task[bool]":
    """Work that lasts until the gate opens."""
    task = await started(workers.run(gate.wait, 10))
    return task


async def test_long_work_leaves_the_event_loops_thread_and_short_work_stays() -> None:
    workers, here = Workers(1), threading.get_ident
    assert await workers.read(LONG_TEXT_CHARACTERS, here) == await workers.write(LARGE_ANSWER_NUMBERS, here) == here()
    assert await workers.read(LONG_TEXT_CHARACTERS + 1, here) != here()
    assert await workers.write(LARGE_ANSWER_NUMBERS + 1, here) != here()
    workers.close()


async def test_a_full_queue_rejects_at_once_with_the_limit_and_when_to_retry(gate: threading.Event) -> None:
    workers = Workers(THREADS + 2)
    tasks = [await begin(workers, gate) for _ in range(THREADS + 2)]
    with pytest.raises(Overloaded, match=f"{THREADS + 2} texts and grammars are being prepared") as caught:
        await workers.run(int)
    assert caught.value.retry_after_seconds > 0
    assert await workers.read(1, int) == 0, "short work needs no place"
    gate.set()
    assert all(await asyncio.gather(*tasks))
    assert await workers.run(int) == 0
    workers.close()


async def test_who_leaves_gives_the_place_back_and_waiting_work_never_begins(gate: threading.Event) -> None:
    workers, begun = Workers(THREADS + 1), threading.Event()
    tasks = [await begin(workers, gate) for _ in range(THREADS)]
    waiting = await started(workers.run(begun.set))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    tasks.append(await begin(workers, gate))
    gate.set()
    assert all(await asyncio.gather(*tasks))
    assert not begun.is_set()
    workers.close()
