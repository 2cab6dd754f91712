"""Work that nobody has to wait for."""

import asyncio
import threading

import pytest

from polyhead.server.background import busy, in_background
from tests.turns import started


async def test_the_result_or_the_error_comes_back() -> None:
    def fail() -> None:
        raise MemoryError("no room")

    assert await in_background(lambda: 7) == 7
    with pytest.raises(MemoryError, match="no room"):
        await in_background(fail)


async def test_who_is_cancelled_ends_at_once_and_what_is_made_later_is_discarded() -> None:
    gate, discarded, done = threading.Event(), list[int](), threading.Event()

    def work() -> int:
        gate.wait(10)
        return 7

    def discard(result: int) -> None:
        discarded.append(result)
        done.set()

    task = await started(in_background(work, discard))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (discarded, busy()) == ([], True)
    gate.set()
    assert done.wait(10)
    assert discarded == [7]
