"""What can go wrong in the server, knowing nothing of gRPC; rpc/status.py gives each its status.

A deadline that passes is no error of ours: the caller's library makes that status, and the call is cancelled.

PolyheadError
├── InvalidInput        a field of the request: which, and what is wrong with it
├── ModelNotFound       no such model or version
├── WrongTask           the model is there but does something else
├── ModelFailed         the model is there but could not be loaded
├── NotAllowed          the server's settings forbid it
├── Overloaded          a queue is full; when to come back
├── Unavailable         draining, still loading, or broken down: another server, or this one later, may answer
└── BundleError         a bundle on disk that can't be served; never the fault of a request
"""


class PolyheadError(Exception):
    """Base of all errors whose text may be shown to the caller."""


class InvalidInput(PolyheadError):
    """A field that is empty, too long or contradicts another one. The text names the limit and what was given."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class ModelNotFound(PolyheadError):
    """No model of that name or version; the text lists those there are."""


class WrongTask(PolyheadError):
    """The model does not do that task; the text names the one it does."""


class ModelFailed(PolyheadError):
    """The model could not be loaded; the text says why. Asking again does not help before that has changed."""


class NotAllowed(PolyheadError):
    """The server's settings forbid it; the text names the one that allows it."""


class Overloaded(PolyheadError):
    """A queue is full. The text names the limit."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(PolyheadError):
    """The server drains, or the model is still loading or its engine broke down; the text says which."""


class BundleError(PolyheadError):
    """A bundle that can't be served; the text names the file and what is wrong with it."""
