"""Two minutes of three times the load that a server can bear, and two of everything at once."""

import asyncio
from pathlib import Path

import pytest

from polyhead.client.bench.lengths import Uniform
from tests import bundles
from tests.perf import soak
from tests.perf.overload import Shape, observe, percentile, summary
from tests.perf.served import served

SLOTS, QUEUE = 8, 4
SHAPE = Shape(SLOTS + QUEUE, Uniform(16, 200), Uniform(16, 64), calm_seconds=30.0, over_seconds=120.0)
REJECTED_MILLISECONDS = 20
GROWTH_BYTES = 16e6


@pytest.mark.long
def test_overload_turns_the_rest_away_at_once_and_loses_nothing(tmp_path: Path) -> None:
    """What it does to latency is for tests/perf/overload.py and a model that keeps the server busy: with one this small, who sends
    hundreds of requests a second takes more of the processors than the server does.
    """
    limits = {"slots": SLOTS, "slot_tokens": 300, "max_queue_requests": QUEUE}
    with served(bundles.models_folder(), tmp_path, **limits) as server:
        seen = asyncio.run(observe(server, SHAPE))
    print(summary(seen))
    seen.check_exactly_once()
    assert len(seen.rejection_seconds) > len(seen.over) / 2
    assert percentile(seen.rejection_seconds, 0.95) < REJECTED_MILLISECONDS
    assert seen.growth_bytes < GROWTH_BYTES


@pytest.mark.long
def test_two_minutes_of_mixed_load_leave_nothing_behind(tmp_path: Path) -> None:
    """`make soak` does the same for longer."""
    with served(bundles.models_folder(), tmp_path, **soak.LIMITS) as server:
        report = asyncio.run(soak.run(server, seconds=120, callers=24))
    print(report)
    report.check()
