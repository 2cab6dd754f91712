"""When a failed call is sent again, as plain arithmetic; the waiting is done by who calls.

Only UNAVAILABLE, and RESOURCE_EXHAUSTED with RetryInfo, are retried: the server refused the request before working on it.
Without RetryInfo, RESOURCE_EXHAUSTED is a limit that waiting does not lift, such as the size of a message. RetryInfo is
the least wait; UNAVAILABLE without it waits exponentially longer. Both get jitter, so that callers who were refused together
do not come back together.
"""

import math
import random
import time
from dataclasses import dataclass

from polyhead.client.errors import Overloaded, PolyheadError, TemporaryError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a call is tried again."""

    attempts: int = 5
    """Calls in all, the first included; 1 never retries."""
    initial_backoff: float = 0.1
    """Seconds before the second attempt."""
    multiplier: float = 2.0
    """Each further wait is this many times as long."""
    max_backoff: float = 5.0
    """Seconds; no wait grows beyond it, unless the server asks for a longer one."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")
        if not 0 <= self.initial_backoff <= self.max_backoff:
            raise ValueError(
                f"initial_backoff must lie between 0 and max_backoff ({self.max_backoff} s), not {self.initial_backoff} s"
            )
        if not self.multiplier >= 1:
            raise ValueError(f"multiplier must be at least 1, not {self.multiplier}")

    def delay(self, error: PolyheadError, attempt: int) -> float | None:
        """Seconds to wait after attempt number `attempt` (from 1) ended with `error`; None: do not try again."""
        if not isinstance(error, TemporaryError) or attempt >= self.attempts:
            return None
        if isinstance(error, Overloaded) and error.retry_after is None:
            return None
        # The exponent is bounded because 2.0**1024 is an OverflowError; the product is cut to max_backoff anyway.
        backoff = min(self.initial_backoff * self.multiplier ** min(attempt - 1, 64), self.max_backoff)
        if error.retry_after is not None:
            return error.retry_after + random.uniform(0, backoff)
        return random.uniform(backoff / 2, backoff)


class Attempts:
    """The attempts of one call, which share one deadline."""

    def __init__(self, policy: RetryPolicy, timeout: float | None) -> None:
        """`timeout` in seconds from now, above 0; None or infinity: no deadline. ValueError otherwise."""
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, not {timeout}")
        self._policy = policy
        self._deadline = None if timeout is None or math.isinf(timeout) else time.monotonic() + timeout
        self._failed = 0

    def remaining(self) -> float | None:
        """Seconds left until the deadline, 0 at the least; None: no deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def delay_after(self, error: PolyheadError) -> float:
        """Seconds to wait before the next attempt; raises `error` if there shall be none or no time would be left for it."""
        self._failed += 1
        delay = self._policy.delay(error, self._failed)
        remaining = self.remaining()
        if delay is None or (remaining is not None and delay >= remaining):
            raise error
        return delay
