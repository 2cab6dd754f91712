"""`--cache int8` from checkpoint to manifest."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import WhitespaceSplit

from polyhead.export.__main__ import main
from polyhead.export.quality import loss_of
from polyhead.export.verify_command import main as verify
from polyhead.server.bundle import read_bundle
from polyhead.v1 import bundle_pb2
from tests.unit.export.exports import tokenizer_json, write_classifier_checkpoint, write_gpt_checkpoint


def test_a_bundle_with_an_int8_cache_has_its_scales_and_says_what_it_costs(tmp_path: Path) -> None:
    checkpoint = write_gpt_checkpoint(tmp_path / "checkpoint")
    tokenizer = Tokenizer.from_str(tokenizer_json())
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i % 7}" for i in range(200)), "utf-8")
    out = tmp_path / "models" / "tiny"
    assert main([str(checkpoint), "--out", str(out), "--cache", "int8", "--eval-data", str(text)]) == 0
    manifest = read_bundle(out / "1").manifest
    assert (manifest.cache.type, manifest.quantization) == ("int8", bundle_pb2.QUANTIZATION_NONE)
    assert len(manifest.cache.key_scales) == len(manifest.cache.value_scales) == manifest.cache.layers
    assert manifest.traffic_independent
    assert manifest.quality["perplexity"] != manifest.quality["perplexity_fp32"]
    assert loss_of(manifest.quality) < 0.02
    assert "| cache | int8 |" in (out / "1" / "MODEL.md").read_text("utf-8")
    assert verify([str(out), "--against", str(checkpoint)]) == 0


def test_an_int8_cache_is_refused_for_a_classifier_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_classifier_checkpoint(tmp_path / "checkpoint")
    assert main([str(checkpoint), "--out", str(tmp_path / "models" / "moods"), "--cache", "int8"]) == 1
    assert "an int8 cache is for decoders" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
