"""Bulk streams: concurrent, bounded, in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from polyhead.server.errors import InvalidInput, Unavailable
from polyhead.server.rpc.bulk import in_order
from tests.turns import one_turn


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


class Work:
    """Answers a number when told to, and knows what was begun and what was cancelled."""

    def __init__(self, count: int) -> None:
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self.gates = [asyncio.Event() for _ in range(count)]
        self.changed = asyncio.Condition()

    async def __call__(self, number: int) -> int:
        self.begun.append(number)
        async with self.changed:
            self.changed.notify_all()
        try:
            await self.gates[number].wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        return number * number

    async def until_begun(self, count: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.begun) >= count)

    def open(self, *gates: int) -> None:
        for gate in gates:
            self.gates[gate].set()


async def test_answers_come_in_the_order_of_the_requests_whichever_is_ready_first() -> None:
    work = Work(4)
    async with aclosing(in_order(numbers(4), work, asyncio.Event(), window=4)) as answers:
        first = asyncio.ensure_future(anext(answers))
        await work.until_begun(4)
        work.open(3, 2, 1)
        work.open(0)
        assert [await first] + [answer async for answer in answers] == [0, 1, 4, 9]


async def test_no_more_than_the_window_is_begun_before_an_answer_is_taken() -> None:
    work = Work(9)
    async with aclosing(in_order(numbers(9), work, asyncio.Event(), window=3)) as answers:
        first = asyncio.ensure_future(anext(answers))
        await work.until_begun(3)
        work.open(*range(9))
        assert await first == 0
        assert len(work.begun) == 3
        assert [answer async for answer in answers] == [number**2 for number in range(1, 9)]


async def test_leaving_cancels_what_is_under_way() -> None:
    work = Work(5)
    async with aclosing(in_order(numbers(5), work, asyncio.Event(), window=3)) as answers:
        first = asyncio.ensure_future(anext(answers))
        await work.until_begun(3)
        work.open(0)
        await first
    assert sorted(work.cancelled) == [1, 2]


async def test_a_failure_comes_after_the_answers_before_it_and_says_which_request() -> None:
    async def work(number: int) -> int:
        if number == 2:
            raise InvalidInput("inputs[0]", "must not be empty")
        return number

    async with aclosing(in_order(numbers(4), work, asyncio.Event())) as answers:
        assert [await anext(answers), await anext(answers)] == [0, 1]
        with pytest.raises(InvalidInput, match=r"requests\[2\]\.inputs\[0\]: must not be empty"):
            await anext(answers)


async def test_a_caller_that_breaks_off_ends_the_stream_with_its_error() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError("gone")

    async def work(number: int) -> int:
        return number

    with pytest.raises(ConnectionError, match="gone"):
        assert [answer async for answer in in_order(broken(), work, asyncio.Event())] == [1]


async def test_no_requests_get_no_answers() -> None:
    assert [answer async for answer in in_order(numbers(0), Work(0), asyncio.Event())] == []


async def test_a_drain_answers_what_was_begun_reads_no_more_and_says_how_far_it_came() -> None:
    work, draining = Work(9), asyncio.Event()
    async with aclosing(in_order(numbers(9), work, draining, window=3)) as answers:
        first = asyncio.ensure_future(anext(answers))
        await work.until_begun(3)
        draining.set()
        await one_turn()
        work.open(*range(9))
        assert [await first, await anext(answers), await anext(answers)] == [0, 1, 4]
        with pytest.raises(Unavailable, match="draining; it answered the first 3 requests of this stream"):
            await anext(answers)
    assert work.begun == [0, 1, 2]


async def test_a_drain_does_not_concern_a_stream_that_was_read_to_its_end() -> None:
    work, draining = Work(3), asyncio.Event()
    async with aclosing(in_order(numbers(3), work, draining, window=4)) as answers:
        first = asyncio.ensure_future(anext(answers))
        await work.until_begun(3)
        draining.set()
        work.open(*range(3))
        assert [await first] + [answer async for answer in answers] == [0, 1, 4]
