"""Who serves, and who hears of it, over a real channel."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from polyhead.server.rpc.health import HealthServicer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

M = health_pb2.HealthCheckRequest(service="m")


@pytest.fixture
def health() -> HealthServicer:
    return HealthServicer()


@pytest.fixture
async def stub(health: HealthServicer) -> AsyncIterator[Any]:
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, 0)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        yield health_pb2_grpc.HealthStub(channel)


async def test_a_service_that_nobody_knows_or_that_is_forgotten_is_not_found(health: HealthServicer, stub: Any) -> None:
    health.set("m", True)
    assert (await stub.Check(M)).status == SERVING
    health.forget("m")
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await stub.Check(M)


async def test_who_watches_hears_of_every_change_also_after_another_has_left(health: HealthServicer, stub: Any) -> None:
    first, second = stub.Watch(M), stub.Watch(M)
    assert [(await watch.read()).status for watch in (first, second)] == [UNKNOWN, UNKNOWN]
    health.set("m", True)
    assert [(await watch.read()).status for watch in (first, second)] == [SERVING, SERVING]
    first.cancel()
    for serving, status in ((False, NOT_SERVING), (True, SERVING)):
        health.set("m", serving)
        assert (await second.read()).status == status
    health.forget("m")
    assert (await second.read()).status == UNKNOWN
    second.cancel()


async def test_nothing_serves_once_the_server_shuts_down(health: HealthServicer, stub: Any) -> None:
    health.set("m", True)
    health.shut_down()
    health.set("m", True)
    assert (await stub.Check(M)).status == NOT_SERVING
