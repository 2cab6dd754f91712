"""The low-rank adapters of an open graph: each a set of arrays that a call gets as inputs beside the base weights, which all share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from polyhead.server.adapters import GROUP, PREFIX, is_group, parts
from polyhead.server.errors import BundleError
from polyhead.server.runtime.session import TensorInfo, signature
from polyhead.v1 import bundle_pb2

Array = NDArray[Any]


class Adapters:
    """Binds an adapter's arrays by address; those of no adapter, "", have rank 0, which adds exact zeros to every layer."""

    def __init__(self, folder: Path, manifest: bundle_pb2.Bundle, session: ort.InferenceSession) -> None:
        """Read the adapters of a bundle's folder. Raises BundleError for what does not fit the graph."""
        self._inputs = [info for info in signature(session)[0] if info.name.startswith(PREFIX)]
        self._held: dict[str, dict[str, ort.OrtValue]] = {"": self._values({})}
        for adapter in manifest.adapters:
            self._held[adapter.name] = self._values(read_arrays(folder, adapter.file, self._inputs))

    def bind(self, io: ort.IOBinding, adapter: str) -> None:
        """Raises KeyError for an adapter that there is not."""
        for name, value in self._held[adapter].items():
            io.bind_ortvalue_input(name, value)

    def close(self) -> None:
        self._held.clear()

    def __bool__(self) -> bool:
        return bool(self._inputs)

    def _values(self, arrays: Mapping[str, Array]) -> dict[str, ort.OrtValue]:
        return {
            info.name: ort.OrtValue.ortvalue_from_numpy(arrays.get(info.name, nothing(info))) for info in self._inputs
        }


def nothing(info: TensorInfo) -> Array:
    """What an input has where an adapter does not change its layer: rank 0, or a bias of zeros."""
    return np.zeros([int(size) if size.isdecimal() else 0 for size in info.shape], np.float32)


def read_arrays(folder: Path, file: str, inputs: Sequence[TensorInfo]) -> dict[str, Array]:
    """The tensors of an adapter's file, each checked against the graph's input. Raises BundleError, naming the tensor."""
    try:
        arrays = load_file(folder / file)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{file}: not safetensors: {' '.join(str(error).split())}") from error
    known = {info.name: info for info in inputs}
    for name, array in arrays.items():
        if name not in known:
            raise BundleError(f"{file}: {name} is no input of the graph")
        if array.dtype != np.float32 or not _fits(array, known[name]):
            raise BundleError(
                f"{file}: {name} must be float32 {list(known[name].shape)}, is {array.dtype} {list(array.shape)}"
            )
    _check_ranks(file, arrays)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _fits(array: Array, info: TensorInfo) -> bool:
    sizes = len(array.shape) == len(info.shape) and all(
        size == int(wanted) for size, wanted in zip(array.shape, info.shape, strict=True) if wanted.isdecimal()
    )
    return sizes and not (is_group(info.name) and array.shape[1] > GROUP)


def _check_ranks(file: str, arrays: Mapping[str, Array]) -> None:
    for layer, found in parts(list(arrays)).items():
        columns = sum(arrays[f"{PREFIX}{layer}.{part}"].shape[1] for part in found if part.startswith("a."))
        rows = arrays[f"{PREFIX}{layer}.b"].shape[0] if "b" in found else 0
        if columns != rows:
            raise BundleError(f"{file}: {PREFIX}{layer} has {columns} columns in a and {rows} rows in b")
