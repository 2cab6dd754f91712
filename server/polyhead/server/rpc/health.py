"""`grpc.health.v1.Health`, with services that come and go.

The servicer of grpcio-health-checking can't forget a service, and of several that watch one all but the first go without
news once any of them has left.
"""
# ruff: noqa: N802 - gRPC wants methods named as in the .proto

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Says of each name whether it serves. For one event loop."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {}
        self._changed = asyncio.Event()
        self._shut_down = False

    def set(self, name: str, serving: bool) -> None:
        if self._serving.get(name) is not serving:
            self._serving[name] = serving
            self._notify()

    def forget(self, name: str) -> None:
        """There is no such service any more."""
        if self._serving.pop(name, None) is not None:
            self._notify()

    def shut_down(self) -> None:
        """From now on nothing serves."""
        self._shut_down = True
        self._notify()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        status = self._status(request.service)
        if status == UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service or model {request.service!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse, None]:
        told = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != told:
                told = status
                yield health_pb2.HealthCheckResponse(status=status)
            await changed.wait()

    def _status(self, name: str) -> int:
        if name not in self._serving:
            return int(UNKNOWN)
        return int(SERVING if self._serving[name] and not self._shut_down else NOT_SERVING)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
