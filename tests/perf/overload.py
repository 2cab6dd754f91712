"""What a server does with three times the load that it can bear: who is accepted, who is turned away, and how soon all is well again.

    python -m tests.perf.overload MODELS [--seconds 120] [--slots 16] [--queue 4] [--prompt 16-128] [--answer 16-64]

A closed loop finds the capacity of `polyhead serve`, unless `--capacity` says how many requests a second it is. Then requests
come at random times (Poisson), first at 0.8 times the capacity, then at three times it, then at 0.8 again. Printed are the
latencies of each phase, how long the server took to turn a request away by its own log, its memory, and that every request was
answered or rejected exactly once.
"""

import argparse
import asyncio
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from rich.console import Console
from rich.table import Table

from polyhead.client.base import CHANNEL_OPTIONS
from polyhead.client.bench import calls, load, payloads, workload
from polyhead.client.bench.lengths import Lengths, parse_lengths
from polyhead.client.bench.measure import find_model
from polyhead.client.bench.outcome import Outcome
from polyhead.client.bench.settings import GenerateSettings
from polyhead.client.bench.workload import GenerateJob
from polyhead.v1.inference_pb2_grpc import InferenceServiceStub
from tests.perf.served import Served, served

CALM, OVER = 0.8, 3.0
"""Loads, in capacities."""
RECOVERY_SECONDS = 2.0
"""After the queue has emptied, requests are to be served as before."""
SAMPLED_SECONDS = 0.25


@dataclass(frozen=True)
class Shape:
    """Of the load; times in seconds."""

    streams: int
    """As many as the server has room for, in slots and queue."""
    prompt: Lengths
    answer: Lengths
    calm_seconds: float
    """Of each phase but the overload."""
    over_seconds: float
    capacity: float | None = None
    """Requests a second; None: measure it."""


@dataclass
class Sent:
    """A request and what came of it."""

    request_id: str
    job: GenerateJob
    outcome: Outcome


@dataclass(frozen=True)
class Sample:
    """How the server was at a time of `perf_counter`."""

    time: float
    resident_bytes: int
    waiting: float
    running: float


@dataclass
class Observed:
    """All of a run."""

    capacity: float
    calm: list[Sent]
    over: list[Sent]
    after: list[Sent]
    """Sent at the calm rate again, right after the overload."""
    over_ended: float
    """When the last of `over` was sent, by `perf_counter`."""
    samples: list[Sample]
    logged: list[dict[str, Any]] = field(default_factory=list)
    """The server's line for each call of all phases."""

    @property
    def all_sent(self) -> list[Sent]:
        return [*self.calm, *self.over, *self.after]

    @property
    def answered_rate(self) -> float:
        """Requests a second, of those sent in the overload."""
        answered = sum(sent.outcome.completed for sent in self.over)
        return answered / (self.over_ended - self.over[0].outcome.sent)

    @property
    def emptied(self) -> float:
        """When the queue was first seen empty after the overload."""
        return next(s.time for s in self.samples if s.time > self.over_ended and s.waiting == 0)

    @property
    def recovered(self) -> list[Sent]:
        """Sent when all should be well again."""
        return [sent for sent in self.after if sent.outcome.sent >= self.emptied + RECOVERY_SECONDS]

    @property
    def rejection_seconds(self) -> list[float]:
        """From a call's arrival to RESOURCE_EXHAUSTED, in the server."""
        return [line["seconds"] for line in self.logged if line["code"] == "RESOURCE_EXHAUSTED"]

    @property
    def growth_bytes(self) -> int:
        """Most memory in the last third of the overload over the most in the first third."""
        begin, end = self.over[0].outcome.sent, self.over_ended
        first = [s.resident_bytes for s in self.samples if begin <= s.time < begin + (end - begin) / 3]
        last = [s.resident_bytes for s in self.samples if end - (end - begin) / 3 <= s.time < end]
        return max(last) - max(first)

    def check_exactly_once(self) -> None:
        """Raises AssertionError unless each request ended once, the same way for its caller and in the server's log."""
        ours = {sent.request_id: sent.outcome for sent in self.all_sent}
        assert len(ours) == len(self.all_sent)
        theirs = Counter(line["request_id"] for line in self.logged)
        assert theirs == Counter(ours.keys()), "a request was lost or ended twice"
        codes = {line["request_id"]: line["code"] for line in self.logged}
        for sent in self.all_sent:
            outcome, code = sent.outcome, codes[sent.request_id]
            assert outcome.completed or outcome.rejected, f"{sent.request_id}: {outcome.error}"
            assert code == ("OK" if outcome.completed else "RESOURCE_EXHAUSTED"), (sent.request_id, code)
            assert outcome.generated_tokens == (sent.job.max_tokens if outcome.completed else 0)


class Driver:
    """Sends jobs to a server and keeps what came of them."""

    def __init__(self, server: Served, shape: Shape, channel: grpc.aio.Channel) -> None:
        self._server = server
        self._shape = shape
        settings = GenerateSettings(
            target=server.target, prompt=shape.prompt, answer=shape.answer, sampling={"temperature": 0.0}
        )
        self._stub = InferenceServiceStub(channel)
        self._settings = settings
        self._model = find_model(settings, "generate")
        self.samples: list[Sample] = []

    def jobs(self, phase: str, rate: float | None) -> Iterator[GenerateJob]:
        return workload.generate_jobs(phase, rate, self._shape.prompt, self._shape.answer, self._model.max_tokens)

    async def capacity(self, seconds: float) -> float:
        """Completed requests a second while all slots and the queue are full: of the last three quarters of a closed loop."""
        kept: list[Sent] = []
        began = time.perf_counter()
        sender = self._sender("capacity", kept)
        await load.closed_loop(self.jobs("capacity", None), self._shape.streams, seconds, sender, [])
        within = [sent for sent in kept if seconds / 4 < sent.outcome.ended - began <= seconds]
        return len(within) / (0.75 * seconds)

    async def open(self, phase: str, jobs: Iterator[GenerateJob]) -> list[Sent]:
        """What came of every job, in order of sending."""
        kept: list[Sent] = []
        await load.open_loop(jobs, None, self._sender(phase, kept), [])
        return sorted(kept, key=lambda sent: sent.outcome.sent)

    def _sender(self, phase: str, kept: list[Sent]) -> load.Send[GenerateJob]:
        request_of = payloads.generate_requests(self._settings, self._model, phase)

        async def send(job: GenerateJob) -> Outcome:
            request = request_of(job)
            outcome = await calls.generate(self._stub, request, self._settings.timeout)
            kept.append(Sent(request.request_id, job, outcome))
            return outcome

        return send

    async def watch(self) -> None:
        """Look at the server until cancelled."""
        while True:
            gauges = await asyncio.to_thread(self._server.gauges)
            waiting, running = gauges.get("polyhead_queue_size", 0.0), gauges.get("polyhead_requests_running", 0.0)
            self.samples.append(Sample(time.perf_counter(), self._server.resident_bytes, waiting, running))
            await asyncio.sleep(SAMPLED_SECONDS)


async def observe(server: Served, shape: Shape) -> Observed:
    """Put the load on a server that nobody else calls."""
    async with grpc.aio.insecure_channel(server.target, options=CHANNEL_OPTIONS) as channel:
        driver = Driver(server, shape, channel)
        measured = await driver.capacity(shape.calm_seconds if shape.capacity is None else shape.calm_seconds / 4)
        capacity = shape.capacity or measured
        before = len(server.calls())
        watching = asyncio.create_task(driver.watch())
        calm_jobs = driver.jobs("calm", CALM * capacity)
        calm = await driver.open("calm", _until(calm_jobs, shape.calm_seconds))
        over_jobs = list(_until(driver.jobs("over", OVER * capacity), shape.over_seconds))
        after_jobs = _until(driver.jobs("after", CALM * capacity), shape.calm_seconds)
        shifted = [replace(j, index=j.index + len(over_jobs), due=j.due + shape.over_seconds) for j in after_jobs]
        both = await driver.open("over", iter([*over_jobs, *shifted]))
        await asyncio.sleep(2 * SAMPLED_SECONDS)  # one more look at the server
        watching.cancel()
    over, after = both[: len(over_jobs)], both[len(over_jobs) :]
    logged = server.calls()[before:]
    return Observed(capacity, calm, over, after, over[-1].outcome.sent, driver.samples, logged)


def _until(jobs: Iterator[GenerateJob], seconds: float) -> Iterator[GenerateJob]:
    return itertools.takewhile(lambda job: job.due < seconds, jobs)


def percentile(seconds: list[float], share: float) -> float:
    """In milliseconds; NaN of nothing."""
    return 1000 * float(np.percentile(seconds, 100 * share)) if seconds else float("nan")


def latencies(phase: list[Sent]) -> dict[str, list[float]]:
    """Seconds, of who was accepted."""
    done = [sent.outcome for sent in phase if sent.outcome.completed]
    return {
        "whole answer": [outcome.latency for outcome in done],
        "first token": [seconds for outcome in done if (seconds := outcome.time_to_first_token)],
        "each next token": [seconds for outcome in done if (seconds := outcome.time_per_output_token)],
    }


def table(seen: Observed) -> Table:
    table = Table("load, in capacities", "sent", "rejected", "", "p50, ms", "p95, ms", title="who was accepted")
    phases = {f"{CALM}": seen.calm, f"{OVER}": seen.over, f"{CALM} again, from 2 s after": seen.recovered}
    for name, phase in phases.items():
        rejected = sum(sent.outcome.rejected for sent in phase)
        for place, (what, seconds) in enumerate(latencies(phase).items()):
            first = (name, str(len(phase)), str(rejected)) if place == 0 else ("", "", "")
            table.add_row(*first, what, f"{percentile(seconds, 0.5):.0f}", f"{percentile(seconds, 0.95):.0f}")
    return table


def summary(seen: Observed) -> str:
    seconds = seen.rejection_seconds
    client = [sent.outcome.latency for sent in seen.over if sent.outcome.rejected]
    answered = sum(sent.outcome.completed for sent in seen.all_sent)
    lines = [
        f"capacity: {seen.capacity:.2f} requests/s; answered of those sent in the overload: {seen.answered_rate:.2f} a second",
        f"sent {len(seen.all_sent)} = answered {answered} + rejected {len(seconds)}, each exactly once",
        f"turned away, in the server: p50 {percentile(seconds, 0.5):.2f} ms, p95 {percentile(seconds, 0.95):.2f} ms, "
        f"worst {percentile(seconds, 1):.2f} ms; for the caller: p95 {percentile(client, 0.95):.1f} ms",
        f"memory: {max(s.resident_bytes for s in seen.samples) / 1e6:.0f} MB at most, from the first to the last third of "
        f"the overload {seen.growth_bytes / 1e6:+.1f} MB",
        f"the queue was empty {seen.emptied - seen.over_ended:.2f} s after the last request of the overload",
    ]
    return "\n".join(lines)


def main(options: argparse.Namespace) -> None:
    shape = Shape(
        options.slots + options.queue,
        options.prompt,
        options.answer,
        options.seconds / 3,
        options.seconds,
        options.capacity,
    )
    limits = {"slots": options.slots, "slot_tokens": options.slot_tokens, "max_queue_requests": options.queue}
    with tempfile.TemporaryDirectory() as folder, served(options.models, Path(folder), **limits) as server:
        seen = asyncio.run(observe(server, shape))
    seen.check_exactly_once()
    Console(width=120).print(table(seen))
    print(summary(seen))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="a models folder with one model that generates")
    parser.add_argument("--seconds", type=float, default=120.0, help="of overload")
    parser.add_argument("--capacity", type=float, help="requests a second, in place of measuring it")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--slot-tokens", type=int, default=256)
    parser.add_argument("--queue", type=int, default=4, help="requests that may wait")
    parser.add_argument("--prompt", type=parse_lengths, default="16-128")
    parser.add_argument("--answer", type=parse_lengths, default="16-64")
    main(parser.parse_args())
