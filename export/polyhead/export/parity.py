"""How far a graph's tensors are from torch's, and what is said about it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyhead.export.errors import ParityError
from polyhead.export.quantize import CacheType, Quantization
from polyhead.v1.bundle_pb2 import ParityCheck

Floats = NDArray[np.float32]

TOLERANCES: Mapping[Quantization, float] = {"none": 5e-5, "int8": 0.2, "int4": 0.5}
"""Relative L2 error accepted between torch and a graph. A graph that computes something else is off by about 1.

fp32: 4 layers show 3e-7, 12 layers with weights larger than a fresh model's 4e-6, a norm's epsilon that is wrong 2e-3.
int8: trained models show 0.01 to 0.08, random weights in 30 layers 0.08. int4: 0.08 and 0.36.
"""


def tolerance_of(quantization: Quantization, cache: CacheType) -> float:
    """An int8 cache alone costs as much as int8 weights at most."""
    return TOLERANCES["int8" if (quantization, cache) == ("none", "int8") else quantization]


@dataclass(frozen=True)
class Difference:
    """How far the tensors of one name are from torch's."""

    tensor: str
    error: float
    tolerance: float

    @property
    def accepted(self) -> bool:
        return self.error <= self.tolerance  # not so for NaN

    def check(self, shape: str) -> ParityCheck:
        """As the manifest writes it; `shape` says for people what was compared."""
        return ParityCheck(name=self.tensor, shape=shape, error=self.error, tolerance=self.tolerance)

    def __str__(self) -> str:
        return f"{self.tensor} (error {self.error:.2g}, at most {self.tolerance:.2g} accepted)"


def relative_l2(expected: Floats, actual: Floats) -> float:
    """‖actual - expected‖ / ‖expected‖; NaN if either has a NaN."""
    norm = np.linalg.norm(expected.astype(np.float64))
    difference = np.linalg.norm(actual.astype(np.float64) - expected)
    return float(difference / max(norm, np.finfo(np.float32).tiny))


def worst_error(pairs: Iterable[tuple[Floats, Floats]]) -> float:
    """The largest relative L2 error of (expected, actual) tensors; NaN if any is."""
    return float(np.max([relative_l2(expected, actual) for expected, actual in pairs]))


def require_parity(differences: Sequence[Difference], shape: str) -> None:
    """Raise ParityError if any difference is not accepted, naming the worst and the first of them.

    `differences` are in the order in which the model computes the tensors, so the first one says where to look.
    """
    refused = [difference for difference in differences if not difference.accepted]
    if not refused:
        return
    first, worst = refused[0], max(refused, key=lambda difference: np.nan_to_num(difference.error, nan=np.inf))
    where = f"; the first to differ is {first}" if first is not worst else ""
    raise ParityError(f"torch and the exported graph disagree on {shape}: the worst tensor is {worst}{where}")
