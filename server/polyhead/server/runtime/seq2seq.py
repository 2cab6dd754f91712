"""An encoder and a decoder, and the memory that answers of theirs have in common.

The encoder reads a source once, by itself and unpadded. What it gives is copied to the slot where the answer decodes: *memory*,
which is only read from there on (what attention looks at), and the decoder's first *state* (of recurrent layers), which every
step replaces. A Transformer's decoder has *caches* besides, where each step appends its keys and values in place. Every step
computes over the whole capacity of memory and masks what is behind a row's own source: the shapes, and so a row's bits, don't
depend on the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from polyhead.server.runtime.decoder import LANES, StepOutput, Where
from polyhead.server.runtime.session import TensorInfo, open_session, signature
from polyhead.v1 import bundle_pb2

Array = NDArray[Any]
Kind = Literal["memory", "state", "past"]

PRESENT = {"state": "new.state", "past": "present"}
"""What the outputs of a step are called, by its inputs."""

_KEPT_BINDINGS = 256
_OUTPUTS = ("topk_values", "topk_ids", "logsumexp", "logits")


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor that each answer has one of: `name` is the decoder's input, `shape` that of one slot."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    axis: int
    """Of the shape, along which its tokens lie: the source's of memory, the answer's of a cache; -1 of a state."""


def parts(manifest: bundle_pb2.Bundle, source_capacity: int, capacity: int) -> list[Part]:
    """What the manifest says of the decoder's memory, states and caches, for slots of these capacities in tokens."""
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


class Seq2SeqMemory:
    """What all answers hold, in lanes while their source is read and in slots while they decode."""

    quantized = False

    def __init__(self, layout: Sequence[Part], *, slots: int, lanes: int) -> None:
        self._layout = layout
        self.lanes = {part.name: np.zeros((lanes, *part.shape), np.float32) for part in layout}
        self.slots = {part.name: np.zeros((slots, *part.shape), np.float32) for part in layout}
        self.lane_sources = np.ones(lanes, np.int32)
        """Tokens of the source in each lane, and below in each slot."""
        self.slot_sources = np.ones(slots, np.int32)

    @property
    def bytes_per_slot(self) -> int:
        return sum(array[:1].nbytes for array in self.slots.values())

    def commit(self, lane: int, slot: int, length: int) -> None:
        """Copy what a lane holds, a source of so many tokens and the decoder's first position, to a slot."""
        self._copy(self.lanes, lane, self.slots, slot, int(self.lane_sources[lane]), 1)
        self.slot_sources[slot] = self.lane_sources[lane]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one slot to another; `length` counts the source's tokens and the answer's."""
        read = int(self.slot_sources[source])
        self._copy(self.slots, source, self.slots, target, read, length - read + 1)
        self.slot_sources[target] = read

    def copy_lane(self, source: int, target: int, length: int) -> None:
        """Copy one lane to another."""
        self._copy(self.lanes, source, self.lanes, target, int(self.lane_sources[source]), 1)
        self.lane_sources[target] = self.lane_sources[source]

    def _copy(
        self,
        origin: Mapping[str, Array],
        source: int,
        destination: Mapping[str, Array],
        target: int,
        read: int,
        written: int,
    ) -> None:
        """Of memory what the source takes up, of caches what the answer does."""
        for part in self._layout:
            where: tuple[Any, ...] = ()
            if part.axis >= 0:
                where = (*(slice(None),) * part.axis, slice(read if part.kind == "memory" else written))
            destination[part.name][(target, *where)] = origin[part.name][(source, *where)]


@dataclass(frozen=True, slots=True)
class _Binding:
    io: ort.IOBinding
    inputs: dict[str, Array]
    output: StepOutput
    states: list[tuple[Array, Array]]
    """What a step wrote, and where the next one reads it."""


class Seq2SeqDecoder:
    """Runs the graphs `encoder` and `decoder` of a bundle. One thread at a time. To the engine it is a decoder whose prompt, the
    source, is read in one chunk."""

    continues_prompt = False
    prefix_slots = 0

    def __init__(
        self, folder: Path, manifest: bundle_pb2.Bundle, *, slots: int, capacity: int, source_capacity: int
    ) -> None:
        """Raises BundleError if a graph can't be opened. `capacity`, `source_capacity`: tokens of an answer and of a source."""
        self.slots = slots
        self.lanes = min(slots, LANES)
        self.capacity = capacity
        self.longest_prompt = source_capacity
        self.prefill_chunk = (
            source_capacity + 1
        )  # so that no source is a whole chunk, which the prefix cache would keep
        self.vocabulary_size = manifest.limits.vocabulary_size
        self.start_token_id = manifest.seq2seq.start_token_id
        self._encoder, self._decoder = (open_session(folder / graph.file) for graph in manifest.graphs)
        self._names = {node.name for node in self._decoder.get_inputs()}
        outputs = {node.name for node in self._decoder.get_outputs()}
        self.has_alignment = "alignment" in outputs
        self._layout = parts(manifest, source_capacity, capacity)
        self._encoded = [part for part in self._layout if part.kind != "past"]
        self.memory = Seq2SeqMemory(self._layout, slots=slots, lanes=self.lanes)
        self._bindings: dict[tuple[Where, int, int, int], _Binding] = {}
        self._logits = np.empty((slots, self.vocabulary_size), np.float32)

    @property
    def signatures(self) -> list[tuple[list[TensorInfo], list[TensorInfo]]]:
        """Inputs and outputs of each graph."""
        return [signature(self._encoder), signature(self._decoder)]

    def room(self, prompt_tokens: int) -> int:
        """Tokens that an answer can have, however long its source."""
        return self.capacity

    def prefill(
        self, lane: int, chunks: Sequence[Array], past: Sequence[int], top_k: int, *, every_position: bool = False
    ) -> StepOutput:
        """Read whole sources (S,) into neighbouring lanes from `lane` on, each by itself, and begin their answers. N is the number
        of sources."""
        for at, source in enumerate(chunks, lane):
            encoded = self._encoder.run(
                [part.name for part in self._encoded],
                {"input_ids": source[None].astype(np.int64), "lengths": np.array([len(source)], np.int32)},
            )
            for part, array in zip(self._encoded, encoded, strict=True):
                where = (slice(None),) * part.axis + (slice(len(source)),) if part.axis >= 0 else ()
                self.memory.lanes[part.name][(at, *where)] = array[0]
            self.memory.lane_sources[at] = len(source)
        rows = len(chunks)
        return self._step("lanes", lane, np.full(rows, self.start_token_id), np.zeros(rows, np.int32), top_k)

    def decode(self, tokens: Array, past: Array, top_k: int, first: int = 0) -> StepOutput:
        """Append one token to each of B neighbouring slots from `first` on, which hold `past` (B,) tokens of source and answer; N
        is B."""
        sources = self.memory.slot_sources[first : first + len(tokens)]
        return self._step("slots", first, tokens, past - sources + 1, top_k)  # the start token stands before the answer

    def close(self) -> None:
        """Let go of the graphs and the memory."""
        self._bindings.clear()
        del self._encoder, self._decoder, self.memory

    def _step(self, where: Where, first: int, tokens: Array, positions: Array, top_k: int) -> StepOutput:
        rows = len(tokens)
        binding = self._binding(where, first, rows, top_k)
        sources = self.memory.lane_sources if where == "lanes" else self.memory.slot_sources
        binding.inputs["input_ids"][:, 0] = tokens
        binding.inputs["positions"][:] = positions
        binding.inputs["source_lengths"][:] = sources[first : first + rows]
        self._decoder.run_with_iobinding(binding.io)
        for written, read in binding.states:
            read[:] = written
        return binding.output

    def _binding(self, where: Where, first: int, rows: int, top_k: int) -> _Binding:
        """Kept for the next step, which mostly has the same shape."""
        key = (where, first, rows, top_k)
        if key not in self._bindings:
            while len(self._bindings) >= _KEPT_BINDINGS:
                del self._bindings[next(iter(self._bindings))]
            self._bindings[key] = self._bind(where, first, rows, top_k)
        return self._bindings[key]

    def _bind(self, where: Where, first: int, rows: int, top_k: int) -> _Binding:
        """Fix the memory of a step of `rows` slots or lanes from `first` on."""
        inputs: dict[str, Array] = {
            "input_ids": np.zeros((rows, 1), np.int64),
            "positions": np.zeros(rows, np.int32),
            "source_lengths": np.ones(rows, np.int32),
            "capacity": np.array(self.capacity, np.int32),
            "top_k": np.array([top_k], np.int64),
        }
        output = StepOutput(
            np.empty((rows, top_k), np.float32),
            np.empty((rows, top_k), np.int64),
            np.empty(rows, np.float32),
            self._logits[:rows],
            np.empty((rows, self.longest_prompt), np.float32) if self.has_alignment else None,
        )
        io = self._decoder.io_binding()
        for name, array in inputs.items():
            if name in self._names:  # recurrent decoders need no positions, and without attention no lengths
                _bind(io.bind_input, name, array)
        for name in (*_OUTPUTS, "alignment") if self.has_alignment else _OUTPUTS:
            _bind(io.bind_output, name, getattr(output, name))
        states = []
        for part in self._layout:
            view = getattr(self.memory, where)[part.name][first : first + rows]
            _bind(io.bind_input, part.name, view)
            if part.kind == "past":  # appended to in place
                _bind(io.bind_output, part.name.replace("past", PRESENT["past"], 1), view)
            elif part.kind == "state":  # read by several nodes, so it must not change before all have read it
                written = np.empty_like(view)
                _bind(io.bind_output, part.name.replace("state", PRESENT["state"], 1), written)
                states.append((written, view))
        return _Binding(io, inputs, output, states)


def _bind(method: Any, name: str, array: Array) -> None:
    method(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
