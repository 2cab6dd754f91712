"""Pickle is refused with a command, and the command does what it says."""

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from polyhead.export.adapters import read_weights
from polyhead.export.errors import ExportError
from polyhead.export.huggingface.importer import import_source
from polyhead.models.checkpoint import CheckpointError
from tests.parity.huggingface import edit_json, write_embedder, write_modules


def code_of(error: BaseException) -> str:
    """What the command runs."""
    program, flag, code = shlex.split(str(error).partition("convert it: ")[2])
    assert (program, flag) == ("python", "-c")
    return code


def test_a_dense_layer_that_is_pickle_can_be_converted(tmp_path: Path) -> None:
    write_embedder(tmp_path, "bert", num_hidden_layers=1)
    write_modules(tmp_path, "Transformer", "Pooling", "Dense")
    edit_json(tmp_path / "1_Pooling" / "config.json", pooling_mode="mean")
    edit_json(tmp_path / "2_Dense" / "config.json", in_features=48, out_features=24)
    weights = {"linear.weight": torch.randn(48, 24).T, "linear.bias": torch.zeros(24)}  # not contiguous
    torch.save(weights, tmp_path / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"2_Dense/model\.safetensors: no such file; pytorch_model\.bin is pickle"
    ) as caught:
        import_source(tmp_path)
    exec(code_of(caught.value), {})
    assert torch.equal(load_file(tmp_path / "2_Dense" / "model.safetensors")["linear.weight"], weights["linear.weight"])
    import_source(tmp_path)


def test_an_adapter_that_is_pickle_is_refused_with_a_command(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "adapter_model.bin")
    with pytest.raises(ExportError, match=r"no such file; adapter_model\.bin is pickle") as caught:
        read_weights(tmp_path)
    assert code_of(caught.value).endswith(f"'{tmp_path / 'adapter_model.safetensors'}')")


def test_weights_that_are_not_there_at_all_need_no_command(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"adapter_model\.safetensors: no such file$"):
        read_weights(tmp_path)
