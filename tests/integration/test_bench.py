"""`polyhead bench` against the real server."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from typing import Any

from tests.bundles import EMBEDDER, GENERATOR
from tests.integration.conftest import Running, Start, until


async def bench(running: Running, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "polyhead.client", "bench", *arguments, "--json"]
    environment = {**os.environ, "POLYHEAD_TARGET": running.target}
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environment)
    out, err = await asyncio.wait_for(process.communicate(), timeout=60)
    assert (process.returncode, err) == (0, b"")
    report: dict[str, Any] = json.loads(out)
    return report


async def test_the_report_counts_what_the_server_counts(running: Running) -> None:
    """Lengths are what was asked for, and the client waits at least as long as the server says it worked."""
    load = ("--streams", "4", "--requests", "12", "--warmup", "2", "--prompt-tokens", "5-40", "--max-tokens", "16")
    report = await bench(running, "generate", *load, "--slo-ttft", "60")
    assert report["requests"]["completed"] == report["goodput"]["requests"] == 12
    assert report["generated_tokens"] == 12 * 16
    calls = {"model": GENERATOR, "version": "1", "method": "Generate"}
    await until(lambda: running.metric("generated_tokens_total", **calls) == (12 + 2) * 16)
    assert running.metric("prompt_tokens_total", **calls) > report["prompt_tokens"] > 12 * 5
    client, server = report["latency"], report["server"]
    assert client["time_to_first_token_seconds"]["mean"] > server["time_to_first_token_seconds"]["mean"] > 0
    assert client["latency_seconds"]["mean"] > server["total_seconds"]["mean"] > server["queue_seconds"]["mean"]


async def test_an_overloaded_servers_rejections_are_counted(start: Start) -> None:
    running = await start(slots=1, max_queue_requests=1)
    load = ("--rate", "1000", "--requests", "10", "--warmup", "1", "--prompt-tokens", "4", "--max-tokens", "200")
    requests = (await bench(running, "generate", *load))["requests"]
    assert requests["completed"] >= 2
    assert requests["rejected"] > 0
    assert (requests["completed"] + requests["rejected"], requests["failed"]) == (10, 0)


async def test_embeddings_of_made_up_words_are_counted_in_inputs_and_tokens(running: Running) -> None:
    load = ("--concurrency", "2", "--requests", "6", "--warmup", "1", "--inputs-per-request", "4", "--words", "2")
    report = await bench(running, "embed", *load)
    assert (report["model"], report["inputs"], report["requests"]["completed"]) == (EMBEDDER, 24, 6)
    assert report["per_second"]["inputs"] > report["per_second"]["requests"] > 0
