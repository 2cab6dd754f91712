"""`--quantize` and `--eval-data` from checkpoint to manifest."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from polyhead.export.__main__ import main
from polyhead.export.errors import ExportError
from polyhead.export.pipeline import check_loss, export_checkpoint
from polyhead.export.quality import EVALUATED_TOKENS, label_agreement, loss_of, rank_agreement, spread_windows
from polyhead.export.quantize import Quantization
from polyhead.models.checkpoint import HELD_OUT_FILE
from polyhead.server.bundle import read_bundle
from polyhead.v1 import bundle_pb2
from tests.unit.export.exports import gpt_bundle, write_classifier_checkpoint, write_gpt_checkpoint


@cache
def quantized(quantization: Quantization) -> bundle_pb2.Bundle:
    folder = Path(mkdtemp(prefix="polyhead-test-"))
    checkpoint = write_gpt_checkpoint(folder / "checkpoint")
    return read_bundle(export_checkpoint(checkpoint, folder / "models" / "tiny", None, quantization)).manifest


def test_an_int8_bundle_says_so_and_promises_the_same_bits_in_any_traffic() -> None:
    manifest = quantized("int8")
    assert manifest.quantization == bundle_pb2.QUANTIZATION_INT8
    assert manifest.traffic_independent
    assert {check.tolerance for check in manifest.parity if check.name == "logits"} == {0.2}
    assert all(check.error > 1e-4 for check in manifest.parity if check.name == "logits")


def test_an_int4_bundle_promises_nothing_that_was_not_found() -> None:
    manifest = quantized("int4")
    assert manifest.quantization == bundle_pb2.QUANTIZATION_INT4
    assert {check.tolerance for check in manifest.parity if check.name == "logits"} == {0.5}


def test_what_training_measured_is_called_fp32_in_a_quantized_bundle() -> None:
    assert dict(quantized("int8").quality) == {"validation_loss_fp32": 1.25}
    assert dict(read_bundle(gpt_bundle()).manifest.quality) == {"validation_loss": 1.25}


def test_int4_is_refused_for_a_classifier_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = write_classifier_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ExportError, match="int4 is for models that generate; take int8"):
        export_checkpoint(checkpoint, tmp_path / "models" / "moods", None, "int4")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_classifier_is_compared_on_the_lines_that_training_held_out(tmp_path: Path) -> None:
    checkpoint = write_classifier_checkpoint(tmp_path / "checkpoint")
    (checkpoint / HELD_OUT_FILE).write_text("w1\nw2\n\nw3\n", "utf-8")
    manifest = read_bundle(export_checkpoint(checkpoint, tmp_path / "models" / "moods", None, "int8")).manifest
    assert manifest.quality.keys() == {"agreement_with_fp32"}
    assert 0 <= manifest.quality["agreement_with_fp32"] <= 1
    assert manifest.traffic_independent


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"w1", "at least 2 tokens, has 1"), (b"\xff\xfe", "must be UTF-8"), (None, "No such file")],
)
def test_evaluation_data_that_is_of_no_use_is_one_line_and_exit_code_1(
    content: bytes | None, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, data = write_gpt_checkpoint(tmp_path / "checkpoint"), tmp_path / "data.txt"
    if content is not None:
        data.write_bytes(content)
    arguments = [str(checkpoint), "--out", str(tmp_path / "models" / "x"), "--eval-data", str(data)]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_limit_on_the_loss_needs_a_text_to_measure_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = write_gpt_checkpoint(tmp_path / "checkpoint")
    assert main([str(checkpoint), "--out", str(tmp_path / "x"), "--quantize", "int8", "--max-loss", "0.01"]) == 1
    assert "--max-loss needs a text to measure on: --eval-data" in capsys.readouterr().err


def test_a_loss_above_the_limit_is_refused_with_what_was_measured() -> None:
    figures = {"perplexity": 11.0, "perplexity_fp32": 10.0}
    check_loss(figures, None)
    check_loss(figures, 0.11)
    with pytest.raises(
        ExportError, match=r"the loss is 0\.1, more than --max-loss 0\.05: perplexity 11, perplexity_fp32 10"
    ):
        check_loss(figures, 0.05)


def test_the_loss_is_the_worst_of_what_was_measured() -> None:
    assert loss_of({"perplexity": 11.0, "perplexity_fp32": 10.0}) == pytest.approx(0.1)
    assert loss_of({"agreement_with_fp32": 0.75}) == 0.25
    assert loss_of({"cosine_to_fp32": 0.99, "rank_agreement_with_fp32": 0.95}) == pytest.approx(0.05)


def test_rank_agreement_is_1_for_the_same_order_and_less_for_another() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    assert rank_agreement(rows, rows) == pytest.approx(1)
    assert rank_agreement(rows, rows[::-1].copy()) < 0.5


def test_the_labels_of_distributions_are_those_with_most() -> None:
    ours, theirs = np.array([[0.6, 0.4], [0.3, 0.7]]), np.array([[0.51, 0.49], [0.6, 0.4]])
    assert label_agreement(ours, theirs) == {"agreement_with_fp32": 0.5}


def test_labels_that_may_hold_at_once_are_compared_one_by_one() -> None:
    """The likeliest stays the same everywhere."""
    ours = np.array([[0.9, 0.6, 0.1], [0.4, 0.2, 0.3]])
    theirs = np.array([[0.9, 0.4, 0.1], [0.45, 0.2, 0.3]])
    assert label_agreement(ours, theirs) == {"agreement_with_fp32": pytest.approx(5 / 6)}
    assert label_agreement(ours, ours) == {"agreement_with_fp32": 1}


def test_scores_are_ranked_and_the_column_that_agrees_least_counts() -> None:
    ours = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    assert label_agreement(ours, ours * 2) == {"rank_agreement_with_fp32": pytest.approx(1)}
    assert label_agreement(ours, ours * [1, -1]) == {"rank_agreement_with_fp32": pytest.approx(-1)}


def test_windows_do_not_overlap_and_spread_over_the_whole_text() -> None:
    tokens = np.arange(10 * EVALUATED_TOKENS)
    windows = spread_windows(tokens, 256)
    assert windows.size == EVALUATED_TOKENS
    assert len(np.unique(windows)) == windows.size
    assert windows.max() > 0.9 * len(tokens)
    assert spread_windows(np.arange(5), 256).tolist() == [[0, 1, 2, 3, 4]]
