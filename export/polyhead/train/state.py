"""The state of a training in `last/`: all that is needed to go on as if it had never stopped. Safetensors and JSON.

`state.json` names the tensor file that belongs to it and is renamed into place last, so a crash leaves the old pair or
the new one. Where in the data a training stands is its step: batches are a function of it (`loop.Recipe.batch`). So are
the random numbers of dropout.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyhead.train.errors import TrainError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Best:
    """The best evaluation so far, and the step it was taken after."""

    step: int
    figures: dict[str, float]


@dataclass(frozen=True)
class State:
    """What `state.json` says."""

    step: int
    """Steps taken, and thereby the data position: the next batch is `batch(step)`."""
    elapsed_seconds: float
    complete: bool
    settings: dict[str, Any]
    identity: dict[str, Any]
    """Model, data and tokenizer, in the recipe's words: a training goes on only with the same."""
    best: Best | None = None
    scaler: dict[str, Any] = field(default_factory=dict)
    """Of torch.amp.GradScaler; empty unless training in fp16."""


def save_state(folder: Path, state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write model and optimizer moments, then `state.json`; then delete older tensor files."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = folder / f"step-{state.step}.safetensors"
    partial = folder / f"{tensors.name}.tmp"
    save_file(_tensors(model, optimizer), partial)
    partial.replace(tensors)
    document = {"format_version": FORMAT_VERSION, "tensors": tensors.name, **asdict(state)}
    partial = folder / "state.json.tmp"
    partial.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    partial.replace(folder / "state.json")
    for path in folder.glob("step-*.safetensors*"):
        if path != tensors:
            path.unlink()


def load_state(folder: Path) -> State | None:
    """Read `state.json`; None where there is none. Raises TrainError if it is malformed or of another release."""
    path = folder / "state.json"
    try:
        document = json.loads(path.read_text("utf-8"))
        if (version := document.pop("format_version")) != FORMAT_VERSION:
            raise TrainError(f"{path}: format version {version} is not the one this release reads, {FORMAT_VERSION}")
        del document["tensors"]
        best = document.pop("best")
        return State(**document, best=Best(**best) if best else None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainError(f"{path}: can't be read ({error!r}); --restart begins anew") from error


def restore_tensors(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and moments of `folder` into model and optimizer. Raises TrainError naming the file if they don't fit."""
    path = folder / str(json.loads((folder / "state.json").read_text("utf-8"))["tensors"])
    try:
        tensors = load_file(path)
        model.load_state_dict(_below("model.", tensors))
        optimizer.load_state_dict(
            {
                "state": _moments(model, optimizer, _below("optimizer.", tensors)),
                "param_groups": optimizer.state_dict()["param_groups"],
            }
        )
    except Exception as error:  # safetensors raises its own, undocumented types
        raise TrainError(f"{path}: {' '.join(str(error).split())}; --restart begins anew") from error


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`model.NAME` for every weight, `optimizer.NAME MOMENT` for every moment of the parameter NAME."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        tensors |= {f"optimizer.{name} {key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> dict[int, dict[str, Tensor]]:
    """Moments by the number that the optimizer's state_dict gives each parameter: its place in the groups' order."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments: dict[int, dict[str, Tensor]] = {}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(ordered):
        moments[index] = _below(f"{names[parameter]} ", tensors)
    return {index: found for index, found in moments.items() if found}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
