"""When to send: as fast as answers come (closed loop), or at given times whatever the server does (open loop)."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

from polyhead.client.bench.outcome import Outcome
from polyhead.client.bench.workload import Job
from polyhead.client.errors import TemporaryError

J = TypeVar("J", bound=Job)
Send = Callable[[J], Awaitable[Outcome]]
"""Sends one request and returns when its answer is complete; failures are outcomes, not exceptions."""

PAUSE_AFTER_FAILURE = 0.1
"""Seconds, unless the server asks for another time: a stream that fails at once must not spin."""


async def closed_loop(
    jobs: Iterator[J], streams: int, seconds: float | None, send: Send[J], outcomes: list[Outcome]
) -> None:
    """`streams` callers, each of which sends the next job when its last one has ended; appends to `outcomes`.

    Ends when there are no more jobs, or nothing has been sent for `seconds` after the begin; what is under way then is
    awaited. Nothing is sent twice: a caller whose request failed waits, then sends the next one.
    """
    until = None if seconds is None else time.perf_counter() + seconds

    async def stream() -> None:
        while (until is None or time.perf_counter() < until) and (job := next(jobs, None)) is not None:
            outcome = await send(job)
            outcomes.append(outcome)
            if outcome.error:
                await asyncio.sleep(_pause_after(outcome, until))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(streams):
            tasks.create_task(stream())


def _pause_after(outcome: Outcome, until: float | None) -> float:
    """Not beyond the end of the run, and a time that the server asked for only up to 5 seconds."""
    asked = outcome.error.retry_after if isinstance(outcome.error, TemporaryError) else None
    pause = PAUSE_AFTER_FAILURE if asked is None else min(asked, 5.0)
    return pause if until is None else max(0.0, min(pause, until - time.perf_counter()))


async def open_loop(jobs: Iterable[J], seconds: float | None, send: Send[J], outcomes: list[Outcome]) -> None:
    """Sends each job when it is due, however many are under way; appends to `outcomes` as they end.

    Jobs come in the order of their times. Ends after the last one, or the last one due before `seconds`, when all have ended.
    """
    begin = time.perf_counter()

    async def one(job: J) -> None:
        outcome = await send(job)
        outcome.late = max(0.0, outcome.sent - (begin + job.due))
        outcomes.append(outcome)

    async with asyncio.TaskGroup() as tasks:
        for job in jobs:
            if seconds is not None and job.due >= seconds:
                break
            await asyncio.sleep(max(0.0, begin + job.due - time.perf_counter()))
            tasks.create_task(one(job))
