"""Bulk streams: requests are worked on concurrently and answered in the order they came."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from polyhead.server.errors import InvalidInput, Unavailable

Request = TypeVar("Request")
Response = TypeVar("Response")

WINDOW = 8
"""Requests of one stream that are worked on or wait to be sent. The next one is not even read, so that gRPC's flow
control slows a caller down who sends faster than the model works."""


async def in_order(
    requests: AsyncIterator[Request],
    work: Callable[[Request], Awaitable[Response]],
    draining: asyncio.Event,
    window: int = WINDOW,
) -> AsyncGenerator[Response, None]:
    """Answers in the order of the requests. The first that fails ends the stream, after the answers before it.

    Once `draining` is set no more is read; what was begun is answered, and if the caller may have sent more, Unavailable
    then says how far it came.
    """
    room = asyncio.Semaphore(window)
    begun: asyncio.Queue[asyncio.Task[Response] | None] = asyncio.Queue()
    tasks: set[asyncio.Task[Response]] = set()
    answered = 0

    async def read() -> None:
        try:
            number = 0
            await room.acquire()
            async for request in requests:
                task = asyncio.ensure_future(numbered(number, work(request)))
                tasks.add(task)
                begun.put_nowait(task)
                number += 1
                await room.acquire()
        finally:
            begun.put_nowait(None)

    reader = asyncio.create_task(read())

    async def stop_reading() -> None:
        await draining.wait()
        reader.cancel()

    stopper = asyncio.create_task(stop_reading())
    try:
        while task := await begun.get():
            yield await task
            tasks.discard(task)
            answered += 1
            room.release()
        await asyncio.wait([reader])
        if reader.cancelled():
            raise Unavailable(f"the server is draining; it answered the first {answered} requests of this stream")
        reader.result()
    finally:
        for running in (stopper, reader, *tasks):
            running.cancel()
        await asyncio.gather(stopper, reader, *tasks, return_exceptions=True)


async def numbered(number: int, answer: Awaitable[Response]) -> Response:
    """An InvalidInput says which request of the stream it is about."""
    try:
        return await answer
    except InvalidInput as error:
        raise InvalidInput(f"requests[{number}].{error.field}", error.description) from error
