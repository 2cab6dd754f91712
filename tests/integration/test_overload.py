"""Far more requests than a server can bear: each is answered or rejected, once; none is lost."""

import asyncio
from pathlib import Path

from polyhead.client.bench.lengths import Uniform
from tests.perf.overload import Shape, observe
from tests.perf.served import served

LIMITS = {"slots": 2, "slot_tokens": 128, "max_queue_requests": 2}
SHAPE = Shape(4, Uniform(4, 40), Uniform(8, 40), calm_seconds=0.8, over_seconds=2.0)


def test_under_overload_every_request_is_answered_or_rejected_exactly_once(models_folder: Path, tmp_path: Path) -> None:
    """By the server's log and by what the caller got; how fast the machine is does not matter."""
    with served(models_folder, tmp_path, **LIMITS) as server:
        seen = asyncio.run(observe(server, SHAPE))
        gauges = server.gauges()
    seen.check_exactly_once()
    assert seen.rejection_seconds
    assert any(sent.outcome.completed for sent in seen.over)
    assert [gauges[f"polyhead_{name}"] for name in ("queue_size", "slots_used", "requests_running")] == [0, 0, 0]
    assert gauges["polyhead_rejected_total"] >= len(seen.rejection_seconds)
