import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyhead.models.seq2seq import RNNSeq2Seq, RNNSeq2SeqConfig
from polyhead.train.beam_search import BeamSettings, Hypothesis, beam_search

V, EOS, BEGIN = 4, 3, 2


class TableDecoder:
    """What comes next depends on the last token alone: log-probabilities (row, last token, token), one table a source."""

    def __init__(self, tables: Tensor) -> None:
        self.tables = tables

    def step(self, token: Tensor) -> Tensor:
        return self.tables[torch.arange(len(token)), token]

    def select(self, rows: Tensor) -> None:
        self.tables = self.tables[rows]


def random_tables(seed: int, rows: int = 1) -> Tensor:
    return (3 * torch.randn(rows, V, V, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


def search(
    tables: Tensor, width: int, penalty: float, limit: int = 4, limits: list[int] | None = None
) -> list[list[Hypothesis]]:
    begin = torch.full((len(tables),), BEGIN)
    return beam_search(TableDecoder(tables), begin, EOS, BeamSettings(width, penalty, limit), limits)


def every_answer(table: Tensor, penalty: float, limit: int) -> list[Hypothesis]:
    """All there are, the best first."""
    found = []
    for length in range(limit + 1):
        for tokens in itertools.product([t for t in range(V) if t != EOS], repeat=length):
            steps = [*tokens, EOS] if length < limit else [*tokens]
            path = itertools.pairwise([BEGIN, *steps])
            total = sum(float(table[a, b]) for a, b in path)
            found.append(Hypothesis(tokens, total / len(steps) ** penalty))
    return sorted(found, key=lambda answer: -answer.score)


def greedy(table: Tensor, penalty: float, limit: int) -> Hypothesis:
    tokens, total = [BEGIN], 0.0
    while len(tokens) <= limit and (len(tokens) == 1 or tokens[-1] != EOS):
        total += float(table[tokens[-1]].max())
        tokens.append(int(table[tokens[-1]].argmax()))
    return Hypothesis(tuple(t for t in tokens[1:] if t != EOS), total / (len(tokens) - 1) ** penalty)


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
def test_a_beam_as_wide_as_there_are_answers_finds_the_best_ones_in_order(penalty: float) -> None:
    for seed in range(5):
        expected = every_answer(random_tables(seed)[0], penalty, limit=3)[:10]
        found = search(random_tables(seed), 40, penalty, limit=3)[0][:10]
        assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]
        assert [answer.score for answer in found] == pytest.approx([answer.score for answer in expected], abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 6), penalty=st.sampled_from([0.0, 0.6, 1.0, 2.0, -1.0]))
def test_no_search_ends_below_the_greedy_answer_and_its_answers_are_sorted_and_different(
    seed: int, width: int, penalty: float
) -> None:
    tables = random_tables(seed)
    answers = search(tables, width, penalty)[0]
    assert answers[0].score >= greedy(tables[0], penalty, 4).score - 1e-5
    assert [a.score for a in answers] == sorted((a.score for a in answers), reverse=True)
    assert len({answer.tokens for answer in answers}) == len(answers) <= width


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), penalty=st.sampled_from([0.0, 1.0, -1.0]))
def test_one_beam_is_the_greedy_answer(seed: int, penalty: float) -> None:
    tables = random_tables(seed)
    (answer,) = search(tables, 1, penalty)[0]
    expected = greedy(tables[0], penalty, 4)
    assert answer.tokens == expected.tokens
    assert answer.score == pytest.approx(expected.score, abs=1e-5)


def test_sources_of_a_batch_are_searched_as_if_alone() -> None:
    tables = random_tables(7, rows=5)
    together = search(tables, 3, 1.0)
    assert together == [search(tables[i : i + 1], 3, 1.0)[0] for i in range(5)]


def test_each_source_can_have_a_limit_of_its_own() -> None:
    tables, limits = random_tables(11, rows=4), [1, 4, 2, 3]
    together = search(tables, 3, 1.0, limits=limits)
    assert together == [search(tables[i : i + 1], 3, 1.0, limit=limits[i])[0] for i in range(4)]


def test_scores_are_the_model_s_own() -> None:
    torch.manual_seed(1)
    model = RNNSeq2Seq(RNNSeq2SeqConfig(9, 7, width=16, embedding_size=8)).eval()
    source, lengths = torch.tensor([[3, 5, 8, 2]]), torch.tensor([4])
    found = beam_search(model.decoder(source, lengths, 6), torch.tensor([1]), 2, BeamSettings(4, 1.0, 6))[0]
    for answer in found:
        target = [*answer.tokens, 2] if len(answer.tokens) < 6 else list(answer.tokens)
        with torch.inference_mode():
            logits = model(source, lengths, torch.tensor([[1, *target[:-1]]])).logits[0]
        total = float(logits.log_softmax(-1).gather(-1, torch.tensor(target)[:, None]).sum())
        assert answer.score == pytest.approx(total / len(target), abs=1e-4)
