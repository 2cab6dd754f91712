"""What the generation engine adds around the model's own runs: tokens/s in process, and the share of time outside `session.run`.

    python -m tests.perf.engine_overhead MODELS/NAME/VERSION [--streams 16] [--prompt 128] [--tokens 128] [--rounds 1] [--threads N]

Prints a line for greedy choice, top-k 50 and unrestricted sampling. `overhead` is the time outside model runs in percent of the
time in them, over all steps of all rounds in which every stream decodes; the tokens a second are those of the best round.
"""

import argparse
import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from polyhead.server.bundle import read_bundle
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import GenerationRequest, Sampling, Stopping
from polyhead.server.runtime import threads
from tests.observers import Unwatched
from tests.perf.engines import engine_of

SAMPLINGS = {
    "greedy": Sampling(seed=0, temperature=0.0),
    "top-k 50": Sampling(seed=0, top_k=50),
    "top-p 0.95": Sampling(seed=0, top_p=0.95),
    "unrestricted": Sampling(seed=0),
}


class Stopwatch(Unwatched):
    """An observer that adds up the time of full steps, in the model and around it."""

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self.inside = self.outside = 0.0
        self._ended: float | None = None

    def ran(self, *, rows: int, tokens: int, padding: int, seconds: float) -> None:
        now = time.perf_counter()
        full = rows == self._streams
        if full and self._ended is not None:
            self.inside += seconds
            self.outside += now - self._ended - seconds
        self._ended = now if full else None


async def measure(engine: Generator, requests: list[GenerationRequest]) -> float:
    """Seconds until all are answered."""

    async def consume(request: GenerationRequest) -> None:
        async for _ in engine.submit(request):
            pass

    began = time.perf_counter()
    await asyncio.gather(*map(consume, requests))
    return time.perf_counter() - began


async def main(options: argparse.Namespace) -> None:
    threads.configure(options.threads)
    rng = np.random.default_rng(0)
    vocabulary = read_bundle(options.bundle).manifest.limits.vocabulary_size
    prompts = [tuple(rng.integers(0, vocabulary, options.prompt).tolist()) for _ in range(options.streams)]
    stopping = Stopping(max_tokens=options.tokens, ignore_eos=True)
    for name, sampling in SAMPLINGS.items():
        watch, capacity = Stopwatch(options.streams), options.prompt + options.tokens
        requests = [GenerationRequest(p, sampling, stopping) for p in prompts]
        with engine_of(options.bundle, options.streams, capacity, observer=watch) as engine:
            await measure(engine, [replace(r, stopping=replace(stopping, max_tokens=8)) for r in requests])
            seconds = [await measure(engine, requests) for _ in range(options.rounds)]
        speed = options.streams * options.tokens / min(seconds)
        share = watch.outside / max(watch.inside, 1e-9)
        print(f"{name:<14}{speed:8.0f} tokens/s over all   overhead {100 * share:5.1f} %", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int)
    asyncio.run(main(parser.parse_args()))
