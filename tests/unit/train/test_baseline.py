import pytest

from polyhead.train.baseline import fit_baseline, ngrams

TEXTS = ["the house", "the mouse", "das Haus", "die Maus", "la casa", "la mesa"]
CLASSES = [0, 0, 1, 1, 2, 2]


def test_ngrams_are_runs_of_one_to_four_characters_with_marked_ends_each_once() -> None:
    assert ngrams("Ab") == [" ", "a", "b", " a", "ab", "b ", " ab", "ab ", " ab "]
    assert ngrams("aaaa", 2).count("aa") == 1


def test_new_texts_get_the_class_whose_ngrams_they_share() -> None:
    baseline = fit_baseline(TEXTS, CLASSES, 3)
    assert baseline.predict(["the blouse", "DAS MAUS", "la cosa"]).tolist() == [0, 1, 2]


def test_a_text_of_unknown_characters_gets_the_most_frequent_class() -> None:
    baseline = fit_baseline(["aa", "bb", "bc"], [0, 1, 1], 2, smoothing=1.0)
    features = {name for name in baseline.features if name.strip()}
    assert features == {"a", "aa", "b", "c", "bb", "bc", " a", " b", "a ", "b ", "c "} | {
        *(" aa", "aa ", " aa ", " bb", "bb ", " bb ", " bc", "bc ", " bc ")
    }
    assert baseline.log_prior.argmax() == 1
    assert baseline.predict(["Ω"]).tolist() == [1]


def test_likelihoods_are_shares_of_a_class_s_ngrams_with_smoothing() -> None:
    baseline = fit_baseline(["a", "b"], [0, 1], 2, smoothing=0.5)
    assert baseline.log_likelihood.exp().sum(0).tolist() == pytest.approx([1.0, 1.0])
    # Each text has 5 n-grams, and " " is the one they share.
    assert baseline.log_likelihood[baseline.features[" "]].exp().tolist() == pytest.approx([1.5 / (5 + 9 * 0.5)] * 2)
