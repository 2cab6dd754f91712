"""A decoder graph whose slots hold int8 keys and values, with one scale a layer for keys and one for values.

Over int8, onnxruntime attends faster from one token, and slower from many. So prompts are read in lanes, which stay fp32, and the
graph has both attention nodes of each layer, of which an `If` runs one: the server says which memory a call works on.
"""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import onnx_ir as ir
import tokenizers

from polyhead.export.errors import ExportError
from polyhead.export.manifest import graph_entry
from polyhead.export.rewrite import Editor
from polyhead.server.bundle import Bundle
from polyhead.server.runtime.cache import LARGEST
from polyhead.server.runtime.decoder import Decoder

CALIBRATED_TOKENS = 256
"""Of a text, and as many random ones."""
CALIBRATED_CHARACTERS = 20 * CALIBRATED_TOKENS
"""More than so many tokens have."""
KEY_SCALE, VALUE_SCALE = 12, 13
"""Places among GroupQueryAttention's inputs, from 0."""
PAST_KEY, PAST_VALUE = 3, 4


@dataclass(frozen=True)
class CacheScales:
    """What 1 stands for, by layer."""

    key: list[float]
    value: list[float]


def calibration_samples(bundle: Bundle, text: list[int] | None = None) -> list[list[int]]:
    """Token ids: random ones, as prompts need not look like the text, and those of a text, if there are any."""
    limits = bundle.manifest.limits
    length = _calibrated_tokens(bundle)
    random = np.random.default_rng(0).integers(0, limits.vocabulary_size, length).tolist()
    return [random, text] if text else [random]


def split_text(bundle: Bundle, text: str) -> tuple[list[int], str]:
    """Token ids of its beginning, to calibrate on, and the rest of it, which is at least half, to measure on."""
    tokenizer = tokenizers.Tokenizer.from_file(str(bundle.tokenizer))
    tokenizer.no_padding()
    length = _calibrated_tokens(bundle)
    # With the begin token, which may stand out.
    encoded = tokenizer.encode(text[: min(len(text) // 2, CALIBRATED_CHARACTERS)])
    end = max((end for _, end in encoded.offsets[:length]), default=0)
    return encoded.ids[:length], text[end:]


def _calibrated_tokens(bundle: Bundle) -> int:
    return min(CALIBRATED_TOKENS, bundle.manifest.limits.max_tokens)


def to_int8_cache(bundle: Bundle, samples: list[list[int]]) -> None:
    """Calibrate a decoder over fp32 slots on samples of token ids, rewrite its graph, and say so in the manifest."""
    manifest = bundle.manifest
    with closing(Decoder(bundle.graph, manifest, slots=1, capacity=max(2, *map(len, samples)))) as decoder:
        scales = calibrate(decoder, samples, ["", *(adapter.name for adapter in manifest.adapters)])
    graph = quantize_cache(bundle.graph, scales)
    manifest.cache.type = "int8"
    manifest.cache.key_scales.extend(scales.key)
    manifest.cache.value_scales.extend(scales.value)
    manifest.graphs[0].CopyFrom(graph_entry(manifest.graphs[0].name, graph))


def calibrate(decoder: Decoder, samples: Iterable[list[int]], adapters: Iterable[str] = ("",)) -> CacheScales:
    """Scales for the largest magnitudes that a decoder over fp32 lanes keeps of some texts (token ids, each within its capacity), with
    any of some adapters."""
    largest = np.zeros((2, decoder.memory.lanes.shape[1]), np.float32)  # keys, values by layer
    for ids, adapter in product(samples, adapters):
        for start in range(0, len(ids), decoder.prefill_chunk):
            decoder.prefill(0, [np.array(ids[start : start + decoder.prefill_chunk])], [start], 1, adapter=adapter)
        held = np.abs(decoder.memory.lanes[:, :, 0, :, : len(ids)])
        largest = np.maximum(largest, held.max((2, 3, 4)))
    key, value = np.where(largest > 0, largest, 1) / LARGEST
    return CacheScales(key.tolist(), value.tolist())


def quantize_cache(path: Path, scales: CacheScales) -> ir.Model:
    """Rewrite a saved graph in place; its weights beside it stay as they are. Returns what was saved. Raises ExportError for one
    that computes with a slot's capacity."""
    model = ir.load(path)
    count_rows_by_tokens(model.graph)
    editor = Editor(model.graph)
    prefill = ir.Value(name="prefill", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([1]))
    model.graph.inputs.append(prefill)
    for node in [node for node in model.graph if node.op_type == "GroupQueryAttention"]:
        layer = int(str(_required(node.inputs[PAST_KEY]).name).rpartition(".")[2])
        pair = (
            editor.constant(f"cache.key_scale.{layer}", np.array([scales.key[layer]], np.float32)),
            editor.constant(f"cache.value_scale.{layer}", np.array([scales.value[layer]], np.float32)),
        )
        choose_memory(model.graph, node, prefill, pair)
    ir.save(model, path)
    return model


def count_rows_by_tokens(graph: ir.Graph) -> None:
    """Have the number of rows read off `input_ids`. torch's exporter reads it off any input that has as many, slots among them; of
    two memories the one that a call doesn't work on has another number. Raises ExportError where a slot's other sizes are read."""
    tokens, *others = graph.inputs
    for slot in [value for value in others if str(value.name).startswith("past.")]:
        for node, place in tuple(slot.uses()):
            if node.op_type == "GroupQueryAttention":
                continue
            attributes = node.attributes
            if (node.op_type, attributes.get_int("start", 0), attributes.get_int("end", None)) != ("Shape", 0, 1):
                raise ExportError(
                    f"an int8 cache is not for this model: {node.op_type} {node.name} reads {slot.name}, and not only its rows"
                )
            node.replace_input_with(place, tokens)


def choose_memory(graph: ir.Graph, node: ir.Node, prefill: ir.Value, scales: tuple[ir.Value, ir.Value]) -> None:
    """Put an `If` in the place of an attention node: over lanes as it was, or over int8 slots."""
    slots = [_required(node.inputs[place]) for place in (PAST_KEY, PAST_VALUE)]
    lanes = [_lane_of(slot) for slot in slots]
    present = node.outputs[1:3]
    for slot, updated in zip(slots, present, strict=True):
        slot.type = updated.type = ir.TensorType(ir.DataType.INT8)
        slot.shape = updated.shape = _shape(slot, "slots")
    graph.inputs.extend(lanes)
    inputs = [*node.inputs, *[None] * (VALUE_SCALE + 1 - len(node.inputs))]
    over_lanes = list(inputs)
    over_lanes[PAST_KEY], over_lanes[PAST_VALUE] = lanes
    inputs[KEY_SCALE], inputs[VALUE_SCALE] = scales
    chosen = ir.Node(
        "",
        "If",
        [prefill],
        [
            ir.AttrGraph("then_branch", _branch(node, over_lanes, kept=slots, kept_first=True)),
            ir.AttrGraph("else_branch", _branch(node, inputs, kept=lanes, kept_first=False, quantized=True)),
        ],
        num_outputs=5,
        name=f"{node.name}_or_int8",
    )
    graph.insert_before(node, chosen)
    for old, new in zip(node.outputs[:3], chosen.outputs[:3], strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for lane, updated in zip(lanes, chosen.outputs[3:], strict=True):
        updated.name = str(lane.name).replace("past", "present")
        updated.type, updated.shape = lane.type, lane.shape
        graph.outputs.append(updated)


def _branch(
    node: ir.Node, inputs: list[ir.Value | None], *, kept: list[ir.Value], kept_first: bool, quantized: bool = False
) -> ir.Graph:
    """The attention node over other inputs; the memory that it does not work on is handed through."""
    attributes = list(node.attributes.values())
    if quantized:
        attributes += [ir.AttrString(name, "PER_TENSOR") for name in ("k_quant_type", "v_quant_type")]
        attributes.append(ir.AttrInt64("kv_cache_bit_width", 8))
    attention = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=3, name=f"{node.name}_inside")
    same = [ir.Node("", "Identity", [value], num_outputs=1) for value in kept]
    mixed, *updated = attention.outputs
    handed = [one.outputs[0] for one in same]
    mixed.type, mixed.shape = node.outputs[0].type, node.outputs[0].shape
    for values, memory in ((updated, [_required(inputs[place]) for place in (PAST_KEY, PAST_VALUE)]), (handed, kept)):
        for value, held in zip(values, memory, strict=True):
            value.type, value.shape = held.type, held.shape
    outputs = [mixed, *handed, *updated] if kept_first else [mixed, *updated, *handed]
    name = f"{node.name}_{'slots' if quantized else 'lanes'}"
    for index, value in enumerate(outputs):  # names inside must differ from those outside
        value.name = f"{name}_{index}"
    return ir.Graph([], outputs, nodes=[attention, *same], name=name, opset_imports=dict(_imports(node)))


def _lane_of(slot: ir.Value) -> ir.Value:
    """The fp32 input `lane.past.…` beside `past.…`."""
    return ir.Value(name=f"lane.{slot.name}", type=ir.TensorType(ir.DataType.FLOAT), shape=_shape(slot, "lanes"))


def _shape(slot: ir.Value, rows: str) -> ir.Shape:
    assert slot.shape is not None
    return ir.Shape([rows, slot.shape[1], f"{rows}_capacity", slot.shape[3]])


def _imports(node: ir.Node) -> dict[str, int]:
    return {} if node.graph is None else dict(node.graph.opset_imports)


def _required(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value
