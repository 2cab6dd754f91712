"""Checkpoints to bundles, and what is left of an export that fails."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyhead.export.errors import ExportError, ParityError
from polyhead.export.pipeline import export_checkpoint, export_model
from polyhead.models.checkpoint import CheckpointError
from polyhead.models.gpt import GPT, GPTConfig
from polyhead.server.bundle import read_bundle
from polyhead.v1 import bundle_pb2
from tests.unit.export.exports import (
    LABELS,
    WORDS,
    gpt,
    gpt_bundle,
    gpt_config,
    tokenizer_json,
    write_classifier_checkpoint,
    write_gpt_checkpoint,
)


def test_a_decoder_bundle_says_everything_that_the_manifest_has() -> None:
    manifest = read_bundle(gpt_bundle()).manifest
    assert manifest.task == bundle_pb2.TASK_GENERATE
    assert manifest.architecture == "gpt"
    assert manifest.quantization == bundle_pb2.QUANTIZATION_NONE
    assert manifest.traffic_independent
    assert manifest.parameters == sum(parameter.numel() for parameter in gpt().parameters())
    assert dict(manifest.quality) == {"validation_loss": 1.25}
    assert {"torch", "onnx", "onnxruntime", "python"} <= manifest.made_with.keys()
    assert manifest.limits == bundle_pb2.Limits(max_tokens=40, vocabulary_size=len(WORDS), prefill_chunk=32)
    assert manifest.cache == bundle_pb2.Cache(layers=1, kv_heads=1, head_size=16, type="float")
    assert manifest.tokenizer == bundle_pb2.Tokenizer(
        file="tokenizer.json", bos_token_id=1, eos_token_ids=[2, 3], pad_token_id=0
    )
    assert all(check.error <= check.tolerance for check in manifest.parity)
    assert {file.path for file in manifest.files} == {"MODEL.md", "decoder.onnx", "decoder.onnx.data", "tokenizer.json"}
    assert manifest.created_at.seconds > 1_700_000_000


def test_an_encoder_bundle_has_its_labels_pooling_and_padded_lengths(tmp_path: Path) -> None:
    folder = export_checkpoint(write_classifier_checkpoint(tmp_path / "checkpoint"), tmp_path / "models" / "moods", 7)
    assert folder == tmp_path / "models" / "moods" / "7"
    manifest = read_bundle(folder).manifest
    assert tuple(manifest.labels) == LABELS
    assert manifest.pooling == bundle_pb2.POOLING_MEAN
    assert manifest.limits.padded_lengths[-1] == 12
    assert manifest.traffic_independent
    assert not manifest.HasField("cache")


def test_others_may_read_a_bundle_as_far_as_the_umask_lets_them() -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in (gpt_bundle(), *gpt_bundle().iterdir()):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.stat().st_mode & 0o777 == wanted, path.name


def test_the_card_tells_task_quality_training_and_parity() -> None:
    card = (gpt_bundle() / "MODEL.md").read_text("utf-8")
    for line in (
        "# tiny, version 1",
        "| task | generate |",
        "| validation_loss | 1.25 |",
        r"| note | a \| b |",
        "| logits |",
    ):
        assert line in card


class Liar(GPT):
    """Computes other logits while it is exported than afterwards."""

    def logits(self, hidden_states: Tensor) -> Tensor:
        return super().logits(hidden_states) * (2 if torch.onnx.is_in_onnx_export() else 1)


def test_a_graph_that_computes_something_else_is_never_visible(tmp_path: Path) -> None:
    model = Liar(gpt().config)
    with pytest.raises(ParityError, match="the worst tensor is logits"):
        export_model(model, gpt_config(model), tokenizer_json(), tmp_path / "models" / "liar")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_head_size_that_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    model = gpt(GPTConfig(len(WORDS), heads=2, kv_heads=2, width=20))
    with pytest.raises(ExportError, match="head size 10"):
        export_model(model, gpt_config(model), tokenizer_json(), tmp_path / "models" / "odd")
    assert not (tmp_path / "models").exists()


def test_a_checkpoint_with_damaged_weights_is_refused(tmp_path: Path) -> None:
    checkpoint = write_gpt_checkpoint(tmp_path / "checkpoint")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        export_checkpoint(checkpoint, tmp_path / "models" / "tiny")
    assert not (tmp_path / "models").exists()


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    checkpoint = write_gpt_checkpoint(tmp_path / "checkpoint")
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        export_checkpoint(checkpoint, tmp_path / "models" / "tiny")
