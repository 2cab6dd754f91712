"""What can go wrong in the server, knowing nothing of gRPC; rpc/interceptors.py gives each its status.

PolyheadError
├── InvalidInput        a field of the request: which, and what is wrong with it
├── ModelNotFound       no such model or version
├── WrongTask           the model is there but does something else
├── Overloaded          a queue is full; when to come back
├── Unavailable         draining or still loading
├── DeadlineExceeded    the caller's time was over before the answer was
└── BundleError         a bundle on disk that can't be served; never the fault of a request
"""


class PolyheadError(Exception):
    """Base of all errors whose text may be shown to the caller."""


class InvalidInput(PolyheadError):
    """A field that is empty, too long, badly typed or contradicts another one. The text names the limit and what was given."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class ModelNotFound(PolyheadError):
    """No model of that name or version; the text lists those there are."""


class WrongTask(PolyheadError):
    """The model does not do that task; the text names the one it does."""


class Overloaded(PolyheadError):
    """A queue is full. The text names the limit."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(PolyheadError):
    """The server drains or the model is still loading; the text says which."""


class DeadlineExceeded(PolyheadError):
    """The caller's deadline passed; the text says how far the request came."""


class BundleError(PolyheadError):
    """A bundle that can't be served; the text names the file and what is wrong with it."""
