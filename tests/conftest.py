"""What all tests share."""

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def quiet_logs() -> Iterator[None]:
    """What runs in this process logs into the void, so that a test sees only its own output; `capture_logs` still works.

    A test may configure logging anew: that ends with it.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    structlog.reset_defaults()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    root.handlers[:], root.level = handlers, level
