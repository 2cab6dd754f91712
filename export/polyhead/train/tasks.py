"""Translations that a machine makes up itself: dates, several dates in one text, strings to copy and to turn round.

The last three grow as long as one likes, which is what shows how much a fixed context holds.
"""

from dataclasses import dataclass
from random import Random

from polyhead.train.dates import LOCALES, date_formats, random_dates
from polyhead.train.pairs import Pair

TASKS = {
    "dates": "dates in many languages to ISO 8601",
    "multi-date": "up to LONGEST dates with English months, one after the other, each to ISO 8601",
    "reverse": "strings of up to LONGEST letters, from the last to the first",
    "copy": "strings of up to LONGEST letters as they are",
}
ALPHABET = "abcdefghij"
DEFAULT_LONGEST = {"dates": 1, "multi-date": 4, "reverse": 24, "copy": 24}
FEW_LOCALES = ("en", "en_GB")


@dataclass(frozen=True)
class Task:
    """Raises ValueError naming field, limit and what was given."""

    name: str = "dates"
    pairs: int = 60_000
    longest: int = 1
    """Letters, or dates in a text."""
    locales: tuple[str, ...] = LOCALES
    """Of dates."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, not {self.name!r}")
        for name, least in (("pairs", 100), ("longest", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")


def make_pairs(task: Task) -> list[Pair]:
    """The same task gives the same pairs. Lengths are spread evenly from 1 to `longest`."""
    if task.name == "dates":
        return [
            Pair(d.text, d.when.isoformat()) for d in random_dates(date_formats(task.locales), task.pairs, task.seed)
        ]
    chance = Random(task.seed)
    counts = [1 + i % task.longest for i in range(task.pairs)]
    if task.name == "multi-date":
        formats = [made for made in date_formats(FEW_LOCALES) if made.spells_month]
        written = iter(random_dates(formats, sum(counts), task.seed))
        rows = [[next(written) for _ in range(count)] for count in counts]
        return [Pair("; ".join(d.text for d in row), " ".join(d.when.isoformat() for d in row)) for row in rows]
    strings = ["".join(chance.choices(ALPHABET, k=count)) for count in counts]
    return [Pair(text, text[::-1] if task.name == "reverse" else text) for text in strings]
