"""Work that cannot be interrupted, such as hashing gigabytes or opening a graph, on threads that nobody has to wait for."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

_running: set[Thread] = set()


def forget(result: object) -> None:
    """What needs no closing."""


async def in_background(work: Callable[[], T], discard: Callable[[T], None] = forget) -> T:
    """Work on a daemon thread of its own. If the awaiting task is cancelled it ends at once, and what `work` still makes
    is given to `discard`."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from here on it can't be cancelled: there will be a result

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        finally:
            _running.discard(thread)

    def clean_up(done: Future[T]) -> None:
        if not done.exception():
            discard(done.result())

    thread = Thread(target=run, name="polyhead-background", daemon=True)
    _running.add(thread)
    thread.start()
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        future.add_done_callback(clean_up)
        raise


def busy() -> bool:
    """Whether any thread still works."""
    return bool(_running)
