"""A decoder graph and the cache it works in.

A call works on neighbouring lanes or slots of the cache (`cache.py`); they are bound by address as past and as present, so no call
copies or moves what the cache holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from polyhead.server.runtime.adapters import Adapters
from polyhead.server.runtime.cache import CacheMemory
from polyhead.server.runtime.memory import FilePages
from polyhead.server.runtime.session import TensorInfo, open_session, signature
from polyhead.v1 import bundle_pb2

Array = NDArray[Any]

LANES = 4
"""Prompts that can be read at the same time. More would save little: from two chunks of 32 tokens on a call takes as long as
its tokens, and every lane can take up the memory of a whole prompt in fp32."""

_KEPT_BINDINGS = 256
_POSITION_OUTPUTS = ("topk_values", "topk_ids", "logsumexp", "logits")


Where = Literal["lanes", "slots"]


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
    alignment: NDArray[np.float32] | None = None
    """(N, source), of models that attend to one: how much the token that is chosen next has to do with each of its tokens."""

    def rows(self, at: list[int]) -> "StepOutput":
        """A copy of some positions, in that order."""
        alignment = None if self.alignment is None else self.alignment[at]
        return StepOutput(self.topk_values[at], self.topk_ids[at], self.logsumexp[at], self.logits[at], alignment)


@dataclass(frozen=True, slots=True)
class _Binding:
    io: ort.IOBinding
    inputs: dict[str, Array]
    output: StepOutput


class Decoder:
    """Runs the graph `decoder` of a bundle over its cache. One thread at a time."""

    continues_prompt = True
    has_alignment = False

    def __init__(
        self, graph: Path, manifest: bundle_pb2.Bundle, *, slots: int, capacity: int, prefix_slots: int = 0
    ) -> None:
        """Raises BundleError if the graph can't be opened. `capacity`: tokens a slot or lane holds; `prefix_slots`: more
        lanes behind the others, where no prompt is read."""
        self.slots = slots
        self.lanes = min(slots, LANES)
        self.prefix_slots = prefix_slots
        self.capacity = capacity
        self.prefill_chunk = manifest.limits.prefill_chunk
        self.vocabulary_size = manifest.limits.vocabulary_size
        self._last_position = manifest.limits.max_tokens - 1
        self._session = open_session(graph)
        self._files = FilePages(graph.parent)
        self._names = {node.name for node in self._session.get_inputs()}
        self._adapters = Adapters(graph.parent, manifest, self._session)
        self.memory = CacheMemory(manifest.cache, slots=slots, lanes=self.lanes + prefix_slots, capacity=capacity)
        self._unused = CacheMemory(manifest.cache, slots=1, lanes=1, capacity=1)
        self._decoding: dict[tuple[int, int, int, str], _Binding] = {}
        self._logits = np.empty((slots, self.vocabulary_size), np.float32)

    @property
    def longest_prompt(self) -> int:
        """In tokens."""
        return self.capacity - 1

    def room(self, prompt_tokens: int) -> int:
        """Tokens that an answer to such a prompt can have."""
        return self.capacity - prompt_tokens

    @property
    def signature(self) -> tuple[list[TensorInfo], list[TensorInfo]]:
        """Inputs and outputs of the graph."""
        return signature(self._session)

    def prefill(
        self,
        lane: int,
        chunks: Sequence[Array],
        past: Sequence[int],
        top_k: int,
        *,
        every_position: bool = False,
        adapter: str = "",
    ) -> StepOutput:
        """Append chunks (S,), right-padded to the longest, to neighbouring lanes from `lane` on, which hold `past` tokens. N is
        the number of chunks, for the last position of each; every position can only be had of a single chunk. `adapter`: one of the
        manifest's; empty: none.

        A single token is padded to two: alone it would take another attention kernel than inside a longer chunk, and the
        answer would depend on where chunks end.
        """
        counts = [len(chunk) for chunk in chunks]
        length = max(2, *counts)
        wanted = (
            np.arange(counts[0]) if every_position else np.array([i * length + n - 1 for i, n in enumerate(counts)])
        )
        return self._append("lanes", lane, chunks, past, length, wanted, top_k, adapter)

    def extend(self, slot: int, tokens: Array, past: int, top_k: int, *, adapter: str = "") -> StepOutput:
        """Append two or more tokens (S,) to a slot that holds `past` tokens; N is S."""
        return self._append("slots", slot, [tokens], [past], len(tokens), np.arange(len(tokens)), top_k, adapter)

    def _append(
        self,
        where: Where,
        first: int,
        rows: Sequence[Array],
        past: Sequence[int],
        length: int,
        wanted: Array,
        top_k: int,
        adapter: str,
    ) -> StepOutput:
        binding = self._bind(where, first, len(rows), length, wanted, top_k, adapter)
        inputs = binding.inputs
        for i, (tokens, held) in enumerate(zip(rows, past, strict=True)):
            count = len(tokens)
            inputs["input_ids"][i, :count] = tokens
            inputs["seqlens_k"][i] = held + count - 1
            inputs["query_seqlens"][i] = count
            # Padding has positions, too, and a table of positions no row for those behind the last.
            inputs["position_ids"][i] = np.minimum(np.arange(held, held + length), self._last_position)
        self._session.run_with_iobinding(binding.io)
        self._files.after_call()
        return binding.output

    def decode(self, tokens: Array, past: Array, top_k: int, first: int = 0, *, adapter: str = "") -> StepOutput:
        """Append one token to each of B neighbouring slots from `first` on, which hold `past` (B,) tokens; N is B."""
        binding = self._decoding_binding(first, len(tokens), top_k, adapter)
        inputs = binding.inputs
        inputs["input_ids"][:, 0] = tokens
        inputs["seqlens_k"][:] = past
        inputs["position_ids"][:, 0] = past
        self._session.run_with_iobinding(binding.io)
        self._files.after_call()
        return binding.output

    def _decoding_binding(self, first: int, rows: int, top_k: int, adapter: str) -> _Binding:
        """Kept for the next step, which mostly has the same shape."""
        key = (first, rows, top_k, adapter)
        if key not in self._decoding:
            while len(self._decoding) >= _KEPT_BINDINGS:
                del self._decoding[next(iter(self._decoding))]
            self._decoding[key] = self._bind("slots", first, rows, 1, np.arange(rows), top_k, adapter)
        return self._decoding[key]

    def close(self) -> None:
        """Let go of the graph and the cache's memory."""
        self._decoding.clear()
        self._adapters.close()
        del self._session, self.memory

    def _bind(
        self, where: Where, first: int, rows: int, length: int, positions: Array, top_k: int, adapter: str
    ) -> _Binding:
        """Fix the memory of a call on `rows` slots or lanes from `first` on, `length` tokens each; positions (N,) are wanted."""
        count = len(positions)
        inputs: dict[str, Array] = {
            "input_ids": np.zeros((rows, length), np.int64),
            "position_ids": np.zeros((rows, length), np.int64),
            "seqlens_k": np.zeros(rows, np.int32),
            "query_seqlens": np.full(rows, length, np.int32),
            "capacity": np.array(self.capacity, np.int32),
            "logit_positions": positions.astype(np.int64),
            "top_k": np.array([top_k], np.int64),
            "prefill": np.array([where == "lanes"]),
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
            if name in self._names:  # not every graph has position_ids or prefill
                io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._adapters.bind(io, adapter)
        for name in _POSITION_OUTPUTS:
            array = getattr(output, name)
            io.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        memory = self.memory
        if memory.quantized:  # lanes and slots are inputs of their own, and of either there is always one
            slots, lanes = memory.slots[:, :, first : first + rows], memory.lanes[:, :, first : first + rows]
            _bind_cache(io, "past", "present", slots if where == "slots" else self._unused.slots)
            _bind_cache(io, "lane.past", "lane.present", lanes if where == "lanes" else self._unused.lanes)
        else:
            _bind_cache(io, "past", "present", getattr(memory, where)[:, :, first : first + rows])
        return _Binding(io, inputs, output)


def _bind_cache(io: ort.IOBinding, past: str, present: str, cache: Array) -> None:
    """Let each layer work in place on its part of (2, layers, rows, kv_heads, capacity, head_size)."""
    for kind, layers in zip(("key", "value"), cache, strict=True):
        for layer, view in enumerate(layers):
            io.bind_input(f"{past}.{kind}.{layer}", "cpu", 0, view.dtype, view.shape, view.ctypes.data)
            io.bind_output(f"{present}.{kind}.{layer}", "cpu", 0, view.dtype, view.shape, view.ctypes.data)
