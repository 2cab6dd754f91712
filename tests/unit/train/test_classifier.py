import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from polyhead.models.checkpoint import load_checkpoint
from polyhead.models.encoder import Classifier
from polyhead.train import cldr
from polyhead.train.__main__ import main
from polyhead.train.classifier import (
    PRESETS,
    coarse_label,
    hardest,
    language_corpus,
    macro_f1,
    make_recipe,
    split_rows,
)
from polyhead.train.data import LabelledText
from polyhead.train.tokenizer import PAD

TINY = ["--layers=1", "--heads=2", "--width=16", "--hidden=32", "--vocabulary=300", "--batch-size=8", "--device=cpu"]
COLOURS, ANIMALS = ("red", "green", "blue", "brown", "pink"), ("cat", "dog", "cow", "hen", "fox", "owl")
ROWS = [LabelledText(f"{kind} {i}", label) for i in range(30) for label, kinds in
        (("NUM:colour", COLOURS), ("ENTY:animal", ANIMALS)) for kind in kinds]  # fmt: skip


def labelled_file(path: Path, rows: list[LabelledText]) -> str:
    path.write_text("".join(f"{row.label} {row.text}\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return labelled_file(tmp_path / "data", ROWS)


def train_classifier(out: Path, *arguments: str) -> int:
    return main(["classifier", "--out", str(out), *TINY, *arguments])


def test_labelled_lines_become_a_checkpoint_that_tells_their_labels(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code = train_classifier(out, "--data", data, "--steps=80", "--learning-rate=1e-2", "--warmup-steps=5")
    assert code == 0, capsys.readouterr().err
    config, model = load_checkpoint(out)
    assert isinstance(model, Classifier)
    assert (config.task, config.architecture, config.labels) == ("classify", "encoder", ("ENTY:animal", "NUM:colour"))
    assert config.special_tokens.pad == PAD
    assert set(config.quality) == {"validation_accuracy", "accuracy", "macro_f1", "baseline_accuracy"}
    assert config.quality["accuracy"] > 0.9
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    for text, label in (("brown 99", 1), ("owl 77", 0)):
        ids = tokenizer.encode(text).ids
        assert model(torch.tensor([ids]), torch.tensor([len(ids)])).argmax() == label
    printed = capsys.readouterr().out
    assert f"accuracy of character n-grams (naive Bayes) {config.quality['baseline_accuracy']:.4f}" in printed
    assert "hardest labels" in printed


def test_a_label_separator_leaves_the_coarse_label(tmp_path: Path, data: str) -> None:
    assert train_classifier(tmp_path / "run", "--data", data, "--steps=2", "--label-separator=:") == 0
    assert load_checkpoint(tmp_path / "run")[0].labels == ("ENTY", "NUM")
    assert coarse_label("NUM:date:x", ":") == "NUM"
    assert coarse_label("NUM:date", None) == "NUM:date"


def test_test_data_is_what_it_is_measured_on_and_nothing_of_it_is_learned(tmp_path: Path) -> None:
    """Every test text has the label that training gives the other texts of its kind, so a learner is always wrong."""
    data = labelled_file(tmp_path / "data", ROWS)
    swapped = {"NUM:colour": "ENTY:animal", "ENTY:animal": "NUM:colour"}
    test = labelled_file(tmp_path / "test", [replace(row, label=swapped[row.label]) for row in ROWS])
    code = train_classifier(
        tmp_path / "run", "--data", data, "--test-data", test, "--steps=80", "--learning-rate=1e-2", "--warmup-steps=5"
    )
    assert code == 0
    quality = load_checkpoint(tmp_path / "run")[0].quality
    assert quality["validation_accuracy"] > 0.9
    assert quality["accuracy"] < 0.1
    assert quality["baseline_accuracy"] < 0.1


def test_columns_of_csv_and_jsonl_are_read(tmp_path: Path) -> None:
    table, lines = tmp_path / "data.csv", tmp_path / "data.jsonl"
    table.write_text("what,kind\n" + "".join(f"{row.text},{row.label}\n" for row in ROWS), "utf-8")
    lines.write_text("".join(json.dumps({"what": row.text, "kind": row.label}) + "\n" for row in ROWS), "utf-8")
    for path in (table, lines):
        columns = ["--text-column=what", "--label-column=kind"]
        assert train_classifier(tmp_path / path.suffix, "--data", str(path), "--steps=2", *columns) == 0
        assert len(load_checkpoint(tmp_path / path.suffix)[0].labels) == 2


@pytest.mark.parametrize(
    ("rows", "code", "message"),
    [
        ([LabelledText(f"text {i}", "one") for i in range(50)], 1, "needs at least two labels, and has only 'one'"),
        (ROWS[:2], 1, "the (validation|test|training) part is empty; give more texts"),
    ],
)
def test_data_that_teaches_nothing_is_refused(
    tmp_path: Path, rows: list[LabelledText], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_classifier(tmp_path / "run", "--data", labelled_file(tmp_path / "data", rows)) == code
    assert pytest.importorskip("re").search(message, capsys.readouterr().err)


def test_a_test_label_that_was_never_learned_is_named(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    test = labelled_file(tmp_path / "test", [LabelledText("a text", "HUM:ind")])
    assert train_classifier(tmp_path / "run", "--data", data, "--test-data", test) == 1
    assert "the test part has labels without a text to learn from: HUM:ind" in capsys.readouterr().err


def test_settings_out_of_range_are_wrong_usage(tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_classifier(tmp_path / "run", "--data", data, "--label-smoothing=1") == 2
    assert "label_smoothing must be at least 0 and below 1, not 1.0" in capsys.readouterr().err


def test_parts_are_disjoint_and_equal_texts_fall_on_one_side() -> None:
    corpus = split_rows("rows", ROWS * 2)
    parts = [{row.text for row in part} for part in (corpus.training, corpus.validation, corpus.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(ROWS)
    assert len(corpus.training) + len(corpus.validation) + len(corpus.test) == 2 * len(ROWS)


def test_a_batch_depends_on_seed_and_step_alone_and_training_texts_are_cut_anew() -> None:
    settings = replace(PRESETS["demo"], vocabulary=300, batch_size=8, cut_share=0.3)
    recipe, again = (make_recipe(settings, split_rows("rows", ROWS)) for _ in range(2))
    batches = len(recipe.corpus.training) // 8 + 2
    later = [recipe.batch(step) for step in range(2 * batches)][-1]
    assert all(torch.equal(a, b) for a, b in zip(later.tensors, again.batch(2 * batches - 1).tensors, strict=True))
    ids, lengths, _ = later.tensors
    assert later.tokens == int(lengths.sum())
    assert ids.shape == (len(lengths), int(lengths.max()))


def test_the_languages_of_the_default_corpus_are_told_apart_by_unseen_concepts() -> None:
    corpus = language_corpus()
    assert corpus.labels == cldr.LANGUAGES
    texts = [{row.text.casefold() for row in part} for part in (corpus.training, corpus.validation, corpus.test)]
    assert not texts[0] & (texts[1] | texts[2])
    assert {row.label for row in corpus.test} == set(cldr.LANGUAGES)
    owners: dict[str, str] = {}
    for row in corpus.test:
        assert owners.setdefault(row.text.casefold(), row.label) == row.label


def test_macro_f1_is_the_mean_over_classes() -> None:
    predicted, truth = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    assert macro_f1(predicted, truth) == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_the_hardest_labels_come_first_with_what_they_were_taken_for() -> None:
    lines = hardest(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2]), ["a", "b", "c"])
    assert lines[0].strip() == "b: 50.0% of 2 right; taken for a 1"
    assert len(lines) == 3
