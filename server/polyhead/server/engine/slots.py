"""Who sits where in the cache: prompts are read in lanes, answers decode in slots 0, 1, 2, … without a gap, so that a step never
computes for idle rows. Those with the same adapter are neighbours, as they share a call: a row of each other adapter moves when one
comes or goes, which costs a copy once in an answer where a call more would cost its time in every step."""

from contextlib import ExitStack
from itertools import pairwise
from typing import Protocol

from polyhead.server.engine.sequence import Sequence


class SlotMemory(Protocol):
    """What the runtime does with the cache itself; lengths in tokens."""

    def commit(self, lane: int, slot: int, length: int) -> None:
        """Copy the first tokens of a lane to a slot; the lane may be empty afterwards."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of one slot to another."""

    def keep_first(self, slots: int) -> None:
        """Nobody decodes in slots from that one on any more. Called whenever slots are given up: a step is of all that are not."""


class Slots:
    """Owns the assignment of sequences to lanes and slots; sets each sequence's `lane` and `slot`."""

    def __init__(self, count: int, lanes: int, memory: SlotMemory) -> None:
        self._count = count
        self._memory = memory
        self.lanes = lanes
        self._lanes: list[Sequence | None] = [None] * lanes
        self._promised = 0  # slots that the samples of prompts in lanes will need
        self.decoding: list[Sequence] = []
        """By slot: decoding[i] sits in slot i."""

    @property
    def used(self) -> int:
        """Slots of rows that decode, and those that the samples of prompts in lanes will need."""
        return len(self.decoding) + self._promised

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
        self._promised += sequence.request.rows

    def promote(self, sequence: Sequence) -> None:
        """Its prefill ended: it and its siblings, who share the prompt, get the slots behind the last one with their adapter."""
        samples, length = (sequence, *sequence.siblings), sequence.cached
        first = self._end_of(sequence.request.adapter)
        moves = self._making_room(first, len(samples))
        with ExitStack() as undo:
            undo.callback(self._memory.keep_first, len(self.decoding))
            for source, target in moves:
                held = self.decoding[source].cached
                self._memory.move(source, target, held)
                undo.callback(self._memory.move, target, source, held)
            self._memory.commit(sequence.lane, first, length)
            for slot in range(first + 1, first + len(samples)):
                self._memory.move(first, slot, length)
            undo.pop_all()  # nothing from here on can fail halfway
        for sample in samples:
            sample.cached = length
        moved, behind = dict(moves), self.decoding[first:]
        self.decoding[first:] = [*samples, *behind]
        for slot, row in enumerate(behind, first):
            self.decoding[moved.get(slot, slot)] = row
        for slot in range(first, len(self.decoding)):
            self.decoding[slot].slot = slot
        self.leave(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Free its lane."""
        self._lanes[sequence.lane] = None
        self._promised -= sequence.request.rows
        sequence.lane = -1

    def release(self, sequence: Sequence) -> None:
        """Free its slot; the last one with its adapter moves into the gap, into that one's place the last one of those behind,
        and so on."""
        gap = sequence.slot
        for end in self._ends(gap):
            last = self.decoding[end - 1]
            if last is not sequence:
                self._memory.move(last.slot, gap, last.cached)
                self.decoding[gap], last.slot, gap = last, gap, last.slot
        self.decoding.pop()
        self._memory.keep_first(len(self.decoding))
        sequence.slot = -1

    def _end_of(self, adapter: str) -> int:
        """Behind the last row with an adapter; behind all if there is none."""
        count = len(self.decoding)
        if not count or self._adapter(count - 1) == adapter:
            return count
        return next((end for end in self._ends(0) if self._adapter(end - 1) == adapter), count)

    def _adapter(self, slot: int) -> str:
        return self.decoding[slot].request.adapter

    def _ends(self, first: int) -> list[int]:
        """Where the runs of slots with the same adapter end, from the one that `first` is in."""
        count = len(self.decoding)
        return [
            end for end in range(first + 1, count + 1) if end == count or self._adapter(end) != self._adapter(end - 1)
        ]

    def _making_room(self, first: int, count: int) -> list[tuple[int, int]]:
        """(source, target) of moves, in order, that leave `count` slots free from `first` on, where a run begins: each run behind
        it gives its first rows to its end."""
        ends = self._ends(first)
        moves: list[tuple[int, int]] = []
        for start, end in reversed(list(pairwise([first, *ends]))):
            moving = min(count, end - start)
            moves += zip(range(start, start + moving), range(end + count - moving, end + count), strict=True)
        return moves

    def check_integrity(self) -> None:
        """Raises AssertionError unless every sequence knows its place and the slots suffice for all."""
        for lane, sequence in enumerate(self._lanes):
            known = sequence is None or (sequence.lane, sequence.slot) == (lane, -1)
            assert known, f"lane {lane} holds a sequence that believes to be elsewhere"
        for slot, sequence in enumerate(self.decoding):
            known = (sequence.lane, sequence.slot) == (-1, slot)
            assert known, f"slot {slot} holds a sequence that believes to be elsewhere"
        promised = sum(sequence.request.rows for sequence in self._lanes if sequence)
        assert self._promised == promised, (
            f"{self._promised} slots are promised, not the {promised} of prompts in lanes"
        )
        adapters = [self._adapter(end - 1) for end in self._ends(0)]
        assert len(set(adapters)) == len(adapters), f"rows with the same adapter are apart: {adapters}"
        assert self.free >= 0, f"{-self.free} more slots are promised than there are"
