"""The policy of the generation engine over slots of a memory that only remembers what was moved where."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.server.engine.prefixes import PrefixCache
from polyhead.server.engine.scheduler import FIRST_TOKEN_WEIGHT, Chunk, Scheduler
from polyhead.server.engine.sequence import GenerationRequest, Sampling, Sequence, Stopping, sequences_of
from polyhead.server.engine.slots import Slots
from polyhead.server.errors import Overloaded
from tests.decoders import LIMITS

CHUNK = 8


class Ledger:
    """A cache whose content is the name of the sequence that wrote it."""

    def __init__(self, slots: int) -> None:
        self.content: list[object] = [None] * slots

    def move(self, source: int, target: int, length: int) -> None:
        self.content[target] = self.content[source]

    def swap(self, first: int, second: int, length: int) -> None:
        self.content[first], self.content[second] = self.content[second], self.content[first]


def sequence(prompt: int, samples: int = 1, priority: int = 0) -> Sequence:
    stopping = Stopping(max_tokens=4)
    request = GenerationRequest((1,) * prompt, Sampling(seed=0), stopping, samples=samples, priority=priority)
    return sequences_of(request, arrived=0.0)


def scheduler(slots: int = 4, **limits: int) -> tuple[Scheduler, Slots, Ledger]:
    ledger = Ledger(slots)
    pool = Slots(slots, ledger)
    return Scheduler(pool, PrefixCache(slots, 0, ledger, CHUNK), replace(LIMITS, **limits), CHUNK), pool, ledger


def most(policy: Scheduler, pool: Slots) -> float:
    """How many times the budget an iteration may read at most."""
    return max(1.0, FIRST_TOKEN_WEIGHT * (policy.waiting + 1) / max(1, len(pool.decoding)))


def next_chunk(policy: Scheduler, spent: int) -> Chunk | None:
    policy.admit()
    return policy.next_chunk(spent)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 6), st.integers(1, 3)), min_size=1, max_size=12),
    st.lists(st.integers(0, 11), max_size=6),
    st.integers(3, 5),
    st.integers(1, 40),
)
def test_whatever_arrives_and_leaves_slots_stay_whole_and_everyone_is_served_in_order(
    arrivals: list[tuple[int, int, int]], leaving: list[int], slots: int, budget: int
) -> None:
    """Arrivals are (prompt tokens, answer tokens, samples). Someone leaves in each of the first iterations."""
    policy, pool, ledger = scheduler(slots, prefill_budget_tokens=budget)
    sequences = [sequence(prompt, samples=samples) for prompt, _, samples in arrivals]
    to_go = {x: answer for s, (_, answer, _) in zip(sequences, arrivals, strict=True) for x in (s, *s.siblings)}
    written: dict[Sequence, Sequence] = {x: s for s in sequences for x in (s, *s.siblings)}
    for s in sequences:
        policy.add(s, 1.0)
    begun: list[Sequence] = []
    leavers = [sequences[i] for i in leaving if i < len(sequences)]
    while policy.has_work:
        if leavers:
            leaver = leavers.pop()
            if not policy.remove(leaver) and leaver.slot >= 0:
                policy.finish(leaver)
        spent = 0
        while chunk := next_chunk(policy, spent):
            assert chunk.start % CHUNK == 0
            assert chunk.end - chunk.start <= CHUNK
            assert spent == 0 or spent + chunk.end - chunk.start <= budget * most(policy, pool)
            if chunk.start == 0:
                begun.append(chunk.sequence)
            ledger.content[chunk.sequence.slot] = chunk.sequence
            policy.prefilled(chunk)
            spent += chunk.end - chunk.start
        for s in list(pool.decoding):
            assert ledger.content[s.slot] is written[s], "the cache moved without its sequence"
            s.cached += 1
            to_go[s] -= 1
            if to_go[s] == 0:
                policy.finish(s)
        policy.check_integrity()
    assert [sequences.index(s) for s in begun] == sorted(sequences.index(s) for s in begun)
    assert pool.used == 0


def test_the_queue_is_bounded_in_requests() -> None:
    policy, _, _ = scheduler(max_queue_requests=2)
    policy.add(sequence(1), 1.0)
    policy.add(sequence(1), 1.0)
    with pytest.raises(Overloaded, match="2 requests are waiting, the limit is 2") as error:
        policy.add(sequence(1), 1.5)
    assert error.value.retry_after_seconds == 1.5


def test_the_queue_is_bounded_in_tokens_but_one_request_always_fits() -> None:
    policy, _, _ = scheduler(max_queue_tokens=10)
    policy.add(sequence(20), 1.0)
    with pytest.raises(Overloaded, match="20 prompt tokens are waiting, 1 more would pass the limit of 10"):
        policy.add(sequence(1), 1.0)


def test_prefill_stops_at_the_budget_but_one_chunk_is_always_allowed() -> None:
    policy, _, _ = scheduler(prefill_budget_tokens=1)
    policy.add(sequence(20), 1.0)
    chunk = next_chunk(policy, 0)
    assert chunk is not None
    assert (chunk.start, chunk.end) == (0, CHUNK)
    policy.prefilled(chunk)
    assert next_chunk(policy, CHUNK) is None


def chunks_beside(answers: int, prompts: int, free: int = 0) -> int:
    """How many chunks an iteration reads at a budget of one, with so many requests in either state and slots beyond them."""
    policy, _, _ = scheduler(answers + prompts + free, prefill_budget_tokens=CHUNK)
    for _ in range(answers):
        policy.add(sequence(1), 1.0)
        chunk = next_chunk(policy, 0)
        assert chunk
        policy.prefilled(chunk)
    for _ in range(prompts):
        policy.add(sequence(20 * CHUNK), 1.0)
    count = 0
    while chunk := next_chunk(policy, count * CHUNK):
        policy.prefilled(chunk)
        count += 1
    return count


def test_the_budget_grows_with_prompts_that_have_a_slot_over_answers_under_way() -> None:
    assert [chunks_beside(answers, 1) for answers in (15, 3, 2, 1)] == [1, 1, 1, 3]
    assert [chunks_beside(answers, 16 - answers) for answers in (15, 12, 8, 4, 2)] == [1, 1, 3, 9, 20]
    assert chunks_beside(1, 1, free=9) == 3, "a free slot alone is nobody's prompt"


def test_who_waits_without_a_slot_does_not_count_for_the_budget() -> None:
    policy, _, _ = scheduler(2, prefill_budget_tokens=CHUNK)
    for prompt in (1, 20 * CHUNK, *[20 * CHUNK] * 8):
        policy.add(sequence(prompt), 1.0)
    count = 0
    while chunk := next_chunk(policy, count * CHUNK):
        policy.prefilled(chunk)
        count += 1
    assert count == 3, "one of the first prompt, two of the second"


def test_a_higher_priority_goes_first_and_equals_in_the_order_they_came() -> None:
    policy, pool, _ = scheduler()
    arrivals = [sequence(1, priority=p) for p in (0, 5, 0, 5)]
    for s in arrivals:
        policy.add(s, 1.0)
    while chunk := next_chunk(policy, 0):
        policy.prefilled(chunk)
    assert pool.decoding == [arrivals[i] for i in (1, 3, 0, 2)]


def test_a_full_pool_lets_the_next_request_wait_until_a_slot_is_free() -> None:
    policy, pool, _ = scheduler(slots=1)
    first, second = sequence(3), sequence(3)
    policy.add(first, 1.0)
    policy.add(second, 1.0)
    chunk = next_chunk(policy, 0)
    assert chunk is not None
    policy.prefilled(chunk)
    assert next_chunk(policy, 3) is None
    assert (policy.waiting, pool.decoding) == (1, [first])
    policy.finish(first)
    following = next_chunk(policy, 0)
    assert following is not None
    assert following.sequence is second
