import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polyhead.train.retrieval import Retrieval, Texts

GROUPS = [
    {"de": "Haus", "en": "house", "sv": "hus"},
    {"de": "Maus", "en": "mouse", "sv": "mus"},
    {"de": "Arm", "en": "arm"},
]


def retrieval(vectors: list[list[float]]) -> Retrieval:
    return Retrieval(Texts.of(GROUPS), F.normalize(torch.tensor(vectors), dim=-1))


def perfect() -> list[list[float]]:
    return [[1.0, 0.0, 0.0]] * 3 + [[0.0, 1.0, 0.0]] * 3 + [[0.0, 0.0, 1.0]] * 2


def test_every_translation_found_is_a_recall_of_one() -> None:
    figures = retrieval(perfect()).figures()
    assert (figures["recall_at_1"], figures["mrr"], figures["recall_at_1_all"]) == (1.0, 1.0, 1.0)


def test_a_query_whose_only_translation_is_identical_to_it_does_not_count() -> None:
    """Arm and arm lie on opposite sides, and yet nothing is missed."""
    vectors = perfect()
    vectors[7] = [0.0, 0.0, -1.0]
    assert retrieval(vectors).figures()["recall_at_1"] == 1.0


def test_recall_is_the_mean_over_pairs_of_languages_of_the_share_found() -> None:
    """The German mouse lies with the houses."""
    vectors = perfect()
    vectors[3] = [1.0, 0.2, 0.0]
    figures = retrieval(vectors).figures()
    # de -> en and de -> sv: Haus is found, Maus is not. en -> de and sv -> de: both find theirs, for Haus is farther.
    assert figures["recall_at_1"] == pytest.approx((0.5 + 0.5 + 1 + 1 + 1 + 1) / 6)
    assert figures["mrr"] == pytest.approx((0.75 + 0.75 + 1 + 1 + 1 + 1) / 6)


def test_chance_is_one_over_the_candidates() -> None:
    figures = retrieval(perfect()).figures()
    # Candidates: en 3 or de 3 (with arm, Arm), sv 2.
    assert figures["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 3 + 1 / 2 + 1 / 3 + 1 / 3) / 6)


def test_queries_in_blocks_give_the_figures_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vectors: Tensor = F.normalize(torch.randn(8, 3), dim=-1)
    whole = Retrieval(Texts.of(GROUPS), vectors).figures()
    monkeypatch.setattr("polyhead.train.retrieval.QUERIES_AT_ONCE", 3)
    assert Retrieval(Texts.of(GROUPS), vectors).figures() == pytest.approx(whole)


def test_examples_show_the_nearest_and_say_when_it_is_wrong() -> None:
    vectors = perfect()
    vectors[0] = [0.0, 1.0, 0.1]
    shown = retrieval(vectors).examples(2)
    assert shown[0].strip() in {f"Haus [de] -> {text} (wrong)" for text in ("Maus [de]", "mouse [en]", "mus [sv]")}
    assert len(shown) == 2
