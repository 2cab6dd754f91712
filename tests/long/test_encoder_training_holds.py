"""What the encoder recipes promise, on real data. `pytest -s` shows the figures."""

from pathlib import Path

import pytest

from polyhead.models.checkpoint import CheckpointConfig, load_checkpoint
from polyhead.train import cldr
from polyhead.train.__main__ import main

TREC = Path(__file__).parents[3] / "shared" / "data" / "trec"


def train(out: Path, *arguments: str) -> CheckpointConfig:
    assert main([*arguments, "--out", str(out)]) == 0
    config, _ = load_checkpoint(out)
    print({name: round(value, 4) for name, value in config.quality.items()})
    return config


@pytest.fixture(scope="module")
def language_classifier(tmp_path_factory: pytest.TempPathFactory) -> CheckpointConfig:
    return train(tmp_path_factory.mktemp("classifier") / "run", "classifier")


@pytest.mark.long
def test_the_default_classifier_tells_33_languages_apart(language_classifier: CheckpointConfig) -> None:
    """On names of concepts it has seen in no language, each of which belongs to one language alone."""
    config = language_classifier
    assert config.labels == cldr.LANGUAGES
    assert len(config.labels) >= 20
    assert len(set(config.labels) & set(cldr.LATIN_LANGUAGES)) >= 12
    assert config.quality["accuracy"] >= 0.85


@pytest.mark.long
def test_the_default_classifier_is_ahead_of_character_ngrams(language_classifier: CheckpointConfig) -> None:
    """A naive Bayes over the n-grams of the same training texts, measured on the same names."""
    assert language_classifier.quality["accuracy"] > language_classifier.quality["baseline_accuracy"]


@pytest.mark.long
def test_the_default_embedder_puts_the_right_translation_first_for_40_percent_of_names(tmp_path: Path) -> None:
    """Of concepts it has seen in no language; among all their names in another language, and among those of all."""
    config = train(tmp_path / "run", "embedder")
    assert config.quality["chance"] < 0.01
    assert config.quality["recall_at_1"] >= 0.40
    assert config.quality["recall_at_1_all"] >= 0.40


@pytest.mark.long
@pytest.mark.skipif(not TREC.exists(), reason=f"needs the questions of {TREC.name} beside the repository")
def test_a_classifier_from_scratch_is_right_on_84_percent_of_trec_questions(tmp_path: Path) -> None:
    """Six coarse classes; the test file is only measured on."""
    config = train(
        tmp_path / "run",
        *("classifier", "--data", str(TREC / "TREC.train"), "--test-data", str(TREC / "TREC.test")),
        *("--format=labelled", "--encoding=latin-1", "--label-separator=:"),
    )
    assert config.labels == ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
    assert config.quality["accuracy"] >= 0.84
