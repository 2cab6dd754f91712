"""What went wrong → one line that says what to do."""

from polyhead.client.errors import (
    DeadlineExceeded,
    ModelNotFound,
    Overloaded,
    PolyheadError,
    ServerError,
    Unavailable,
)


class LocalFailure(Exception):
    """What went wrong with an answer that had come, such as a file that can't be written."""


def explain(error: PolyheadError | UnicodeDecodeError | LocalFailure) -> str:
    """Notes on the error, such as which input it is about, come first."""
    match error:
        case PolyheadError():
            what = _explain_call(error)
        case UnicodeDecodeError():
            what = _explain_encoding(error)
        case LocalFailure():
            what = str(error)
    return " ".join(": ".join(["polyhead", *getattr(error, "__notes__", ()), what]).split())


def _explain_call(error: PolyheadError) -> str:
    match error:
        case Unavailable():
            return (
                f"{error.message}; check that a server runs there (--target HOST:PORT, `polyhead serve`) and try again"
            )
        case Overloaded():
            when = "later" if error.retry_after is None else f"in {error.retry_after:.3g} s"
            return f"{error.message}; try again {when}, or send less at once (--concurrency)"
        case DeadlineExceeded():
            return "the answer was not complete in time; allow more seconds with --timeout"
        case ModelNotFound():
            return f"{error.message}; `polyhead models` lists what the server has"
        case ServerError():
            return f"{error.message}; the server's log has more about request {error.request_id or '(without id)'}"
        case _:
            return error.message


def _explain_encoding(error: UnicodeDecodeError) -> str:
    return f"standard input is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert it, for instance with iconv"
