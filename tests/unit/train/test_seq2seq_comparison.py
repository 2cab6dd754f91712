import json
from dataclasses import replace
from pathlib import Path

import pytest

from polyhead.train.compare_attention import main
from polyhead.train.comparison_report import figures_by_length, source_length
from polyhead.train.contestants import contestants, parameters
from polyhead.train.errors import UsageError
from polyhead.train.pairs import Pair

SIZES = (300, 300)


def test_the_four_models_have_parameters_within_five_per_cent() -> None:
    for base, vocabularies in (("dates", (287, 15)), ("sentences", (3000, 3000))):
        found = contestants(base, lambda settings: settings, vocabularies, deep_layers=3)
        assert [contestant.key for contestant in found] == ["rnn", "rnn-attention", "deep", "transformer"]
        sizes = [contestant.parameters for contestant in found]
        assert max(sizes) <= 1.05 * min(sizes), sizes
        assert [parameters(contestant.settings, vocabularies) for contestant in found] == sizes
        assert (found[2].settings.layers, found[2].settings.residual) == (3, True)


def test_a_size_that_a_model_cannot_have_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"has about .* parameters; give another --width"):
        contestants(
            "dates", lambda s: replace(s, width=8, embedding_size=8) if s.arch != "transformer" else s, (20, 20), 9
        )


def test_lengths_are_in_ranges_of_equal_width_and_few_pairs_join_shorter_ones() -> None:
    pairs = [Pair("a" * length, "b") for length in range(1, 17) for _ in range(20)] + [Pair("a" * 40, "b")]
    answers = ["b" if len(pair.source) <= 8 else "c" for pair in pairs]
    found = figures_by_length(pairs, answers, "characters")
    assert [(part.shortest, part.longest, part.pairs) for part in found] == [
        (1, 5, 100),
        (6, 10, 100),
        (11, 15, 100),
        (16, 40, 21),
    ]
    assert [part.figures["exact_match"] for part in found] == [1.0, 0.6, 0.0, 0.0]
    assert source_length("Je le vois.", "words") == 3


def test_a_comparison_leaves_four_checkpoints_a_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--task=copy", "--longest=6", "--pairs=2000", "--minutes=0.005", "--batch-size=8", "--out", str(out)]
    assert main([*arguments, "--width=32"]) == 0, capsys.readouterr().err
    document = json.loads((out / "comparison.json").read_text("utf-8"))
    assert [model["name"] for model in document["models"]] == [
        "RNN, fixed context", "RNN with attention", "RNN with attention, 3 layers", "Transformer",
    ]  # fmt: skip
    assert all((out / key / "config.json").exists() for key in ("rnn", "rnn-attention", "deep", "transformer"))
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "exact match at characters" in printed
    assert "RNN with attention, 3 layers" in printed
    assert main([*arguments, "--width=32"]) == 0  # nothing is trained or measured again
    assert json.loads((out / "comparison.json").read_text("utf-8")) == document
    assert "best at step" not in capsys.readouterr().out
    assert main([*arguments, "--width=40"]) == 2
    assert "holds another training" in capsys.readouterr().err


def test_no_time_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--minutes=0"]) == 2
    assert "--minutes must be above 0, not 0.0" in capsys.readouterr().err


def test_a_score_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--score=cosine"]) == 2
    assert "invalid choice: 'cosine'" in capsys.readouterr().err
