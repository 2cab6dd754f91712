"""A decoder graph and the cache slots it works in.

The slots of a layer are one block of memory, `[slots, kv_heads, capacity, head_size]` for keys and one for values. A call works
on neighbouring slots; they are bound by address as past and as present, so no call copies or moves what the cache holds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from polyhead.server.runtime.session import TensorInfo, open_session, signature
from polyhead.v1 import bundle_pb2

Array = NDArray[Any]

_KEPT_BINDINGS = 256
_POSITION_OUTPUTS = ("topk_values", "topk_ids", "logsumexp", "logits")


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a call says of the N wanted positions. The arrays are the runtime's own and live until its next call."""

    topk_values: NDArray[np.float32]
    """(N, K), best first."""
    topk_ids: NDArray[np.int64]
    """(N, K)."""
    logsumexp: NDArray[np.float32]
    """(N,)."""
    logits: NDArray[np.float32]
    """(N, V)."""

    def rows(self, at: list[int]) -> "StepOutput":
        """A copy of some positions, in that order."""
        return StepOutput(self.topk_values[at], self.topk_ids[at], self.logsumexp[at], self.logits[at])


@dataclass(frozen=True, slots=True)
class _Binding:
    io: ort.IOBinding
    inputs: dict[str, Array]
    output: StepOutput


class Decoder:
    """Runs the graph `decoder` of a bundle over a pool of slots. One thread at a time."""

    def __init__(
        self, graph: Path, manifest: bundle_pb2.Bundle, *, slots: int, capacity: int, prefix_slots: int = 0
    ) -> None:
        """Raises BundleError if the graph can't be opened. `capacity`: tokens a slot holds; `prefix_slots`: more slots
        behind the others, which never decode."""
        cache = manifest.cache
        self.slots = slots
        self.prefix_slots = prefix_slots
        self.capacity = capacity
        self.prefill_chunk = manifest.limits.prefill_chunk
        self.vocabulary_size = manifest.limits.vocabulary_size
        self._session = open_session(graph)
        self._names = {node.name for node in self._session.get_inputs()}
        # Zeros come from the system untouched: memory is taken up as slots fill.
        shape = (2, cache.layers, slots + prefix_slots, cache.kv_heads, capacity, cache.head_size)
        self._pool = np.zeros(shape, np.float32)
        self._decoding: dict[tuple[int, int, int], _Binding] = {}
        self._logits = np.empty((slots, self.vocabulary_size), np.float32)

    @property
    def signature(self) -> tuple[list[TensorInfo], list[TensorInfo]]:
        """Inputs and outputs of the graph."""
        return signature(self._session)

    @property
    def bytes_per_slot(self) -> int:
        """Memory that a full slot takes."""
        return self._pool.nbytes // (self.slots + self.prefix_slots)

    def cached(self, slot: int, length: int) -> NDArray[np.float32]:
        """Keys and values of the first `length` tokens of a slot, (2, layers, kv_heads, length, head_size); a view."""
        view: NDArray[np.float32] = self._pool[:, :, slot, :, :length]
        return view

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot to another."""
        self._pool[:, :, target, :, :length] = self._pool[:, :, source, :, :length]

    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange the first `length` tokens of two slots."""
        kept = self._pool[:, :, second, :, :length].copy()
        self.move(first, second, length)
        self._pool[:, :, first, :, :length] = kept

    def append(self, slot: int, tokens: Array, past: int, top_k: int, *, every_position: bool = False) -> StepOutput:
        """Append tokens (S,) to a slot that holds `past` tokens. N is 1, the last position, or S for every position.

        A single token is padded to two: alone it would take another attention kernel than inside a longer chunk, and the
        answer would depend on where chunks end.
        """
        count = len(tokens)
        length = max(count, 2)
        binding = self._bind(slot, 1, length, np.arange(count) if every_position else np.array([count - 1]), top_k)
        inputs = binding.inputs
        inputs["input_ids"][0, :count] = tokens
        inputs["input_ids"][0, count:] = 0
        inputs["seqlens_k"][0] = past + count - 1
        inputs["query_seqlens"][0] = count
        inputs["position_ids"][0] = np.arange(past, past + length)
        self._session.run_with_iobinding(binding.io)
        return binding.output

    def decode(self, tokens: Array, past: Array, top_k: int, first: int = 0) -> StepOutput:
        """Append one token to each of B neighbouring slots from `first` on, which hold `past` (B,) tokens; N is B."""
        binding = self._decoding_binding(first, len(tokens), top_k)
        inputs = binding.inputs
        inputs["input_ids"][:, 0] = tokens
        inputs["seqlens_k"][:] = past
        inputs["position_ids"][:, 0] = past
        self._session.run_with_iobinding(binding.io)
        return binding.output

    def _decoding_binding(self, first: int, rows: int, top_k: int) -> _Binding:
        """Kept for the next step, which mostly has the same shape."""
        key = (first, rows, top_k)
        if key not in self._decoding:
            while len(self._decoding) >= _KEPT_BINDINGS:
                del self._decoding[next(iter(self._decoding))]
            self._decoding[key] = self._bind(first, rows, 1, np.arange(rows), top_k)
        return self._decoding[key]

    def close(self) -> None:
        """Let go of the graph and the slots' memory."""
        self._decoding.clear()
        del self._session, self._pool

    def _bind(self, first: int, rows: int, length: int, positions: Array, top_k: int) -> _Binding:
        """Fix the memory of a call on `rows` slots from `first` on, `length` tokens each; positions (N,) are wanted."""
        count = len(positions)
        inputs: dict[str, Array] = {
            "input_ids": np.zeros((rows, length), np.int64),
            "position_ids": np.zeros((rows, length), np.int64),
            "seqlens_k": np.zeros(rows, np.int32),
            "query_seqlens": np.full(rows, length, np.int32),
            "capacity": np.array(self.capacity, np.int32),
            "logit_positions": positions.astype(np.int64),
            "top_k": np.array([top_k], np.int64),
        }
        if count > len(self._logits):
            self._logits = np.empty((count, self.vocabulary_size), np.float32)
        output = StepOutput(
            np.empty((count, top_k), np.float32),
            np.empty((count, top_k), np.int64),
            np.empty(count, np.float32),
            self._logits[:count],
        )
        io = self._session.io_binding()
        for name, array in inputs.items():
            if name in self._names:  # not every graph has position_ids
                io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name in _POSITION_OUTPUTS:
            array = getattr(output, name)
            io.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for kind, layers in zip(("key", "value"), self._pool, strict=True):
            for layer, pool in enumerate(layers):
                view = pool[first : first + rows]
                io.bind_input(f"past.{kind}.{layer}", "cpu", 0, view.dtype, view.shape, view.ctypes.data)
                io.bind_output(f"present.{kind}.{layer}", "cpu", 0, view.dtype, view.shape, view.ctypes.data)
        return _Binding(io, inputs, output)
