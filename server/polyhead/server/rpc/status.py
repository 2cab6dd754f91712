"""Errors of errors.py → gRPC statuses with the details that google.rpc defines for them."""

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

from polyhead.server.errors import (
    InvalidInput,
    ModelNotFound,
    Overloaded,
    Unavailable,
    WrongTask,
)

CODES: dict[type[Exception], int] = {
    InvalidInput: Code.INVALID_ARGUMENT,
    ModelNotFound: Code.NOT_FOUND,
    WrongTask: Code.FAILED_PRECONDITION,
    Overloaded: Code.RESOURCE_EXHAUSTED,
    Unavailable: Code.UNAVAILABLE,
}
MAX_TEXT = 1000
"""Characters of an error's text; longer ones would not fit into the headers that carry a status."""


def status_of(error: Exception, request_id: str) -> Status:
    """What the caller is told. Of an error that nobody foresaw: its request id and nothing else."""
    code = CODES.get(type(error))
    if code is None:
        return Status(code=Code.INTERNAL, message=f"internal error; request id {request_id}")
    status = Status(code=code, message=shorten(str(error)))
    status.details.extend(packed(detail) for detail in details_of(error))
    return status


def details_of(error: Exception) -> list[Message]:
    if isinstance(error, InvalidInput):
        violation = BadRequest.FieldViolation(field=error.field, description=shorten(error.description))
        return [BadRequest(field_violations=[violation])]
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
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
