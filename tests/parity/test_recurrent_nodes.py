from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from polyhead.models.seq2seq import RNNSeq2Seq, RNNSeq2SeqConfig
from polyhead.models.seq2seq.rnn_config import Cell


class Reader(nn.Module):
    """A source in, all that the decoder needs out."""

    def __init__(self, model: RNNSeq2Seq) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        encoded = self.model.encode(source, lengths)
        return (*encoded.memory, *encoded.state)


@pytest.mark.parametrize(("cell", "bidirectional", "layers"), [("gru", True, 1), ("lstm", True, 2), ("gru", False, 2)])
def test_a_source_is_read_in_onnx_as_in_torch_in_any_batch_and_length(
    tmp_path: Path, cell: Cell, bidirectional: bool, layers: int
) -> None:
    torch.manual_seed(0)
    config = RNNSeq2SeqConfig(
        20, 24, cell=cell, layers=layers, width=16, embedding_size=8, bidirectional=bidirectional, attention="general"
    )
    reader, batch = Reader(RNNSeq2Seq(config).eval()), Dim("batch", min=1, max=64)
    program = torch.onnx.export(
        reader,
        (torch.zeros(2, 5, dtype=torch.int64), torch.tensor([5, 3])),
        dynamic_shapes=({0: batch, 1: Dim("sequence", min=1, max=64)}, {0: batch}),
        dynamo=True,
        opset_version=24,
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "reader.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "reader.onnx")
    for lengths in ([1], [9], [4, 1, 7, 7]):
        source = torch.randint(20, (len(lengths), max(lengths)))
        inputs = {"source": source.numpy(), "lengths": np.array(lengths)}
        with torch.inference_mode():
            expected = reader(source, torch.tensor(lengths))
        for mine, theirs in zip(session.run(None, inputs), expected, strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-6)
