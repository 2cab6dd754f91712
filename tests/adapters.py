"""Random LoRA adapters in peft's layout, for models of tests, and what torch makes of a model that one is merged into."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyhead.export.adapters import Adapter, Change

CONFIG: Mapping[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_rslora": False}


def write_adapter(
    folder: Path,
    model: nn.Module,
    layers: Sequence[str],
    *,
    seed: int = 0,
    saved: Sequence[str] = (),
    strength: float = 1.0,
    **config: Any,
) -> Path:
    """`layers`: ends of the names of linear layers that change; `saved`: whole ones that are replaced. `config`: fields of
    adapter_config.json. Strong enough for other answers."""
    random = torch.Generator().manual_seed(seed)
    fields = {**CONFIG, **config, "target_modules": list(layers)}
    ranks = fields.get("rank_pattern") or {}
    weight = strength / fields["lora_alpha"]
    weights: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name.endswith(tuple(layers)) and hasattr(module, "weight"):
            inputs, outputs = sizes(module)
            rank = next((rank for end, rank in ranks.items() if name.endswith(end)), fields["r"])
            weights[f"{name}.lora_A.weight"] = torch.randn(rank, inputs, generator=random) / inputs**0.5
            weights[f"{name}.lora_B.weight"] = torch.randn(outputs, rank, generator=random) * weight * rank**0.5
        if name in saved:
            for part, tensor in module.named_parameters():
                weights[f"{name}.{part}"] = tensor.detach() + 0.5 * torch.randn(tensor.shape, generator=random)
    assert weights
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in weights.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def random_adapter(name: str, model: nn.Module, layers: Sequence[str], rank: int, *, seed: int) -> Adapter:
    """The same in memory, as export has it."""
    random = np.random.default_rng(seed)
    changes = {}
    for layer, module in model.named_modules():
        if layer.endswith(tuple(layers)):
            inputs, outputs = sizes(module)
            a = random.standard_normal((inputs, rank), np.float32) / inputs**0.5
            changes[layer] = Change(a, random.standard_normal((rank, outputs), np.float32) / rank**0.5)
    assert changes
    return Adapter(name, rank, changes)


def sizes(module: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a Linear or a Conv1D."""
    weight: Any = module.weight
    return tuple(weight.shape[::-1]) if isinstance(module, nn.Linear) else tuple(weight.shape)


@contextmanager
def with_adapter(model: nn.Module, folder: Path) -> Iterator[None]:
    """W + scale · B·A in the place of W meanwhile, written anew after peft's documentation."""
    config = json.loads((folder / "adapter_config.json").read_text())
    stored = load_file(folder / "adapter_model.safetensors")
    weights = {name.removeprefix("base_model.model."): tensor for name, tensor in stored.items()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for name, a in weights.items():
            if name.endswith(".lora_A.weight"):
                layer = name.removesuffix(".lora_A.weight")
                module: Any = model.get_submodule(layer)
                alphas = config.get("alpha_pattern") or {}
                alpha = next((alpha for end, alpha in alphas.items() if layer.endswith(end)), config["lora_alpha"])
                scale = alpha / (len(a) ** 0.5 if config["use_rslora"] else len(a))
                delta = scale * weights[f"{layer}.lora_B.weight"] @ a
                module.weight += delta if isinstance(module, nn.Linear) else delta.T
            elif ".lora_" not in name:
                model.get_parameter(name).copy_(weights[name])
    try:
        yield
    finally:
        model.load_state_dict(before)
