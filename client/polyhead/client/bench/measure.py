"""From settings to what came of every request: find the model, warm up, send the load."""

from __future__ import annotations  # grpc's classes take type arguments only in their stubs

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import grpc.aio

from polyhead.client.base import CHANNEL_OPTIONS, resolve_target
from polyhead.client.bench import calls, load, payloads, workload
from polyhead.client.bench.errors import BenchError
from polyhead.client.bench.load import Send
from polyhead.client.bench.outcome import Outcome
from polyhead.client.bench.progress import progress
from polyhead.client.bench.settings import EncodeSettings, GenerateSettings, Settings
from polyhead.client.bench.trace import read_trace
from polyhead.client.bench.workload import GenerateJob, Job
from polyhead.client.results import Model
from polyhead.client.retry import RetryPolicy
from polyhead.client.sync import Client
from polyhead.v1.inference_pb2_grpc import InferenceServiceStub

if TYPE_CHECKING:  # names that only the type stubs of the generated code have
    from polyhead.v1.inference_pb2_grpc import InferenceServiceAsyncStub

J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Measurement:
    """What came of the measured requests, in the order in which they ended."""

    model: Model
    outcomes: list[Outcome]
    seconds: float
    """That all of it took, failures included."""
    cpu_seconds: float
    """That this process computed meanwhile."""


@dataclass(frozen=True)
class _Work(Generic[J]):
    """Endless or bounded jobs, by seed, and how to send one."""

    jobs: Callable[[str], Iterator[J]]
    send: Callable[[InferenceServiceAsyncStub, str], Send[J]]


def measure_generate(settings: GenerateSettings) -> Measurement:
    """Raises BenchError if settings and model do not go together, PolyheadError for an option that fits no request or if the
    warm-up fails.
    """
    model = find_model(settings, "generate")
    if settings.shared_prefix > model.max_tokens:
        limit = f"is longer than what the model takes, {model.max_tokens}"
        raise BenchError(f"a shared prefix of {settings.shared_prefix} tokens {limit}; lower --shared-prefix")
    payloads.generate_requests(settings, model, "")(GenerateJob(0))  # all requests have the same options
    rows = _trace_jobs(settings, model)

    def jobs(seed: str) -> Iterator[GenerateJob]:
        if rows:
            return iter(rows)
        limits = (model.max_tokens, model.max_answer_tokens)
        return workload.generate_jobs(seed, settings.rate, settings.prompt, settings.answer, *limits)

    def send(stub: InferenceServiceAsyncStub, seed: str) -> Send[GenerateJob]:
        request = payloads.generate_requests(settings, model, seed)
        return lambda job: calls.generate(stub, request(job), settings.timeout)

    return asyncio.run(_measure(settings, model, _Work(jobs, send)))


def _trace_jobs(settings: GenerateSettings, model: Model) -> list[GenerateJob]:
    trace = settings.trace
    if trace is None:
        return []
    bounds = (settings.requests, settings.seconds)
    limits = (model.max_tokens, *bounds)
    return read_trace(trace.path, *limits, answer_limit=model.max_answer_tokens, scale=trace.scale, clip=trace.clip)


def measure_encode(settings: EncodeSettings) -> Measurement:
    """Raises as `measure_generate` does."""
    model = find_model(settings, settings.task)
    longest = settings.tokens.largest or 1
    if not settings.texts and settings.words is None and longest > model.max_tokens:
        limit = f"are too long for the model, which takes {model.max_tokens}"
        raise BenchError(f"inputs of {longest} tokens {limit}; lower --tokens")

    def send(stub: InferenceServiceAsyncStub, seed: str) -> Send[Job]:
        request = payloads.encode_requests(settings, model, seed)
        return lambda job: calls.encode(stub, request(job), settings.timeout)

    return asyncio.run(_measure(settings, model, _Work(lambda seed: workload.arrivals(seed, settings.rate), send)))


def find_model(settings: Settings, task: str) -> Model:
    """The model asked for, else the only one that does the task, with its manifest; BenchError if there is no such."""
    with Client(settings.target, timeout=settings.timeout, retry=RetryPolicy(attempts=1)) as client:
        name = settings.model
        if name is None:
            names = sorted(
                {
                    model.name
                    for model in client.models()
                    if model.task == task and (model.state == "ready" or model.on_demand)
                }
            )
            if len(names) != 1:
                there = (
                    f"choose one of {', '.join(names)} with --model" if names else "`polyhead models` shows what it has"
                )
                raise BenchError(f"the server has {len(names) or 'no'} models that {task}; {there}")
            (name,) = names
        model = client.model(name, version=settings.model_version)
    if model.task != task or model.bundle is None:
        raise BenchError(f"model {name} does not {task}; `polyhead models` shows what does")
    return model


async def _measure(settings: Settings, model: Model, work: _Work[J]) -> Measurement:
    async with grpc.aio.insecure_channel(resolve_target(settings.target), options=CHANNEL_OPTIONS) as channel:
        stub = InferenceServiceStub(channel)
        await _warm_up(settings, work, stub)
        outcomes: list[Outcome] = []
        jobs = itertools.islice(work.jobs(settings.load_seed), settings.requests)
        send = work.send(stub, settings.load_seed)
        begin, cpu = time.perf_counter(), time.process_time()
        async with progress(outcomes, settings.requests):
            if settings.open_loop:
                await load.open_loop(jobs, settings.seconds_limit, send, outcomes)
            else:
                await load.closed_loop(jobs, settings.concurrency, settings.seconds_limit, send, outcomes)
        return Measurement(model, outcomes, time.perf_counter() - begin, time.process_time() - cpu)


async def _warm_up(settings: Settings, work: _Work[J], stub: InferenceServiceAsyncStub) -> None:
    """A closed loop of requests that are not measured; raises what goes wrong, but for rejections.

    Its prompts are others than those of the measurement, so that the server finds nothing of them in a cache.
    """
    seed = f"{settings.load_seed} warm-up"
    jobs = itertools.islice(work.jobs(seed), settings.warmup_requests)
    outcomes: list[Outcome] = []
    await load.closed_loop(jobs, settings.concurrency, None, work.send(stub, seed), outcomes)
    for outcome in outcomes:
        if outcome.error and not outcome.rejected:
            raise outcome.error
