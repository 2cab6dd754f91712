"""Figures that describe many measurements."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self


def percentile(ascending: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the sorted values lie, interpolated linearly; ValueError if there are none."""
    if not ascending:
        raise ValueError("no values, no percentile")
    place = share * (len(ascending) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (ascending[above] - ascending[below]) * (place - below)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of `count` measurements, all in one unit."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self | None:
        """None if there are no values."""
        ascending = sorted(values)
        if not ascending:
            return None
        p50, p90, p99 = (percentile(ascending, share) for share in (0.5, 0.9, 0.99))
        return cls(len(ascending), math.fsum(ascending) / len(ascending), p50, p90, p99, ascending[-1])
