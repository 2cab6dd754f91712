"""Ranges of the sampling parameters, the same for a request and for the defaults in a bundle."""

import math
from dataclasses import dataclass

from polyhead.server.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Range:
    """An interval of finite numbers; `above` leaves the lower end out."""

    low: float
    high: float
    above: bool = False

    def check(self, field: str, value: float) -> float:
        """Give back `value`, or raise InvalidInput that names the field, the range and what was given."""
        inside = self.low < value <= self.high if self.above else self.low <= value <= self.high
        if not (math.isfinite(value) and inside):
            raise InvalidInput(field, f"must be {self}, got {value:g}")
        return value

    def __str__(self) -> str:
        return f"above {self.low:g} and at most {self.high:g}" if self.above else f"{self.low:g} to {self.high:g}"


SAMPLING = {
    "temperature": Range(0, 100),
    "top_k": Range(0, 2**32 - 1),
    "top_p": Range(0, 1, above=True),
    "min_p": Range(0, 1),
    "typical_p": Range(0, 1, above=True),
    "repetition_penalty": Range(0, 10, above=True),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
}
LOGIT_BIAS = Range(-100, 100)
LENGTH_PENALTY = Range(-10, 10)
