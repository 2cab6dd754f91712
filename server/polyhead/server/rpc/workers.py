"""Threads for what would keep the event loop from other calls: long texts, grammars, large answers."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import ParamSpec, TypeVar

from polyhead.server.errors import Overloaded

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 4
"""`tokenizers` and the grammar compiler let go of the interpreter while they work, and share long work out by themselves."""

LONG_TEXT_CHARACTERS = 4000
"""More than this takes milliseconds to become tokens."""

LARGE_ANSWER_NUMBERS = 20_000
"""More than this takes milliseconds to become a message."""

RETRY_SECONDS = 1.0


class Workers:
    """A few threads and a bounded queue before them. One for all calls of a server; a full queue rejects at once."""

    def __init__(self, most: int) -> None:
        """`most`: pieces of work that may run or wait."""
        self._most = most
        self._room = BoundedSemaphore(most)
        self._threads = ThreadPoolExecutor(THREADS, "polyhead-worker")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do it on a thread. Raises Overloaded when the queue is full. Work that nobody waits for any more never begins."""
        if not self._room.acquire(blocking=False):
            limit = f"{self._most} texts and grammars are being prepared, which is the limit"
            raise Overloaded(f"the queue is full: {limit}", RETRY_SECONDS)
        future = self._threads.submit(work, *args, **kwargs)
        future.add_done_callback(lambda _: self._room.release())
        return await asyncio.wrap_future(future)

    async def read(self, characters: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Work on so many characters: here if they are few, else as `run`."""
        if characters > LONG_TEXT_CHARACTERS:
            return await self.run(work, *args, **kwargs)
        return work(*args, **kwargs)

    async def write(self, numbers: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make an answer of so many numbers: here if they are few, else on a thread. Never rejected: the model's queue
        has bounded how many answers there can be."""
        if numbers > LARGE_ANSWER_NUMBERS:
            return await asyncio.wrap_future(self._threads.submit(work, *args, **kwargs))
        return work(*args, **kwargs)

    def close(self) -> None:
        """Let go of the threads; what waits never begins."""
        self._threads.shutdown(wait=False, cancel_futures=True)
