"""Polyhead's engine in process: all requests at once, greedy, answered by the same thread as in the server.

python polyhead_peer.py MODELS/NAME/VERSION [--streams 16] [--prompt 128] [--tokens 128] [--threads 2]
"""

import asyncio
import sys
import time
from pathlib import Path

from workload import Workload, read_arguments, report

from polyhead.server.bundle import read_bundle
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import GenerationRequest, Sampling, Stopping
from polyhead.server.runtime import threads

sys.path.append(str(Path(__file__).parents[3]))  # peers run as scripts, each in an environment of its own

from tests.perf.engines import engine_of


async def run(engine: Generator, vocabulary: int, work: Workload) -> tuple[float, list[float]]:
    """Seconds in all, and until each request's first token."""
    stopping = Stopping(max_tokens=work.tokens, ignore_eos=True)
    began = time.perf_counter()

    async def answer(prompt: list[int]) -> float:
        request = GenerationRequest(tuple(prompt), Sampling(seed=0, temperature=0.0), stopping)
        first = None
        async for _ in engine.submit(request):
            first = first or time.perf_counter() - began
        assert first
        return first

    first = await asyncio.gather(*map(answer, work.prompts(vocabulary)))
    return time.perf_counter() - began, first


async def main(path: Path, work: Workload) -> None:
    threads.configure(work.threads)
    vocabulary = read_bundle(path).manifest.limits.vocabulary_size
    with engine_of(path, work.streams, work.prompt + work.tokens) as engine:
        await run(engine, vocabulary, work)  # takes up the slots' memory, which llama.cpp has from the beginning
        report(work, *await run(engine, vocabulary, work))


if __name__ == "__main__":
    path, work, _ = read_arguments(__doc__)
    asyncio.run(main(Path(path), work))
