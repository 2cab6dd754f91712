"""`polyhead serve` and `python -m polyhead.server`: run a server until SIGTERM or SIGINT."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

import prometheus_client

from polyhead.server import background, logging
from polyhead.server.app import serve
from polyhead.server.config import Settings, UsageError, parse
from polyhead.server.errors import PolyheadError


def main(argv: Sequence[str]) -> int:
    """The exit code: 0 after a signal, 1 for a failure, 2 for wrong usage; the last two say why in one line."""
    try:
        settings = parse(argv)
    except UsageError as error:
        print(f"polyhead serve: {error}", file=sys.stderr)
        return 2
    logging.configure(settings.log_level, settings.log_format)
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        asyncio.run(run(settings))
    except PolyheadError as error:
        print(f"polyhead serve: {error}", file=sys.stderr)
        return 1
    if background.busy():  # a model was being opened; native code that the interpreter's end overtakes may crash
        sys.stderr.flush()
        os._exit(0)
    return 0


async def run(settings: Settings) -> None:
    """Serve until a first signal, then drain; a second one stops at once."""
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    async with serve(settings) as app:
        await signals.get()
        draining, second = asyncio.create_task(app.drain()), asyncio.create_task(signals.get())
        await asyncio.wait((draining, second), return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, second):
            task.cancel()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
