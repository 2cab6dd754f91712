"""Which waiting inputs run together: policy only, no tensors, no threads.

Every input is padded to the smallest length of a grid that holds it, and only inputs of equal padded length with the same
adapter share a batch. How an input is padded thus depends on the input alone, so its answer is the same bits in any batch, and no batch
computes over more padding than its inputs would alone.

A batch forms when the model is free, from what waits then: the group of the oldest waiting input goes first, filled up
from that group in order of arrival, within a budget of padded tokens. Nothing waits for a batch to fill, and nothing
starves, because every input becomes the oldest.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from polyhead.server.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class EncoderLimits:
    """Bounds of one encoder's queue and batches; each at least 1. Tokens are counted with padding."""

    max_batch_tokens: int
    """In one batch. An input that is longer runs alone."""
    max_queue_requests: int
    """That wait, at least in part."""
    max_queue_tokens: int
    """Of inputs that wait."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")


def padded_lengths(max_tokens: int) -> list[int]:
    """The grid of padded lengths for a model whose longest input has `max_tokens` tokens; ascending, ends with it.

    Multiples of 4 up to 32, of 8 up to 64, of 16 up to 128 and so on, so that padding adds at most 3 tokens or a quarter.
    For sentences (15 tokens on average) finer steps leave batches too small and coarser ones compute over padding:
    with 32 callers steps of 1, 4, 8 and 16 gave 186, 188, 162 and 142 sentences a second.
    """
    lengths: list[int] = []
    step = 4
    while (length := lengths[-1] + step if lengths else step) < max_tokens:
        lengths.append(length)
        if length == 8 * step:
            step *= 2
    return [*lengths, max_tokens]


@dataclass(slots=True, eq=False)
class Request:
    """Inputs that came together and are answered together. The batcher owns its counts."""

    inputs: Sequence[Sequence[int]]
    """Token ids of each."""
    padded: Sequence[int]
    """Padded length of each."""
    waiting_inputs: int
    waiting_tokens: int
    """Padded tokens of the inputs that wait."""
    cancelled: bool
    adapter: str = field(default="", kw_only=True)
    """One of the model's; empty: none."""


R = TypeVar("R", bound=Request)


class Waiting(NamedTuple, Generic[R]):
    """One input of a request, in the queue."""

    arrival: int
    request: R
    position: int
    """Of the input in its request."""


Group = tuple[int, str]
"""Padded length and adapter."""


@dataclass(frozen=True, slots=True)
class Batch(Generic[R]):
    """Inputs to run together, in order of arrival, each padded to `length`."""

    length: int
    adapter: str
    items: list[Waiting[R]]

    @property
    def padded_tokens(self) -> int:
        return self.length * len(self.items)


class Batcher(Generic[R]):
    """The bounded queue of one encoder. Not thread-safe: its engine holds a lock."""

    def __init__(self, grid: Sequence[int], limits: EncoderLimits) -> None:
        """`grid`: padded lengths, ascending; the last is the longest input."""
        self._grid = tuple(grid)
        self._limits = limits
        self._groups: dict[Group, deque[Waiting[R]]] = {}
        self._arrivals = 0
        self.waiting_requests = 0
        self.waiting_tokens = 0

    def pad(self, inputs: Sequence[Sequence[int]]) -> list[int]:
        """Padded length of each input. Raises InvalidInput for what could never run: no inputs, an empty or too long
        one, or more tokens than the queue holds when it is empty."""
        if not inputs:
            raise InvalidInput("inputs", "must have at least 1, got 0")
        for index, tokens in enumerate(inputs):
            if not 1 <= len(tokens) <= self._grid[-1]:
                raise InvalidInput(f"inputs[{index}]", f"must have 1 to {self._grid[-1]} tokens, got {len(tokens)}")
        padded = [self._grid[bisect_left(self._grid, len(tokens))] for tokens in inputs]
        if sum(padded) > self._limits.max_queue_tokens:
            limit = self._limits.max_queue_tokens
            raise InvalidInput("inputs", f"must have at most {limit} tokens with padding together, got {sum(padded)}")
        return padded

    def refusal(self, tokens: int) -> str | None:
        """Why the queue has no room now for a request of so many tokens with padding, naming the limit; None if it has."""
        limits = self._limits
        if self.waiting_requests >= limits.max_queue_requests:
            return f"the queue is full: {self.waiting_requests} requests wait, the limit is {limits.max_queue_requests}"
        if self.waiting_tokens + tokens > limits.max_queue_tokens:
            return (
                f"the queue is full: {self.waiting_tokens} tokens wait and {tokens} came, "
                f"the limit is {limits.max_queue_tokens}"
            )
        return None

    def add(self, request: R) -> None:
        """Queue all inputs of a request that `refusal` has nothing against, and reserve their tokens."""
        self.waiting_requests += 1
        self.waiting_tokens += request.waiting_tokens
        for position, length in enumerate(request.padded):
            self._arrivals += 1
            self._groups.setdefault((length, request.adapter), deque()).append(
                Waiting(self._arrivals, request, position)
            )

    def cancel(self, request: R) -> None:
        """Give back at once what the request holds of the queue; its inputs are skipped when their turn comes."""
        request.cancelled = True
        request.inputs = ()
        if request.waiting_inputs:
            self.waiting_requests -= 1
            self.waiting_tokens -= request.waiting_tokens
            request.waiting_inputs = request.waiting_tokens = 0

    def take(self) -> Batch[R] | None:
        """Remove the next batch from the queue; None if nothing waits."""
        key = self._next_group()
        if key is None:
            return None
        group, (length, adapter) = self._groups[key], key
        rows = max(1, self._limits.max_batch_tokens // length)
        items: list[Waiting[R]] = []
        while group and len(items) < rows:
            item = group.popleft()
            if not item.request.cancelled:
                self._release(item.request, length)
                items.append(item)
        return Batch(length, adapter, items)

    def drop_all(self) -> Iterator[R]:
        """Cancel every waiting request, and tell which."""
        for group in self._groups.values():
            for item in group:
                if not item.request.cancelled:
                    self.cancel(item.request)
                    yield item.request
        self._groups.clear()

    def check_integrity(self) -> None:
        """Assert that the counts are those of the inputs that wait."""
        items = [
            (length, item.request)
            for (length, _), group in self._groups.items()
            for item in group
            if not item.request.cancelled
        ]
        requests = {id(request): request for _, request in items}.values()
        assert self.waiting_requests == len(requests)
        assert self.waiting_tokens == sum(length for length, _ in items)
        assert self.waiting_tokens == sum(request.waiting_tokens for request in requests)
        assert len(items) == sum(request.waiting_inputs for request in requests)

    def _next_group(self) -> Group | None:
        """That of the oldest input that waits. Drops cancelled inputs that stand before others."""
        for key, group in list(self._groups.items()):
            while group and group[0].request.cancelled:
                group.popleft()
            if not group:
                del self._groups[key]
        return min(self._groups, key=lambda key: self._groups[key][0].arrival, default=None)

    def _release(self, request: R, length: int) -> None:
        """One input of a request leaves the queue."""
        self.waiting_tokens -= length
        request.waiting_tokens -= length
        request.waiting_inputs -= 1
        if request.waiting_inputs == 0:
            self.waiting_requests -= 1
