"""What the generation engine does next: pure policy, without tensors, threads or time.

Requests wait in one queue, by priority and then first come, first served, bounded in requests and in prompt tokens. An iteration
spends a budget of tokens on prefill before all decoding rows advance by one token together, so a long prompt cannot stall
other people's answers for longer than the budget takes. The budget grows where more prompts than answers wait for the model: a
burst of requests is read first and then answered together. Chunks of a prompt start at multiples of a fixed length: they depend
on the request alone.
"""

from bisect import insort
from dataclasses import dataclass

from polyhead.server.engine.prefixes import PrefixCache
from polyhead.server.engine.sequence import Sequence
from polyhead.server.engine.slots import Slots
from polyhead.server.errors import Overloaded


@dataclass(frozen=True, slots=True)
class GeneratorLimits:
    """Bounds of one model's engine."""

    max_queue_requests: int
    """Requests that may wait for a slot."""
    max_queue_tokens: int
    """Prompt tokens that may wait for a slot."""
    prefill_budget_tokens: int
    """Prompt tokens worked on between two steps of the decoding rows, unless prompts outnumber them; at least one chunk is."""


FIRST_TOKEN_WEIGHT = 3
"""A prompt that waits for its first token counts as much as so many answers that wait for their next one."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens [start, end) of a sequence."""

    sequence: Sequence
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        return self.end == len(self.sequence.request.prompt)


class Scheduler:
    """Owns the queue and decides who is prefilled; slots own the rows that decode.

    What touches the queue (`waiting`, `has_work`, `add`, `remove`, `admit`, `next_chunk`, `drop_waiting`) is called under the
    engine's lock and takes no time; the rest belongs to the engine's thread.
    """

    def __init__(self, slots: Slots, prefixes: PrefixCache, limits: GeneratorLimits, chunk_tokens: int) -> None:
        self._slots = slots
        self._prefixes = prefixes
        self._limits = limits
        self._chunk_tokens = chunk_tokens
        self._waiting: list[Sequence] = []
        self._waiting_tokens = 0
        self.prefilling: Sequence | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self.prefilling or self._slots.decoding)

    @property
    def admitted(self) -> list[Sequence]:
        """Everyone who holds a slot."""
        prefilling = [self.prefilling, *self.prefilling.siblings] if self.prefilling else []
        return [*prefilling, *self._slots.decoding]

    def add(self, sequence: Sequence, retry_after_seconds: float) -> None:
        """Queue a request. Raises Overloaded if that would overshoot a bound; a lone request always fits in tokens."""
        limits, tokens = self._limits, len(sequence.request.prompt)
        if self.waiting >= limits.max_queue_requests:
            raise Overloaded(
                f"{self.waiting} requests are waiting, the limit is {limits.max_queue_requests}", retry_after_seconds
            )
        if self._waiting and self._waiting_tokens + tokens > limits.max_queue_tokens:
            bound = f"{tokens} more would pass the limit of {limits.max_queue_tokens}"
            raise Overloaded(f"{self._waiting_tokens} prompt tokens are waiting, {bound}", retry_after_seconds)
        insort(self._waiting, sequence, key=lambda s: -s.request.priority)
        self._waiting_tokens += tokens

    def remove(self, sequence: Sequence) -> bool:
        """Take a request out of the queue if it still waits there."""
        if sequence not in self._waiting:
            return False
        self._waiting.remove(sequence)
        self._waiting_tokens -= len(sequence.request.prompt)
        return True

    def admit(self) -> Sequence | None:
        """Unless a prompt is being read already, give the first waiting request a slot for each of its samples."""
        if self.prefilling or not self._waiting or self._slots.free < self._waiting[0].request.samples:
            return None
        self.prefilling = sequence = self._waiting.pop(0)
        self._waiting_tokens -= len(sequence.request.prompt)
        for sample in (sequence, *sequence.siblings):
            self._slots.acquire(sample)
        return sequence

    def restore_prefix(self, sequence: Sequence) -> None:
        """Begin an admitted prompt with what the prefix cache has of it, unless every position's logits are wanted."""
        if sequence.request.prompt_logprobs is None:
            sequence.cached = sequence.cached_prompt = self._prefixes.restore(sequence.request.prompt, sequence.slot)

    def next_chunk(self, spent_tokens: int) -> Chunk | None:
        """The next chunk to prefill in an iteration that has spent so many tokens already; None: it is time to decode."""
        sequence = self.prefilling
        if sequence is None:
            return None
        start, prompt = sequence.cached, len(sequence.request.prompt)
        end = min(prompt, start - start % self._chunk_tokens + self._chunk_tokens)
        if spent_tokens and spent_tokens + end - start > self._budget():
            return None
        return Chunk(sequence, start, end)

    def _budget(self) -> float:
        """The limit's, times the weight of the prompts there are slots for against that of the answers under way."""
        prompts, answers = 1 + min(self.waiting, self._slots.free), len(self._slots.decoding)
        return self._limits.prefill_budget_tokens * max(1.0, FIRST_TOKEN_WEIGHT * prompts / max(1, answers))

    def prefilled(self, chunk: Chunk) -> None:
        """A chunk is in the cache; after the last one the sequence and its siblings decode."""
        sequence = chunk.sequence
        sequence.cached = chunk.end
        if chunk.is_last:
            self.prefilling = None
            self._prefixes.keep(sequence.request.prompt, sequence.slot)
            self._slots.promote(sequence)
            for sibling in sequence.siblings:
                self._slots.fork(sequence, sibling)

    def finish(self, sequence: Sequence) -> list[Sequence]:
        """An admitted sequence ends, for whatever reason: free its slot, and with a prompt's those of all its samples.

        Returns those who are gone.
        """
        leader = self.prefilling
        if leader and sequence in (leader, *leader.siblings):
            self.prefilling, gone = None, [leader, *leader.siblings]
        else:
            gone = [sequence]
        for one in gone:
            self._slots.release(one)
        return gone

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
