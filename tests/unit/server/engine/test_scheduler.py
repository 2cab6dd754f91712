"""The policy of the generation engine over slots of a memory that only remembers what was moved where."""

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.server.engine.prefixes import PrefixCache
from polyhead.server.engine.scheduler import SHORT_PROMPT_CHUNKS, Chunk, Scheduler
from polyhead.server.engine.sequence import GenerationRequest, Sampling, Sequence, Stopping, sequences_of
from polyhead.server.engine.slots import Slots
from polyhead.server.errors import Overloaded
from tests.decoders import LIMITS

CHUNK = 8
LANES = 3
CAPACITY = 50


class Ledger:
    """A cache whose content is the sequence that wrote it."""

    def __init__(self, slots: int) -> None:
        self.lanes: list[object] = [None] * LANES
        self.slots: list[object] = [None] * slots

    def commit(self, lane: int, slot: int, length: int) -> None:
        self.slots[slot] = self.lanes[lane]

    def move(self, source: int, target: int, length: int) -> None:
        self.slots[target] = self.slots[source]

    def keep_first(self, slots: int) -> None:
        self.slots[slots:] = [None] * (len(self.slots) - slots)

    def copy_lane(self, source: int, target: int, length: int) -> None:
        self.lanes[target] = self.lanes[source]


def sequence(prompt: int, **options: Any) -> Sequence:
    request = GenerationRequest((1,) * prompt, Sampling(seed=0), Stopping(max_tokens=4), **options)
    return sequences_of(request, arrived=0.0)


def scheduler(slots: int = 4, **limits: int) -> tuple[Scheduler, Slots, Ledger]:
    ledger = Ledger(slots)
    pool = Slots(slots, LANES, ledger)
    prefixes = PrefixCache(LANES, 0, ledger, CHUNK)
    policy = Scheduler(pool, prefixes, replace(LIMITS, **limits), chunk_tokens=CHUNK, capacity=CAPACITY)
    return policy, pool, ledger


def next_calls(policy: Scheduler) -> list[list[Chunk]]:
    """Of the running iteration."""
    while policy.admit():
        pass
    return policy.next_calls()


def prefill_iteration(policy: Scheduler) -> list[list[Chunk]]:
    """All calls of an iteration, as if they were run."""
    policy.begin_iteration()
    ran = []
    while calls := next_calls(policy):
        ran += calls
        for chunk in chain(*calls):
            policy.prefilled(chunk)
    return ran


def lengths(calls: list[list[Chunk]]) -> list[list[int]]:
    return [[chunk.tokens for chunk in call] for call in calls]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 6), st.integers(1, 3), st.sampled_from(["", "a", "b"])),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.integers(0, 11), max_size=6),
    st.integers(3, 5),
    st.integers(1, 40),
)
def test_whatever_arrives_and_leaves_slots_stay_whole_and_everyone_is_served_in_order(
    arrivals: list[tuple[int, int, int, str]], leaving: list[int], slots: int, budget: int
) -> None:
    """Arrivals are (prompt tokens, answer tokens, samples, adapter), and those with the same adapter stay neighbours. Someone leaves
    in each of the first iterations."""
    policy, pool, ledger = scheduler(slots, prefill_budget_tokens=budget)
    sequences = [sequence(prompt, samples=samples, adapter=adapter) for prompt, _, samples, adapter in arrivals]
    to_go = {x: answer for s, (_, answer, *_) in zip(sequences, arrivals, strict=True) for x in (s, *s.siblings)}
    written: dict[Sequence, Sequence] = {x: s for s in sequences for x in (s, *s.siblings)}
    for s in sequences:
        policy.add(s, 1.0)
    entered: list[Sequence] = []
    leavers = [sequences[i] for i in leaving if i < len(sequences)]
    while policy.has_work:
        if leavers:
            leaver = leavers.pop()
            if not policy.remove(leaver):
                policy.finish(leaver)
        decoded = bool(pool.decoding)
        policy.begin_iteration()
        ran: list[Chunk] = []
        while calls := next_calls(policy):
            policy.check_integrity()
            for call in calls:
                first = call[0].sequence.lane
                assert [chunk.sequence.lane for chunk in call] == list(range(first, first + len(call)))
                assert len({chunk.sequence.request.adapter for chunk in call}) == 1
                assert all(chunk.start + max(c.tokens for c in call) <= CAPACITY for chunk in call)
            for chunk in chain(*calls):
                assert chunk.start % CHUNK == 0
                assert chunk.tokens <= CHUNK
                ran.append(chunk)
                ledger.lanes[chunk.sequence.lane] = chunk.sequence
                policy.prefilled(chunk)
        assert sum(c.tokens for c in ran) <= (LANES if decoded else slots) * max(CHUNK, budget)
        readers = sorted({c.sequence for c in ran}, key=sequences.index)
        waiting = [s for s in sequences if s.lane >= 0 and s not in readers]
        assert not waiting or sequences.index(readers[0]) < sequences.index(waiting[0]), "the oldest did not get on"
        entered += [s for s in sequences if (s in readers or s in waiting) and s not in entered]
        for s in list(pool.decoding):
            assert ledger.slots[s.slot] is written[s], "the cache moved without its sequence"
            s.cached += 1
            to_go[s] -= 1
            if to_go[s] == 0:
                policy.finish(s)
        policy.check_integrity()
    assert [sequences.index(s) for s in entered] == sorted(sequences.index(s) for s in entered)
    assert pool.used == 0


def test_the_queue_is_bounded_in_requests() -> None:
    policy, _, _ = scheduler(slots=1, max_queue_requests=2)
    for _ in range(3):  # one has the slot, or will have it
        policy.add(sequence(1), 1.0)
    with pytest.raises(Overloaded, match="2 requests are waiting, the limit is 2") as error:
        policy.add(sequence(1), 1.5)
    assert error.value.retry_after_seconds == 1.5


def test_the_queue_is_bounded_in_tokens_but_one_request_always_fits() -> None:
    policy, _, _ = scheduler(max_queue_tokens=10)
    policy.add(sequence(20), 1.0)
    with pytest.raises(Overloaded, match="20 prompt tokens are waiting, 1 more would pass the limit of 10"):
        policy.add(sequence(1), 1.0)


def test_who_finds_a_slot_free_and_only_waits_for_a_lane_fills_no_queue() -> None:
    policy, _, _ = scheduler(slots=6, max_queue_requests=1)
    for _ in range(4):
        policy.add(sequence(CAPACITY), 1.0)
    policy.add(sequence(1, samples=2), 1.0)
    policy.add(sequence(1, samples=2), 1.0)  # waits for a slot
    with pytest.raises(Overloaded, match="1 requests are waiting, the limit is 1"):
        policy.add(sequence(1), 1.0)


def test_each_prompt_brings_its_budget_along_up_to_as_many_as_there_are_lanes() -> None:
    policy, _, _ = scheduler(slots=21, prefill_budget_tokens=2 * CHUNK)
    policy.add(sequence(1), 1.0)
    prefill_iteration(policy)
    policy.add(sequence(40), 1.0)
    assert lengths(prefill_iteration(policy)) == [[CHUNK], [CHUNK]]
    for _ in range(20):
        policy.add(sequence(5), 1.0)
    shared = lengths(prefill_iteration(policy))
    assert shared[0] == [CHUNK, 5, 5]
    assert LANES * 2 * CHUNK - 5 < sum(map(sum, shared)) <= LANES * 2 * CHUNK


def test_prompts_that_end_with_their_first_token_let_others_decode_however_many_there_are() -> None:
    policy, pool, _ = scheduler(slots=4, prefill_budget_tokens=CHUNK)
    stream = sequence(1)
    policy.add(stream, 1.0)
    prefill_iteration(policy)
    policy.begin_iteration()
    read = 0
    while True:
        while policy.waiting < 8:
            policy.add(sequence(CHUNK), 1.0)
        if not (calls := next_calls(policy)):
            break
        for chunk in chain(*calls):
            policy.prefilled(chunk)
            policy.finish(chunk.sequence)
            read += chunk.tokens
    assert pool.decoding == [stream]
    assert read <= LANES * CHUNK


def test_a_burst_is_read_prompt_by_prompt_so_that_the_first_tokens_come_early() -> None:
    policy, pool, _ = scheduler(slots=8, prefill_budget_tokens=CHUNK)
    burst = [sequence(4 * CHUNK) for _ in range(LANES)]
    for prompt in burst:
        policy.add(prompt, 1.0)
    prefill_iteration(policy)
    prefill_iteration(policy)
    assert pool.decoding == burst[:1]
    assert [prompt.cached for prompt in burst] == [4 * CHUNK, 2 * CHUNK, 0]


def test_behind_a_long_context_chunks_have_half_the_length_and_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead.server.engine.scheduler.LONG_CONTEXT", 2 * CHUNK)
    policy, _, _ = scheduler(prefill_budget_tokens=2 * CHUNK)
    policy.add(sequence(4 * CHUNK + 1), 1.0)
    assert lengths(prefill_iteration(policy)) == [[CHUNK], [CHUNK]]
    assert lengths(prefill_iteration(policy)) == [[CHUNK // 2], [CHUNK // 2]]


def test_a_prompt_gets_on_by_a_chunk_however_small_the_budget() -> None:
    policy, _, _ = scheduler(prefill_budget_tokens=1)
    policy.add(sequence(20), 1.0)
    policy.add(sequence(20), 1.0)
    assert lengths(prefill_iteration(policy)) == [[CHUNK, CHUNK]]


def test_a_short_prompt_need_not_wait_until_long_ones_are_read() -> None:
    policy, pool, _ = scheduler(slots=8, prefill_budget_tokens=CHUNK)
    for _ in range(2 * LANES):
        policy.add(sequence(CAPACITY), 1.0)
    short = sequence(SHORT_PROMPT_CHUNKS * CHUNK)
    policy.add(short, 1.0)
    prefill_iteration(policy)
    prefill_iteration(policy)
    assert pool.decoding == [short]


def test_an_urgent_prompt_takes_the_last_lane_however_long() -> None:
    policy, _, _ = scheduler(slots=8, prefill_budget_tokens=CHUNK)
    for _ in range(2 * LANES):
        policy.add(sequence(CAPACITY), 1.0)
    prefill_iteration(policy)
    urgent = sequence(CAPACITY, priority=1)
    policy.add(urgent, 1.0)
    prefill_iteration(policy)
    assert urgent.lane >= 0


class Broken(Ledger):
    """Refuses the n-th copy."""

    def __init__(self, slots: int, refused: int) -> None:
        super().__init__(slots)
        self.lanes = [None] * (LANES + 1)
        self._left = refused

    def _copy(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise MemoryError

    def commit(self, lane: int, slot: int, length: int) -> None:
        self._copy()
        super().commit(lane, slot, length)

    def move(self, source: int, target: int, length: int) -> None:
        self._copy()
        super().move(source, target, length)

    def copy_lane(self, source: int, target: int, length: int) -> None:
        self._copy()
        super().copy_lane(source, target, length)


@pytest.mark.parametrize("refused", range(1, 10))
def test_whatever_copy_fails_a_prompt_that_is_given_up_leaves_nothing_behind(refused: int) -> None:
    """Copies are of a first prompt to the prefix cache and a slot, then of one with another adapter, then of one with three samples
    and the first one's adapter, for which the other has to make room."""
    ledger = Broken(8, refused)
    pool = Slots(8, LANES, ledger)
    prefixes = PrefixCache(LANES, 1, ledger, CHUNK)
    policy = Scheduler(pool, prefixes, LIMITS, chunk_tokens=CHUNK, capacity=CAPACITY)
    one, other, three = sequence(CHUNK), sequence(CHUNK, adapter="a"), sequence(2 * CHUNK, samples=3)
    for s in (one, other, three):
        policy.add(s, 1.0)
    failures = 0
    policy.begin_iteration()
    while calls := next_calls(policy):
        for chunk in chain(*calls):
            try:
                ledger.lanes[chunk.sequence.lane] = chunk.sequence
                policy.prefilled(chunk)
            except MemoryError:
                failures += 1
                policy.finish(chunk.sequence)
            policy.check_integrity()
            assert all(ledger.slots[s.slot] is (three if s in three.siblings else s) for s in pool.decoding)
            assert not any(ledger.slots[len(pool.decoding) :]), "slots that nobody decodes in were not given up"
    assert failures == 1
    for decoding in reversed(list(pool.decoding)):
        policy.finish(decoding)
    policy.check_integrity()
    assert not policy.has_work


def test_a_long_prompt_gets_on_by_its_budget_and_short_ones_pass_it() -> None:
    policy, pool, _ = scheduler(prefill_budget_tokens=CHUNK)
    long, short = sequence(40), sequence(5)
    policy.add(long, 1.0)
    policy.add(short, 1.0)
    assert lengths(prefill_iteration(policy)) == [[8, 5]]
    assert (pool.decoding, long.cached) == ([short], 8)


def test_chunks_of_neighbouring_lanes_share_a_call_unless_padding_costs_more_than_it_saves() -> None:
    policy, _, _ = scheduler()
    for prompt in (8, 2, 1):  # the last one's padding would pass MOST_PADDING
        policy.add(sequence(prompt), 1.0)
    assert lengths(prefill_iteration(policy)) == [[8, 2], [1]]


def test_chunks_share_a_call_only_with_those_of_the_same_adapter() -> None:
    policy, _, _ = scheduler()
    for adapter in ("a", "a", "b"):
        policy.add(sequence(CHUNK, adapter=adapter), 1.0)
    assert lengths(prefill_iteration(policy)) == [[CHUNK, CHUNK], [CHUNK]]


def test_who_comes_and_goes_moves_one_row_of_each_other_adapter_behind_at_most() -> None:
    policy, pool, _ = scheduler(6)
    made = [sequence(1, adapter=adapter) for adapter in "abcab"]
    for s in made:
        policy.add(s, 1.0)
        prefill_iteration(policy)
    assert [s.request.adapter for s in pool.decoding] == ["a", "a", "b", "b", "c"]
    policy.finish(made[0])
    assert pool.decoding == [made[3], made[4], made[1], made[2]]


def test_a_lane_is_never_padded_past_its_capacity() -> None:
    policy, _, _ = scheduler(prefill_budget_tokens=CHUNK)
    end = sequence(CAPACITY)  # its last chunk has two tokens
    policy.add(end, 1.0)
    for _ in range(CAPACITY // CHUNK):
        prefill_iteration(policy)
    policy.add(sequence(8), 1.0)
    assert lengths(prefill_iteration(policy)) == [[2], [8]]


def test_a_prompt_whose_every_position_is_wanted_has_calls_of_its_own() -> None:
    policy, _, _ = scheduler()
    policy.add(sequence(8), 1.0)
    policy.add(sequence(8, prompt_logprobs=1), 1.0)
    assert lengths(prefill_iteration(policy)) == [[8], [8]]


def test_a_higher_priority_goes_first_and_equals_in_the_order_they_came() -> None:
    policy, pool, _ = scheduler()
    arrivals = [sequence(1, priority=p) for p in (0, 5, 0, 5)]
    for s in arrivals:
        policy.add(s, 1.0)
    prefill_iteration(policy)
    assert pool.decoding == [arrivals[i] for i in (1, 3, 0, 2)]


def test_a_full_pool_lets_the_next_request_wait_until_a_slot_is_free() -> None:
    policy, pool, _ = scheduler(slots=1)
    first, second = sequence(3), sequence(3)
    policy.add(first, 1.0)
    policy.add(second, 1.0)
    prefill_iteration(policy)
    assert (policy.waiting, pool.decoding) == (1, [first])
    policy.finish(first)
    prefill_iteration(policy)
    assert pool.decoding == [second]
