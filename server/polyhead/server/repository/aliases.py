"""Names for versions, with weights: `NAME/aliases.json`.

    {"stable": 3, "canary": {"3": 90, "4": 10}, "default": 3}

An alias is a version, or several with a share of the requests each. `default` decides for requests that name no version.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from polyhead.server.bundle import VERSION

ALIASES_FILE = "aliases.json"
MAX_ALIASES_BYTES = 65_536
DEFAULT = "default"
ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
MAX_WEIGHT = 1_000_000

Weights: TypeAlias = dict[int, int]
"""Version → weight, above 0."""


class AliasError(Exception):
    """An `aliases.json` that makes no sense; the text names the alias and what is wrong."""


@dataclass(frozen=True, slots=True)
class Unread:
    """An `aliases.json` that is not to be read."""

    reason: str


Source: TypeAlias = bytes | Unread | None
"""Content of an `aliases.json`; None if there is none."""


@dataclass(frozen=True, slots=True)
class Aliases:
    """A model's aliases, from the bytes of its file."""

    routes: Mapping[str, Weights] = field(default_factory=dict)
    source: Source = None
    """What they were read from, perhaps in vain."""
    reason: str = ""
    """Why the file could not be taken; the routes are then those of the last one that could."""

    def versions(self) -> set[int]:
        """Every version that an alias names."""
        return {version for weights in self.routes.values() for version in weights}

    def reread(self, source: Source) -> "Aliases":
        """What a file that has changed makes of them."""
        if isinstance(source, Unread):
            return Aliases(self.routes, source, source.reason)
        try:
            return Aliases({} if source is None else parse(source), source)
        except AliasError as error:
            return Aliases(self.routes, source, str(error))


def parse(source: bytes) -> dict[str, Weights]:
    """Aliases from the text of their file. Raises AliasError."""
    if len(source) > MAX_ALIASES_BYTES:
        raise AliasError(f"{ALIASES_FILE}: must have at most {MAX_ALIASES_BYTES} bytes")
    try:
        fields = json.loads(source, object_pairs_hook=without_repetition)
    except (ValueError, RecursionError) as error:
        raise AliasError(f"{ALIASES_FILE}: is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise AliasError(f"{ALIASES_FILE}: must be an object of aliases, got {shown(fields)}")
    return {alias: parse_target(alias, target) for alias, target in fields.items()}


def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return fields


def parse_target(alias: str, target: object) -> Weights:
    if not ALIAS.fullmatch(alias):
        raise AliasError(
            f"{ALIASES_FILE}: {shown(alias)} must begin with a letter and have up to 64 of A-Z a-z 0-9 . _ -"
        )
    if isinstance(target, int) and not isinstance(target, bool) and VERSION.fullmatch(str(target)):
        return {target: 1}
    if not isinstance(target, dict) or not target:
        raise AliasError(
            f"{ALIASES_FILE}: {alias} must be a version or an object of versions and weights, got {shown(target)}"
        )
    for version, weight in target.items():
        if not VERSION.fullmatch(version):
            raise AliasError(f"{ALIASES_FILE}: {alias}: {shown(version)} must be a version, a positive integer")
        if not isinstance(weight, int) or isinstance(weight, bool) or not 0 <= weight <= MAX_WEIGHT:
            raise AliasError(
                f"{ALIASES_FILE}: {alias}: weight of {version} must be 0 to {MAX_WEIGHT}, got {shown(weight)}"
            )
    weights = {int(version): weight for version, weight in target.items() if weight}
    if not weights:
        raise AliasError(f"{ALIASES_FILE}: {alias} must have a weight above 0")
    return weights


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def choose(weights: Mapping[int, int], key: bytes) -> int:
    """The version for a request, each as often as its weight says; the same key gets the same version.

    Weighted rendezvous hashing (Schindelhauer & Schomaker 2005): of versions with weights w and numbers u in (0, 1) hashed
    of version and key, the one with the greatest w / -ln(u). When a version goes or a weight changes, only those requests
    move that have to.
    """
    return max(weights, key=lambda version: weights[version] / -math.log(uniform(version, key)))


def uniform(version: int, key: bytes) -> float:
    """In (0, 1), evenly."""
    digest = hashlib.blake2b(key, digest_size=8, salt=version.to_bytes(8)).digest()
    return ((int.from_bytes(digest) >> 12) + 0.5) / 2**52  # 52 bits: more would round to 1
