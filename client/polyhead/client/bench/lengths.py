"""Lengths in tokens, as the command line writes them."""

import random
import re
from dataclasses import dataclass
from typing import Protocol

_NUMBER = r"\d+(?:\.\d+)?"


class Lengths(Protocol):
    """A distribution of whole numbers, 1 or more; as a string it is what `parse_lengths` reads."""

    @property
    def largest(self) -> int | None:
        """No draw is above it; None: there is no bound."""

    def draw(self, rng: random.Random) -> int: ...


@dataclass(frozen=True)
class Uniform:
    """Every length from `least` to `largest` is equally likely; a fixed length is one with both the same."""

    least: int
    largest: int

    def __str__(self) -> str:
        return str(self.least) if self.least == self.largest else f"{self.least}-{self.largest}"

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.largest:
            raise ValueError(f"lengths must be 1 or more and not fall, not {self.least}-{self.largest}")

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.least, self.largest)


@dataclass(frozen=True)
class Normal:
    """A bell curve, rounded; a draw below 1 becomes 1."""

    mean: float
    deviation: float
    largest: None = None

    def __str__(self) -> str:
        return f"normal:{self.mean:.15g}:{self.deviation:.15g}"

    def draw(self, rng: random.Random) -> int:
        return max(1, round(rng.gauss(self.mean, self.deviation)))


@dataclass(frozen=True)
class LogNormal:
    """Many short and few very long ones, as people write; half of them are below `median`.

    `sigma` is the standard deviation of the logarithm: 1 puts one in six above 2.7 times the median.
    """

    median: float
    sigma: float
    largest: None = None

    def __str__(self) -> str:
        return f"lognormal:{self.median:.15g}:{self.sigma:.15g}"

    def __post_init__(self) -> None:
        if self.median < 1:
            raise ValueError(f"the median must be 1 or more, not {self.median:g}")
        if self.sigma > 5:
            raise ValueError(f"sigma must be 5 or less, not {self.sigma:g}")

    def draw(self, rng: random.Random) -> int:
        return max(1, round(self.median * rng.lognormvariate(0, self.sigma)))


def parse_lengths(text: str) -> Lengths:
    """`128`, `64-256`, `normal:MEAN:DEVIATION` or `lognormal:MEDIAN:SIGMA`; raises ValueError."""
    if match := re.fullmatch(r"(\d+)(?:-(\d+))?", text):
        return Uniform(int(match[1]), int(match[2] or match[1]))
    if match := re.fullmatch(rf"(normal|lognormal):({_NUMBER}):({_NUMBER})", text):
        kind = Normal if match[1] == "normal" else LogNormal
        return kind(float(match[2]), float(match[3]))
    raise ValueError(f"must be N, N-M, normal:MEAN:DEVIATION or lognormal:MEDIAN:SIGMA, not {text!r}")
