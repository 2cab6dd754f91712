"""Tells health and metrics what became of the models."""

from polyhead.server.metrics import Metrics
from polyhead.server.repository import Entry, Lifecycle, State
from polyhead.server.rpc.health import HealthServicer


class Announcer:
    """The observer of a repository. Health knows each model by `NAME`, each version by `NAME/VERSION`, and the server and
    its inference service by `services`, which serve from `open` on if any model does."""

    def __init__(self, health: HealthServicer, metrics: Metrics, services: tuple[str, ...]) -> None:
        self._health = health
        self._metrics = metrics
        self._services = services
        self._open = False
        self._known: set[str] = set()

    def open(self, repository: Lifecycle) -> list[str]:
        """All that was there at the start is loaded. Gives the names of the models that serve."""
        self._open = True
        return self.announce(repository)

    def announce(self, repository: Lifecycle) -> list[str]:
        """Tell health which models serve now. Gives their names."""
        ready = [name for name in repository.names() if repository.serves(name)]
        known = {name: name in ready for name in repository.names()}
        known |= {f"{e.name}/{e.version}": repository.serves(e.name, e.version) for e in repository.entries()}
        known |= dict.fromkeys(self._services, self._open and bool(ready))
        for name, serving in known.items():
            self._health.set(name, serving)
        for name in self._known - known.keys():
            self._health.forget(name)
        self._known = set(known)
        return ready

    def changed(self, repository: Lifecycle, entry: Entry) -> None:
        version = str(entry.version)
        if entry.state is State.READY and entry.manifest:
            self._metrics.loads.labels(entry.name, "ready").inc()
            self._metrics.loaded(entry.name, version, entry.manifest, entry.load_seconds, entry.memory)
        elif not repository.in_memory(entry.name, entry.version):
            self._metrics.unloaded(entry.name, version)
        if entry.state is State.FAILED:
            self._metrics.loads.labels(entry.name, "failed").inc()
        self.announce(repository)
