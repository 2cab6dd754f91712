"""What sentence-transformers puts behind a model: the steps that modules.json lists."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from polyhead.export.errors import ExportError
from polyhead.export.exportable import Pooling
from polyhead.export.huggingface.fields import integer, malformed
from polyhead.export.huggingface.finite import check_finite
from polyhead.export.huggingface.folder import CONFIG_FILE, MODULES_FILE, module_folder, read_json, read_list
from polyhead.export.huggingface.pickles import missing_tensors
from polyhead.export.huggingface.pooling import pool
from polyhead.models.checkpoint import CheckpointError

POOLINGS: dict[str, Pooling] = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_length",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
"""By sentence-transformers' names."""

FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How it wrote them before `pooling_mode`."""


@dataclass(frozen=True)
class Step:
    """An entry of modules.json."""

    kind: str
    """`Transformer`, `Pooling`, `Dense`, `Normalize` …"""
    folder: Path

    @property
    def config_file(self) -> Path:
        return self.folder / CONFIG_FILE

    def config(self) -> dict[str, Any]:
        return read_json(self.config_file)


def read_steps(folder: Path) -> list[Step]:
    """Of modules.json; a Transformer comes first. Raises CheckpointError."""
    path = folder / MODULES_FILE
    entries = read_list(path)
    try:
        steps = [
            Step(str(entry["type"]).rsplit(".", 1)[-1], module_folder(path, index, entry["path"]))
            for index, entry in enumerate(entries)
        ]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: malformed: {error}") from error
    if not steps or steps[0].kind != "Transformer":
        raise ExportError(f"{path}: the first module must be a Transformer, is {steps[0].kind if steps else 'missing'}")
    return steps


class SentenceHead(nn.Module):
    """Pooling and what follows it: (B, S, C), (B,) -> (B, embedding)."""

    def __init__(self, ways: tuple[Pooling, ...] = ("mean",), steps: tuple[nn.Module, ...] = ()) -> None:
        super().__init__()
        self.ways = ways
        self.steps = nn.ModuleList(steps)

    @property
    def normalized(self) -> bool:
        return bool(self.steps) and isinstance(self.steps[-1], Normalize)

    @torch.inference_mode()
    def outputs(self, width: int) -> int:
        """The embedding's width, of a model whose token vectors have `width`. Raises ExportError for a Dense that takes another."""
        x = torch.zeros(1, width * len(self.ways))
        for step in self.steps:
            if isinstance(step, Dense) and step.linear.in_features != x.shape[-1]:
                limit = f"must be {x.shape[-1]}, the width of what comes before it"
                raise ExportError(f"{step.name}: in_features: {limit}, is {step.linear.in_features}")
            x = step(x)
        return x.shape[-1]

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        x = pool(hidden, lengths, self.ways)
        for step in self.steps:
            x = step(x)
        return x


class Normalize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


class Dense(nn.Module):
    """A linear layer and an activation function."""

    def __init__(self, linear: nn.Linear, activation: nn.Module, name: str = "") -> None:
        """`name`: of its configuration, for errors."""
        super().__init__()
        self.name = name
        self.linear = linear
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.activation(self.linear(x))
        return activated


def sentence_head(steps: list[Step]) -> SentenceHead:
    """Of the steps behind the Transformer. Raises CheckpointError, ExportError for a step that can't be imported."""
    if len(steps) < 2 or steps[1].kind != "Pooling":
        raise ExportError(f"modules.json: the second module must be a Pooling, there are {[s.kind for s in steps]}")
    return SentenceHead(_ways(steps[1]), tuple(_module(step) for step in steps[2:] if step.kind != "Dropout"))


def _ways(step: Step) -> tuple[Pooling, ...]:
    config = step.config()
    mode = config.get("pooling_mode") or [name for flag, name in FLAGS.items() if config.get(flag)]
    names = [mode] if isinstance(mode, str) else mode
    if (
        not isinstance(names, list)
        or not names
        or not all(isinstance(name, str) and name in POOLINGS for name in names)
    ):
        raise malformed(
            step.config_file, "pooling_mode", f"among {', '.join(POOLINGS)}, or a list of these", mode or None
        )
    return tuple(POOLINGS[name] for name in names)


def _module(step: Step) -> nn.Module:
    if step.kind == "Normalize":
        return Normalize()
    if step.kind == "Dense":
        return _dense(step)
    raise ExportError(f"modules.json: {step.kind} can't be imported; what can: Pooling, Dense, Normalize, Dropout")


PLAIN_DENSE = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
    "use_residual": False,
}
"""What a Dense does that says nothing else, and the only one that can be imported."""


def _dense(step: Step) -> Dense:
    file, config, path = step.config_file, step.config(), step.folder / "model.safetensors"
    for field, plain in PLAIN_DENSE.items():
        if config.get(field) not in (None, plain):
            raise malformed(file, field, repr(plain), config[field])
    inputs, outputs = (integer(file, field, config.get(field), 1) for field in ("in_features", "out_features"))
    linear = nn.Linear(inputs, outputs, bias=bool(config.get("bias", True)))
    if not path.is_file():
        raise CheckpointError(missing_tensors(path))
    try:
        weights = {name.removeprefix("linear."): weight.float() for name, weight in load_file(path).items()}
        linear.load_state_dict(weights)
    except Exception as error:  # safetensors raises its own, undocumented types
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from error
    check_finite(linear, str(path))
    return Dense(
        linear, activation(str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))), str(file)
    )


def activation(name: str) -> nn.Module:
    """An activation of torch's, by its full name. Raises ExportError for any other."""
    kind = getattr(nn, name.rsplit(".", 1)[-1], None) if name.startswith("torch.nn.") else None
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ExportError(f"the activation function must be a module of torch.nn, is {name}")
    over_labels = issubclass(kind, nn.Softmax | nn.LogSoftmax | nn.Softmin)
    try:
        made: nn.Module = kind(dim=-1) if over_labels else kind()
    except TypeError:  # a layer that has to be told its sizes
        raise ExportError(
            f"the activation function must be a module of torch.nn without arguments, is {name}"
        ) from None
    return made.eval()
