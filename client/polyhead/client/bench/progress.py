"""A sign of life on standard error while the load runs: one line that changes on a terminal, a line now and then elsewhere."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sized
from contextlib import asynccontextmanager

TERMINAL_SECONDS = 0.5
LOG_SECONDS = 10.0


@asynccontextmanager
async def progress(done: Sized, total: int | None) -> AsyncIterator[None]:
    """Tells how many requests have ended, while the block runs."""
    task = asyncio.create_task(_report(done, total))
    try:
        yield
    finally:
        task.cancel()
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


async def _report(done: Sized, total: int | None) -> None:
    terminal = sys.stderr.isatty()
    begin = time.perf_counter()
    while True:
        await asyncio.sleep(TERMINAL_SECONDS if terminal else LOG_SECONDS)
        of = "" if total is None else f" of {total}"
        line = f"{time.perf_counter() - begin:.0f} s: {len(done)}{of} requests have ended"
        print(f"\r\033[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
