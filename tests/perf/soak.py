"""Minutes of mixed load on a real server, and whether all is as before at the end.

    python -m tests.perf.soak [--seconds 600] [--callers 24] [--seed 0]         or: make soak [SECONDS=600]

Callers generate with every option, classify, embed and tokenize; some leave early, some set deadlines that pass, some ask for
what cannot be. At the end: no slot is held and nobody waits, memory has not grown, the server's log has every call once with
the code that its caller saw, and whoever asked the same again has got the same answer, to the bit, each time.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from polyhead.client import (
    AsyncClient,
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    PolyheadError,
    RetryPolicy,
)
from polyhead.client.requests import GenerateOptions
from tests import bundles
from tests.perf.served import Served, served

LIMITS = {"slots": 8, "max_queue_requests": 8, "prefix_slots": 2}
WORDS = ("the", "cat", "sat", "on", "mat", "and", "dog", "a")
CHOICES: dict[str, tuple[Any, ...]] = {
    "temperature": (0.0, 0.7, 1.5),
    "top_k": (1, 20, 200),
    "top_p": (0.5, 0.95),
    "min_p": (0.05,),
    "typical_p": (0.9,),
    "repetition_penalty": (1.2,),
    "presence_penalty": (0.5,),
    "frequency_penalty": (0.5,),
    "logit_bias": ({7: 2.0},),
    "bad_words": (["cat"],),
    "stop": (["at", "og"],),
    "min_tokens": (4,),
    "ignore_eos": (True,),
    "logprobs": (0, 5),
    "prompt_logprobs": (1,),
    "samples": (2, 4),
    "prompt_lookup": (True,),
    "regex": ("[a-z]{1,20}",),
    "json_schema": ({"enum": ["cat", "dog"]},),
    "choices": (["cat", "dog"],),
    "grammar": ('start: "<" /[a-c]+/ ">"',),
}
"""Options of a generation, and values they may have."""
CONSTRAINTS = ("regex", "json_schema", "choices", "grammar")
"""A request has one of these at most."""
REGULARS = 12
"""So many requests come again and again; every fifth generation is one of them."""
SETTLED = 1 / 3
"""Of the run: until then memory may grow as bindings, caches and heaps fill."""
GROWTH_BYTES = 24e6
"""Which it may grow by from then on: heaps breathe."""

ALLOWED = {
    "OK": {"OK"},
    "RESOURCE_EXHAUSTED": {"RESOURCE_EXHAUSTED"},
    "INVALID_ARGUMENT": {"INVALID_ARGUMENT"},
    "CANCELLED": {"CANCELLED", "OK"},
    "DEADLINE_EXCEEDED": {"DEADLINE_EXCEEDED", "CANCELLED", "OK", "RESOURCE_EXHAUSTED"},
}
"""What the server may call an end that the caller calls so: it may have answered or refused just before the caller left."""
SEEN = {
    Overloaded: "RESOURCE_EXHAUSTED",
    InvalidInput: "INVALID_ARGUMENT",
    Cancelled: "CANCELLED",
    DeadlineExceeded: "DEADLINE_EXCEEDED",
}


def options_of(rng: random.Random) -> GenerateOptions:
    """Some options, each with one of its values."""
    names = rng.sample(sorted(CHOICES), rng.randint(0, 5))
    constrained = [name for name in names if name in CONSTRAINTS]
    chosen = [name for name in names if name not in constrained[1:]]
    options = {name: rng.choice(CHOICES[name]) for name in chosen}
    options |= {"seed": rng.getrandbits(64), "max_tokens": rng.choice((8, 30, 120))}
    return options  # type: ignore[return-value]


def text_of(rng: random.Random, most: int = 40) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


@dataclass
class Soak:
    """What callers do, and what they saw."""

    client: AsyncClient
    ends: dict[str, str] = field(default_factory=dict)
    """By request id: the code with which it ended for its caller."""
    answers: dict[int, object] = field(default_factory=dict)
    """The first answer to each request that comes again."""
    repeated: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    async def call(self, request_id: str, rng: random.Random) -> None:
        """One call of some kind."""
        kinds: list[Callable[[str, random.Random], Awaitable[object]]] = [
            *[self._generate] * 4,
            *[self._ask_again] * 2,
            *[self._leave] * 2,
            *[self._hurry] * 2,
            self._classify,
            self._embed,
            self._tokenize,
            self._nonsense,
        ]
        act = rng.choice(kinds)
        self.kinds[act.__name__.strip("_")] += 1
        try:
            await act(request_id, rng)
        except PolyheadError as error:
            self.ends[request_id] = next((code for kind, code in SEEN.items() if isinstance(error, kind)), str(error))
        else:
            self.ends.setdefault(request_id, "OK")

    async def _generate(self, request_id: str, rng: random.Random) -> None:
        await self.client.generate(text_of(rng), request_id=request_id, **options_of(rng)).results()

    async def _ask_again(self, request_id: str, rng: random.Random) -> None:
        """Prompt lookup alone may change bits."""
        which = rng.randrange(REGULARS)
        same = random.Random(which)
        options = options_of(same)
        options.pop("prompt_lookup", None)
        options["logprobs"] = 3
        generations = await self.client.generate(text_of(same), request_id=request_id, **options).results()
        bits = tuple((g.text, g.token_ids, g.logprobs, g.prompt_logprobs, g.finish_reason) for g in generations)
        first = self.answers.setdefault(which, bits)
        assert bits == first, f"{request_id}: regular request {which} got another answer than the first time"
        self.repeated += 1

    async def _leave(self, request_id: str, rng: random.Random) -> None:
        """After some pieces."""
        stream = self.client.generate(text_of(rng), request_id=request_id, max_tokens=300, ignore_eos=True)
        for _ in range(rng.randint(1, 12)):
            await anext(stream)
        await stream.close()
        self.ends[request_id] = "CANCELLED"

    async def _hurry(self, request_id: str, rng: random.Random) -> None:
        timeout = rng.uniform(0.1, 0.5)
        call = self.client.generate(text_of(rng), request_id=request_id, timeout=timeout, max_tokens=800, samples=2)
        await call.results()

    async def _classify(self, request_id: str, rng: random.Random) -> None:
        texts = [text_of(rng, 20) for _ in range(rng.randint(1, 40))]
        await self.client.classify(texts, request_id=request_id, truncate=True)

    async def _embed(self, request_id: str, rng: random.Random) -> None:
        texts = [text_of(rng, 20) for _ in range(rng.randint(1, 40))]
        await self.client.embed(texts, request_id=request_id, truncate=True)

    async def _tokenize(self, request_id: str, rng: random.Random) -> None:
        await self.client.tokenize(text_of(rng), bundles.GENERATOR, request_id=request_id)

    async def _nonsense(self, request_id: str, rng: random.Random) -> None:
        mistakes: tuple[GenerateOptions, ...] = ({"temperature": -1.0}, {"regex": "("}, {"max_tokens": 10**6})
        wrong = rng.choice(mistakes)
        await self.client.generate("the cat", request_id=request_id, **wrong).result()


@dataclass(frozen=True)
class Report:
    """Of a run."""

    soak: Soak
    server: dict[str, str]
    """The code by request id, as logged."""
    twice: list[str]
    """Requests that were logged more than once."""
    settled_bytes: int
    """Most memory in the third of the run after it had settled."""
    final_bytes: int
    """Most in the last third."""
    gauges: dict[str, float]

    def check(self) -> None:
        """Raises AssertionError with what is not as it should be."""
        assert not self.twice, f"ended twice: {self.twice[:5]}"
        for request_id, seen in self.soak.ends.items():
            logged = self.server.get(request_id)
            left = seen in ("CANCELLED", "DEADLINE_EXCEEDED")  # perhaps before its request arrived
            assert logged in ALLOWED.get(seen, ()) or (left and logged is None), (
                f"{request_id}: {seen}, logged {logged}"
            )
        assert set(self.server) <= set(self.soak.ends), "the log has calls that nobody made"
        for name in ("queue_size", "slots_used", "requests_running"):
            assert self.gauges[f"polyhead_{name}"] == 0, f"{name} is {self.gauges[f'polyhead_{name}']} at the end"
        assert self.gauges["polyhead_requests_total"] == len(self.server)
        grown = self.final_bytes - self.settled_bytes
        assert grown < GROWTH_BYTES, f"memory grew by {grown / 1e6:.1f} MB"

    def __str__(self) -> str:
        soak, grown = self.soak, self.final_bytes - self.settled_bytes
        return "\n".join(
            [
                f"{len(soak.ends):,} calls: " + ", ".join(f"{n:,} {kind}" for kind, n in soak.kinds.most_common()),
                "ended: " + ", ".join(f"{n:,} {code}" for code, n in Counter(soak.ends.values()).most_common()),
                f"{soak.repeated:,} answers to {len(soak.answers)} requests that came again, the same bits each time",
                f"memory: {self.settled_bytes / 1e6:.1f} MB at most in the second third, {grown / 1e6:+.1f} MB in the last",
            ]
        )


async def run(server: Served, seconds: float, callers: int, seed: int = 0) -> Report:
    """Raises AssertionError at the first answer whose bits differ."""
    numbers = count()
    began = time.monotonic()
    memory: list[tuple[float, int]] = []

    async def caller(soak: Soak) -> None:
        while time.monotonic() < began + seconds:
            number = next(numbers)
            await soak.call(f"soak-{number}", random.Random(f"{seed} {number}"))

    async def watch() -> None:
        while True:
            memory.append((time.monotonic() - began, server.resident_bytes))
            await asyncio.sleep(0.25)

    async with AsyncClient(server.target, retry=RetryPolicy(attempts=1)) as client:
        soak = Soak(client)
        watching = asyncio.create_task(watch())
        async with asyncio.TaskGroup() as tasks:
            for _ in range(callers):
                tasks.create_task(caller(soak))
        watching.cancel()
    gauges = await asyncio.to_thread(_settled, server)
    logged = [(line["request_id"], line["code"]) for line in server.calls()]
    twice = [request_id for request_id, n in Counter(request_id for request_id, _ in logged).items() if n > 1]
    middle = [size for at, size in memory if seconds * SETTLED <= at < 2 * seconds * SETTLED]
    final = [size for at, size in memory if at >= 2 * seconds * SETTLED]
    return Report(soak, dict(logged), twice, max(middle), max(final), gauges)


def _settled(server: Served) -> dict[str, float]:
    """Metrics once the last callers' leaving has reached the engine, or after 10 seconds."""
    until = time.monotonic() + 10
    while True:
        gauges = server.gauges()
        busy = gauges["polyhead_slots_used"] or gauges["polyhead_requests_running"]
        if not busy or time.monotonic() > until:
            return gauges
        time.sleep(0.05)


def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder, served(bundles.models_folder(), Path(folder), **LIMITS) as server:
        report = asyncio.run(run(server, options.seconds, options.callers, options.seed))
    print(report)
    report.check()
    print("at the end no slot is held, nobody waits, and the log has every call once")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--callers", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
