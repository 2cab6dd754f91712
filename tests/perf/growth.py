"""How cost grows: tokens a second with the number of streams, a step's time with the context, memory with the slots in use.

    python -m tests.perf.growth MODELS/NAME/VERSION [--rounds 3] [--png docs/images/growth.png]

In each round everything is measured once; the best counts, which others on the machine disturbed least. Memory is what this
process takes up more when a prompt's keys and values fill one slot after the other, beside what they must take. The system gives
it in pages of up to 2 MB, in which neighbouring slots of a layer share, so it grows in steps.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from polyhead.server.bundle import read_bundle
from polyhead.server.runtime import threads
from polyhead.server.runtime.decoder import Decoder
from tests.perf.engines import Caller, engine_of

STREAMS = (1, 2, 4, 8, 16, 32)
CONTEXTS = (128, 256, 384, 512, 640, 768, 896, 1024)
ROWS = 16
STEPS = 8
"""Timed at each context, after two that nobody counts; the fastest counts, which others disturbed least."""
FILLED = 1024
"""Tokens of each prompt that fills a slot."""
SLOTS_FILLED = (1, 2, 4, 8)

Series = dict[int, float]


async def throughput(bundle: Path, streams: int, prompt: int = 128, answer: int = 64) -> float:
    """Output tokens a second between everyone's first and anyone's last token: steps in which all streams decode."""
    with engine_of(bundle, streams, prompt + answer) as engine:
        callers = [Caller.of(seed, prompt, answer) for seed in range(streams)]
        await asyncio.gather(*(caller.run(engine) for caller in callers))
    begin, end = max(caller.arrivals[0] for caller in callers), min(caller.arrivals[-1] for caller in callers)
    within = sum(begin < arrival <= end for caller in callers for arrival in caller.arrivals)
    return within / (end - begin)


def steps(bundle: Path, contexts: tuple[int, ...] = CONTEXTS) -> Series:
    """Seconds of a step of `ROWS` rows at each context."""
    decoder = opened(bundle, ROWS, max(contexts) + 1)
    decoder.memory.slots.fill(1)  # memory that was never written would all be one page of zeros
    tokens = np.arange(ROWS)
    measured = {}
    for context in contexts:
        past, times = np.full(ROWS, context), []
        for _ in range(2 + STEPS):
            began = time.perf_counter()
            decoder.decode(tokens, past, 1)
            times.append(time.perf_counter() - began)
        measured[context] = min(times[2:])
    decoder.close()
    return measured


def opened(bundle: Path, slots: int, capacity: int) -> Decoder:
    opened = read_bundle(bundle)
    return Decoder(opened.graph, opened.manifest, slots=slots, capacity=capacity)


def filling(bundle: Path) -> tuple[Series, Series]:
    """Bytes taken up more when so many slots are full, measured and by arithmetic."""
    decoder = opened(bundle, max(SLOTS_FILLED), FILLED)
    read_prompt(decoder)  # what the runtime takes once, for chunks as long as these
    begin, filled = memory_bytes(), 0
    measured: Series = {}
    for slots in SLOTS_FILLED:
        for slot in range(filled, slots):
            decoder.memory.commit(0, slot, FILLED)
        measured[slots], filled = memory_bytes() - begin, slots
    expected = {slots: float(slots * decoder.memory.bytes_per_slot) for slots in SLOTS_FILLED}
    decoder.close()
    return measured, expected


def read_prompt(decoder: Decoder) -> None:
    """Into the first lane."""
    for start in range(0, FILLED, decoder.prefill_chunk):
        decoder.prefill(0, [np.arange(decoder.prefill_chunk)], [start], 1)


def memory_bytes() -> int:
    """Of this process, without files that are mapped: the system takes those back as it likes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


def main(options: argparse.Namespace) -> None:
    threads.configure(options.threads)
    measured, expected = filling(options.bundle)
    speeds: dict[int, list[float]] = {streams: [] for streams in STREAMS}
    times: dict[int, list[float]] = {context: [] for context in CONTEXTS}
    for _ in range(options.rounds):
        for streams, values in speeds.items():
            values.append(asyncio.run(throughput(options.bundle, streams)))
        for context, seconds in steps(options.bundle).items():
            times[context].append(seconds)
    series = {streams: max(values) for streams, values in speeds.items()}
    milliseconds = {context: 1000 * min(values) for context, values in times.items()}
    console = Console(width=110)
    console.print(table("streams", series, {"output tokens/s": "{:.0f}".format}))
    console.print(table(f"tokens of context, {ROWS} rows", milliseconds, {"a step, ms": "{:.1f}".format}))
    for slots, taken in measured.items():
        print(
            f"{slots} slots of {FILLED} tokens: {taken / 1e6:.1f} MB more, by arithmetic {expected[slots] / 1e6:.1f} MB"
        )
    if options.png:
        draw(series, milliseconds, measured, expected, options.png)


def table(name: str, series: Series, columns: Mapping[str, Callable[[float], str]]) -> Table:
    """A row of figures under the values that they belong to."""
    made = Table(name, *map(str, series))
    for column, written in columns.items():
        made.add_row(column, *(written(value) for value in series.values()))
    return made


def draw(speeds: Series, milliseconds: Series, measured: Series, expected: Series, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    line(left, speeds, "streams", "output tokens/s")
    left.set_xscale("log", base=2)
    left.set_xticks(list(speeds), list(map(str, speeds)))
    line(middle, milliseconds, f"tokens of context of each of {ROWS} rows", "a step, ms")
    right.plot(list(expected), [size / 1e6 for size in expected.values()], "k--", label="by arithmetic")
    line(right, {slots: taken / 1e6 for slots, taken in measured.items()}, f"slots filled with {FILLED} tokens", "MB")
    right.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def line(axis: Any, series: Series, x: str, y: str) -> None:
    axis.plot(list(series), list(series.values()), "o-", color="tab:blue", label="measured")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--png", type=Path)
    main(parser.parse_args())
