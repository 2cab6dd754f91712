"""Low-rank adapters (Hu et al. 2021, LoRA, section 4.1) as inputs of a graph: their names, and what a manifest may say of them.

A layer that some adapter of a bundle changes gives y + (x·a)·b, where it gave y without adapters. Its inputs are
`adapter.LAYER.b` (rank, outputs) and, of the columns of a, `adapter.LAYER.a.0`, `adapter.LAYER.a.1` … (inputs, rank), side by side
as many as b has rows. A layer that is replaced as a whole, the head of a classifier, may have `adapter.LAYER.bias` (outputs), too.
A rank of 0 is no adapter.

a comes in groups of 16 columns because a product that narrow is never shared out over threads by columns: if it were, the number
of rows would decide how, thus in which order a sum is made, and a row's bits would depend on the others in its call.
"""

import re
from collections.abc import Sequence

from polyhead.server.errors import BundleError
from polyhead.v1 import bundle_pb2

PREFIX = "adapter."
GROUP = 16
"""Columns of a in one input, at most."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_INPUT = re.compile(r"adapter\.(?P<layer>.+)\.(?P<part>a\.\d+|b|bias)")


def is_adapter_input(tensor: bundle_pb2.Tensor) -> bool:
    return tensor.name.startswith(PREFIX)


def is_group(name: str) -> bool:
    """Whether an input has columns of a."""
    match = _INPUT.fullmatch(name)
    return match is not None and match["part"].startswith("a.")


def parts(names: Sequence[str]) -> dict[str, list[str]]:
    """The parts (`a.0`, …, `b`, `bias`) that each layer has among names of inputs. Raises ValueError for a name that is none."""
    found: dict[str, list[str]] = {}
    for name in names:
        match = _INPUT.fullmatch(name)
        if match is None:
            raise ValueError(f"{name} must be adapter.LAYER.a.0 and so on, adapter.LAYER.b or adapter.LAYER.bias")
        found.setdefault(match["layer"], []).append(match["part"])
    return found


def check_adapters(manifest: bundle_pb2.Bundle) -> None:
    """Names, files and the graph's inputs for adapters. Raises BundleError, naming the field."""
    names = [adapter.name for adapter in manifest.adapters]
    if names != sorted(set(names)) or not all(map(NAME.fullmatch, names)):
        raise _refusal("adapters", f"must be sorted and differ, their names {NAME.pattern}, got {names}")
    if names and manifest.HasField("seq2seq"):
        raise _refusal("adapters", f"are not for models that read a source, got {names}")
    listed = {file.path for file in manifest.files}
    for index, adapter in enumerate(manifest.adapters):
        if adapter.file not in listed:
            raise _refusal(f"adapters[{index}].file", f"is {adapter.file!r}, which is not among files")
        if adapter.rank < 1:
            raise _refusal(f"adapters[{index}].rank", f"must be at least 1, got {adapter.rank}")
    inputs = [tensor for graph in manifest.graphs for tensor in graph.inputs if is_adapter_input(tensor)]
    if bool(inputs) != bool(names):
        raise _refusal("adapters", f"are {names or 'none'}, and the graph has {len(inputs)} inputs for adapters")
    _check_inputs(inputs)


def _check_inputs(inputs: Sequence[bundle_pb2.Tensor]) -> None:
    field = "graphs[0].inputs"
    try:
        layers = parts([tensor.name for tensor in inputs])
    except ValueError as error:
        raise _refusal(field, str(error)) from error
    for layer, found in layers.items():
        groups = [part for part in found if part.startswith("a.")]
        wanted = {"b", *(f"a.{group}" for group in range(max(1, len(groups))))}
        if set(found) - {"bias"} != wanted or len(set(found)) < len(found):
            raise _refusal(field, f"adapter.{layer} must have {sorted(wanted)} and perhaps bias, got {sorted(found)}")
    for tensor in inputs:
        if not _shape_fits(tensor):
            shape = f"{tensor.type} {list(tensor.shape)}"
            raise _refusal(field, f"{tensor.name} must be float, all sizes but the rank fixed, got {shape}")


def _shape_fits(tensor: bundle_pb2.Tensor) -> bool:
    fixed = [size.isdecimal() for size in tensor.shape]
    wanted = [True] if tensor.name.endswith(".bias") else [False, True] if tensor.name.endswith(".b") else [True, False]
    return tensor.type == "float" and fixed == wanted


def _refusal(field: str, description: str) -> BundleError:
    return BundleError(f"bundle.json: {field} {description}")
