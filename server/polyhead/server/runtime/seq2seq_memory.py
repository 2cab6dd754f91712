"""What the answers of an encoder-decoder model keep: memory of the source, recurrent states, and caches of the answer itself.

Answers with sources of about the same length share a *pool*, whose memory has room for the longest of them: a step computes over
all of that room and masks what is behind a row's own source, so less room is less work. Which pool an answer is in depends on
its own source alone, and so do the shapes it is computed with, and its bits. In a pool rows lie without gaps, so that a step
computes for no idle ones; slots are the names by which the engine knows them.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from polyhead.server.runtime.cache import untouched_zeros
from polyhead.v1 import bundle_pb2

Array = NDArray[Any]
Kind = Literal["memory", "state", "past"]

SHORTEST_POOL = 32
"""Tokens of the sources in the first pool; each one after it has room for twice as many. One more pool would be one more call in
the steps of mixed traffic."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor that each answer has one of: `name` is the decoder's input, `shape` that of one row."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    axis: int
    """Of the shape, along which its tokens lie: the source's of memory, the answer's of a cache; -1 of a state."""

    def where(self, row: int, source_tokens: int, answer_tokens: int) -> tuple[Any, ...]:
        """What of a pool's array a row takes up."""
        if self.axis < 0:
            return (row,)
        taken = slice(source_tokens if self.kind == "memory" else answer_tokens)
        return (row, *(slice(None),) * self.axis, taken)


def parts(manifest: bundle_pb2.Bundle, source_capacity: int, capacity: int) -> list[Part]:
    """What the manifest says of the decoder's memory, states and caches, for rows of these capacities in tokens."""
    sizes = {"source": source_capacity, "target": capacity}
    found = []
    for tensor in manifest.graphs[1].inputs:
        kind = tensor.name.partition(".")[0]
        if kind in ("memory", "state", "past"):
            dims = list(tensor.shape)[1:]
            shape = tuple(sizes.get(size) or int(size) for size in dims)
            axis = next((i for i, size in enumerate(dims) if size in sizes), -1)
            found.append(Part(tensor.name, kind, shape, axis))  # type: ignore[arg-type]
    return found


def pool_lengths(source_capacity: int) -> list[int]:
    """Tokens that the sources of each pool can have, ascending."""
    lengths = [SHORTEST_POOL]
    while lengths[-1] < source_capacity:
        lengths.append(2 * lengths[-1])
    return [*lengths[:-1], source_capacity]


def bytes_needed(manifest: bundle_pb2.Bundle, *, slots: int, capacity: int, source_capacity: int) -> int:
    """Of the pools of so many slots, when all are full, what as many lanes hold of the longest sources, and the logits of steps."""
    lengths = pool_lengths(source_capacity)
    rows = [part for length in lengths for part in parts(manifest, length, capacity)]
    lanes = [part for part in parts(manifest, source_capacity, capacity) if part.kind != "past"]
    logits = (len(lengths) + 1) * manifest.limits.vocabulary_size
    return slots * 4 * (logits + sum(prod(part.shape) for part in rows + lanes))


class Pool:
    """Rows without gaps. Memory is taken up as rows fill."""

    def __init__(self, manifest: bundle_pb2.Bundle, source_capacity: int, capacity: int, rows: int) -> None:
        """Capacities of a row, in tokens of source and answer."""
        self.layout = layout = parts(manifest, source_capacity, capacity)
        self.source_capacity = source_capacity
        self.capacity = capacity
        self.arrays = {part.name: untouched_zeros((rows, *part.shape), np.float32) for part in layout}
        self.source_lengths = np.ones(rows, np.int32)
        self.answer_lengths = np.zeros(rows, np.int32)
        """Tokens in each row's caches."""
        self.slots: list[int] = []
        """Which slot each row belongs to."""

    def begin(self, row: int, source_tokens: int, encoded: dict[str, Array]) -> None:
        """An answer of which nothing is there yet but what the encoder gave: its memory (…, source_tokens, …) and state."""
        for part in self.layout:
            if part.kind != "past":
                self.arrays[part.name][part.where(row, source_tokens, 0)] = encoded[part.name]
        self.source_lengths[row], self.answer_lengths[row] = source_tokens, 0

    def copy(self, source: int, target: int) -> None:
        """One row to another."""
        read, written = int(self.source_lengths[source]), int(self.answer_lengths[source])
        for part in self.layout:
            array, taken = self.arrays[part.name], part.where(source, read, written)
            array[(target, *taken[1:])] = array[taken]
        self.source_lengths[target], self.answer_lengths[target] = read, written


class Seq2SeqMemory:
    """Lanes, which hold what the encoder gave of a source, and pools of slots, where answers are."""

    quantized = False

    def __init__(self, manifest: bundle_pb2.Bundle, *, slots: int, capacity: int, source_capacity: int) -> None:
        self.pools = [Pool(manifest, length, capacity, slots) for length in pool_lengths(source_capacity)]
        self._lanes: dict[int, tuple[int, dict[str, Array]]] = {}  # source tokens, and what the encoder gave
        self._slot: dict[int, tuple[int, int]] = {}  # pool and row

    def pool_of(self, source_tokens: int) -> int:
        """The first whose sources can be so long."""
        return next(i for i, pool in enumerate(self.pools) if pool.source_capacity >= source_tokens)

    def enter(self, lane: int, source_tokens: int, encoded: dict[str, Array]) -> None:
        """A source was read: what the encoder gave of it, by name."""
        self._lanes[lane] = source_tokens, encoded

    def commit(self, lane: int, slot: int, length: int) -> None:
        """Begin an answer in a slot with what a lane holds, and empty the lane."""
        source_tokens, encoded = self._lanes.pop(lane)
        number = self.pool_of(source_tokens)
        self.pools[number].begin(self._place(slot, number), source_tokens, encoded)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one slot to another."""
        number, row = self._slot[source]
        self.pools[number].copy(row, self._place(target, number))

    def keep_first(self, slots: int) -> None:
        """Forget what is in slots from that one on."""
        if len(self._slot) <= slots:
            return
        for slot in [slot for slot in self._slot if slot >= slots]:
            self._drop(slot)

    def _place(self, slot: int, number: int) -> int:
        """A row for a slot in a pool: the one that it has there, or a new one."""
        held = self._slot.get(slot)
        if held is not None and held[0] == number:
            return held[1]
        if held is not None:
            self._drop(slot)
        pool = self.pools[number]
        self._slot[slot] = number, len(pool.slots)
        pool.slots.append(slot)
        return len(pool.slots) - 1

    def _drop(self, slot: int) -> None:
        """Free a slot's row; the last one of its pool moves into the gap."""
        number, row = self._slot.pop(slot)
        pool = self.pools[number]
        last = pool.slots.pop()
        if last != slot:
            pool.copy(len(pool.slots), row)
            pool.slots[row] = last
            self._slot[last] = number, row
