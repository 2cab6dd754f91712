"""One version of a model, from its folder being seen to its last answer."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from polyhead.server.loader import LiveModel
from polyhead.server.repository.scan import Fingerprint
from polyhead.v1 import bundle_pb2


class State(Enum):
    """How a version of a model is."""

    WAITING = "waiting"
    """Its folder is not complete yet, `reason` says what is missing; it is still being copied."""
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    UNLOADED = "unloaded"
    """Not in memory. On demand: the next request loads it."""
    UNLOADING = "unloading"
    """Takes no new requests; goes when those that run have ended."""


@dataclass(slots=True, eq=False)
class Entry:
    """One version of a model, loaded at most once: loading it again makes another entry.

    `model` is there when READY or UNLOADING, `reason` when FAILED or WAITING, or where there is `no_room`, `manifest` as
    soon as it could be read.
    """

    name: str
    version: int
    folder: Path
    fingerprint: Fingerprint
    """Of the folder when it was last tried."""
    on_demand: bool = False
    state: State = State.LOADING
    reason: str = ""
    load_seconds: float = 0.0
    manifest: bundle_pb2.Bundle | None = None
    model: LiveModel | None = None
    memory: int = 0
    """Bytes set aside for it; 0 when it is not in memory."""
    no_room: bool = False
    """It could not be loaded because others have the memory; it is tried again when some is released."""
    users: int = 0
    """Requests that run on it, or wait for it."""
    last_used: int = 0
    """Number of the request that used it last."""
    unchanged_polls: int = 0
    """How often in a row the folder has looked as it did when it was last tried."""
    successor: "Entry | None" = None
    """The same version from a folder that has changed, being loaded beside this one."""
    beside: bool = False
    """On demand, and found while another version served: that one answers until this one is READY."""
    forced: bool = False
    """Loaded again because somebody said so, even if it is the same."""
    task: "asyncio.Task[None] | None" = None
    """Loads it; None until that has begun."""

    @property
    def alive(self) -> bool:
        """Takes requests."""
        return self.state is State.READY and self.model is not None and self.model.engine.alive

    @property
    def usable(self) -> bool:
        """Takes requests, or can be loaded for them."""
        return self.alive or (self.on_demand and self.state in (State.UNLOADED, State.LOADING))

    @property
    def coming(self) -> bool:
        """Will be READY or FAILED by itself."""
        return self.state in (State.LOADING, State.WAITING)

    def __str__(self) -> str:
        return f"model {self.name!r} version {self.version}"


Load = Callable[[str, int, Path, bundle_pb2.Bundle], Awaitable[LiveModel]]
"""Makes a model, of a name, version, folder and manifest, that has answered its warm-up. Any exception it raises makes
the entry FAILED."""
