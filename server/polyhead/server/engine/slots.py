"""Who sits where in the cache: prompts are read in lanes, answers decode in slots 0, 1, 2, … without a gap, so that a step never
computes for idle rows."""

from typing import Protocol

from polyhead.server.engine.sequence import Sequence


class SlotMemory(Protocol):
    """What the runtime does with the cache itself; lengths in tokens."""

    def commit(self, lane: int, slot: int, length: int) -> None:
        """Copy the first tokens of a lane to a slot."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of one slot to another."""


class Slots:
    """Owns the assignment of sequences to lanes and slots; sets each sequence's `lane` and `slot`."""

    def __init__(self, count: int, lanes: int, memory: SlotMemory) -> None:
        self._count = count
        self._memory = memory
        self.lanes = lanes
        self._lanes: list[Sequence | None] = [None] * lanes
        self.decoding: list[Sequence] = []
        """By slot: decoding[i] sits in slot i."""

    @property
    def used(self) -> int:
        """Slots of rows that decode, and those that the samples of prompts in lanes will need."""
        return len(self.decoding) + sum(s.request.rows for s in self._lanes if s)

    @property
    def free(self) -> int:
        return self._count - self.used

    @property
    def free_lanes(self) -> int:
        return self._lanes.count(None)

    def enter(self, sequence: Sequence) -> None:
        """Give a lane to a sequence whose prefill begins."""
        sequence.lane = self._lanes.index(None)
        self._lanes[sequence.lane] = sequence

    def promote(self, sequence: Sequence) -> None:
        """Its prefill ended: it and its siblings, who share the prompt, get the next slots."""
        samples, first, length = (sequence, *sequence.siblings), len(self.decoding), sequence.cached
        self._memory.commit(sequence.lane, first, length)
        for slot in range(first + 1, first + len(samples)):
            self._memory.move(first, slot, length)
        for slot, sample in enumerate(samples, first):  # nothing from here on can fail halfway
            sample.slot, sample.cached = slot, length
        self.decoding += samples
        self.leave(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Free its lane."""
        self._lanes[sequence.lane] = None
        sequence.lane = -1

    def release(self, sequence: Sequence) -> None:
        """Free its slot; the last one that decodes moves into the gap."""
        slot, last = sequence.slot, self.decoding.pop()
        if last is not sequence:
            self._memory.move(last.slot, slot, last.cached)
            self.decoding[slot] = last
            last.slot = slot
        sequence.slot = -1

    def check_integrity(self) -> None:
        """Raises AssertionError unless every sequence knows its place and the slots suffice for all."""
        for lane, sequence in enumerate(self._lanes):
            known = sequence is None or (sequence.lane, sequence.slot) == (lane, -1)
            assert known, f"lane {lane} holds a sequence that believes to be elsewhere"
        for slot, sequence in enumerate(self.decoding):
            known = (sequence.lane, sequence.slot) == (-1, slot)
            assert known, f"slot {slot} holds a sequence that believes to be elsewhere"
        assert self.free >= 0, f"{-self.free} more slots are promised than there are"
