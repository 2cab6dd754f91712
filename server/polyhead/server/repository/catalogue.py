"""Names, versions and aliases → entries: where a request goes."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from polyhead.server.bundle import VERSION
from polyhead.server.errors import InvalidInput, ModelFailed, ModelNotFound, Unavailable, WrongTask
from polyhead.server.repository.aliases import ALIAS, DEFAULT, Aliases, Weights, choose
from polyhead.server.repository.entry import Entry, State
from polyhead.server.repository.policy import Orders
from polyhead.server.repository.scan import VersionFolder
from polyhead.v1 import bundle_pb2

TASKS = {
    bundle_pb2.TASK_GENERATE: "generate",
    bundle_pb2.TASK_CLASSIFY: "classify",
    bundle_pb2.TASK_EMBED: "embed",
}


@dataclass(slots=True)
class Model:
    """All that is known of a name."""

    name: str
    entries: dict[int, Entry] = field(default_factory=dict)
    """By version."""
    folders: dict[int, VersionFolder] = field(default_factory=dict)
    """By version, at the last scan."""
    aliases: Aliases = field(default_factory=Aliases)
    orders: Orders = field(default_factory=Orders)

    def in_state(self, *states: State) -> set[int]:
        return {version for version, entry in self.entries.items() if entry.state in states}


class Catalogue:
    """Finds the entry that shall answer. For one event loop; not thread-safe."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}
        self._complete = False
        """Whether everything that was there at the start is READY or FAILED."""

    def names(self) -> list[str]:
        """All models, sorted."""
        return sorted(self._models)

    def entries(self) -> list[Entry]:
        """All versions of all models, sorted by name, then version."""
        return [self._models[name].entries[v] for name in self.names() for v in sorted(self._models[name].entries)]

    def serves(self, name: str, version: int | None = None) -> bool:
        """Whether that version of a model, or any, takes requests."""
        model = self._models.get(name)
        entries = model.entries if model else {}
        return any(entry.usable for number, entry in entries.items() if version in (None, number))

    def aliases(self, name: str) -> Aliases:
        return self._models[name].aliases if name in self._models else Aliases()

    def entry(self, name: str, version: str = "", key: bytes = b"", field: str = "model.version") -> Entry:
        """Of version '' the newest that is READY, or what comes nearest to it; of an alias the one that `key` is routed to.
        Raises ModelNotFound, and InvalidInput about `field`."""
        model = self._model(name)
        if not version and DEFAULT in model.aliases.routes:
            version = DEFAULT
        if not version:
            return newest(model.entries.values())
        if version in model.aliases.routes:
            return routed(model, version, key)
        if not VERSION.fullmatch(version):
            raise unknown_alias(model, version, field)
        if int(version) not in model.entries:
            raise ModelNotFound(
                f"model {name!r} has no version {version} loaded; it has: {listed(sorted(model.entries))}"
            )
        return model.entries[int(version)]

    def resolve(self, name: str, version: str, task: "bundle_pb2.Task.ValueType | None", key: bytes = b"") -> Entry:
        """The entry that shall do `task` (None: any): it takes requests, or can be loaded for them. Raises InvalidInput,
        ModelNotFound, ModelFailed, WrongTask, Unavailable."""
        entry = self.entry(name or self._only_model(task), version, key)
        if not entry.usable:
            raise refusal(entry)
        does = entry.manifest.task if entry.manifest else None
        if task is not None and does is not None and does != task:
            raise WrongTask(f"{entry} does {TASKS[does]}, not {TASKS[task]}")
        return entry

    def _model(self, name: str) -> Model:
        model = self._models.get(name)
        if not model or not model.entries:
            raise ModelNotFound(f"no model {name!r}; there are: {listed(self.names()) or 'none'}")
        return model

    def _only_model(self, task: "bundle_pb2.Task.ValueType | None") -> str:
        entries = self.entries()
        names = sorted({entry.name for entry in entries if does(entry, task)})
        loading = sorted({entry.name for entry in entries if entry.state is State.LOADING and not entry.on_demand})
        if loading and not (names and self._complete):
            raise Unavailable(f"models are still loading: {listed(loading)}")
        what = f"does {TASKS[task]}" if task is not None else "serves"
        if not names:
            raise ModelNotFound(f"no model {what}; there are: {listed(self.names()) or 'none'}")
        if len(names) > 1:
            raise InvalidInput("model.name", f"must be given, as more than one model {what}: {listed(names)}")
        return names[0]


def does(entry: Entry, task: "bundle_pb2.Task.ValueType | None") -> bool:
    """Whether it does the task, or did before it broke down."""
    there = entry.state is State.READY or entry.usable
    return there and entry.manifest is not None and task in (None, entry.manifest.task)


def nearness(entry: Entry) -> tuple[int, int]:
    """How near an entry is to answering, and then how new it is."""
    if entry.usable:
        return (3 if entry.beside and not entry.alive else 4), entry.version
    return {State.READY: 2, State.LOADING: 2, State.WAITING: 1, State.FAILED: 1}.get(entry.state, 0), entry.version


def newest(entries: Iterable[Entry]) -> Entry:
    return max(entries, key=nearness)


def routed(model: Model, alias: str, key: bytes) -> Entry:
    """The version that an alias has for a request. Versions that take none leave their share to the others."""
    weights: Weights = model.aliases.routes[alias]
    there = {version: weight for version, weight in weights.items() if version in model.entries}
    if not there:
        raise ModelNotFound(
            f"alias {alias!r} of model {model.name!r} stands for version {listed(sorted(weights))}, which is not there; "
            f"there are: {listed(sorted(model.entries))}"
        )
    usable = {version: weight for version, weight in there.items() if model.entries[version].usable}
    if not usable:
        return newest(model.entries[version] for version in there)
    return model.entries[choose(usable, alias.encode() + b"\0" + key)]


def unknown_alias(model: Model, alias: str, field: str) -> Exception:
    if not ALIAS.fullmatch(alias):
        return InvalidInput(field, f"must be a version, a positive integer in decimal, or an alias, got {alias!r}")
    why = f" ({model.aliases.reason})" if model.aliases.reason else ""
    there = listed(sorted(model.aliases.routes)) or "none"
    return ModelNotFound(f"model {model.name!r} has no alias {alias!r}; it has: {there}{why}")


def refusal(entry: Entry) -> Exception:
    """Why an entry takes no requests."""
    match entry.state:
        case State.LOADING | State.WAITING:
            return Unavailable(f"{entry} is still loading")
        case State.FAILED:
            return ModelFailed(f"{entry} failed to load: {entry.reason}")
        case State.READY:
            return Unavailable(f"{entry} broke down and must be loaded again")
    return ModelNotFound(f"{entry} is unloaded")


def listed(items: Collection[str] | Collection[int]) -> str:
    return ", ".join(map(str, items))
