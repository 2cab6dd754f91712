"""Turns of an event loop, which runs what is ready in the order in which it became so: no test has to wait for time to pass."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def one_turn() -> None:
    """Return after all that is ready now has run once."""
    over = asyncio.get_running_loop().create_future()
    over.get_loop().call_soon(over.set_result, None)
    await over


async def started(work: Awaitable[T]) -> "asyncio.Task[T]":
    """A task for it that has run up to where it first waits."""
    task = asyncio.ensure_future(work)
    await one_turn()
    return task
