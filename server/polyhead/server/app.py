"""Wiring and life cycle: build the server, load the models, serve, drain, stop. Nothing else."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from polyhead.server.announcer import Announcer
from polyhead.server.config import Settings
from polyhead.server.errors import PolyheadError
from polyhead.server.loader import Loader, memory_needed
from polyhead.server.metrics import Metrics
from polyhead.server.repository import Load, Policy, Repository
from polyhead.server.rpc.health import HealthServicer
from polyhead.server.rpc.interceptors import CallInterceptor
from polyhead.server.rpc.models import ModelServicer
from polyhead.server.rpc.servicers import InferenceServicer
from polyhead.server.rpc.workers import Workers
from polyhead.server.runtime import threads
from polyhead.v1 import inference_pb2, model_pb2
from polyhead.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from polyhead.v1.model_pb2_grpc import add_ModelServiceServicer_to_server

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
MODELS = model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name
LAST_WORDS_SECONDS = 0.5
"""What is left of a drained server: statuses on their way out, and health watches, which never end by themselves."""
CANCEL_SECONDS = 5
"""By then every cancelled call has ended, unless something is broken."""

WATCH_SECONDS = 1
"""By then health tells of an engine that died."""

KEEPALIVE = (
    # A peer that vanished without a word is found within 80 s under a running call, and its call cancelled.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Clients may ping as often; ours does every 320 s.
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class App:
    """A server that listens. Models may still be loading: `loaded` ends when every one is ready or failed."""

    settings: Settings
    metrics: Metrics
    repository: Repository
    port: int
    """Where gRPC is served, also if the settings said 0."""
    metrics_port: int | None
    """Where /metrics is served; None if it is off."""
    loaded: "asyncio.Task[None]"
    _status: HealthServicer
    _calls: CallInterceptor

    async def drain(self) -> None:
        """Say that we stop, refuse new calls, and wait for those that run, up to `drain_seconds`. Engines take requests
        until then: a call that runs may still be tokenizing."""
        self.loaded.cancel()
        self._status.shut_down()
        await self.repository.stop()
        log.info("draining", at_most_seconds=self.settings.drain_seconds)
        try:
            async with asyncio.timeout(self.settings.drain_seconds):
                await self._calls.drain()
                await self.repository.drain()
        except TimeoutError:
            log.warning("calls still run and will be cut", after_seconds=self.settings.drain_seconds)


@asynccontextmanager
async def serve(settings: Settings, load: Load | None = None) -> AsyncIterator[App]:
    """Listen and load models; on exit stop at once, so `App.drain` first. Raises PolyheadError when it can't begin.

    `load` makes live models in another way than from bundles on disk.
    """
    threads.configure(settings.threads)
    metrics, status = Metrics(), HealthServicer()
    announcer = Announcer(status, metrics, ("", INFERENCE))
    policy = policy_of(settings)
    repository = Repository(settings.models, load or Loader(settings, metrics), policy, announcer.changed)
    calls, workers = CallInterceptor(metrics, settings.max_concurrent_calls), Workers(settings.max_queue_requests)
    server = build_server(settings, repository, workers, status, calls)
    port = bind(server, settings)
    with serve_metrics(settings, metrics) as metrics_port:
        status.set(MODELS, True)
        announcer.announce(repository)
        await server.start()
        loaded = asyncio.create_task(load_models(repository, announcer))
        watching = asyncio.create_task(watch(repository, announcer, settings.reload_seconds, loaded))
        log.info("listening", grpc=f"{settings.host}:{port}", metrics=metrics_address(settings, metrics_port))
        try:
            yield App(settings, metrics, repository, port, metrics_port, loaded, status, calls)
        finally:
            for task in (loaded, watching):
                task.cancel()
            await asyncio.wait([loaded, watching])
            calls.cut()
            await server.stop(LAST_WORDS_SECONDS)
            # grpc cancels what still runs but does not wait until it has ended.
            await asyncio.wait([asyncio.create_task(calls.drain())], timeout=CANCEL_SECONDS)
            await repository.stop()
            workers.close()
            await asyncio.to_thread(repository.close)
            log.info("stopped")


def policy_of(settings: Settings) -> Policy:
    return Policy(
        versions=settings.versions,
        on_demand=settings.on_demand,
        max_memory=settings.max_model_memory,
        estimate=partial(memory_needed, settings=settings),
    )


def build_server(
    settings: Settings, repository: Repository, workers: Workers, status: HealthServicer, calls: CallInterceptor
) -> grpc.aio.Server:
    server = grpc.aio.server(
        interceptors=[calls],
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # else a second server on the port gets half of the calls
            *KEEPALIVE,
        ],
    )
    add_InferenceServiceServicer_to_server(InferenceServicer(repository, settings, workers), server)
    add_ModelServiceServicer_to_server(ModelServicer(repository, allow_control=settings.allow_model_control), server)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((INFERENCE, MODELS, health_name, reflection.SERVICE_NAME), server)
    return server


def bind(server: grpc.aio.Server, settings: Settings) -> int:
    try:
        return server.add_insecure_port(f"{settings.host}:{settings.port}")
    except RuntimeError as error:
        raise PolyheadError(
            f"can't serve gRPC on {settings.host}:{settings.port}: address in use or not ours"
        ) from error


@contextmanager
def serve_metrics(settings: Settings, metrics: Metrics) -> Iterator[int | None]:
    """Serve /metrics on a thread of its own, unless it is off; gives the port."""
    if settings.metrics_port is None:
        yield None
        return
    host, port = settings.metrics_host, settings.metrics_port
    try:
        http, thread = start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise PolyheadError(f"can't serve metrics on {host}:{port}: {error.strerror or error}") from error
    try:
        yield http.server_port
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def metrics_address(settings: Settings, port: int | None) -> str:
    return "off" if port is None else f"http://{settings.metrics_host}:{port}/metrics"


async def load_models(repository: Repository, announcer: Announcer) -> None:
    """Load everything; the server as a whole serves when all is loaded and at least one model is ready."""
    await repository.load()
    ready = announcer.open(repository)
    log.info("serving", models=ready) if ready else log.error("no model could be loaded")


async def watch(
    repository: Repository, announcer: Announcer, reload_seconds: float, loaded: "asyncio.Task[None]"
) -> None:
    """Once all is loaded: look for new versions, and for engines that have died, so that health soon says so."""
    await asyncio.wait([loaded])
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch_engines(repository, announcer))
        if reload_seconds:
            tasks.create_task(repository.watch(reload_seconds))


async def watch_engines(repository: Repository, announcer: Announcer) -> None:
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        announcer.announce(repository)
