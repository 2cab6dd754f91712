import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from polyhead.train.compare_attention import main
from polyhead.train.comparison_report import (
    LengthFigures,
    Outcome,
    caption,
    deciding_figure,
    draw,
    figures_by_length,
    source_length,
    table,
)
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


def test_a_range_without_a_figure_has_no_point_and_words_are_compared_by_chrf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [Pair("a", "b")] * 20 + [Pair("a " * 4, "b b b b")] * 20
    answers = [pair.target for pair in pairs]
    parts = figures_by_length(pairs, answers, "words")
    assert ["bleu" in part.figures for part in parts] == [False, True]
    quality = dict.fromkeys(("bleu", "beam_bleu", "chrf", "beam_chrf"), 100.0)
    outcome = Outcome("model", 1, 2, 3.0, quality, parts)
    assert "–" in table([outcome], "words", "bleu").splitlines()[-2]
    assert drawn(monkeypatch, [outcome], tmp_path)[0].get_xdata() == [4.0]
    assert deciding_figure([outcome], translations=True) == "bleu"
    of_words = replace(outcome, quality={"chrf": 100.0, "beam_chrf": 100.0})
    assert deciding_figure([outcome, of_words], translations=True) == "chrf"
    assert "–" in table([of_words], "words", "bleu").splitlines()[1]
    assert deciding_figure([outcome], translations=False) == "exact_match"


def test_lines_that_lie_on_each_other_differ_in_more_than_colour_and_a_picture_says_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = LengthFigures(1, 4, 20, {"bleu": 10.0})
    lines = drawn(monkeypatch, [Outcome(str(i), 1, 2, 3.0, {}, [part]) for i in range(4)], tmp_path)
    assert len({line.get_marker() for line in lines}) == 4
    assert len({(line.get_linestyle(), line.get_linewidth()) for line in lines}) == 4
    assert caption("fra-eng", "words", "bleu", 5.0) == "BLEU by words of the source: fra-eng, 5 minutes each"
    assert (
        caption("reverse up to 24", "characters", "exact_match", 1.0)
        == "Exact match by characters of the source: reverse up to 24, 1 minute each"
    )


def drawn(monkeypatch: pytest.MonkeyPatch, outcomes: list[Outcome], folder: Path) -> list[Line2D]:
    """The lines of the picture."""
    found: list[Line2D] = []

    def keep(picture: Figure, path: Path) -> None:
        found.extend(picture.axes[0].get_lines())
        path.touch()

    monkeypatch.setattr(Figure, "savefig", keep)
    draw(outcomes, folder / "comparison.png", "words", "bleu", "data")
    return found


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
    assert main([*arguments, "--width=32", "--models", "deep", "rnn"]) == 0
    chosen = json.loads((out / "comparison.json").read_text("utf-8"))["models"]
    assert chosen == [document["models"][0], document["models"][2]]
    assert main([*arguments, "--width=40"]) == 2
    assert "holds another training" in capsys.readouterr().err


def test_no_time_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--minutes=0"]) == 2
    assert "--minutes must be above 0, not 0.0" in capsys.readouterr().err


def test_a_score_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--score=cosine"]) == 2
    assert "invalid choice: 'cosine'" in capsys.readouterr().err
