"""Which versions of a model shall be in memory: pure functions over sets of version numbers."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from polyhead.v1 import bundle_pb2


def no_estimate(manifest: bundle_pb2.Bundle) -> int:
    """For those who set no limit."""
    return 0


@dataclass(frozen=True, slots=True)
class Policy:
    """What the settings say of loading."""

    versions: int | None = 1
    """How many of the newest versions of each model to serve; None: all."""
    on_demand: Collection[str] = ()
    """Names of models that are loaded at their first request, and unloaded to make room for others; `*`: all."""
    max_memory: int | None = None
    """Bytes for all models together."""
    estimate: Callable[[bundle_pb2.Bundle], int] = no_estimate
    """Bytes that a model will take."""

    def is_on_demand(self, name: str) -> bool:
        return name in self.on_demand or "*" in self.on_demand


@dataclass(slots=True)
class Orders:
    """What somebody asked for by RPC. It stands above the policy."""

    load: set[int] = field(default_factory=set)
    """Versions to keep, whatever there is newer."""
    unload: set[int] = field(default_factory=set)
    """Versions to leave alone."""
    unload_all: bool = False
    """Also those that are to come."""

    def to_load(self, version: int, *, keep: bool) -> None:
        self.unload_all = False
        self.unload.discard(version)
        if keep:
            self.load.add(version)

    def to_unload(self, versions: set[int], *, everything: bool) -> None:
        self.unload_all |= everything
        self.unload |= versions
        self.load -= versions

    def allowed(self, found: set[int]) -> set[int]:
        return set() if self.unload_all else found - self.unload


def newest(versions: set[int], count: int | None) -> set[int]:
    return set(sorted(versions, reverse=True)[:count])


def to_load(found: set[int], failed: set[int], named: set[int], count: int | None) -> set[int]:
    """Of the versions found, those to have in memory: the newest `count` that have not failed, and those that are `named`
    by an alias or an order."""
    usable = found - failed
    return newest(usable, count) | (named & usable)


def to_keep(ready: set[int], found: set[int], named: set[int], count: int | None, *, coming: bool) -> set[int]:
    """Of the versions that are READY, those that go on. What has lost its folder or was ordered out, and so is not among
    `found`, still serves while nothing else does but something is `coming`."""
    wanted = ready & found
    if not wanted and coming:
        return newest(ready, count)
    return newest(wanted, count) | (named & wanted)
