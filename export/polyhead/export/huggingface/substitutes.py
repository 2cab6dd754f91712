"""Modules that stand for transformers' own while a graph is traced: the same numbers by fewer nodes.

Each is held against the module it stands for before it does, and every export against the model without them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextmanager
def substitutes(model: nn.Module, positions: int) -> Iterator[None]:
    """A model whose rotary and root-mean-square modules are replaced meanwhile; it takes positions below a limit."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if hasattr(module, "rope_type"):
            found[name] = RotaryTable(module, positions)
        elif type(module).__name__.endswith("RMSNorm") and (norm := as_rms_norm(module)):
            found[name] = norm
    originals = {name: model.get_submodule(name) for name in found}
    for name, substitute in found.items():
        model.set_submodule(name, substitute)
    try:
        yield
    finally:
        for name, original in originals.items():
            model.set_submodule(name, original)


class RotaryTable(nn.Module):
    """Rotary position embeddings as tables: cosines and sines for every position, of each type of layer.

    transformers computes them anew in every call, in as many ways as there are kinds of scaling. Its results in a table serve
    all kinds, are faster, and give a position the same bits in any batch: onnxruntime's Cos and Sin give an element other
    bits at the end of a vector register than inside.
    """

    def __init__(self, rotary: Any, positions: int) -> None:
        super().__init__()
        layer_types = rotary.layer_types if isinstance(rotary.rope_type, dict) else [None]
        for layer_type in layer_types:
            kind = {} if layer_type is None else {"layer_type": layer_type}
            tables = rotary(torch.zeros(1), torch.arange(positions)[None], **kind)
            for name, table in zip(("cosine", "sine"), tables, strict=True):
                self.register_buffer(_name(name, layer_type), half(table[0]), persistent=False)
        self._width = tables[0].shape[-1]

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        """(B, S) -> cosine and sine (B, S, D)."""
        tables = [getattr(self, _name(name, layer_type)) for name in ("cosine", "sine")]
        cosine, sine = (F.embedding(position_ids, table) for table in tables)
        if cosine.shape[-1] == self._width:
            return cosine, sine
        return torch.cat((cosine, cosine), -1), torch.cat((sine, sine), -1)


def half(table: Tensor) -> Tensor:
    """The first half of the columns where the second repeats it, as it does in all that rotate by halves."""
    first, second = table.chunk(2, dim=-1)
    return first.clone() if first.shape == second.shape and torch.equal(first, second) else table


def _name(name: str, layer_type: str | None) -> str:
    return name if layer_type is None else f"{layer_type}_{name}"


class RMSNorm(nn.Module):
    """One node, where transformers' modules are seven."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


@torch.no_grad()
def as_rms_norm(module: Any) -> RMSNorm | None:
    """What computes the same, be its weight a factor or (Gemma) a factor less one; None if neither does."""
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if epsilon is None:
        return None
    x = torch.randn(4, *module.weight.shape, generator=torch.Generator().manual_seed(0))
    expected = module(x)
    for weight in (module.weight, 1 + module.weight):
        norm = RMSNorm(weight, epsilon)
        if torch.allclose(norm(x), expected, rtol=1e-4, atol=1e-6):
            return norm
    return None
