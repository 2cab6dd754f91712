"""An engine in process for measurements, and callers that note when each token came."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from polyhead.server.bundle import read_bundle
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.observer import EngineObserver
from polyhead.server.engine.scheduler import GeneratorLimits
from polyhead.server.engine.sequence import GenerationRequest, Sampling, Stopping
from polyhead.server.runtime.decoder import Decoder
from polyhead.server.runtime.memory import settle
from polyhead.server.tokenizer import Tokenizer
from tests.observers import Unwatched

DEFAULT_BUDGET = 32


@contextmanager
def engine_of(
    folder: Path,
    slots: int,
    capacity: int,
    budget: int = DEFAULT_BUDGET,
    observer: EngineObserver | None = None,
) -> Iterator[Generator]:
    """The engine of a bundle, as the server has it, without a prefix cache; its memory is touched as slots fill."""
    bundle = read_bundle(folder)
    tokenizer = Tokenizer.from_file(bundle.tokenizer, bundle.manifest.tokenizer)
    decoder = Decoder(bundle.graph, bundle.manifest, slots=slots, capacity=capacity)
    settle()
    limits = GeneratorLimits(max_queue_requests=1024, max_queue_tokens=2**20, prefill_budget_tokens=budget)
    engine = Generator(decoder, tokenizer, limits, observer or Unwatched())
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


@dataclass
class Caller:
    """One greedy request of random tokens, and when its pieces came, by `perf_counter`."""

    request: GenerationRequest
    sent: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with the first token."""

    @classmethod
    def of(cls, seed: int, prompt: int, answer: int, sampling: Sampling | None = None) -> "Caller":
        """Ids below 1,000 are in every vocabulary measured here."""
        ids = tuple(np.random.default_rng(seed).integers(10, 1000, prompt).tolist())
        stopping = Stopping(max_tokens=answer, ignore_eos=True)
        return cls(GenerationRequest(ids, sampling or Sampling(seed=0, temperature=0.0), stopping))

    async def run(self, engine: Generator) -> None:
        """Returns when the answer is over."""
        self.sent = time.perf_counter()
        answer = engine.submit(self.request)
        try:
            async for piece in answer:
                self.arrivals.append(time.perf_counter())
                self.tokens += len(piece.token_ids)
                self.begun.set()
        finally:
            answer.cancel()

    @property
    def time_to_first_token(self) -> float:
        return self.arrivals[0] - self.sent

    def gaps(self, begin: float, end: float) -> list[float]:
        """Between tokens of which the second came in [begin, end)."""
        return [later - earlier for earlier, later in pairwise(self.arrivals) if begin <= later < end]
