"""Opening an ONNX graph on the CPU, and reading what it takes and gives."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime as ort

from polyhead.server.errors import BundleError
from polyhead.server.runtime import threads

SPIN_MICROSECONDS = "100"
"""How long an idle thread of a session waits busily for more work. onnxruntime's default burns a core for 60 ms after
each run, just when asyncio and other models want it. 0.1 ms bridges the gaps between nodes: the same runs a second, no
CPU time after a run, and a third less of it where requests come one by one (MiniLM's shape on two cores)."""

_ERROR = 3
"""Log severity: errors and worse."""


class TensorInfo(NamedTuple):
    """An input or output as the manifest writes it: `shape` has a size in decimal or the name of each dimension."""

    name: str
    type: str
    shape: tuple[str, ...]


def open_session(path: Path) -> ort.InferenceSession:
    """Open a graph on the CPU with all optimizations. Raises BundleError, in one line, when it can't be opened."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _ERROR
    options.intra_op_num_threads = threads.in_force()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    try:
        # Without enable_fallback=False a failure is printed and tried again.
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=False)
    except Exception as error:
        raise BundleError(f"{path.name}: not a graph that can be run: {_one_line(error, path)}") from error
    return session


def signature(session: ort.InferenceSession) -> tuple[list[TensorInfo], list[TensorInfo]]:
    """Inputs and outputs of a graph, in its order."""
    return [_info(node) for node in session.get_inputs()], [_info(node) for node in session.get_outputs()]


def _info(node: Any) -> TensorInfo:
    """From `tensor(float)` and [None, "batch", 3]; a dimension without name or size becomes `?`."""
    type_ = re.sub(r"^tensor\((.*)\)$", r"\1", node.type)
    return TensorInfo(node.name, type_, tuple("?" if size is None else str(size) for size in node.shape))


def _one_line(error: Exception, path: Path) -> str:
    """onnxruntime's message without its prefix, its own source locations, line breaks and the folder of the bundle."""
    text = " ".join(str(error).split()).replace(str(path), path.name)
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"/onnxruntime_src/\S+ ", "", text)
