"""The Polyhead client: `Client` and `AsyncClient` call a server; what they return is plain and typed, what goes wrong is a
`PolyheadError`. It needs grpcio and protobuf, nothing else.
"""

from polyhead.client.aio import AsyncClient, AsyncGenerationStream
from polyhead.client.base import DEFAULT_TARGET, DEFAULT_TIMEOUT
from polyhead.client.errors import (
    Cancelled,
    DeadlineExceeded,
    FieldViolation,
    InvalidInput,
    MessageTooLarge,
    ModelFailed,
    ModelNotFound,
    NotAllowed,
    Overloaded,
    PolyheadError,
    RequestError,
    ServerError,
    TemporaryError,
    Unauthenticated,
    Unavailable,
    WrongTask,
)
from polyhead.client.requests import Message
from polyhead.client.results import (
    Alignment,
    Classification,
    ClassifyResult,
    EmbedResult,
    Generation,
    LabelScore,
    Model,
    Piece,
    Timing,
    Token,
    TokenizeResult,
    TokenLabels,
    TokenLogprob,
    Usage,
)
from polyhead.client.retry import RetryPolicy
from polyhead.client.sync import Client, GenerationStream

__all__ = [
    "DEFAULT_TARGET",
    "DEFAULT_TIMEOUT",
    "Alignment",
    "AsyncClient",
    "AsyncGenerationStream",
    "Cancelled",
    "Classification",
    "ClassifyResult",
    "Client",
    "DeadlineExceeded",
    "EmbedResult",
    "FieldViolation",
    "Generation",
    "GenerationStream",
    "InvalidInput",
    "LabelScore",
    "Message",
    "MessageTooLarge",
    "Model",
    "ModelFailed",
    "ModelNotFound",
    "NotAllowed",
    "Overloaded",
    "Piece",
    "PolyheadError",
    "RequestError",
    "RetryPolicy",
    "ServerError",
    "TemporaryError",
    "Timing",
    "Token",
    "TokenLabels",
    "TokenLogprob",
    "TokenizeResult",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "WrongTask",
]
