"""One version's way into memory, through its requests, and out again.

    (seen) → LOADING → READY → UNLOADING → (gone, or UNLOADED where it is there on demand)
                ↓↑
        WAITING or FAILED

Whatever happens is decided in one go, without an await in the middle, and everyone who waits for something to change is
woken by every change.
"""

import asyncio
import itertools
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import structlog

from polyhead.server.background import in_background
from polyhead.server.bundle import check_sizes, one_line
from polyhead.server.errors import BundleError, ModelFailed, Unavailable
from polyhead.server.loader import LiveModel
from polyhead.server.repository.catalogue import Catalogue, Model
from polyhead.server.repository.entry import Entry, Load, State
from polyhead.server.repository.memory import Holder, NoRoom, Room, Stay, readable, room, staying
from polyhead.server.repository.policy import Policy
from polyhead.server.repository.scan import look_into
from polyhead.server.runtime.memory import trim
from polyhead.v1 import bundle_pb2

UNFORESEEN = "internal error; the server's log says more"

log = structlog.get_logger()


OnChange = Callable[["Lifecycle", Entry], None]
"""Is told of an entry that became READY or FAILED, or left memory or the folder."""


def nobody(_: "Lifecycle", __: Entry) -> None:
    """Does not want to know."""


class Lifecycle(Catalogue):
    """Loads, lends and unloads entries. Which ones, others decide."""

    def __init__(self, folder: Path, load: Load, policy: Policy, on_change: OnChange) -> None:
        super().__init__()
        self._folder = folder
        self._load = load
        self._policy = policy
        self._on_change = on_change
        self._leaving: dict[Entry, str] = {}
        """Those being unloaded, and why."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._admission = asyncio.Lock()
        """Who comes first is given memory first."""
        self._change = asyncio.Event()
        self._stopped = False
        self._uses = itertools.count(1)

    @abstractmethod
    def _settle(self, model: Model) -> None:
        """A version has become READY or FAILED: decide what follows."""

    def everything(self) -> list[Entry]:
        """As `entries`, and the versions that are being unloaded unless the same version is there again."""
        leaving = [e for e in self._leaving if not self._has(e.name, e.version)]
        return sorted([*self.entries(), *leaving], key=lambda entry: (entry.name, entry.version))

    @asynccontextmanager
    async def use(
        self, name: str, version: str, task: "bundle_pb2.Task.ValueType | None", key: bytes = b""
    ) -> AsyncIterator[LiveModel]:
        """The live model that shall do `task`, which stays until the end of the block. Loads it if it is there on demand.
        Requests with the same `key` are routed alike. Raises what `resolve` does."""
        while True:
            entry = self.resolve(name, version, task, key)
            entry.users += 1
            entry.last_used = next(self._uses)
            try:
                if entry.model is None:
                    await self._wake(entry)
                if entry.model is not None:
                    yield entry.model
                    return
            finally:
                entry.users -= 1
                if not entry.users and entry.state is State.UNLOADING:
                    self._notify()

    async def stop(self) -> None:
        """Give up what is being loaded, and begin nothing more."""
        self._stopped = True
        self._notify()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def drain(self) -> None:
        """Take no new work and wait for what runs."""
        await asyncio.gather(*(entry.model.engine.drain() for entry in self._in_memory() if entry.model))

    def close(self) -> None:
        """End all engines and what runs in them."""
        for entry in self._in_memory():
            if entry.model:
                entry.model.engine.close()

    def _has(self, name: str, version: int) -> bool:
        return name in self._models and version in self._models[name].entries

    def in_memory(self, name: str, version: int) -> bool:
        """Whether that version has a model or is being given one."""
        same = [entry for entry in self._in_memory() if (entry.name, entry.version) == (name, version)]
        return any(entry.model or entry.state is State.LOADING for entry in same)

    def _in_memory(self) -> list[Entry]:
        """All that takes memory or is about to."""
        return [*itertools.chain(*map(with_successor, self.entries())), *self._leaving]

    # Into memory.

    def _begin(self, entry: Entry, *, final: bool) -> None:
        """Start loading. `final`: what is not complete has FAILED, else it is WAITING."""
        if not self._stopped:
            if entry.no_room:
                entry.no_room, entry.reason = False, ""
            entry.state = State.LOADING
            entry.task = self._spawn(self._bring(entry, final))

    async def _wake(self, entry: Entry) -> None:
        """Wait until a model on demand is READY or FAILED, or something else became of it. Raises ModelFailed where there is
        no room for it now: what is FAILED is refused to all, this to those who wait."""
        if self._stopped:
            raise Unavailable("the server is draining")
        if entry.state is State.UNLOADED:
            self._begin(entry, final=True)
        while entry.state is State.LOADING:
            await self._next_change()
        if entry.no_room and entry.state is State.UNLOADED:
            raise ModelFailed(f"{entry} failed to load: {entry.reason}")

    async def _bring(self, entry: Entry, final: bool) -> None:
        began = time.perf_counter()
        try:
            async with self._admission:
                manifest = entry.manifest = await in_background(partial(look_into, entry.folder, self._folder))
                await in_background(partial(check_sizes, entry.folder, manifest))
                if self._is_known(entry, manifest):
                    return
                if not self._is_needed_now(entry):
                    entry.state = State.UNLOADED
                    return
                await self._make_room(entry)
            entry.model = await self._load(entry.name, entry.version, entry.folder, manifest)
        except asyncio.CancelledError:
            entry.state, entry.memory = State.UNLOADED, 0
            self._try_again()
            raise
        except Exception as error:
            self._failed(entry, error, final)
        else:
            entry.load_seconds = time.perf_counter() - began
            self._ready(entry)
        finally:
            self._notify()

    def _is_known(self, entry: Entry, manifest: bundle_pb2.Bundle) -> bool:
        """Whether a folder that was written to still holds the very files that serve: then that is all."""
        current = self._models[entry.name].entries[entry.version]
        if current is entry or entry.forced or current.manifest != manifest:
            return False
        current.fingerprint, current.successor = entry.fingerprint, None
        return True

    def _is_needed_now(self, entry: Entry) -> bool:
        """What is there on demand waits for a request, unless it shall take over from what serves."""
        if entry.on_demand and not entry.users:
            entry.beside = any(other.alive for other in self._models[entry.name].entries.values())
        return entry.beside or entry.forced or entry.users > 0 or not entry.on_demand

    def _ready(self, entry: Entry) -> None:
        model = self._models[entry.name]
        current, model.entries[entry.version] = model.entries[entry.version], entry
        entry.state, entry.reason = State.READY, ""
        if current is not entry:  # the same version again
            self._retire(current, "replaced")
        seconds = round(entry.load_seconds, 3)
        log.info("model ready", model=entry.name, version=entry.version, load_seconds=seconds)
        self._on_change(self, entry)
        self._settle(model)

    def _failed(self, entry: Entry, error: Exception, final: bool) -> None:
        """What is wrong with a bundle is told to callers; anything else may be none of their business."""
        entry.memory = 0
        if isinstance(error, NoRoom):
            self._found_no_room(entry, error)
        elif isinstance(error, BundleError):
            entry.reason = one_line(error)
            if final:
                self._give_up(entry)
            else:
                entry.state = State.WAITING
        else:
            entry.reason = UNFORESEEN
            self._give_up(entry, exc_info=error)
        self._try_again()

    def _found_no_room(self, entry: Entry, error: NoRoom) -> None:
        """What is there on demand goes on waiting for requests."""
        entry.reason, entry.no_room = one_line(error), True
        if entry.on_demand and self._models[entry.name].entries[entry.version] is entry:
            entry.state, entry.forced = State.UNLOADED, False
            log.warning("no room for model", model=entry.name, version=entry.version, reason=entry.reason)
        else:
            self._give_up(entry)

    def _give_up(self, entry: Entry, **more: object) -> None:
        entry.state = State.FAILED
        log.error("model failed", model=entry.name, version=entry.version, reason=entry.reason, **more)
        model = self._models[entry.name]
        current = model.entries[entry.version]
        if current is not entry:
            current.reason = f"still serves, but its folder has changed and failed to load: {entry.reason}"
        self._on_change(self, entry)
        self._settle(model)

    # Memory.

    async def _make_room(self, entry: Entry) -> None:
        """Set memory aside, unloading models on demand if it takes that. Raises NoRoom if it can't be had, BundleError if it
        never can."""
        while True:
            found = self._room_for(entry)
            if found is None:
                raise self._too_much(entry)
            if found.now:
                entry.memory = self._need(entry)
                return
            for victim in found.unload:
                self._evict(victim)
            await self._next_change()

    def _need(self, entry: Entry) -> int:
        assert entry.manifest
        return self._policy.estimate(entry.manifest)

    def _room_for(self, entry: Entry) -> Room[Entry] | None:
        return room(self._need(entry), self._policy.max_memory, self._holders(entry))

    def _holders(self, entry: Entry) -> list[Holder[Entry]]:
        """Who has memory, as an entry that wants some sees it: the same version that still serves makes no room for it."""
        current = self._models[entry.name].entries.get(entry.version)
        return [holder(other, stays=other is current) for other in self._in_memory() if other.memory]

    def _too_much(self, entry: Entry) -> NoRoom | BundleError:
        need, limit, holders = self._need(entry), self._policy.max_memory or 0, self._holders(entry)
        text = f"needs about {readable(need)} of memory; --max-model-memory is {readable(limit)}"
        if need > limit:
            return BundleError(text)
        names = sorted(f"{h.who.name}:{h.who.version}" for h in holders if h.stay is Stay.FOREVER)
        return NoRoom(f"{text}, of which {', '.join(names)} take {readable(staying(holders))}")

    def _try_again(self) -> None:
        """Memory was released: load what there was no room for and now is. What waits for requests goes on waiting."""
        for entry in itertools.chain(*map(with_successor, self.entries())):
            if not entry.no_room or self._room_for(entry) is None:
                continue
            if entry.state is State.UNLOADED and not entry.beside:
                entry.no_room, entry.reason = False, ""
            else:
                self._begin(entry, final=True)

    def _evict(self, entry: Entry) -> None:
        """Unload what is there on demand; the next request for it loads it again."""
        asleep = Entry(entry.name, entry.version, entry.folder, entry.fingerprint, True, State.UNLOADED)
        asleep.manifest = entry.manifest
        self._models[entry.name].entries[entry.version] = asleep
        self._retire(entry, "evicted")

    # Out of memory.

    def _retire(self, entry: Entry, why: str) -> None:
        """From now on it gets no new requests; it goes when those that run have ended."""
        if entry.successor and entry.successor.task:
            entry.successor.task.cancel()
        if entry.task and not entry.task.done() and entry.state is State.LOADING:
            entry.task.cancel()
        if entry.model is None:
            entry.state = State.UNLOADED
            self._on_change(self, entry)
            self._notify()
            return
        entry.state = State.UNLOADING
        self._leaving[entry] = why
        self._spawn(self._unload(entry, why))

    async def _unload(self, entry: Entry, why: str) -> None:
        while entry.users:
            await self._next_change()
        assert entry.model
        await entry.model.engine.drain()
        await asyncio.to_thread(entry.model.engine.close)
        entry.model, entry.memory, entry.state = None, 0, State.UNLOADED
        await asyncio.to_thread(trim)
        del self._leaving[entry]
        log.info("model unloaded", model=entry.name, version=entry.version, why=why)
        self._on_change(self, entry)
        self._try_again()
        self._notify()

    # Waiting for each other.

    def _spawn(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _next_change(self) -> None:
        await self._change.wait()

    def _notify(self) -> None:
        self._change.set()
        self._change = asyncio.Event()


def with_successor(entry: Entry) -> Iterator[Entry]:
    yield entry
    if entry.successor:
        yield entry.successor


def holder(entry: Entry, *, stays: bool = False) -> Holder[Entry]:
    """`stays`: even if it is there on demand."""
    stay = Stay.FOREVER
    coming = entry.state is State.LOADING or is_being_replaced(entry)
    if entry.state is State.UNLOADING or (entry.on_demand and coming):
        stay = Stay.FOR_NOW
    elif entry.on_demand and not stays:
        stay = Stay.UNTIL_ASKED
    return Holder(entry, entry.memory, stay, entry.users > 0, entry.last_used)


def is_being_replaced(entry: Entry) -> bool:
    """By the same version, which has its memory already and will be READY or FAILED by itself."""
    return entry.successor is not None and entry.successor.state is State.LOADING and entry.successor.memory > 0
