"""What there is room for."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

Who = TypeVar("Who")


class NoRoom(Exception):
    """Others have the memory that a model needs; the text says who. When they have left it may be there."""


class Stay(Enum):
    """How soon what a holder has can be free."""

    FOREVER = "forever"
    """It serves, and is not to be unloaded for others."""
    UNTIL_ASKED = "until asked"
    """It serves on demand."""
    FOR_NOW = "for now"
    """It is being unloaded, or being loaded on demand: wait and ask again."""


@dataclass(frozen=True, slots=True)
class Holder(Generic[Who]):
    """Who has some memory."""

    who: Who
    memory: int
    stay: Stay
    busy: bool = False
    last_used: int = 0


@dataclass(frozen=True, slots=True)
class Room(Generic[Who]):
    """How to come to some memory."""

    unload: tuple[Who, ...] = ()
    """Holders that have to go first."""
    now: bool = False
    """There is room; else, when `unload` and those that are going have gone, ask again."""


def room(need: int, limit: int | None, holders: Iterable[Holder[Who]]) -> Room[Who] | None:
    """How to find `need` bytes under `limit`; None if there will never be so many.

    Unloads the least recently used first, and busy ones last.
    """
    holders = list(holders)
    if limit is None or need + total(holders) <= limit:
        return Room(now=True)
    if need + staying(holders) > limit:
        return None
    idle_first = sorted((h for h in holders if h.stay is Stay.UNTIL_ASKED), key=lambda h: (h.busy, h.last_used))
    excess = need + staying(holders) + sum(h.memory for h in idle_first) - limit
    victims = []
    for holder in idle_first:
        if excess > 0:
            victims.append(holder.who)
            excess -= holder.memory
    return Room(tuple(victims))


def total(holders: Iterable[Holder[Who]]) -> int:
    return sum(holder.memory for holder in holders)


def staying(holders: Iterable[Holder[Who]]) -> int:
    """Bytes that nobody will get."""
    return total(holder for holder in holders if holder.stay is Stay.FOREVER)


def readable(size: int) -> str:
    """Bytes for people: `1.5 GiB`."""
    amount, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.4g} {unit}"
