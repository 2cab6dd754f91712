"""Names and versions → live models.

The models folder holds `NAME/VERSION/`, VERSION a positive integer; everything else in it, such as files and folders
whose name begins with a dot (half-written bundles), is ignored. All models are loaded at the same time, of each its
latest version or all; one that can't be served is FAILED with a reason and does not keep the others from serving.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Literal

import structlog

from polyhead.server.background import in_background
from polyhead.server.bundle import one_line, read_manifest
from polyhead.server.errors import (
    BundleError,
    InvalidInput,
    ModelFailed,
    ModelNotFound,
    PolyheadError,
    Unavailable,
    WrongTask,
)
from polyhead.server.loader import LiveModel
from polyhead.v1 import bundle_pb2

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VERSION = re.compile(r"[1-9][0-9]{0,17}")
TASKS = {
    bundle_pb2.TASK_GENERATE: "generate",
    bundle_pb2.TASK_CLASSIFY: "classify",
    bundle_pb2.TASK_EMBED: "embed",
}

UNFORESEEN = "internal error; the server's log says more"

log = structlog.get_logger()


class State(Enum):
    """How a version of a model is."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(slots=True)
class Entry:
    """One version of a model in the folder. `model` is there when READY, `reason` when FAILED, `manifest` as soon as
    it could be read."""

    name: str
    version: int
    folder: Path
    state: State = State.LOADING
    reason: str = ""
    load_seconds: float = 0.0
    manifest: bundle_pb2.Bundle | None = None
    model: LiveModel | None = None


Load = Callable[[str, int, Path, bundle_pb2.Bundle], Awaitable[LiveModel]]
"""Makes a model, of a name, version, folder and manifest, that has answered its warm-up. Any exception it raises makes
the entry FAILED."""


class Repository:
    """The models of one folder. For one event loop; not thread-safe."""

    def __init__(self, folder: Path, load: Load, versions: Literal["latest", "all"] = "latest") -> None:
        """Find what there is in `folder`; raises PolyheadError when it is no folder or has no model. Of versions that are
        not to be loaded it knows nothing."""
        self._load = load
        self._models: dict[str, dict[int, Entry]] = {}
        for entry in scan(folder):
            known = self._models.setdefault(entry.name, {})
            if versions == "latest" and max(known, default=0) < entry.version:
                known.clear()
            if versions == "all" or not known:
                known[entry.version] = entry

    async def load(self, on_change: Callable[[Entry], Awaitable[None]]) -> None:
        """Load everything; `on_change` is awaited with each entry when it has become READY or FAILED."""

        async def load(entry: Entry) -> None:
            await self._load_one(entry)
            await on_change(entry)

        await asyncio.gather(*map(load, self.entries()))

    async def _load_one(self, entry: Entry) -> None:
        began = time.perf_counter()
        try:
            entry.manifest = await in_background(partial(read_manifest, entry.folder))
            entry.model = await self._load(entry.name, entry.version, entry.folder, entry.manifest)
            entry.state = State.READY
        except Exception as error:
            known = isinstance(error, BundleError)  # anything else may tell callers what is none of their business
            entry.state, entry.reason = State.FAILED, one_line(error) if known else UNFORESEEN
            log.error("model failed", model=entry.name, version=entry.version, reason=entry.reason, exc_info=not known)
        entry.load_seconds = time.perf_counter() - began
        if entry.state is State.READY:
            log.info("model ready", model=entry.name, version=entry.version, load_seconds=round(entry.load_seconds, 3))

    def names(self) -> list[str]:
        """All models, sorted."""
        return sorted(self._models)

    def entries(self) -> list[Entry]:
        """All versions of all models, sorted by name, then version."""
        return [self._models[name][version] for name in self.names() for version in sorted(self._models[name])]

    def serves(self, name: str) -> bool:
        """Whether any version of that model is READY and its engine works."""
        return any(entry.model and entry.model.engine.alive for entry in self._models.get(name, {}).values())

    def entry(self, name: str, version: str = "", field: str = "model.version") -> Entry:
        """The version asked for; of '' the newest that is READY, or the newest. Raises ModelNotFound, and InvalidInput
        about `field`."""
        if name not in self._models:
            raise ModelNotFound(f"no model {name!r}; there are: {', '.join(self.names())}")
        versions = self._models[name]
        if not version:
            ready = [number for number, entry in versions.items() if entry.state is State.READY]
            return versions[max(ready or versions)]
        if not VERSION.fullmatch(version):
            raise InvalidInput(field, f"must be a positive integer in decimal, got {version!r}")
        if int(version) not in versions:
            raise ModelNotFound(f"model {name!r} has no version {version} loaded; it has: {listed(sorted(versions))}")
        return versions[int(version)]

    def find(self, name: str, version: str, task: "bundle_pb2.Task.ValueType | None") -> LiveModel:
        """The live model that shall do `task` (None: any). Raises InvalidInput, ModelNotFound, ModelFailed,
        WrongTask, Unavailable."""
        entry = self.entry(name or self._only_model(task), version)
        if entry.state is State.LOADING:
            raise Unavailable(f"model {entry.name!r} version {entry.version} is still loading")
        if entry.model is None:
            raise ModelFailed(f"model {entry.name!r} version {entry.version} failed to load: {entry.reason}")
        if not entry.model.engine.alive:
            raise Unavailable(f"model {entry.name!r} version {entry.version} broke down and needs a restart")
        if task is not None and entry.model.task != task:
            does, not_this = TASKS[entry.model.task], TASKS[task]
            raise WrongTask(f"model {entry.name!r} version {entry.version} does {does}, not {not_this}")
        return entry.model

    def _only_model(self, task: "bundle_pb2.Task.ValueType | None") -> str:
        entries = self.entries()
        loading = sorted({entry.name for entry in entries if entry.state is State.LOADING})
        if loading:
            raise Unavailable(f"models are still loading: {listed(loading)}")
        live = [entry.model for entry in entries if entry.model]
        names = sorted({model.name for model in live if task is None or model.task == task})
        what = f"does {TASKS[task]}" if task is not None else "serves"
        if not names:
            raise ModelNotFound(f"no model {what}; there are: {listed(self.names())}")
        if len(names) > 1:
            raise InvalidInput("model.name", f"must be given, as more than one model {what}: {listed(names)}")
        return names[0]

    async def drain(self) -> None:
        """Take no new work and wait for what runs."""
        await asyncio.gather(*(entry.model.engine.drain() for entry in self.entries() if entry.model))

    def close(self) -> None:
        """End all engines and what runs in them."""
        for entry in self.entries():
            if entry.model:
                entry.model.engine.close()


def listed(items: list[str] | list[int]) -> str:
    return ", ".join(map(str, items))


def scan(folder: Path) -> Iterator[Entry]:
    """Every `NAME/VERSION/` of a models folder. Raises PolyheadError when there is none."""
    if not folder.is_dir():
        raise PolyheadError(f"no models folder at {folder}")
    found = False
    for path in sorted(folder.glob("*/*/")):
        name, version = path.parent.name, path.name
        if path.is_dir() and NAME.fullmatch(name) and VERSION.fullmatch(version):
            found = True
            yield Entry(name, int(version), path)
    if not found:
        raise PolyheadError(f"no model in {folder}: expected NAME/VERSION/bundle.json with VERSION 1, 2, …")
