"""The models of a folder: what it holds, what was ordered, and what follows from both."""

import asyncio
from functools import partial
from pathlib import Path

import structlog

from polyhead.server.background import in_background
from polyhead.server.bundle import VERSION, one_line
from polyhead.server.errors import InvalidInput, ModelFailed, ModelNotFound, Unavailable
from polyhead.server.loader import LiveModel
from polyhead.server.repository.catalogue import Model, listed
from polyhead.server.repository.entry import Entry, Load, State
from polyhead.server.repository.lifecycle import Lifecycle, OnChange, nobody, with_successor
from polyhead.server.repository.policy import Policy, to_keep, to_load
from polyhead.server.repository.scan import ModelFolder, VersionFolder, scan, scan_all
from polyhead.v1 import bundle_pb2

SETTLED_POLLS = 3
"""A folder that is not complete and looks the same in so many polls after it was tried is not being copied any more."""

DEFAULT_POLICY = Policy()

log = structlog.get_logger()


class Repository(Lifecycle):
    """The models of one folder. For one event loop; not thread-safe.

    A version that can't be served is FAILED with a reason and keeps no other from serving.
    """

    def __init__(self, folder: Path, load: Load, policy: Policy = DEFAULT_POLICY, on_change: OnChange = nobody) -> None:
        """Find what there is in `folder`; raises PolyheadError when it is no folder or has no model."""
        super().__init__(folder, load, policy, on_change)
        self._refreshing = asyncio.Lock()
        self._reachable = True
        self._watched = False
        """Whether somebody will look again at what is not complete."""
        self._take_in(scan(folder))

    async def load(self) -> None:
        """Load what is wanted of what is there; returns when all of it is READY or FAILED, or waits for requests."""
        self._start(final=True)
        while loading := [entry.task for entry in self.entries() if entry.task and not entry.task.done()]:
            await asyncio.wait(loading)
        self._complete = True

    def find(self, name: str, version: str, task: "bundle_pb2.Task.ValueType | None") -> LiveModel:
        """The live model that shall do `task` (None: any), for a look at it. Raises what `resolve` does, and
        ModelNotFound for what is not in memory."""
        entry = self.resolve(name, version, task)
        if entry.model is None:
            raise ModelNotFound(f"{entry} is not in memory")
        return entry.model

    async def refresh(self, *, final: bool = False) -> None:
        """Look at the folder again and start what follows from it. `final`: what is not complete has failed; else it is
        given some more polls."""
        async with self._refreshing:
            try:
                found = await in_background(partial(scan_all, self._folder))
            except OSError as error:
                if self._reachable:
                    log.error("the models folder can't be read; all models stay", reason=one_line(error))
                self._reachable = False
                return
            self._reachable = True
            self._take_in(found)
            self._start(final=final)

    async def watch(self, seconds: float) -> None:
        """Refresh for ever, with so many seconds in between."""
        self._watched = True
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.refresh()
            except Exception:  # what went wrong with one look is no reason never to look again
                log.exception("looking at the models folder failed")

    # Orders.

    async def load_version(self, name: str, version: str) -> Entry:
        """Have a version in memory ('': the newest there is), also if it was unloaded by order or failed; one that is
        named stays whatever there is newer. Returns when it is READY. Raises InvalidInput, ModelNotFound, ModelFailed,
        Unavailable."""
        model, number = await self._order_load(name, version)
        entry = model.entries[number]
        if not entry.alive:
            entry = self._replace(model, entry)
        return await self._outcome(entry)

    async def reload_version(self, name: str, version: str) -> Entry:
        """As `load_version`, but what is in memory already is loaded again beside, and takes over."""
        model, number = await self._order_load(name, version)
        return await self._outcome(self._replace(model, model.entries[number]))

    async def unload_version(self, name: str, version: str) -> None:
        """Have a version out of memory ('': all, also those to come) until it is ordered back; what the policy then wants
        is loaded first. Returns when it is gone. Raises InvalidInput, ModelNotFound."""
        number = checked(version)
        model = self._model(name)
        if number and number not in model.entries:
            self.entry(name, version, field="version")  # raises
        going = [entry for entry in model.entries.values() if number in (0, entry.version)]
        model.orders.to_unload({number} if number else set(), everything=not number)
        self._settle(model)
        while any(entry.memory or entry.model for entry in going):
            await self._next_change()

    async def _order_load(self, name: str, version: str) -> tuple[Model, int]:
        number = checked(version)
        await self.refresh(final=not self._watched)
        model = self._models.get(name)
        if model is None or not model.folders:
            raise ModelNotFound(f"no model {name!r}; there are: {listed(self.names()) or 'none'}")
        if number and number not in model.folders:
            there = listed(sorted(model.folders))
            raise ModelNotFound(f"model {name!r} has no version {number} in its folder; there are: {there}")
        model.orders.to_load(number or max(model.folders), keep=bool(number))
        number = number or max(model.folders)
        self._arrange(model)
        if number not in model.entries:
            model.entries[number] = self._new_entry(model, number)
        self._start(final=not self._watched)
        return model, number

    def _replace(self, model: Model, entry: Entry) -> Entry:
        """Load a version afresh: beside the one that serves, or in its place if none does."""
        if entry.state is State.LOADING and not entry.on_demand:
            return entry
        if entry.alive:
            if entry.successor and entry.successor.task and entry.successor.state is State.LOADING:
                entry.successor.forced = True
                return entry.successor
            again = entry.successor = self._new_entry(model, entry.version)
        else:
            self._dismiss(model, entry, "ordered")
            again = model.entries[entry.version] = self._new_entry(model, entry.version)
        again.forced = True
        self._begin(again, final=True)
        return again

    async def _outcome(self, entry: Entry) -> Entry:
        while entry.coming and not self._stopped:
            await self._next_change()
        if entry.state is State.READY:
            return entry
        if entry.state is State.FAILED or entry.no_room:
            raise ModelFailed(f"{entry} failed to load: {entry.reason}")
        raise Unavailable("the server is draining" if self._stopped else f"{entry} was unloaded again meanwhile")

    # What the folder says.

    def _take_in(self, found: dict[str, ModelFolder]) -> None:
        for name in found:
            self._models.setdefault(name, Model(name))
        for model in list(self._models.values()):
            self._see(model, found.get(model.name, ModelFolder()))
            self._arrange(model)

    def _see(self, model: Model, folder: ModelFolder) -> None:
        model.folders = folder.versions
        if folder.aliases != model.aliases.source:
            model.aliases = model.aliases.reread(folder.aliases)
            if model.aliases.reason:
                log.error("aliases failed", model=model.name, reason=model.aliases.reason)
            else:
                log.info("aliases", model=model.name, aliases=dict(model.aliases.routes))
        for version, seen in model.folders.items():
            if entry := model.entries.get(version):
                self._look_again(model, entry, seen)

    def _look_again(self, model: Model, entry: Entry, seen: VersionFolder) -> None:
        """A folder that was tried before: try it again if it has changed, and give it up if it has not for long."""
        changed = seen.fingerprint != entry.fingerprint
        if entry.state is State.READY:
            if entry.successor:
                self._look_again(model, entry.successor, seen)
            elif changed:
                entry.successor = self._new_entry(model, entry.version)
        elif changed and (entry.state in (State.WAITING, State.FAILED) or is_asleep(entry)):
            entry.fingerprint, entry.unchanged_polls = seen.fingerprint, 0
            entry.state, entry.task = State.LOADING, None
        elif entry.state is State.WAITING:
            entry.unchanged_polls += 1
            if entry.unchanged_polls >= SETTLED_POLLS:
                self._give_up(entry)

    # What follows.

    def _settle(self, model: Model) -> None:
        self._arrange(model)
        self._start(final=not self._watched)

    def _start(self, *, final: bool) -> None:
        """Begin with everything that has not begun."""
        for entry in self.entries():
            for each in with_successor(entry):
                if each.state is State.LOADING and each.task is None:
                    self._begin(each, final=final)

    def _arrange(self, model: Model) -> None:
        """Bring a model's entries in line with its folders, its aliases and the orders."""
        found = model.orders.allowed(set(model.folders))
        named, count = model.aliases.versions() | model.orders.load, self._policy.versions
        for entry in list(model.entries.values()):
            if is_ordered_out(entry) and entry.version in found:
                del model.entries[entry.version]
        failed = model.in_state(State.FAILED)
        wanted = to_load(found, failed, named, count)
        for version in sorted(wanted - model.entries.keys()):
            model.entries[version] = self._new_entry(model, version)
        coming = any(model.entries[version].coming for version in wanted)
        keep = wanted | to_keep(model.in_state(State.READY), found, named, count, coming=coming)
        # What failed is told of for as long as it would be wanted had it not.
        keep |= {version for version in failed if version in to_load(found, failed - {version}, named, count)}
        for version in model.entries.keys() - keep:
            self._let_go(model, model.entries[version], found)
        if not model.entries:
            self._models.pop(model.name, None)

    def _let_go(self, model: Model, entry: Entry, found: set[int]) -> None:
        """An entry that is not wanted any more. What was ordered out stays in sight."""
        if entry.version in found or entry.version not in model.folders:
            self._dismiss(model, entry, "replaced" if entry.version in found else "removed")
        elif not is_ordered_out(entry):
            self._dismiss(model, entry, "ordered")
            out = model.entries[entry.version] = self._new_entry(model, entry.version)
            out.state, out.on_demand, out.manifest = State.UNLOADED, False, entry.manifest

    def _dismiss(self, model: Model, entry: Entry, why: str) -> None:
        del model.entries[entry.version]
        self._retire(entry, why)

    def _new_entry(self, model: Model, version: int) -> Entry:
        folder, on_demand = model.folders[version], self._policy.is_on_demand(model.name)
        return Entry(model.name, version, folder.path, folder.fingerprint, on_demand)


def is_asleep(entry: Entry) -> bool:
    """Loaded at its next request."""
    return entry.state is State.UNLOADED and entry.on_demand


def is_ordered_out(entry: Entry) -> bool:
    """Unloaded by order, and not to be loaded before it is ordered back."""
    return entry.state is State.UNLOADED and not entry.on_demand


def checked(version: str) -> int:
    """0 for ''. Raises InvalidInput."""
    if version and not VERSION.fullmatch(version):
        raise InvalidInput("version", f"must be empty or a positive integer in decimal, got {version!r}")
    return int(version or 0)
