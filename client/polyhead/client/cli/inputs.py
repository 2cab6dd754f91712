"""Texts from the command line and from standard input, worked on concurrently and answered in order."""

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, NoReturn, TypeVar

from polyhead.client.errors import InvalidInput

T = TypeVar("T")

_LINES_AHEAD = 256  # read from standard input before somebody asks for them


async def texts(arguments: Sequence[str]) -> AsyncIterator[str]:
    """The arguments; in place of `-` the lines of standard input as they come. Raises UnicodeDecodeError."""
    for argument in arguments:
        if argument == "-":
            async for line in _stdin_lines():
                yield line
        else:
            yield argument


def joined_pairs(arguments: Sequence[str], refuse: Callable[[str], NoReturn]) -> list[str]:
    """Arguments in twos, joined as a line of standard input has them, with a tab; `-` stands for itself. `refuse` ends the
    command where one has no second."""
    rest, joined = iter(arguments), []
    for argument in rest:
        if argument == "-" or "\t" in argument:
            joined.append(argument)
        elif (second := next(rest, None)) is None:
            refuse(f"--pairs: {argument!r} has no second text")
        else:
            joined.append(f"{argument}\t{second}")
    return joined


def pair(line: str) -> tuple[str, str]:
    """Two texts with a tab between. Raises InvalidInput."""
    first, tab, second = line.partition("\t")
    if not tab:
        raise InvalidInput(f"--pairs: a line must be two texts with a tab between, got {line!r}")
    return first, second


async def in_order(
    inputs: AsyncIterator[str], answer: Callable[[str], AsyncIterator[T]], limit: int
) -> AsyncIterator[tuple[str, AsyncIterator[T]]]:
    """Each input with its answer, in the order of the inputs; up to `limit` answers are under way or wait to be read."""
    free = asyncio.Semaphore(limit)

    async def begun() -> AsyncIterator[tuple[str, AsyncIterator[T]]]:
        async for text in inputs:
            await free.acquire()
            yield text, _ReadAhead(answer(text))

    async for text, parts in _ReadAhead(begun()):
        yield text, parts
        free.release()


class _ReadAhead(AsyncIterator[T], Generic[T]):
    """Runs an async iterator in a task of its own, ahead of whoever reads it here; raises what it raises."""

    def __init__(self, source: AsyncIterator[T]) -> None:
        self._items: asyncio.Queue[tuple[T] | None] = asyncio.Queue()
        self._error: Exception | None = None
        self._task = asyncio.create_task(self._run(source))

    async def _run(self, source: AsyncIterator[T]) -> None:
        try:
            async for item in source:
                self._items.put_nowait((item,))
        except Exception as error:
            self._error = error
        self._items.put_nowait(None)

    async def __anext__(self) -> T:
        item = await self._items.get()
        if item is not None:
            return item[0]
        if self._error:
            raise self._error
        raise StopAsyncIteration


async def _stdin_lines() -> AsyncIterator[str]:
    """Lines without their ends, read by a thread: neither files nor terminals can be awaited."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str | UnicodeDecodeError | None] = asyncio.Queue()
    room = threading.Semaphore(_LINES_AHEAD)

    def read() -> None:
        # Not sys.stdin itself: Python can't end while a thread that it does not wait for holds that one's lock.
        with (
            contextlib.suppress(RuntimeError),  # the loop is closed: nobody wants the rest
            open(sys.stdin.fileno(), encoding="utf-8", closefd=False) as stream,
        ):
            try:
                for line in stream:
                    room.acquire()
                    loop.call_soon_threadsafe(lines.put_nowait, line.rstrip("\n"))
            except UnicodeDecodeError as error:
                loop.call_soon_threadsafe(lines.put_nowait, error)
            loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, name="standard input", daemon=True).start()
    while (line := await lines.get()) is not None:
        if isinstance(line, UnicodeDecodeError):
            raise line
        room.release()
        yield line
