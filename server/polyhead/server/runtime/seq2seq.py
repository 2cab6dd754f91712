"""An encoder graph and a one-step decoder graph.

The encoder reads a source once, by itself and unpadded. What it gives is kept for the answer (`seq2seq_memory.py`): *memory*, which is
only read from there on (what attention looks at), and the decoder's first *state* (of recurrent layers), which every step
replaces. A Transformer's decoder has *caches* besides, where each step appends its keys and values in place. A step is one call for
each pool that has rows; the first one of an answer is the start token's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from polyhead.server.runtime.cache import untouched_zeros
from polyhead.server.runtime.decoder import StepOutput
from polyhead.server.runtime.memory import FilePages
from polyhead.server.runtime.seq2seq_memory import Pool, Seq2SeqMemory, parts
from polyhead.server.runtime.session import TensorInfo, open_session, signature
from polyhead.v1 import bundle_pb2

Array = NDArray[Any]

WRITTEN = {"state": "new.state", "past": "present"}
"""What the outputs of a step are called, by its inputs."""

_KEPT_BINDINGS = 256
_OUTPUTS = ("topk_values", "topk_ids", "logsumexp", "logits")


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

    def __init__(
        self, folder: Path, manifest: bundle_pb2.Bundle, *, slots: int, capacity: int, source_capacity: int
    ) -> None:
        """Raises BundleError if a graph can't be opened. `capacity`, `source_capacity`: tokens of an answer and of a source."""
        self.slots = slots
        self.lanes = slots  # while answers go on, as many sources may be read in an iteration as there are lanes
        self.capacity = capacity
        self.longest_prompt = source_capacity
        self.prefill_chunk = source_capacity
        self.vocabulary_size = manifest.limits.vocabulary_size
        self.start_token_id = manifest.seq2seq.start_token_id
        self._encoder, self._decoder = (open_session(folder / graph.file) for graph in manifest.graphs)
        self._files = FilePages(folder)
        self._decoder_inputs = {node.name for node in self._decoder.get_inputs()}
        self.has_alignment = "alignment" in {node.name for node in self._decoder.get_outputs()}
        kept = parts(manifest, source_capacity, capacity)
        self._encoder_outputs = [part.name for part in kept if part.kind != "past"]
        self.memory = Seq2SeqMemory(manifest, slots=slots, capacity=capacity, source_capacity=source_capacity)
        self._bindings: dict[tuple[int, int, int], _Binding] = {}
        self._wholes: dict[tuple[int, int], StepOutput] = {}  # of steps of several pools, by rows and candidates
        self._logits: dict[int, Array] = {}  # of each pool, and of a whole step: bindings of many shapes share them

    @property
    def signatures(self) -> list[tuple[list[TensorInfo], list[TensorInfo]]]:
        """Inputs and outputs of each graph."""
        return [signature(self._encoder), signature(self._decoder)]

    def room(self, prompt_tokens: int) -> int:
        """Tokens that an answer can have, however long its source."""
        return self.capacity

    def read(self, lane: int, sources: Sequence[Array]) -> None:
        """Read whole sources (S,) into neighbouring lanes from `lane` on, each by itself. There is no output yet: an answer's first
        step is one of `decode`."""
        for at, source in enumerate(sources, lane):
            self._encode(at, source)

    def decode(self, tokens: Array, past: Array, top_k: int, first: int = 0, *, adapter: str = "") -> StepOutput:
        """Append one token to each of the slots 0 to B - 1, which hold `past` (B,) tokens of source and answer; N is B. The first step
        of an answer appends the start token; `past` does not count it."""
        assert first == 0, (
            "an answer that is not the continuation of its prompt has no guesses, and so no steps of its own"
        )
        busy = [pool for pool in self.memory.pools if pool.slots]
        assert sum(len(pool.slots) for pool in busy) == len(tokens), "every row of a step has been begun"
        if len(busy) == 1 and busy[0].slots == list(range(len(tokens))):
            return self._advance(busy[0], tokens, past, top_k)
        places = [np.array(pool.slots) for pool in busy]
        outputs = [
            (at, self._advance(pool, tokens[at], past[at], top_k)) for pool, at in zip(busy, places, strict=True)
        ]
        return self._joined(outputs, len(tokens), top_k)

    def close(self) -> None:
        """Let go of the graphs and the memory."""
        self._bindings.clear()
        del self._encoder, self._decoder, self.memory

    def _encode(self, lane: int, source: Array) -> None:
        encoded = self._encoder.run(
            self._encoder_outputs,
            {"input_ids": source[None].astype(np.int64), "lengths": np.array([len(source)], np.int32)},
        )
        if not all(np.isfinite(array).all() for array in encoded):  # they would stay where shorter sources come next
            raise ArithmeticError("the encoder gave numbers that are none")
        self.memory.enter(lane, len(source), dict(zip(self._encoder_outputs, (a[0] for a in encoded), strict=True)))

    def _advance(self, pool: Pool, tokens: Array, held: Array, top_k: int) -> StepOutput:
        """A step of the rows of one pool, which hold so many tokens of source and answer."""
        sources = pool.source_lengths[: len(tokens)]
        positions = held - sources
        output = self._run(pool, tokens, positions, sources, top_k)
        pool.answer_lengths[: len(tokens)] = positions + 1
        return output

    def _joined(self, outputs: Sequence[tuple[Array, StepOutput]], rows: int, top_k: int) -> StepOutput:
        """What the calls gave, in the order of slots."""
        if (rows, top_k) not in self._wholes:
            self._wholes[rows, top_k] = self._output(0, rows, top_k, self.longest_prompt)
        whole = self._wholes[rows, top_k]
        for at, output in outputs:
            for name in _OUTPUTS:
                getattr(whole, name)[at] = getattr(output, name)
            if whole.alignment is not None and output.alignment is not None:
                whole.alignment[at, : output.alignment.shape[1]] = output.alignment
        return whole

    def _run(self, pool: Pool, tokens: Array, positions: Array, sources: Array, top_k: int) -> StepOutput:
        binding = self._binding(pool, len(tokens), top_k)
        binding.inputs["input_ids"][:, 0] = tokens
        binding.inputs["positions"][:] = positions
        binding.inputs["source_lengths"][:] = sources
        self._decoder.run_with_iobinding(binding.io)
        self._files.after_call()
        for written, read in binding.states:
            read[:] = written
        return binding.output

    def _binding(self, pool: Pool, rows: int, top_k: int) -> _Binding:
        """Kept for the next step, which mostly has the same shape."""
        key = (id(pool), rows, top_k)
        if key not in self._bindings:
            while len(self._bindings) >= _KEPT_BINDINGS:
                del self._bindings[next(iter(self._bindings))]
            self._bindings[key] = self._bind(pool, rows, top_k)
        return self._bindings[key]

    def _bind(self, pool: Pool, rows: int, top_k: int) -> _Binding:
        """Fix the memory of a step of a pool's first rows."""
        inputs: dict[str, Array] = {
            "input_ids": np.zeros((rows, 1), np.int64),
            "positions": np.zeros(rows, np.int32),
            "source_lengths": np.ones(rows, np.int32),
            "capacity": np.array(pool.capacity, np.int32),
            "top_k": np.array([top_k], np.int64),
        }
        output = self._output(id(pool), rows, top_k, pool.source_capacity)
        io = self._decoder.io_binding()
        for name, array in inputs.items():
            if name in self._decoder_inputs:  # recurrent decoders need no positions, and without attention no lengths
                _bind(io.bind_input, name, array)
        for name in (*_OUTPUTS, "alignment") if self.has_alignment else _OUTPUTS:
            _bind(io.bind_output, name, getattr(output, name))
        return _Binding(io, inputs, output, list(self._bind_kept(io, pool, rows)))

    def _bind_kept(self, io: ort.IOBinding, pool: Pool, rows: int) -> Iterator[tuple[Array, Array]]:
        """What answers keep; gives each state that a step writes, with where it shall be read."""
        for part in pool.layout:
            view = pool.arrays[part.name][:rows]
            _bind(io.bind_input, part.name, view)
            if part.kind == "past":  # appended to in place
                _bind(io.bind_output, part.name.replace("past", WRITTEN["past"], 1), view)
            elif part.kind == "state":  # read by several nodes, so it must not change before all have read it
                written = np.empty_like(view)
                _bind(io.bind_output, part.name.replace("state", WRITTEN["state"], 1), written)
                yield written, view

    def _output(self, owner: int, rows: int, top_k: int, source_capacity: int) -> StepOutput:
        if owner not in self._logits:
            self._logits[owner] = untouched_zeros((self.slots, self.vocabulary_size), np.float32)
        return StepOutput(
            np.empty((rows, top_k), np.float32),
            np.empty((rows, top_k), np.int64),
            np.empty(rows, np.float32),
            self._logits[owner][:rows],
            np.zeros((rows, source_capacity), np.float32) if self.has_alignment else None,
        )


def _bind(method: Any, name: str, array: Array) -> None:
    method(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
