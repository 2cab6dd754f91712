"""The policy of batches, without threads or tensors."""

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from polyhead.server.engine.batcher import Batch, Batcher, EncoderLimits, Request, padded_lengths
from polyhead.server.errors import InvalidInput

GRID = (4, 8, 16)
LIMITS = EncoderLimits(max_batch_tokens=32, max_queue_requests=5, max_queue_tokens=200)


def batcher(limits: EncoderLimits = LIMITS) -> Batcher[Request]:
    return Batcher(GRID, limits)


def request(queue: Batcher[Request], *lengths: int) -> Request:
    inputs = [range(length) for length in lengths]
    padded = queue.pad(inputs)
    return Request(inputs, padded, len(padded), sum(padded), cancelled=False)


def submit(queue: Batcher[Request], *lengths: int) -> Request:
    made = request(queue, *lengths)
    assert queue.refusal(made.waiting_tokens) is None
    queue.add(made)
    return made


def batches(queue: Batcher[Request]) -> Iterator[Batch[Request]]:
    while (batch := queue.take()) is not None:
        yield batch


def requests_in(batch: Batch[Request]) -> list[Request]:
    return [item.request for item in batch.items]


def test_of_three_callers_one_cancels_and_the_others_are_still_answered() -> None:
    queue = batcher()
    first, second, third = submit(queue, 3), submit(queue, 3), submit(queue, 3)
    queue.cancel(second)
    assert [requests_in(batch) for batch in batches(queue)] == [[first, third]]
    queue.check_integrity()


def test_only_inputs_of_equal_padded_length_share_a_batch() -> None:
    queue = batcher()
    mixed = submit(queue, 3, 5, 4, 16, 8)
    taken = [(batch.length, [item.position for item in batch.items]) for batch in batches(queue)]
    assert taken == [(4, [0, 2]), (8, [1, 4]), (16, [3])]
    assert mixed.waiting_inputs == 0


def test_only_inputs_with_the_same_adapter_share_a_batch() -> None:
    queue = batcher()
    made = [request(queue, 3) for _ in range(4)]
    for one, adapter in zip(made, ("", "a", "", "b"), strict=True):
        one.adapter = adapter
        queue.add(one)
    taken = [(batch.adapter, requests_in(batch)) for batch in batches(queue)]
    assert taken == [("", [made[0], made[2]]), ("a", [made[1]]), ("b", [made[3]])]
    queue.check_integrity()


def test_the_group_of_the_oldest_input_goes_first() -> None:
    queue = batcher()
    long = submit(queue, 16)
    short = [submit(queue, 2) for _ in range(3)]
    assert [requests_in(batch) for batch in batches(queue)] == [[long], short]


def test_a_batch_keeps_to_the_budget_of_padded_tokens() -> None:
    queue = batcher()
    submit(queue, *[8] * 9)
    assert [batch.padded_tokens for batch in batches(queue)] == [32, 32, 8]


def test_an_input_larger_than_the_budget_runs_alone() -> None:
    queue = batcher(EncoderLimits(max_batch_tokens=10, max_queue_requests=5, max_queue_tokens=200))
    submit(queue, 16, 16)
    assert [len(batch.items) for batch in batches(queue)] == [1, 1]


def test_nothing_waiting_makes_no_batch() -> None:
    queue = batcher()
    assert queue.take() is None
    queue.cancel(submit(queue, 4))
    assert queue.take() is None


def test_a_full_queue_names_the_limit_of_requests() -> None:
    queue = batcher()
    for _ in range(5):
        submit(queue, 4)
    assert queue.refusal(request(queue, 4).waiting_tokens) == "the queue is full: 5 requests wait, the limit is 5"


def test_a_full_queue_names_the_limit_of_tokens() -> None:
    queue = batcher()
    submit(queue, *[16] * 12)
    assert queue.refusal(request(queue, 8).waiting_tokens) is None
    assert (
        queue.refusal(request(queue, 9).waiting_tokens)
        == "the queue is full: 192 tokens wait and 16 came, the limit is 200"
    )


def test_cancelling_gives_the_place_back_at_once() -> None:
    queue = batcher()
    waiting = submit(queue, *[16] * 12)
    queue.cancel(waiting)
    queue.cancel(waiting)
    assert (queue.waiting_requests, queue.waiting_tokens) == (0, 0)
    submit(queue, *[16] * 12)
    queue.check_integrity()


def test_cancelling_between_two_batches_of_a_request_drops_the_rest() -> None:
    queue = batcher()
    large = submit(queue, *[16] * 4)
    assert queue.take() is not None
    queue.cancel(large)
    assert queue.take() is None
    queue.check_integrity()


def test_dropping_all_tells_each_waiting_request_once() -> None:
    queue = batcher()
    first, second = submit(queue, 3, 9, 16), submit(queue, 4)
    queue.cancel(submit(queue, 5))
    assert {id(dropped) for dropped in queue.drop_all()} == {id(first), id(second)}
    assert queue.take() is None
    queue.check_integrity()


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([], "inputs: must have at least 1, got 0"),
        ([[1], []], "inputs[1]: must have 1 to 16 tokens, got 0"),
        ([[1] * 17], "inputs[0]: must have 1 to 16 tokens, got 17"),
        ([[1] * 9] * 13, "inputs: must have at most 200 tokens with padding together, got 208"),
    ],
)
def test_what_could_never_run_is_refused_naming_field_and_limit(inputs: Sequence[Sequence[int]], text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        batcher().pad(inputs)
    assert str(caught.value) == text


@pytest.mark.parametrize("field", ["max_batch_tokens", "max_queue_requests", "max_queue_tokens"])
def test_limits_below_one_are_refused(field: str) -> None:
    values = {"max_batch_tokens": 1, "max_queue_requests": 1, "max_queue_tokens": 1, field: 0}
    with pytest.raises(ValueError, match=f"{field}: must be at least 1, got 0"):
        EncoderLimits(**values)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10_000))
def test_the_grid_ascends_and_ends_with_the_longest_input(max_tokens: int) -> None:
    grid = padded_lengths(max_tokens)
    assert grid == sorted(set(grid))
    assert grid[0] >= 1
    assert grid[-1] == max_tokens


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 10_000), st.data())
def test_padding_adds_at_most_three_tokens_or_a_quarter(max_tokens: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, max_tokens))
    padded = next(size for size in padded_lengths(max_tokens) if size >= length)
    assert padded - length <= max(3, length / 4)


class AnyTraffic(RuleBasedStateMachine):
    """Whatever comes, is cancelled and runs, in any order; `model` is the queue as a plain list of inputs."""

    requests: Bundle[Request] = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.queue = batcher()
        self.model: list[tuple[int, Request, int]] = []

    @rule(target=requests, lengths=st.lists(st.integers(1, 16), min_size=1, max_size=6))
    def submit(self, lengths: list[int]) -> Request:
        made = request(self.queue, *lengths)
        waiting = {id(request) for _, request, _ in self.model}
        full = len(waiting) >= LIMITS.max_queue_requests
        full |= sum(length for length, _, _ in self.model) + sum(made.padded) > LIMITS.max_queue_tokens
        assert (self.queue.refusal(made.waiting_tokens) is not None) == full
        if not full:
            self.queue.add(made)
            self.model += [(length, made, position) for position, length in enumerate(made.padded)]
        return made

    @rule(cancelled=consumes(requests))
    def cancel(self, cancelled: Request) -> None:
        if any(request is cancelled for _, request, _ in self.model) or not cancelled.waiting_inputs:
            self.queue.cancel(cancelled)
            self.model = [item for item in self.model if item[1] is not cancelled]

    @precondition(lambda self: self.model)
    @rule()
    def the_oldest_input_runs_with_the_next_of_its_length_and_each_input_once(self) -> None:
        batch = self.queue.take()
        assert batch is not None
        oldest = self.model[0][0]
        expected = [item for item in self.model if item[0] == oldest][: max(1, LIMITS.max_batch_tokens // oldest)]
        assert [(batch.length, item.request, item.position) for item in batch.items] == expected
        assert batch.padded_tokens <= LIMITS.max_batch_tokens
        self.model = [item for item in self.model if item not in expected]

    @invariant()
    def reserved_is_what_waits(self) -> None:
        self.queue.check_integrity()
        assert self.queue.waiting_tokens == sum(length for length, _, _ in self.model)
        assert self.queue.waiting_requests == len({id(request) for _, request, _ in self.model})

    def teardown(self) -> None:
        while self.model:
            self.the_oldest_input_runs_with_the_next_of_its_length_and_each_input_once()
        assert self.queue.take() is None
        self.reserved_is_what_waits()


TestAnyTraffic = AnyTraffic.TestCase
TestAnyTraffic.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
