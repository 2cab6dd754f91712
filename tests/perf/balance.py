"""What a long prompt does to answers under way, and they to it, for several budgets of prompt tokens between two steps.

    python -m tests.perf.balance MODELS/NAME/VERSION [--budgets 32 64 128 256] [--prompt 1024] [--streams 15] [--rounds 3]

Streams decode; then a long prompt comes. Printed are medians over the rounds: the 95th percentile of the time between tokens
of the streams before it came and while it was read, its time to first token beside them and alone, and the two ratios; then the same
of a crowd, a quarter as many short prompts as there are streams, which comes in their place all at once; and of a burst, as
many short prompts at once as there are slots with nobody else there: tokens a second, and the mean time to first token.
Budgets take turns within a round.
"""

import argparse
import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np
from rich.console import Console
from rich.table import Table

from polyhead.server.engine.generator import Generator
from polyhead.server.runtime import threads
from tests.perf.engines import Caller, engine_of

SHORT_PROMPT, SHORT_ANSWER = 128, 64
"""Tokens of the streams' prompts, and of prompts and answers in a burst."""
CALM_SECONDS = 4.0
"""Streams decode alone for so long, before the long prompt comes, and afterwards before the crowd does."""


@dataclass(frozen=True)
class Balance:
    """Seconds, of one round."""

    calm: float
    """p95 between tokens of the streams without the long prompt."""
    beside: float
    """The same while it is read."""
    first_token_alone: float
    first_token_beside: float
    crowd: float
    """p95 between tokens of the streams while a crowd's prompts are read."""
    crowd_first_token: float
    """Mean time to it of the crowd."""
    burst_tokens_per_second: float
    burst_first_token: float


async def measure(engine: Generator, streams: int, prompt: int, seed: int) -> Balance:
    for _ in range(2):  # the first one pays for memory that is touched for the first time
        alone = Caller.of(seed, prompt, 1)
        await alone.run(engine)
    callers = [Caller.of(seed + 1 + i, SHORT_PROMPT, engine.capacity - SHORT_PROMPT) for i in range(streams)]
    running = [asyncio.create_task(caller.run(engine)) for caller in callers]
    await asyncio.gather(*(caller.begun.wait() for caller in callers))
    calm = time.perf_counter()
    await asyncio.sleep(CALM_SECONDS)
    long = Caller.of(seed + 100, prompt, 1)
    await long.run(engine)
    for task in running[: streams // 4]:  # they make room for the crowd
        task.cancel()
    await asyncio.sleep(CALM_SECONDS)
    crowd = [Caller.of(seed + 200 + i, SHORT_PROMPT, 1) for i in range(streams // 4)]
    await asyncio.gather(*(caller.run(engine) for caller in crowd))
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    before = [gap for caller in callers for gap in caller.gaps(calm, long.sent)]
    during = [gap for caller in callers for gap in caller.gaps(long.sent, long.arrivals[0])]
    crowded = [
        gap
        for caller in callers[streams // 4 :]
        for gap in caller.gaps(crowd[0].sent, max(one.arrivals[0] for one in crowd))
    ]
    return Balance(
        p95(before),
        p95(during),
        alone.time_to_first_token,
        long.time_to_first_token,
        p95(crowded),
        mean(one.time_to_first_token for one in crowd),
        *await burst(engine, seed + 300),
    )


async def burst(engine: Generator, seed: int) -> tuple[float, float]:
    """Output tokens a second, and the mean time to first token."""
    callers = [Caller.of(seed + i, SHORT_PROMPT, SHORT_ANSWER) for i in range(engine.slots)]
    await asyncio.gather(*(caller.run(engine) for caller in callers))
    seconds = max(caller.arrivals[-1] for caller in callers) - min(caller.sent for caller in callers)
    return engine.slots * SHORT_ANSWER / seconds, mean(caller.time_to_first_token for caller in callers)


def p95(seconds: list[float]) -> float:
    return float(np.percentile(seconds, 95))


async def main(options: argparse.Namespace) -> None:
    threads.configure(options.threads)
    rounds: dict[int, list[Balance]] = {budget: [] for budget in options.budgets}
    for number in range(options.rounds):
        for budget, measured in rounds.items():
            with engine_of(options.bundle, options.streams + 1, options.prompt + 256, budget) as engine:
                measured.append(await measure(engine, options.streams, options.prompt, 1000 * number))
            print(f"round {number + 1}, budget {budget}: {measured[-1]}", flush=True)
    Console(width=140).print(table(rounds, f"{options.prompt} tokens beside {options.streams} streams, milliseconds"))


def table(rounds: dict[int, list[Balance]], title: str) -> Table:
    long = ("between tokens, p95", "while it is read", "times", "first token alone", "beside the streams", "times")
    crowd = ("while a crowd is read", "times", "a crowd's first token")
    table = Table("budget", *long, *crowd, "a burst's first token", "and tokens/s", title=title)
    for budget, measured in rounds.items():
        calm, beside = median(m.calm for m in measured), median(m.beside for m in measured)
        alone, late = median(m.first_token_alone for m in measured), median(m.first_token_beside for m in measured)
        slower = median(m.beside / m.calm for m in measured)
        later = median(m.first_token_beside / m.first_token_alone for m in measured)
        milliseconds = [f"{1000 * seconds:.0f}" for seconds in (calm, beside, alone, late)]
        crowded = (
            f"{1000 * median(m.crowd for m in measured):.0f}",
            f"{median(m.crowd / m.calm for m in measured):.2f}",
            f"{1000 * median(m.crowd_first_token for m in measured):.0f}",
        )
        burst = (
            f"{1000 * median(m.burst_first_token for m in measured):.0f}",
            f"{median(m.burst_tokens_per_second for m in measured):.0f}",
        )
        table.add_row(
            str(budget), *milliseconds[:2], f"{slower:.2f}", *milliseconds[2:], f"{later:.2f}", *crowded, *burst
        )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--budgets", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--streams", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    asyncio.run(main(parser.parse_args()))
