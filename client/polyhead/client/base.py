"""Where and how to connect: what the synchronous and the asyncio client have in common."""

import os

from google.protobuf import wrappers_pb2

from polyhead.client.retry import Attempts, RetryPolicy

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT = 120.0
"""Seconds a call may take, its retries included, unless client or call say otherwise."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # 512 embeddings of 4,096 floats are 8 MiB, twice what gRPC lets in by default.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # A ping finds a dead peer under a long answer. Servers cut off who pings more often than every 300 s, and load
    # balancers drop what is silent for 350 s.
    ("grpc.keepalive_time_ms", 320_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # After a failed connection gRPC waits 1 s, growing to 120 s, and fails all calls meanwhile: longer than our retries.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
# HealthCheckRequest is one string and HealthCheckResponse one enum, both field 1: on the wire the same as these wrappers.
# So the client needs no generated health code, whose descriptors would collide with other copies in the process.
HealthCheckRequest = wrappers_pb2.StringValue
HealthCheckResponse = wrappers_pb2.Int32Value
SERVING = 1


def resolve_target(target: str | None) -> str:
    """`target`, else POLYHEAD_TARGET, else localhost:50051."""
    return target or os.environ.get("POLYHEAD_TARGET") or DEFAULT_TARGET


class BaseClient:
    """Target, default timeout and retry policy of a client."""

    def __init__(
        self,
        target: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008  # frozen
    ) -> None:
        self.target = resolve_target(target)
        self.timeout = timeout
        self.retry = retry

    def _attempts(self, timeout: float | None) -> Attempts:
        return Attempts(self.retry, self.timeout if timeout is None else timeout)
