"""Fixtures of the client's tests."""

from collections.abc import AsyncIterator, Iterator

import pytest

from polyhead.client import AsyncClient, Client, RetryPolicy
from tests.unit.client.scripted_server import ScriptedServer

PATIENCE = RetryPolicy(attempts=3, initial_backoff=0.01, max_backoff=0.02)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.target, timeout=20, retry=PATIENCE) as client:
        yield client


@pytest.fixture
async def async_client(server: ScriptedServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.target, timeout=20, retry=PATIENCE) as client:
        yield client
