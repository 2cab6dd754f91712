import math

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.client import InvalidInput, MessageTooLarge, Overloaded, PolyheadError, RetryPolicy, Unavailable
from polyhead.client.retry import Attempts


def overloaded(retry_after: float | None = None) -> Overloaded:
    return Overloaded("full", code=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=retry_after)


DRAINING = Unavailable("draining", code=grpc.StatusCode.UNAVAILABLE)


@settings(deadline=None)
@given(attempt=st.integers(1, 10_000), multiplier=st.floats(1, 100))
def test_backoff_grows_to_its_limit_and_no_further(attempt: int, multiplier: float) -> None:
    policy = RetryPolicy(attempts=10_001, initial_backoff=0.1, multiplier=multiplier, max_backoff=5)
    delay = policy.delay(DRAINING, attempt)
    longest = min(5.0, 0.1 * multiplier ** min(attempt - 1, 64))
    assert delay is not None
    assert longest / 2 <= delay <= longest


@settings(deadline=None)
@given(attempt=st.integers(1, 100), retry_after=st.floats(0, 1000))
def test_a_client_waits_at_least_as_long_as_the_server_asks(attempt: int, retry_after: float) -> None:
    delay = RetryPolicy(attempts=101).delay(overloaded(retry_after), attempt)
    assert delay is not None
    assert retry_after <= delay <= retry_after + 5.0


def test_the_last_attempt_is_the_last() -> None:
    assert RetryPolicy(attempts=3).delay(DRAINING, 2) is not None
    assert RetryPolicy(attempts=3).delay(DRAINING, 3) is None


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (DRAINING, True),
        (overloaded(retry_after=0), True),
        (overloaded(), False),
        (MessageTooLarge("5 MB", code=grpc.StatusCode.RESOURCE_EXHAUSTED), False),
        (InvalidInput("top_k: too large"), False),
        (PolyheadError("?", code=grpc.StatusCode.INTERNAL), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: PolyheadError, again: bool) -> None:
    assert (RetryPolicy().delay(error, 1) is not None) is again


def test_no_wait_goes_beyond_the_deadline() -> None:
    error = overloaded(retry_after=60)
    with pytest.raises(Overloaded) as caught:
        Attempts(RetryPolicy(), timeout=30).delay_after(error)
    assert caught.value is error
    assert Attempts(RetryPolicy(), timeout=90).delay_after(error) >= 60


@pytest.mark.parametrize("timeout", [None, math.inf])
def test_without_a_timeout_there_is_no_deadline(timeout: float | None) -> None:
    attempts = Attempts(RetryPolicy(), timeout)
    assert attempts.remaining() is None
    assert attempts.delay_after(overloaded(3600)) >= 3600


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_timeout_must_be_above_zero(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be above 0 seconds"):
        Attempts(RetryPolicy(), timeout)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attempts": 0}, "attempts must be at least 1, not 0"),
        ({"initial_backoff": 9.0}, "between 0 and max_backoff"),
        ({"multiplier": 0.5}, "multiplier must be at least 1"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetryPolicy(**settings)  # type: ignore[arg-type]
