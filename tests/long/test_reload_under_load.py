"""Two hundred new versions while sixteen clients generate, classify and embed: nobody notices but by the version."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from polyhead.client import AsyncClient, RetryPolicy
from tests.bundles import CLASSIFIER, EMBEDDER, GENERATOR
from tests.versions import add_version, remove_version

SWITCHES = 200
SETTLED = 80
"""By then every kind of memory that grows at first has been taken up."""
CLIENTS = 16
VARIANTS = 4
NAMES = (GENERATOR, CLASSIFIER, EMBEDDER)
TEXTS = ("the cat", "the dog sat on the mat", "a mat")

Ask = Callable[[AsyncClient, str, str | None], Awaitable[tuple[str, Any]]]
"""Client, text and version → the version that answered and its answer."""


async def generate(client: AsyncClient, text: str, version: str | None) -> tuple[str, Any]:
    answer = await client.generate(text, GENERATOR, version=version, seed=7, max_tokens=24, ignore_eos=True).result()
    return answer.version, answer.token_ids


async def classify(client: AsyncClient, text: str, version: str | None) -> tuple[str, Any]:
    answer = await client.classify(text, CLASSIFIER, version=version)
    return answer.version, answer.results


async def embed(client: AsyncClient, text: str, version: str | None) -> tuple[str, Any]:
    answer = await client.embed(text, EMBEDDER, version=version)
    return answer.version, answer.embeddings


ASKS: dict[str, Ask] = {GENERATOR: generate, CLASSIFIER: classify, EMBEDDER: embed}


@dataclass
class Server:
    """A server process of its own, so that its memory is its own."""

    target: str
    pid: int
    events: Counter[str]

    def resident(self) -> int:
        """Bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))


@asynccontextmanager
async def serve(models: Path, *flags: str) -> AsyncIterator[Server]:
    command = [sys.executable, "-m", "polyhead.server", "--models", str(models), "--port=0", "--metrics-port=off"]
    process = await asyncio.create_subprocess_exec(*command, "--log-format=json", "--threads=1", *flags, stderr=PIPE)
    assert process.stderr
    server = Server("", process.pid, Counter())
    try:
        while server.events["serving"] == 0:
            line = json.loads(await process.stderr.readline())
            server.events[line["event"]] += 1
            server.target = line.get("grpc", server.target)
        reading = asyncio.create_task(count_events(process.stderr, server.events))
        yield server
        reading.cancel()
    finally:
        process.kill()
        await process.wait()


async def count_events(log: asyncio.StreamReader, events: Counter[str]) -> None:
    while line := await log.readline():
        events[json.loads(line)["event"]] += 1


def variant_of(version: int) -> int:
    return version % VARIANTS


async def answers_of_every_variant(models: Path) -> dict[tuple[str, int, str], Any]:
    """By model, variant and text, from a server that has nothing else to do."""
    for name in NAMES:
        (models / name).mkdir(parents=True)
        for version in range(1, VARIANTS + 1):
            add_version(models, name, version, variant_of(version))
    found = {}
    async with serve(models, "--versions=all") as server, AsyncClient(server.target) as client:
        for name, ask in ASKS.items():
            for version in range(1, VARIANTS + 1):
                for text in TEXTS:
                    found[name, variant_of(version), text] = (await ask(client, text, str(version)))[1]
    return found


async def ask_for_ever(
    target: str, name: str, expected: dict[tuple[str, int, str], Any], answered: Counter[str]
) -> None:
    """Raises what any request ends with, and AssertionError for an answer that no single version would give."""
    async with AsyncClient(target, retry=RetryPolicy(attempts=1)) as client:
        while True:
            for text in TEXTS:
                version, answer = await ASKS[name](client, text, None)
                assert answer == expected[name, variant_of(int(version)), text], (name, version, text)
                answered[f"{name}:{version}"] += 1


async def switch(client: AsyncClient, models: Path, name: str, version: int) -> None:
    """Add a version, wait until it alone is there, and take the one before away."""
    add_version(models, name, version, variant_of(version))
    async with asyncio.timeout(60):
        while [m.version for m in await client.models() if m.name == name] != [str(version)]:
            pass
    remove_version(models, name, version - 1)


@pytest.mark.long
async def test_no_request_fails_no_answer_is_mixed_and_memory_stays_flat(tmp_path: Path) -> None:
    expected = await answers_of_every_variant(tmp_path / "reference")
    assert len({repr(answer) for answer in expected.values()}) == len(expected), "every variant answers otherwise"
    models, answered = tmp_path / "models", Counter[str]()
    versions = dict.fromkeys(NAMES, 1)
    for name in NAMES:
        (models / name).mkdir(parents=True)
        add_version(models, name, 1, variant_of(1))
    async with serve(models, "--reload-seconds=0.05") as server, AsyncClient(server.target) as client:
        async with asyncio.TaskGroup() as group:
            asking = [
                group.create_task(ask_for_ever(server.target, NAMES[number % len(NAMES)], expected, answered))
                for number in range(CLIENTS)
            ]
            resident = []
            for number in range(SWITCHES):
                name = NAMES[number % len(NAMES)]
                versions[name] += 1
                await switch(client, models, name, versions[name])
                resident.append(server.resident())
                if number == SETTLED:
                    threads = server.threads()
            for task in asking:
                task.cancel()
        states = [(model.name, model.version, model.state) for model in await client.models()]
        assert states == sorted((name, str(version), "ready") for name, version in versions.items())
        print(f"{sum(answered.values())} answers of {len(answered)} versions; {server.threads()} threads; RSS in MB:")
        print(*(f"{size / 1e6:.1f}" for size in resident[:: SWITCHES // 40]), f"{resident[-1] / 1e6:.0f}")
        assert server.threads() <= threads + 2
        assert median(resident[-40:]) < 1.08 * median(resident[SETTLED : SETTLED + 40])
        assert server.events["model failed"] == 0
        assert server.events["model unloaded"] == SWITCHES
