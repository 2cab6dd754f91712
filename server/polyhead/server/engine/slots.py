"""Who sits in which cache slot. Slots that decode are 0, 1, 2, … without a gap, so that a step never computes for idle rows."""

from typing import Protocol

from polyhead.server.engine.sequence import Sequence


class SlotMemory(Protocol):
    """What the runtime does with the cache itself; lengths in tokens."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of one slot to another."""

    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange the first tokens of two slots."""


class Slots:
    """Owns the assignment of sequences to slots; sets each sequence's `slot`."""

    def __init__(self, count: int, memory: SlotMemory) -> None:
        self._memory = memory
        self._slots: list[Sequence | None] = [None] * count
        self.decoding: list[Sequence] = []
        """By slot: decoding[i] sits in slot i."""

    @property
    def used(self) -> int:
        return sum(sequence is not None for sequence in self._slots)

    @property
    def free(self) -> int:
        return len(self._slots) - self.used

    def acquire(self, sequence: Sequence) -> None:
        """Give a free slot to a sequence whose prefill begins: the one where it will decode, if that is free."""
        slot = self._slots.index(None, len(self.decoding))
        self._slots[slot] = sequence
        sequence.slot = slot

    def promote(self, sequence: Sequence) -> None:
        """Its prefill ended: bring it to the end of the slots that decode."""
        source, target = sequence.slot, len(self.decoding)
        other = self._slots[target]
        if other is None:
            self._memory.move(source, target, sequence.cached)
        elif other is not sequence:
            self._memory.swap(source, target, max(sequence.cached, other.cached))
            other.slot = source
        self._slots[source] = None if other is sequence else other
        self._slots[target] = sequence
        sequence.slot = target
        self.decoding.append(sequence)

    def fork(self, sequence: Sequence, sibling: Sequence) -> None:
        """Let a sibling, which has a slot already, go on from where the sequence is."""
        self._memory.move(sequence.slot, sibling.slot, sequence.cached)
        sibling.cached = sequence.cached
        self.promote(sibling)

    def release(self, sequence: Sequence) -> None:
        """Free its slot; if it decoded, the last one that decodes moves into the gap."""
        slot = sequence.slot
        self._slots[slot] = None
        if slot < len(self.decoding) and self.decoding[slot] is sequence:
            last = self.decoding.pop()
            if last is not sequence:
                self._memory.move(last.slot, slot, last.cached)
                self._slots[last.slot], self._slots[slot] = None, last
                self.decoding[slot] = last
                last.slot = slot
        sequence.slot = -1

    def check_integrity(self) -> None:
        """Raises AssertionError unless every sequence knows its slot and decoding slots come first."""
        for slot, sequence in enumerate(self._slots):
            known = sequence is None or sequence.slot == slot
            assert known, f"slot {slot} holds a sequence that believes to be elsewhere"
        assert self._slots[: len(self.decoding)] == self.decoding, "the slots that decode are not the first ones"
