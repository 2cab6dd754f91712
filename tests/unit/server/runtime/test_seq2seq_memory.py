"""Memory, states and caches of answers: whatever comes, goes and moves, every slot holds what was put there."""

from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from polyhead.server.runtime.seq2seq_memory import Array, Pool, Seq2SeqMemory
from polyhead.v1 import bundle_pb2

SLOTS, CAPACITY, SOURCE_TOKENS = 6, 5, 80

INPUTS = {
    "input_ids": ["batch", "1"],
    "memory.0": ["batch", "2", "source", "3"],
    "state.0": ["batch", "4"],
    "past.key.0": ["batch", "2", "target", "3"],
}


def manifest() -> bundle_pb2.Bundle:
    decoder = bundle_pb2.Graph(inputs=[bundle_pb2.Tensor(name=name, shape=shape) for name, shape in INPUTS.items()])
    return bundle_pb2.Bundle(graphs=[bundle_pb2.Graph(), decoder])


@dataclass(frozen=True)
class Held:
    """What an answer keeps."""

    source: int
    """Tokens."""
    positions: int
    """Of the decoder: steps so far."""
    arrays: dict[str, Array]

    @property
    def length(self) -> int:
        """As the engine counts it: the source's tokens and the answer's in the caches."""
        return self.source + self.positions


class Answers(RuleBasedStateMachine):
    """Slots fill from 0 on without gaps, as those of the engine do."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Seq2SeqMemory(manifest(), slots=SLOTS, capacity=CAPACITY, source_capacity=SOURCE_TOKENS)
        self.held: dict[int, Held] = {}
        self.random = np.random.default_rng(0)

    @rule(data=st.data(), sources=st.lists(st.integers(1, SOURCE_TOKENS), min_size=1, max_size=SLOTS))
    def begin(self, data: st.DataObject, sources: list[int]) -> None:
        """Sources are read together, and then each gets a slot: a new one, or one that another answer had."""
        begun = [self.encoded(source) for source in sources]
        for lane, arrays in enumerate(begun):
            self.memory.enter(lane, sources[lane], arrays)
        for lane in data.draw(st.permutations(range(len(sources)))):
            slot = data.draw(self.any_target())
            self.memory.commit(lane, slot, sources[lane])
            self.held[slot] = Held(sources[lane], 0, begun[lane])

    @precondition(lambda self: self.held)
    @rule()
    def step(self) -> None:
        """A step replaces states and appends to caches."""
        for slot, held in self.held.items():
            pool, row = self.place(slot)
            positions = min(held.positions + 1, CAPACITY)
            written = self.write(pool, row, held.source, positions, ("state", "past"))
            self.held[slot] = Held(held.source, positions, {**held.arrays, **written.arrays})

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        source, target = data.draw(st.sampled_from(sorted(self.held))), data.draw(self.any_target())
        self.memory.move(source, target, self.held[source].length)
        self.held[target] = self.held[source]

    @rule(slots=st.integers(0, SLOTS))
    def keep_first(self, slots: int) -> None:
        self.memory.keep_first(slots)
        self.held = {slot: held for slot, held in self.held.items() if slot < slots}

    @invariant()
    def every_slot_holds_what_was_put_there(self) -> None:
        for slot, held in self.held.items():
            pool, row = self.place(slot)
            assert pool.source_lengths[row] == held.source
            for part in pool.layout:
                there = pool.arrays[part.name][part.where(row, held.source, held.positions)]
                if part.name in held.arrays:  # nothing is in a cache before the first step
                    assert np.array_equal(there, held.arrays[part.name]), f"{part.name} of slot {slot}"

    @invariant()
    def each_has_one_row_and_no_row_belongs_to_nobody(self) -> None:
        assert sorted(slot for pool in self.memory.pools for slot in pool.slots) == sorted(self.held)

    def any_target(self) -> st.SearchStrategy[int]:
        """One that holds something, or the next."""
        return st.integers(0, min(len(self.held), SLOTS - 1))

    def place(self, slot: int) -> tuple[Pool, int]:
        """Where a step finds a slot: in the pool for its source's length, whose rows are in the order of `slots`."""
        pool = self.memory.pools[self.memory.pool_of(self.held[slot].source)]
        return pool, pool.slots.index(slot)

    def encoded(self, source: int) -> dict[str, Array]:
        """As an encoder gives it of a source."""
        layout = self.memory.pools[self.memory.pool_of(source)].layout
        shapes = {
            part.name: [source if axis == part.axis else size for axis, size in enumerate(part.shape)]
            for part in layout
            if part.kind != "past"
        }
        return {name: self.random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def write(self, pool: Pool, row: int, source: int, positions: int, kinds: tuple[str, ...]) -> Held:
        """As the graphs do, through the pool's arrays: random numbers, so that no two answers are alike."""
        arrays = {}
        for part in pool.layout:
            if part.kind in kinds:
                view = pool.arrays[part.name][part.where(row, source, positions)]
                view[:] = self.random.normal(size=view.shape)
                arrays[part.name] = view.copy()
        pool.answer_lengths[row] = positions
        return Held(source, positions, arrays)


TestAnswers = Answers.TestCase
TestAnswers.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
