"""A real server in this process, on an ephemeral port, called over a real channel."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from polyhead.server.app import App, serve
from polyhead.server.config import Settings
from polyhead.server.repository import Load
from polyhead.v1 import inference_pb2
from polyhead.v1.inference_pb2_grpc import InferenceServiceStub
from polyhead.v1.model_pb2_grpc import ModelServiceStub
from tests import bundles

if TYPE_CHECKING:  # the stubs of an asyncio channel have names only for type checkers
    from polyhead.v1.inference_pb2_grpc import InferenceServiceAsyncStub
    from polyhead.v1.model_pb2_grpc import ModelServiceAsyncStub


@dataclass(frozen=True)
class Running:
    """A server and what calls it."""

    app: App
    channel: grpc.aio.Channel
    inference: "InferenceServiceAsyncStub"
    models: "ModelServiceAsyncStub"

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.app.port}"

    def metric(self, name: str, **labels: str) -> float:
        """A sample of /metrics; 0 while there is none."""
        return self.app.metrics.registry.get_sample_value(f"polyhead_{name}", labels) or 0.0


Start = Callable[..., Awaitable[Running]]


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """Version 1 of each tiny bundle; read only."""
    return bundles.models_folder()


@pytest.fixture
async def start(models_folder: Path) -> AsyncIterator[Start]:
    """Starts servers: keyword arguments are Settings; `load` and `wait` (for the models) are not."""
    async with AsyncExitStack() as stack:

        async def start(load: Load | None = None, wait: bool = True, **settings: Any) -> Running:
            defaults = {"models": models_folder, "port": 0, "metrics_port": "off"}
            app = await stack.enter_async_context(serve(Settings(**{**defaults, **settings}), load))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{app.port}"))
            if wait:
                await app.loaded
            return Running(app, channel, InferenceServiceStub(channel), ModelServiceStub(channel))

        yield start


@pytest.fixture
async def running(start: Start) -> Running:
    """A server with all tiny models."""
    return await start()


def endless(max_tokens: int = 900) -> inference_pb2.GenerateRequest:
    """A request that keeps a slot busy for much longer than other calls take."""
    stopping = inference_pb2.StoppingCriteria(max_tokens=max_tokens, ignore_eos=True)
    return inference_pb2.GenerateRequest(prompt=inference_pb2.Input(text="the cat"), stopping=stopping)


def unread() -> inference_pb2.GenerateRequest:
    """A request whose answer fits into no buffer, so that it is not over before its caller has read it."""
    request = endless(1000)
    request.logprobs = 20
    return request


async def until(condition: Callable[[], object]) -> None:
    """Wait for what the server does after its answer has left; fails after 10 seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.to_thread(time.sleep, 0.001)  # other threads may be what we wait for
