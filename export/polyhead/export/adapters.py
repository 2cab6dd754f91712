"""Low-rank adapters (Hu et al. 2021, LoRA) in the layout of peft: read, checked against the model, and merged into it.

A folder has `adapter_config.json` and `adapter_model.safetensors` with, for each layer that it changes, A (rank, inputs) and B
(outputs, rank): the layer's product with W becomes that with W + scale · B·A. What the head of a classifier has become is there as a
whole (`modules_to_save`): it is kept as the difference from what it was.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from polyhead.export.errors import ExportError
from polyhead.export.huggingface.folder import read_json
from polyhead.export.huggingface.pickles import missing_tensors
from polyhead.server.adapters import NAME

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
LARGEST_RANK = 128
"""A sum over more may be split by how many rows there are, and a row's bits would depend on the others in its call."""
HEADS = ("classifier", "head", "pre_classifier", "score")
"""First parts of names of layers that make labels of what an encoder found."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Change:
    """Of a layer: x·W becomes x·W + (x·a)·b, and its bias grows by `bias`."""

    a: Floats
    """(inputs, rank)."""
    b: Floats
    """(rank, outputs), with the scale."""
    bias: Floats | None = None
    """(outputs,)."""


@dataclass(frozen=True)
class Adapter:
    """What a request can choose by its name."""

    name: str
    rank: int
    """The largest among its low-rank layers."""
    changes: Mapping[str, Change]
    """By the layer's name in the model."""


UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "bias": ("none", None),
    "lora_bias": (False, None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),  # others change the base model, too
}
"""Fields of adapter_config.json, and the values with which an adapter is plain LoRA."""


@dataclass(frozen=True)
class Scale:
    """What B·A is multiplied by, and which ranks there should be; both may differ by layer."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilized: bool
    """Kalajdzievski 2023, rsLoRA: alpha over the root of the rank."""

    def of(self, layer: str) -> float:
        rank = self.rank_of(layer)
        alpha = matching(self.alpha_pattern, layer, self.alpha)
        return float(alpha / (rank**0.5 if self.rank_stabilized else rank))

    def rank_of(self, layer: str) -> int:
        return matching(self.rank_pattern, layer, self.rank)


V = TypeVar("V")


def matching(patterns: Mapping[str, V], layer: str, default: V) -> V:
    """The value of the first pattern, a regular expression, that is the end of a layer's name; as peft has it."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


def read_adapter(name: str, folder: Path, model: nn.Module, *, classifies: bool) -> Adapter:
    """`classifies`: whether the model is a classifier, whose head an adapter may replace. Raises ExportError, CheckpointError."""
    if not NAME.fullmatch(name):
        raise ExportError(f"an adapter's name must match {NAME.pattern}, got {name!r}")
    scale = read_config(folder / CONFIG_FILE)
    low_rank, saved = sort_tensors(folder, read_weights(folder))
    changes = {layer: low_rank_change(folder, model, layer, pair, scale) for layer, pair in low_rank.items()}
    for layer, tensors in saved.items():
        if not (classifies and layer.split(".")[0] in HEADS):
            raise ExportError(
                f"{folder}: {layer} is saved as a whole (modules_to_save), which is supported for a classifier's head only"
            )
        changes[layer] = whole_change(folder, model, layer, tensors)
    rank = max((changes[layer].b.shape[0] for layer in low_rank), default=0)
    if not rank:
        raise ExportError(f"{folder / WEIGHTS_FILE}: has no lora_A and lora_B")
    return Adapter(name, rank, changes)


def read_config(path: Path) -> Scale:
    """Raises ExportError for what is not plain LoRA, CheckpointError for what is no configuration."""
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise ExportError(f"{path}: peft_type must be LORA, is {config.get('peft_type')!r}")
    for field, plain in UNSUPPORTED.items():
        if config.get(field, plain[0]) not in plain:
            values = ", ".join(map(repr, plain))
            raise ExportError(f"{path}: {field} is {config[field]!r}, supported is {values}")
    try:
        scale = Scale(
            int(config["r"]),
            float(config["lora_alpha"]),
            {str(key): int(value) for key, value in (config.get("rank_pattern") or {}).items()},
            {str(key): float(value) for key, value in (config.get("alpha_pattern") or {}).items()},
            bool(config.get("use_rslora", False)),
        )
        for pattern in (*scale.rank_pattern, *scale.alpha_pattern):
            re.compile(pattern)
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise ExportError(f"{path}: r, lora_alpha or their patterns are missing or malformed: {error}") from error
    for rank in (scale.rank, *scale.rank_pattern.values()):
        if not 1 <= rank <= LARGEST_RANK:
            raise ExportError(f"{path}: ranks must be 1 to {LARGEST_RANK}, got {rank}")
    return scale


def read_weights(folder: Path) -> dict[str, Tensor]:
    """In fp32, by names without peft's prefix. Raises ExportError."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ExportError(missing_tensors(path))
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path}: not safetensors: {error}") from error
    for name, tensor in weights.items():
        if not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
            raise ExportError(f"{path}: {name} must be finite numbers")
    return {name.removeprefix("base_model.model."): tensor.float() for name, tensor in weights.items()}


Parts = dict[str, dict[str, Tensor]]
"""By layer and then by what the tensor is of it."""


def sort_tensors(folder: Path, weights: Mapping[str, Tensor]) -> tuple[Parts, Parts]:
    """`A` and `B` of low-rank layers; `weight` and `bias` of those that are saved as a whole. Raises ExportError for others."""
    low_rank: Parts = {}
    saved: Parts = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r"(.+)\.lora_([AB])\.weight", name):
            low_rank.setdefault(match[1], {})[match[2]] = tensor
        elif "lora_" in name:
            raise ExportError(f"{folder}: {name} is none of what is supported: lora_A.weight and lora_B.weight")
        else:
            layer, _, part = name.rpartition(".")
            saved.setdefault(layer, {})[part] = tensor
    return low_rank, saved


def low_rank_change(folder: Path, model: nn.Module, layer: str, pair: Mapping[str, Tensor], scale: Scale) -> Change:
    """Raises ExportError for shapes that don't fit the layer."""
    inputs, outputs = sizes_of(folder, model, layer)
    rank = scale.rank_of(layer)
    for part, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
        given = tuple(pair[part].shape) if part in pair else "missing"
        if given != shape:
            raise ExportError(f"{folder}: {layer}.lora_{part}.weight must have shape {shape}, is {given}")
    return Change(pair["A"].T.contiguous().numpy(), (pair["B"].T * scale.of(layer)).contiguous().numpy())


def whole_change(folder: Path, model: nn.Module, layer: str, tensors: Mapping[str, Tensor]) -> Change:
    """The difference from what the layer was: a is all of it, and b picks its columns. Raises ExportError."""
    module: Any = linear_module(folder, model, layer)
    difference: dict[str, Tensor] = {}
    for part, tensor in tensors.items():
        was = getattr(module, part, None) if part in ("weight", "bias") else None
        given, wanted = tuple(tensor.shape), None if was is None else tuple(was.shape)
        if was is None or given != wanted:
            raise ExportError(f"{folder}: {layer}.{part} has shape {given}, the model's {wanted or 'does not exist'}")
        difference[part] = tensor - was.detach()
    inputs, outputs = sizes_of(folder, model, layer)
    weight = difference.get("weight", torch.zeros_like(module.weight)).reshape(module.weight.shape)
    a = weight.T if isinstance(module, nn.Linear) else weight
    bias = difference["bias"].numpy() if "bias" in difference else None
    return Change(a.contiguous().numpy().reshape(inputs, outputs), np.eye(outputs, dtype=np.float32), bias)


def linear_module(folder: Path, model: nn.Module, layer: str) -> nn.Module:
    """A Linear, or transformers' Conv1D, which holds the same matrix transposed. Raises ExportError."""
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        module = None
    if module is None or not (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"):
        what = "no layer of the model" if module is None else f"a {type(module).__name__}; linear layers are supported"
        raise ExportError(f"{folder}: {layer} is {what}")
    return module


def sizes_of(folder: Path, model: nn.Module, layer: str) -> tuple[int, int]:
    """Inputs and outputs of a linear layer. Raises ExportError."""
    module: Any = linear_module(folder, model, layer)
    first, second = module.weight.shape
    return (second, first) if isinstance(module, nn.Linear) else (first, second)


@contextmanager
def merged(model: nn.Module, adapter: Adapter) -> Iterator[None]:
    """A model whose weights are changed meanwhile."""
    before: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for layer, change in adapter.changes.items():
            module: Any = model.get_submodule(layer)
            delta = torch.from_numpy(change.a) @ torch.from_numpy(change.b)
            _add(module.weight, delta.T if isinstance(module, nn.Linear) else delta, before)
            if change.bias is not None:
                _add(module.bias, torch.from_numpy(change.bias), before)
        yield
    finally:
        for parameter, data in reversed(before):
            parameter.data = data


def _add(parameter: nn.Parameter, delta: Tensor, before: list[tuple[nn.Parameter, Tensor]]) -> None:
    before.append((parameter, parameter.data))
    parameter.data = parameter.data + delta
