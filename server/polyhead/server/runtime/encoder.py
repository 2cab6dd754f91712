"""Runs the graph of a bundle that classifies or embeds."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.server.runtime.adapters import Adapters
from polyhead.server.runtime.memory import FilePages
from polyhead.server.runtime.session import TensorInfo, open_session, signature
from polyhead.v1 import bundle_pb2

_OUTPUT = {bundle_pb2.TASK_CLASSIFY: "probabilities", bundle_pb2.TASK_EMBED: "embeddings"}


class Encoder:
    """An open encoder graph and what its manifest says of padding. One thread at a time."""

    def __init__(self, graph: Path, manifest: bundle_pb2.Bundle) -> None:
        """Raises BundleError if the graph can't be opened; compare `signature` with the manifest before the first run."""
        self._session = open_session(graph)
        self._files = FilePages(graph.parent)
        self._adapters = Adapters(graph.parent, manifest, self._session)
        self._output = _OUTPUT[manifest.task]
        self.signature: tuple[list[TensorInfo], list[TensorInfo]] = signature(self._session)
        self.takes_token_types = any(name == "token_type_ids" for name, _, _ in self.signature[0])
        self.padded_lengths = tuple(manifest.limits.padded_lengths)
        self.pad_token_id = manifest.tokenizer.pad_token_id

    def run(
        self,
        ids: NDArray[np.int64],
        lengths: NDArray[np.int32],
        token_types: NDArray[np.int64] | None = None,
        adapter: str = "",
    ) -> NDArray[np.float32]:
        """Token ids (batch, sequence), right-padded, and how many of each row are real (batch,) -> (batch, labels), (batch,
        embedding) or, where tokens are labelled, (batch, sequence, labels), which means nothing at padding. `token_types` (batch,
        sequence), for graphs that take them: which text of a pair each token belongs to, by default the first. `adapter`: one of
        the manifest's; empty: none.

        Raises what onnxruntime raises, for instance on ids outside the vocabulary."""
        inputs: dict[str, NDArray[Any]] = {"input_ids": ids, "lengths": lengths}
        if self.takes_token_types:
            inputs["token_type_ids"] = np.zeros_like(ids) if token_types is None else token_types
        io = self._session.io_binding()
        for name, array in inputs.items():
            io.bind_cpu_input(name, array)
        self._adapters.bind(io, adapter)
        io.bind_output(self._output)
        self._session.run_with_iobinding(io)
        self._files.after_call()
        rows: NDArray[np.float32] = io.get_outputs()[0].numpy()
        return rows

    def close(self) -> None:
        """Give the graph's memory back. The encoder can't be used afterwards."""
        self._adapters.close()
        self._session = None
