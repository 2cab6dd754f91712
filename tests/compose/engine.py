"""Docker as the compose tests use it: commands, containers, and a project that is always brought down."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


def missing() -> str:
    """Why no compose test can run; empty if one can."""
    if not shutil.which("docker"):
        return "there is no docker command"
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        return "no Docker engine answers"
    return "" if compose_command() else "there is neither docker compose nor docker-compose"


def compose_command() -> list[str]:
    """The plugin if it is there, else the older program; empty if none is."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else []


@dataclass(frozen=True)
class Project:
    """A compose project under a name of its own."""

    name: str
    environment: dict[str, str]

    def compose(self, *arguments: str) -> str:
        """Standard output. Raises RuntimeError with everything the command said."""
        command = [*compose_command(), "--project-name", self.name, *arguments]
        return output(command, {**os.environ, **self.environment})

    def container(self, service: str) -> "Container":
        return Container(self.compose("ps", "--quiet", service).strip())

    def address(self, service: str, port: int) -> str:
        """Where a container's port is to be reached from outside, as host:port."""
        return self.compose("port", service, str(port)).strip()


@dataclass(frozen=True)
class Container:
    """A container by its id."""

    id: str

    def run(self, *command: str) -> str:
        return output(["docker", "exec", self.id, *command]).strip()

    def state(self) -> dict[str, object]:
        """What the engine says of it: Status, ExitCode, Health."""
        state: dict[str, object] = json.loads(output(["docker", "inspect", self.id]))[0]["State"]
        return state


@contextmanager
def up(name: str, environment: dict[str, str]) -> Iterator[Project]:
    """Build and start everything, and bring it down whatever happens; what does not come up shows its logs."""
    project = Project(name, environment)
    try:
        try:
            project.compose("up", "--build", "--detach")
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{project.compose('logs', '--no-color')}") from None
        yield project
    finally:
        project.compose("down", "--volumes", "--remove-orphans")


def output(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout
