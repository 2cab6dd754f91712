"""The memory of a decoder's key/value cache: slots, where rows decode, and lanes, where prompts are read.

A slot or lane of a layer is `[kv_heads, capacity, head_size]` for keys and as much for values; those of all rows are one block,
so that a call works on neighbouring ones by address, without copies. Lanes are fp32. Slots are fp32, or int8 with one scale a
layer for keys and one for values: a quarter of the memory, and faster to attend over one token at a time, while
onnxruntime reads a prompt over fp32 faster. So prompts are read in lanes and then committed to slots.
"""

import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.v1 import bundle_pb2

Floats = NDArray[np.float32]

LARGEST = 127
"""Of what int8 slots hold; symmetric."""


class CacheMemory:
    """Lengths are in tokens, counted from the beginning of a slot or lane. Zeros come from the system untouched: memory is taken
    up as slots fill."""

    def __init__(self, cache: bundle_pb2.Cache, *, slots: int, lanes: int, capacity: int) -> None:
        layer = (cache.kv_heads, capacity, cache.head_size)
        self.quantized = cache.type == "int8"
        self.slots = untouched_zeros((2, cache.layers, slots, *layer), np.int8 if self.quantized else np.float32)
        self.lanes = untouched_zeros((2, cache.layers, lanes, *layer), np.float32)
        self._scales = np.array([cache.key_scales, cache.value_scales], np.float32)  # (2, layers), or (2, 0) of fp32
        # Copies go layer by layer: numpy can't tell that slots of one array don't overlap and would copy all of it twice.
        self._layers = list(np.ndindex(2, cache.layers))

    @property
    def bytes_per_slot(self) -> int:
        """Memory that a full slot takes."""
        return int(self.slots.nbytes // self.slots.shape[2])

    def commit(self, lane: int, slot: int, length: int) -> None:
        """Copy what a lane holds to a slot, in the slot's type. Magnitudes beyond what was calibrated become the largest."""
        for layer in self._layers:
            held = self.lanes[layer][lane, :, :length]
            if self.quantized:
                held = held / self._scales[layer]
                np.rint(held, out=held)
                np.clip(held, -LARGEST, LARGEST, out=held)
            self.slots[layer][slot, :, :length] = held

    def keep_first(self, slots: int) -> None:
        """Nobody decodes in slots from that one on. They stay as they are: who comes next overwrites them."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the beginning of one slot to another."""
        for layer in self._layers:
            self.slots[layer][target, :, :length] = self.slots[layer][source, :, :length]

    def copy_lane(self, source: int, target: int, length: int) -> None:
        """Copy the beginning of one lane to another."""
        for layer in self._layers:
            self.lanes[layer][target, :, :length] = self.lanes[layer][source, :, :length]

    def read(self, slot: int, length: int) -> Floats:
        """Keys and values that a slot holds, (2, layers, kv_heads, length, head_size); a copy."""
        held = self.slots[:, :, slot, :, :length].astype(np.float32)
        return held * self._scales[:, :, None, None, None] if self.quantized else held


def untouched_zeros(shape: tuple[int, ...], dtype: type[np.number[Any]]) -> NDArray[Any]:
    """Zeros in small pages, each taken up when it is first written. numpy asks the system for huge pages, of which the first
    token of a slot takes up 2 MB in every layer."""
    count = math.prod(shape)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, count * np.dtype(dtype).itemsize, **private)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    zeros: NDArray[Any] = np.frombuffer(memory, dtype, count).reshape(shape)
    return zeros
