"""What a call can end with instead of an answer.

PolyheadError               code, message, request_id
├── RequestError            the request is at fault: sent again, it fails again
│   ├── InvalidInput        a field is empty, too long, out of range or contradicts another one; field, violations
│   ├── ModelNotFound       no such model or version; the message lists those there are
│   ├── WrongTask           the model does not do that; the message says what it does
│   ├── ModelFailed         the model could not be loaded; the message says why
│   ├── NotAllowed          the server's settings forbid it; the message names the one that allows it
│   ├── MessageTooLarge     the request or its answer has more bytes than one side takes; the message says how many
│   └── Unauthenticated     no token or a wrong one
├── TemporaryError          the same request may succeed later; retry_after
│   ├── Overloaded          a queue or all slots are full
│   └── Unavailable         nobody answers, or the server is loading or draining
├── DeadlineExceeded        the call's timeout passed before the answer was complete
├── Cancelled               the call was closed on this side, or the server gave it up
└── ServerError             anything else; the server's log has more under the request id
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

_Detail = TypeVar("_Detail", bound=Message)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that the server refuses, by its path in the message, such as `sampling.temperature`."""

    field: str
    description: str


class PolyheadError(Exception):
    """Base of everything that this library raises about a call."""

    def __init__(self, message: str, *, code: grpc.StatusCode, request_id: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.request_id = request_id


class RequestError(PolyheadError):
    """The request is at fault: sent again, it fails again."""


class InvalidInput(RequestError, ValueError):
    """A field of the request is empty, too long, out of range or contradicts another one."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT,
        request_id: str = "",
        violations: tuple[FieldViolation, ...] = (),
    ) -> None:
        super().__init__(message, code=code, request_id=request_id)
        self.violations = violations

    @property
    def field(self) -> str | None:
        """Path of the first field at fault; None if the server named none."""
        return self.violations[0].field if self.violations else None


class ModelNotFound(RequestError):
    """No model of that name or version."""


class WrongTask(RequestError):
    """The model does not do that task."""


class ModelFailed(RequestError):
    """The model is there, but could not be loaded."""


class NotAllowed(RequestError):
    """The server's settings forbid it."""


class MessageTooLarge(RequestError):
    """The request or its answer has more bytes than the server or this client takes in one message."""


class Unauthenticated(RequestError):
    """No token or a wrong one."""


class TemporaryError(PolyheadError):
    """The same request may succeed later. The client has already retried as its policy and the deadline allowed."""

    def __init__(
        self, message: str, *, code: grpc.StatusCode, request_id: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message, code=code, request_id=request_id)
        self.retry_after = retry_after
        """Seconds after which the server asks to be called again; None if it did not say."""


class Overloaded(TemporaryError):
    """A queue or all slots of the server are full."""


class Unavailable(TemporaryError):
    """Nobody answers at the target, or the server is still loading or draining."""


class DeadlineExceeded(PolyheadError):
    """The call's timeout passed before the answer was complete."""


class Cancelled(PolyheadError):
    """The call was closed on this side, or the server gave it up."""


class ServerError(PolyheadError):
    """INTERNAL, and every other status without a class of its own."""


_PLAIN: dict[grpc.StatusCode, type[PolyheadError]] = {
    grpc.StatusCode.NOT_FOUND: ModelNotFound,
    grpc.StatusCode.FAILED_PRECONDITION: WrongTask,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowed,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}
_TEMPORARY: dict[grpc.StatusCode, type[TemporaryError]] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
}

# gRPC itself ends a call with RESOURCE_EXHAUSTED, on either side, when a message passes a limit; its text alone tells.
_TOO_LARGE = "message larger than max"


def from_rpc_error(error: grpc.RpcError, request_id: str = "") -> PolyheadError:
    """The typed form of a failed call's status, with `error` as its cause."""
    code, message = error.code(), error.details() or error.code().name.lower().replace("_", " ")
    details = _status_details(error)
    retry_after = _retry_after(details)
    failure: PolyheadError
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        failure = InvalidInput(message, request_id=request_id, violations=_violations(details))
    elif code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after is None and _TOO_LARGE in message:
        message = f"too large for one call: {message}; send fewer or shorter inputs at once"
        failure = MessageTooLarge(message, code=code, request_id=request_id)
    elif code is grpc.StatusCode.FAILED_PRECONDITION and _is_model_failure(details):
        failure = ModelFailed(message, code=code, request_id=request_id)
    elif code in _TEMPORARY:
        failure = _TEMPORARY[code](message, code=code, request_id=request_id, retry_after=retry_after)
    else:
        failure = _PLAIN.get(code, ServerError)(message, code=code, request_id=request_id)
    failure.__cause__ = error
    return failure


def cancelled(request_id: str) -> Cancelled:
    """For a call that was closed on this side."""
    message = "the call was closed on this side before its end"
    return Cancelled(message, code=grpc.StatusCode.CANCELLED, request_id=request_id)


def _status_details(error: grpc.RpcError) -> status_pb2.Status:
    """The rich status that travels in the trailing metadata (google.rpc.Status); empty if there is none."""
    # None, not (), after a call that ended on this side; "-bin" keys carry bytes.
    metadata = cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ())
    for key, value in metadata:
        if key == "grpc-status-details-bin":
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break  # not google.rpc's; code and text still say what happened
    return status_pb2.Status()


def _find(details: status_pb2.Status, detail: _Detail) -> _Detail | None:
    return next((detail for packed in details.details if packed.Unpack(detail)), None)


def _violations(details: status_pb2.Status) -> tuple[FieldViolation, ...]:
    bad_request = _find(details, error_details_pb2.BadRequest())
    if bad_request is None:
        return ()
    return tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations)


def _is_model_failure(details: status_pb2.Status) -> bool:
    failure = _find(details, error_details_pb2.PreconditionFailure())
    return failure is not None and any(violation.type == "MODEL_FAILED" for violation in failure.violations)


def _retry_after(details: status_pb2.Status) -> float | None:
    retry_info = _find(details, error_details_pb2.RetryInfo())
    if retry_info is None:
        return None
    delay = retry_info.retry_delay
    return max(0.0, float(delay.seconds + delay.nanos * 1e-9))
