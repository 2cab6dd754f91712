"""Around every call of polyhead.v1: errors become statuses, and however the call ends it is counted and logged once.

Health and reflection pass by untouched: they are asked every few seconds and would drown the rest.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc.code_pb2 import Code
from grpc_status import rpc_status

from polyhead.server.errors import InvalidInput, ModelNotFound, Overloaded, PolyheadError, Unavailable
from polyhead.server.metrics import Metrics
from polyhead.server.rpc.call import Call, checked_request_id, current, new_request_id
from polyhead.server.rpc.status import shorten, status_of

OURS = "/polyhead.v1."
DEADLINE_SLACK_SECONDS = 0.1
"""The caller's own timer may cancel this long before the server's, which started when the call arrived."""

FULL_RETRY_SECONDS = 1.0
"""What a caller is told to wait when too many calls run."""

KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}
"""By request and response streaming, as grpc names its handlers."""

CODES = {code.value[0]: code for code in grpc.StatusCode}

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], Awaitable[Any]]

log = structlog.get_logger()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Gives each call its Call, its status and its place in metrics and log. Refuses new calls once it drains."""

    def __init__(self, metrics: Metrics, max_calls: int) -> None:
        """`max_calls`: calls that may run at the same time; more are rejected."""
        self._metrics = metrics
        self._max_calls = max_calls
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = asyncio.Event()
        self._cutting = False

    async def drain(self) -> None:
        """Refuse new calls and ask bulk streams to end; return when no call runs."""
        self._draining.set()
        await self._idle.wait()

    def cut(self) -> None:
        """From here on it is the server that ends calls, not their callers."""
        self._cutting = True
        self._draining.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(OURS):
            return handler
        return self._wrap(handler, method.rsplit("/", 1)[1])

    def _wrap(self, handler: Handler, method: str) -> Handler:
        """The same handler with `_run` around its behaviour."""
        kind = KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
        behaviour = getattr(handler, kind)
        if handler.response_streaming:
            behaviour = written(behaviour)

        async def run(request: Any, context: Context) -> Any:
            return await self._run(method, behaviour, request, context)

        deserialize = handler.request_deserializer
        if deserialize and not handler.request_streaming:
            deserialize = forgiving(deserialize)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(run, deserialize, handler.response_serializer)  # type: ignore[no-any-return]

    async def _run(self, method: str, behaviour: Behaviour, request: Any, context: Context) -> Any:
        call = Call(method, self._metrics, new_request_id(), self._draining)
        current.set(call)
        self._running += 1
        self._idle.clear()
        try:
            self._admit(call, context)
            if isinstance(request, DecodeError):
                raise request
            response = await behaviour(request, context)
        except asyncio.CancelledError:
            finish_cancelled(call, context, cut=self._cutting)
            raise
        except DecodeError:
            await abort(call, InvalidInput("message", "is not of the type that this method takes"), context)
        except Exception as error:
            await abort(call, error, context)
        else:
            finish(call, Code.OK)
            return response
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def _admit(self, call: Call, context: Context) -> None:
        for key, value in context.invocation_metadata() or ():
            if key == "x-request-id":
                call.request_id = checked_request_id(key, str(value))
        if self._draining.is_set():
            raise Unavailable("the server is draining")
        if self._running > self._max_calls:
            limit = f"{self._max_calls} calls run, which is the limit"
            raise Overloaded(f"the server is full: {limit}", FULL_RETRY_SECONDS)


def forgiving(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Give back the DecodeError of what is no message: raised here, grpc would make a status of it that nobody counts."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return error

    return read


def written(behaviour: Callable[[Any, Context], AsyncGenerator[Any, None]]) -> Behaviour:
    """A coroutine that writes what an async generator yields, and closes it also when the caller has left."""

    async def run(request: Any, context: Context) -> None:
        async with aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return run


async def abort(call: Call, error: Exception, context: Context) -> None:
    status = status_of(error, call.request_id)
    if isinstance(error, Overloaded | Unavailable):
        reason = "overloaded" if isinstance(error, Overloaded) else "unavailable"
        call.metrics.rejected.labels(*call.labels, reason).inc()
    finish(call, status.code, error)
    details = rpc_status.to_status(status).trailing_metadata
    await context.abort(CODES[status.code], status.message, (*details, ("x-request-id", call.request_id)))


def finish_cancelled(call: Call, context: Context, *, cut: bool) -> None:
    """The caller left, its deadline passed, or the drain took too long: log and metrics say how far the call came."""
    remaining = context.time_remaining()
    late = remaining is not None and remaining < DEADLINE_SLACK_SECONDS
    reason, code = ("deadline", Code.DEADLINE_EXCEEDED) if late else ("cancelled", Code.CANCELLED)
    if cut:  # grpc tells the caller UNAVAILABLE
        reason, code = "shutdown", Code.UNAVAILABLE
    call.metrics.cancelled.labels(*call.labels, reason).inc()
    finish(call, code)


def finish(call: Call, code: int, error: Exception | None = None) -> None:
    """One line in the log, one count in the metrics. Texts of requests appear in neither."""
    name, seconds = Code.Name(code), call.timer.seconds()
    call.metrics.requests.labels(*call.labels, name).inc()
    call.metrics.request_duration.labels(*call.labels).observe(seconds)
    (log.error if code == Code.INTERNAL else log.info)(
        "call",
        request_id=call.request_id,
        method=call.method,
        model=call.model,
        version=call.version,
        code=name,
        requests=call.requests,
        prompt_tokens=call.prompt_tokens,
        generated_tokens=call.generated_tokens,
        queue_seconds=round(call.queue_seconds, 6),
        inference_seconds=round(call.inference_seconds, 6),
        seconds=round(seconds, 6),
        **(told(error) if error else {}),
    )


def told(error: Exception) -> dict[str, object]:
    """What the log says of an error. Texts that quote the request stay out: a field is named but not its value, and of a
    model that is not there the code says it all."""
    match error:
        case InvalidInput():
            return {"field": error.field}
        case ModelNotFound():
            return {}
        case PolyheadError():
            return {"reason": shorten(str(error))}
    return {"exc_info": error}
