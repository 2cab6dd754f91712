"""What an answer is does not depend on the traffic: the property of tests/unit/server/engine, for as long as one has time."""

import os
import time
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.traffic import INDEPENDENT, TRAFFIC, Arrival, assert_answers_do_not_depend_on

SECONDS = float(os.environ.get("BITS_SECONDS", "200"))
"""For each kind of bundle; ten minutes for all unless BITS_SECONDS says otherwise."""


@pytest.mark.long
@pytest.mark.parametrize("kind", INDEPENDENT)
def test_for_minutes_no_traffic_changes_a_bit_of_an_answer(kind: str) -> None:
    """Batches of mixes, each from a seed of its own that a failure's report names, until the time is over."""
    mixes = requests = 0

    @settings(
        max_examples=50,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(traffic=TRAFFIC)
    def hold(traffic: list[Arrival]) -> None:
        nonlocal mixes, requests
        assert_answers_do_not_depend_on(traffic, kind)
        mixes, requests = mixes + 1, requests + len(traffic)

    until = time.monotonic() + SECONDS
    for number in count():
        if time.monotonic() > until:
            break
        seed(number)(hold)()
    print(f"{kind}: {mixes:,} mixes of {requests:,} requests")
    assert mixes > SECONDS / 10
