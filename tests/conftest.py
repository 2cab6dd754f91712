"""What all tests share."""

import logging
import os
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

# Two torch threads that wait busily for each other take several times as long on a machine that does other things too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# An example's time says more about the machine than about the code.
settings.register_profile("polyhead", deadline=None)
settings.load_profile("polyhead")


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
