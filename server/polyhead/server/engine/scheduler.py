"""What the generation engine does next: pure policy, without tensors, threads or time.

Requests wait in one queue, by priority and then first come, first served, bounded in requests and in prompt tokens. In an iteration
prompts in lanes are read under a budget of tokens before all decoding rows advance by one token together: so neither a long prompt
nor a crowd of them stalls other people's answers. The oldest prompt always gets on; what is left of the budget goes to those with the
least left to read, so that a burst's first tokens come early and short prompts pass long ones. Where chunks start depends on the
request alone, and so do an answer's bits. Which chunks share a call changes none.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from polyhead.server.engine.prefixes import PrefixCache
from polyhead.server.engine.sequence import Sequence
from polyhead.server.engine.slots import Slots
from polyhead.server.errors import Overloaded


@dataclass(frozen=True, slots=True)
class GeneratorLimits:
    """Bounds of one model's engine."""

    max_queue_requests: int
    """Requests that may wait for a slot. Those who find one free and only wait for a lane don't count."""
    max_queue_tokens: int
    """Prompt tokens that may wait for a slot."""
    prefill_budget_tokens: int
    """Tokens that are read between two steps of the decoding rows for each prompt that has a lane, or a slot free for its answer; a
    chunk at least. While rows decode, for as many prompts as there are lanes at most. Tokens behind LONG_CONTEXT count twice."""


MOST_PADDING = 8
"""Tokens of padding that chunks may cost who share a call: computing them takes about as long as another call takes at least."""

CHUNKS_TOGETHER = 2
"""Chunks that a call needs to take no longer a token than with more."""

LONG_CONTEXT = 512
"""Tokens in a lane from which on a chunk has half the length: attention over them makes it take as long as a whole one before,
and the answers beside it wait for each."""

SHORT_PROMPT_CHUNKS = 4
"""A prompt of so many chunks at most need not wait behind long ones that have all lanes but one."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens [start, end) of a sequence."""

    sequence: Sequence
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        return self.end == len(self.sequence.request.prompt)

    @property
    def tokens(self) -> int:
        return self.end - self.start

    @property
    def cost(self) -> int:
        """What it takes of the budget."""
        return self.tokens if self.start < LONG_CONTEXT else 2 * self.tokens

    @property
    def wants_every_position(self) -> bool:
        return self.sequence.request.prompt_logprobs is not None


class Scheduler:
    """Owns the queue and decides who is prefilled; `slots` owns who sits where.

    What touches the queue (`waiting`, `has_work`, `check_room`, `add`, `remove`, `begin_iteration`, `admit`, `drop_waiting`)
    is called under the engine's lock and takes no time; the rest belongs to the engine's thread.
    """

    def __init__(
        self,
        slots: Slots,
        prefixes: PrefixCache | None,
        limits: GeneratorLimits,
        *,
        chunk_tokens: int,
        capacity: int,
        pads: bool = True,
    ) -> None:
        """`capacity`: tokens that a lane holds; `pads`: chunks that share a call are padded to the longest."""
        self._slots = slots
        self._prefixes = prefixes
        self._limits = limits
        self._chunk_tokens = chunk_tokens
        self._capacity = capacity
        self._pads = pads
        self._waiting: list[Sequence] = []
        self._waiting_tokens = 0
        self._prefilling: list[Sequence] = []  # in the order they came
        self._budget = 0  # of this iteration, in tokens
        self._spent: Counter[Sequence] = Counter()  # of it, by prompt

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._prefilling or self._slots.decoding)

    @property
    def admitted(self) -> list[Sequence]:
        """Everyone who holds a slot or was promised one."""
        return [*(x for s in self._prefilling for x in (s, *s.siblings)), *self._slots.decoding]

    def add(self, sequence: Sequence, retry_after_seconds: float) -> None:
        """Queue a request. Raises Overloaded if that would overshoot a bound; a lone request always fits in tokens."""
        self.check_room(retry_after_seconds)
        limits, tokens = self._limits, len(sequence.request.prompt)
        if self._waiting and self._waiting_tokens + tokens > limits.max_queue_tokens:
            bound = f"{tokens} more would pass the limit of {limits.max_queue_tokens}"
            raise Overloaded(f"{self._waiting_tokens} prompt tokens are waiting, {bound}", retry_after_seconds)
        insort(self._waiting, sequence, key=lambda s: -s.request.priority)
        self._waiting_tokens += tokens

    def check_room(self, retry_after_seconds: float) -> None:
        """Raises Overloaded if as many requests wait as may, whatever comes."""
        waiting, limit = self._waiting_for_slots(), self._limits.max_queue_requests
        if waiting >= limit:
            raise Overloaded(f"{waiting} requests are waiting, the limit is {limit}", retry_after_seconds)

    def _waiting_for_slots(self) -> int:
        """Requests in the queue that find no slots free behind those before them."""
        free = self._slots.free
        for i, sequence in enumerate(self._waiting):
            free -= sequence.request.rows
            if free < 0:
                return len(self._waiting) - i
        return 0

    def remove(self, sequence: Sequence) -> bool:
        """Take a request out of the queue if it still waits there."""
        if sequence not in self._waiting:
            return False
        self._waiting.remove(sequence)
        self._waiting_tokens -= len(sequence.request.prompt)
        return True

    def admit(self) -> Sequence | None:
        """Give the first waiting request that may have it a lane, if there is one and a slot for each of its samples."""
        sequence = next(filter(self._may_enter, self._waiting), None)
        if sequence is None or self._slots.free < sequence.request.rows:
            return None
        self._waiting.remove(sequence)
        self._waiting_tokens -= len(sequence.request.prompt)
        self._slots.enter(sequence)
        self._prefilling.append(sequence)
        return sequence

    def _may_enter(self, sequence: Sequence) -> bool:
        """The last lane is for who is soon out of it again, or comes before everyone in the others."""
        if self._slots.free_lanes != 1 or self._slots.lanes == 1:
            return self._slots.free_lanes > 0
        short = len(sequence.request.prompt) <= SHORT_PROMPT_CHUNKS * self._chunk_tokens
        return short or all(sequence.request.priority > other.request.priority for other in self._prefilling)

    def restore_prefix(self, sequence: Sequence) -> None:
        """Begin an admitted prompt with what the prefix cache has of it, unless every position's logits are wanted."""
        if self._prefixes is not None and sequence.request.prompt_logprobs is None:
            sequence.cached = sequence.cached_prompt = self._prefixes.restore(
                sequence.request.prompt, sequence.lane, sequence.request.adapter
            )

    def begin_iteration(self) -> None:
        """Set the iteration's budget. Who comes later shares it: else a stream of prompts whose answers end with their first token would
        let nobody decode."""
        self._spent.clear()
        readable = max(1, len(self._prefilling) + min(self.waiting, self._slots.free))
        if self._slots.decoding:  # else nobody waits for a step
            readable = min(readable, self._slots.lanes)
        # What is read whole, however long, counts for what it has: a source that is longer takes the budget of several.
        least = self._chunk_tokens if self._pads else 1
        self._budget = readable * max(self._limits.prefill_budget_tokens, least)

    def next_calls(self) -> list[list[Chunk]]:
        """Chunks to prefill next, those of an inner list in one call; none: this iteration has read what it may."""
        if not self._prefilling:
            return []
        chunks: list[Chunk] = []
        tokens = 0
        for sequence in self._by_turn():
            chunk = self._next_chunk(sequence)
            if self._spent and self._spent.total() + chunk.cost > self._budget:
                break
            self._spent[sequence] += chunk.cost
            chunks.append(chunk)
            tokens += chunk.tokens
            if tokens >= CHUNKS_TOGETHER * self._chunk_tokens:
                break
        return shared_calls(chunks, self._capacity, MOST_PADDING if self._pads else None)

    def _by_turn(self) -> list[Sequence]:
        """Prompts in lanes: the oldest until it has got on in this iteration, then by what is left of them to read."""
        oldest = self._prefilling[:1]
        return sorted(
            self._prefilling,
            key=lambda s: (s not in oldest or s in self._spent, len(s.request.prompt) - s.cached),
        )

    def _next_chunk(self, sequence: Sequence) -> Chunk:
        start = sequence.cached
        length = self._chunk_tokens if start < LONG_CONTEXT else max(1, self._chunk_tokens // 2)
        border = start - start % length + length
        return Chunk(sequence, start, min(len(sequence.request.prompt), border))

    def prefilled(self, chunk: Chunk) -> None:
        """A chunk is in the cache; after the last one the sequence and its siblings decode."""
        sequence = chunk.sequence
        sequence.cached = chunk.end
        if chunk.is_last:
            if self._prefixes is not None:
                self._prefixes.keep(sequence.request.prompt, sequence.lane, sequence.request.adapter)
            self._slots.promote(sequence)
            self._prefilling.remove(sequence)

    def finish(self, sequence: Sequence) -> list[Sequence]:
        """A sequence ends, for whatever reason: free its slot, or the lane where its prompt is read for all samples.

        Returns those who are gone: none if it was gone already.
        """
        if sequence.slot >= 0:
            self._slots.release(sequence)
            return [sequence]
        for leader in self._prefilling:
            if sequence in (leader, *leader.siblings):
                self._prefilling.remove(leader)
                self._slots.leave(leader)
                return [leader, *leader.siblings]
        return []

    def drop_waiting(self) -> None:
        """Forget everyone who waits."""
        self._waiting.clear()
        self._waiting_tokens = 0

    def check_integrity(self) -> None:
        """Raises AssertionError if the queue is miscounted or an idle engine still holds a slot."""
        assert self._waiting_tokens == sum(len(s.request.prompt) for s in self._waiting), "waiting tokens miscounted"
        self._slots.check_integrity()
        if not self.has_work:
            assert self._slots.used == 0, f"{self._slots.used} slots are in use by nobody"


def shared_calls(chunks: Iterable[Chunk], capacity: int, most_padding: int | None) -> list[list[Chunk]]:
    """Chunks of neighbouring lanes with the same adapter in one call, unless that costs too much padding, or passes the lanes'
    capacity."""
    calls: list[list[Chunk]] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.sequence.lane):
        if calls and _may_join(calls[-1], chunk, capacity, most_padding):
            calls[-1].append(chunk)
        else:
            calls.append([chunk])
    return calls


def _may_join(call: list[Chunk], chunk: Chunk, capacity: int, most_padding: int | None) -> bool:
    last, sequence = call[-1].sequence, chunk.sequence
    if sequence.lane != last.lane + 1 or sequence.request.adapter != last.request.adapter:
        return False
    if chunk.wants_every_position or call[0].wants_every_position:
        return False
    if most_padding is None:
        return True
    together = [*call, chunk]
    longest = max(c.tokens for c in together)
    padding = sum(longest - c.tokens for c in together)
    return padding <= most_padding and all(c.start + longest <= capacity for c in together)
