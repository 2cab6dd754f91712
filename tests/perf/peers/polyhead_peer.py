"""Polyhead's engine in process: all requests at once, greedy, answered by the same thread as in the server.

python polyhead_peer.py MODELS/NAME/VERSION [--streams 16] [--prompt 128] [--tokens 128] [--threads 2]
"""

import asyncio
import time
from pathlib import Path

from workload import Workload, read_arguments, report

from polyhead.server.bundle import read_bundle
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.scheduler import GeneratorLimits
from polyhead.server.engine.sequence import GenerationRequest, Sampling, Stopping
from polyhead.server.runtime import threads
from polyhead.server.runtime.decoder import Decoder
from polyhead.server.tokenizer import Tokenizer

LIMITS = GeneratorLimits(max_queue_requests=64, max_queue_tokens=2**20, prefill_budget_tokens=32)


class Unwatched:
    """An observer that keeps nothing."""

    def ran(self, *, rows: int, tokens: int, padding: int, seconds: float) -> None: ...

    def queue_size(self, requests: int) -> None: ...

    def running(self, requests: int) -> None: ...

    def first_token(self, seconds: float) -> None: ...

    def inter_token(self, seconds: float) -> None: ...


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
    bundle = read_bundle(path)
    tokenizer = Tokenizer.from_file(bundle.tokenizer, bundle.manifest.tokenizer)
    decoder = Decoder(bundle.graph, bundle.manifest, slots=work.streams, capacity=work.prompt + work.tokens)
    engine = Generator(decoder, tokenizer, LIMITS, Unwatched())
    engine.start()
    vocabulary = bundle.manifest.limits.vocabulary_size
    await run(engine, vocabulary, work)  # takes up the slots' memory, which llama.cpp has from the beginning
    report(work, *await run(engine, vocabulary, work))
    engine.close()


if __name__ == "__main__":
    path, work, _ = read_arguments(__doc__)
    asyncio.run(main(Path(path), work))
