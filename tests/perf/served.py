"""A server in a process of its own, as `polyhead serve` starts it, with what it says of itself: log, metrics, memory."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

READY_SECONDS = 60.0


@dataclass(frozen=True)
class Served:
    """A server that is ready."""

    process: "subprocess.Popen[bytes]"
    log: Path
    target: str
    metrics: str

    @property
    def resident_bytes(self) -> int:
        """Of its memory, what is taken up now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def events(self) -> list[dict[str, Any]]:
        """What was logged so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]

    def calls(self) -> list[dict[str, Any]]:
        """One for each call that ended."""
        return [event for event in self.events() if event["event"] == "call"]

    def gauges(self) -> dict[str, float]:
        """Sums over labels of every metric, by its sample's name."""
        with urlopen(self.metrics, timeout=10) as page:
            text = page.read().decode()
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return sums


@contextmanager
def served(models: Path, folder: Path, **settings: object) -> Iterator[Served]:
    """Serve a models folder on ephemeral ports; settings are flags. The log is kept in `folder`.

    Raises RuntimeError, with the log, if the server does not become ready, and CalledProcessError if it does not end well.
    """
    log = folder / "server.log"
    flags = {"models": models, "port": 0, "metrics_port": 0, "log_format": "json", **settings}
    arguments = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "polyhead.server", *arguments], stderr=stderr)
    try:
        yield _when_ready(process, log)
    finally:
        process.terminate()
        if code := process.wait(60):
            raise subprocess.CalledProcessError(code, process.args)


def _when_ready(process: "subprocess.Popen[bytes]", log: Path) -> Served:
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        server = Served(process, log, "", "")
        events = {event["event"]: event for event in server.events()}
        if "serving" in events:
            listening = events["listening"]
            return Served(process, log, listening["grpc"], listening["metrics"])
        time.sleep(0.05)
    raise RuntimeError(f"the server is not ready:\n{log.read_text()}")
