"""Lanes and slots of a decoder's cache."""

import os
from pathlib import Path

import numpy as np
import pytest

from polyhead.server.runtime.cache import LARGEST, CacheMemory
from polyhead.v1 import bundle_pb2

LAYERS, KV_HEADS, CAPACITY, HEAD_SIZE = 3, 2, 10, 8
KEY_SCALES, VALUE_SCALES = [0.01, 0.02, 0.04], [0.08, 0.16, 0.32]


def memory(kind: str) -> CacheMemory:
    """Two slots, and two lanes full of numbers."""
    cache = bundle_pb2.Cache(layers=LAYERS, kv_heads=KV_HEADS, head_size=HEAD_SIZE, type=kind)
    if kind == "int8":
        cache.key_scales.extend(KEY_SCALES)
        cache.value_scales.extend(VALUE_SCALES)
    made = CacheMemory(cache, slots=2, lanes=2, capacity=CAPACITY)
    made.lanes[:] = np.random.default_rng(0).normal(size=made.lanes.shape)
    return made


def test_an_fp32_slot_holds_what_was_in_the_lane_as_far_as_was_committed() -> None:
    held = memory("float")
    held.commit(1, 0, 7)
    assert np.array_equal(held.read(0, 7), held.lanes[:, :, 1, :, :7])
    assert not held.read(0, CAPACITY)[..., 7:, :].any()
    assert not held.read(1, CAPACITY).any()


def test_an_int8_slot_holds_it_to_half_a_step_of_its_layer_and_no_more_than_the_largest() -> None:
    held = memory("int8")
    held.commit(1, 0, 7)
    lane, steps = held.lanes[:, :, 1, :, :7], np.array([KEY_SCALES, VALUE_SCALES]).reshape(2, LAYERS, 1, 1, 1)
    limit = LARGEST * steps
    assert (np.abs(lane) > limit).any()
    assert (np.abs(held.read(0, 7) - np.clip(lane, -limit, limit)) <= 0.501 * steps).all()


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_slots_and_lanes_are_copied_as_far_as_is_asked(kind: str) -> None:
    held = memory(kind)
    held.commit(0, 0, CAPACITY)
    held.move(0, 1, 4)
    assert np.array_equal(held.slots[:, :, 1, :, :4], held.slots[:, :, 0, :, :4])
    assert not held.slots[:, :, 1, :, 4:].any()
    held.copy_lane(0, 1, 4)
    assert np.array_equal(held.lanes[:, :, 1, :, :4], held.lanes[:, :, 0, :, :4])
    assert not np.array_equal(held.lanes[:, :, 1, :, 4:], held.lanes[:, :, 0, :, 4:])


def test_an_int8_slot_takes_a_quarter_of_the_memory() -> None:
    assert memory("float").bytes_per_slot == 4 * memory("int8").bytes_per_slot == 2 * 3 * 2 * 10 * 8 * 4


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells resident memory on Linux only")
def test_memory_is_taken_up_as_slots_fill() -> None:
    """One token in every layer, head and slot of a gigabyte takes a page of the system in each."""
    cache = bundle_pb2.Cache(layers=8, kv_heads=2, head_size=64, type="float")
    memory = CacheMemory(cache, slots=16, lanes=1, capacity=8192)
    before = resident_bytes()
    for slot in range(16):
        memory.commit(0, slot, 1)
    assert memory.slots.nbytes >= 2**30
    assert resident_bytes() - before < 2 * 8 * 2 * 17 * 4096 * 2 + 2**22


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
