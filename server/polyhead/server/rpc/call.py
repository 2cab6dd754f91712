"""What is known about one call while it runs. Servicers fill it in; the interceptor counts and logs it when it ends."""

import asyncio
import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field

from polyhead.server.errors import InvalidInput
from polyhead.server.metrics import Metrics

REQUEST_ID = re.compile(r"[\x20-\x7e]{1,128}")

current: ContextVar["Call"] = ContextVar("current")


@dataclass(frozen=True, slots=True)
class Timer:
    """Runs from when it is made."""

    began: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        return time.perf_counter() - self.began


@dataclass(slots=True)
class Call:
    """One gRPC call. A bulk stream is one call that adds up its requests."""

    method: str
    metrics: Metrics
    request_id: str
    draining: asyncio.Event
    """Set when the server wants calls to come to an end."""
    timer: Timer = field(default_factory=Timer)
    """Runs since the call arrived."""
    model: str = ""
    """Empty until a live model is found, so that what callers make up never becomes a metric's label."""
    version: str = ""
    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    queue_seconds: float = 0.0
    inference_seconds: float = 0.0

    def identify(self, request_id: str) -> str:
        """The id to answer a message with: its own, else the call's. Raises InvalidInput.

        The first message's own id becomes the call's; later ones of a bulk stream have an id for their answer only.
        """
        if not request_id:
            return self.request_id
        checked_request_id("request_id", request_id)
        if not self.model:
            self.request_id = request_id
        return request_id

    def served_by(self, model: str, version: str) -> None:
        self.model, self.version = model, version

    def accepted(self, model: str, version: str, prompt_tokens: int) -> None:
        """An engine took a request on."""
        self.requests += 1
        self.prompt_tokens += prompt_tokens
        self.metrics.prompt_tokens.labels(model, version, self.method).inc(prompt_tokens)

    def generated(self, tokens: int) -> None:
        """So many more tokens go out."""
        self.generated_tokens += tokens
        self.metrics.generated_tokens.labels(*self.labels).inc(tokens)

    def worked(self, model: str, version: str, queue_seconds: float, inference_seconds: float) -> None:
        """An engine is done with a request, or its caller has left and it came so far."""
        self.queue_seconds += queue_seconds
        self.inference_seconds += inference_seconds
        self.metrics.queue_duration.labels(model, version, self.method).observe(queue_seconds)
        self.metrics.inference_duration.labels(model, version, self.method).observe(inference_seconds)

    @property
    def labels(self) -> tuple[str, str, str]:
        """Of the metrics that tell calls apart."""
        return self.model, self.metrics.version_label(self.model, self.version), self.method


def checked_request_id(source: str, request_id: str) -> str:
    if not REQUEST_ID.fullmatch(request_id):
        raise InvalidInput(source, f"must be up to 128 printable ASCII characters, got {request_id[:140]!r}")
    return request_id


def new_request_id() -> str:
    return uuid.uuid4().hex
