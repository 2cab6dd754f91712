"""Errors of errors.py → gRPC statuses with the details that google.rpc defines for them."""

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, PreconditionFailure, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from polyhead.server.errors import (
    InvalidInput,
    ModelFailed,
    ModelNotFound,
    NotAllowed,
    Overloaded,
    Unavailable,
    WrongTask,
)

CODES: dict[type[Exception], int] = {
    InvalidInput: Code.INVALID_ARGUMENT,
    ModelNotFound: Code.NOT_FOUND,
    WrongTask: Code.FAILED_PRECONDITION,
    ModelFailed: Code.FAILED_PRECONDITION,
    NotAllowed: Code.PERMISSION_DENIED,
    Overloaded: Code.RESOURCE_EXHAUSTED,
    Unavailable: Code.UNAVAILABLE,
}
MAX_TEXT = 1000
"""Bytes of an error's text. The trailers that carry a status hold 8 KiB, and it stands in them up to three times, once
with three bytes for each that is not ASCII."""


def status_of(error: Exception, request_id: str) -> Status:
    """What the caller is told, always with the request's id. Of an error that nobody foresaw: nothing else."""
    code = next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), Code.INTERNAL)
    text = f"internal error; request id {request_id}" if code == Code.INTERNAL else shorten(str(error))
    details = [*details_of(error), RequestInfo(request_id=request_id)]
    return Status(code=code, message=text, details=map(packed, details))


def details_of(error: Exception) -> list[Message]:
    if isinstance(error, InvalidInput):
        violation = BadRequest.FieldViolation(field=error.field, description=shorten(error.description))
        return [BadRequest(field_violations=[violation])]
    if isinstance(error, ModelFailed):  # told apart from WrongTask, which has the same code
        return [PreconditionFailure(violations=[PreconditionFailure.Violation(type="MODEL_FAILED")])]
    if isinstance(error, Overloaded):
        return [RetryInfo(retry_delay=duration(error.retry_after_seconds))]
    return []


def duration(seconds: float) -> Duration:
    result = Duration()
    result.FromNanoseconds(int(seconds * 1e9))
    return result


def packed(message: Message) -> Any:
    result = Any()
    result.Pack(message)
    return result


def shorten(text: str) -> str:
    """At most MAX_TEXT bytes."""
    data = text.encode(errors="replace")
    return text if len(data) <= MAX_TEXT else data[: MAX_TEXT - 3].decode(errors="ignore") + "…"
