"""Sampling: distributions, filters, and that no row's choice depends on its neighbours."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special, stats

from polyhead.server.engine.sequence import GenerationRequest, Sampling, Stopping
from polyhead.server.sampling import (
    MAX_GRAPH_TOP_K,
    TOP_K_SIZES,
    Adjustment,
    Row,
    candidates,
    choose,
    graph_top_k,
    uniform,
)

VOCABULARY = 400

OPTIONS = st.builds(
    Sampling,
    seed=st.integers(0, 2**64 - 1),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 40, 200, 10_000]),
    top_p=st.sampled_from([0.1, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    typical_p=st.sampled_from([1.0, 1.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
)


def graph_output(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """What the graph's TopK gives: best first, equal values by lower id."""
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(logits, ids, axis=1), ids


def row_of(options: Sampling, position: int = 7) -> Row:
    penalized = options.repetition_penalty != 1.0
    return Row(options, position, adjustment=Adjustment(seen=np.arange(3, 9)) if penalized else None)


def request_of(options: Sampling, logprobs: int | None = None) -> GenerationRequest:
    return GenerationRequest((1,), options, Stopping(max_tokens=1), logprobs)


def sample(rows: list[Row], logits: np.ndarray) -> list[int]:
    k = graph_top_k(candidates(request_of(row.options)) for row in rows)
    return choose(rows, *graph_output(logits, k), logsumexp(logits), logits)[0]


def logsumexp(logits: np.ndarray) -> np.ndarray:
    return np.asarray(special.logsumexp(logits.astype(np.float64), axis=1)).astype(np.float32)


def without_logits(rows: list[Row], logits: np.ndarray) -> list[int | None]:
    """What rows choose that look at nothing but the graph's best; None for those that look at their logits."""
    unknown = np.zeros_like(logits)
    tokens, values = choose(rows, *graph_output(logits, MAX_GRAPH_TOP_K), logsumexp(logits), unknown)
    return [token if value else None for token, value in zip(tokens, values, strict=True)]


def reference_weights(options: Sampling, logits: np.ndarray) -> np.ndarray:
    """Probabilities after penalty, temperature, top-k, top-p and min-p, written one after the other for one row."""
    scores = logits.astype(np.float64)
    if options.repetition_penalty != 1.0:
        seen = scores[3:9]
        scores[3:9] = np.where(seen > 0, seen / options.repetition_penalty, seen * options.repetition_penalty)
    weights = np.exp((scores - scores.max()) / options.temperature)
    order = np.argsort(-weights, kind="stable")
    keep = np.zeros(len(weights), bool)
    keep[order[: options.top_k or None]] = True
    weights = np.where(keep, weights, 0)
    running = np.cumsum(weights[order])
    keep[order[(running - weights[order] >= options.top_p * running[-1]) & (np.arange(len(order)) > 0)]] = False
    keep &= weights >= options.min_p * weights.max()
    kept: np.ndarray = np.where(keep, weights, 0)
    probabilities = np.asarray(kept / kept.sum())
    if options.typical_p < 1.0:
        surprise = -np.log(np.where(probabilities > 0, probabilities, 1))
        distance = np.where(probabilities > 0, np.abs(surprise - (probabilities * surprise).sum()), np.inf)
        order = np.argsort(distance, kind="stable")
        excluded = order[np.cumsum(probabilities[order]) - probabilities[order] >= options.typical_p]
        probabilities[excluded] = 0
    return np.asarray(probabilities / probabilities.sum())


@settings(deadline=None)
@given(st.lists(OPTIONS, min_size=1, max_size=6), st.integers(0, 2**32))
def test_a_row_gets_the_same_token_alone_and_among_others(options: list[Sampling], seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (len(options), VOCABULARY)).astype(np.float32)
    rows = [row_of(o, position=i) for i, o in enumerate(options)]
    together = sample(rows, logits)
    assert together == [sample([row], logits[i : i + 1])[0] for i, row in enumerate(rows)]


@settings(deadline=None)
@given(OPTIONS.filter(lambda o: o.temperature > 0), st.integers(0, 2**32))
def test_a_token_that_the_filters_exclude_is_never_chosen(options: Sampling, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (1, VOCABULARY)).astype(np.float32)
    weights = reference_weights(options, logits[0])
    drawn = {sample([row_of(options, position)], logits)[0] for position in range(20)}
    assert all(weights[token] > 0 for token in drawn)


@pytest.mark.parametrize(
    "options",
    [
        Sampling(seed=1),
        Sampling(seed=2, temperature=0.7, top_k=20),
        Sampling(seed=3, temperature=1.5, top_k=300),
        Sampling(seed=4, top_p=0.8),
        Sampling(seed=5, top_k=30, top_p=0.7, min_p=0.05),
        Sampling(seed=6, min_p=0.1),
        Sampling(seed=7, repetition_penalty=1.5),
        Sampling(seed=8, typical_p=0.6),
        Sampling(seed=9, top_k=50, typical_p=0.8),
        Sampling(seed=10, temperature=0.7, top_p=0.8),
        Sampling(seed=11, temperature=1.4, top_p=0.6),
        Sampling(seed=12, temperature=2.0, min_p=0.1, top_k=300),
        Sampling(seed=13, temperature=0.8, top_p=0.9, min_p=0.02),
    ],
)
def test_tokens_come_as_often_as_their_probability_says(options: Sampling) -> None:
    """Chi-squared over 6,000 draws; a right sampler fails this for one seed in a thousand, and the seeds are fixed."""
    logits = np.random.default_rng(0).normal(0, 2, (1, VOCABULARY)).astype(np.float32)
    expected = reference_weights(options, logits[0]) * 6_000
    counts = np.zeros(VOCABULARY)
    for start in range(0, 6_000, 500):
        rows = [row_of(options, position) for position in range(start, start + 500)]
        np.add.at(counts, sample(rows, np.repeat(logits, 500, axis=0)), 1)
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], max(expected[~common].sum(), 1e-9))
    assert counts[expected == 0].sum() == 0
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


def test_of_a_large_top_k_no_more_are_drawn_however_many_weigh_the_same() -> None:
    rows = [Row(Sampling(seed=1, top_k=9_000, min_p=0.5), position) for position in range(50)]
    assert max(sample(rows, np.zeros((50, 20_000), np.float32))) < 9_000


def test_temperature_zero_takes_the_likeliest_token_and_the_lower_id_of_equals() -> None:
    logits = np.zeros((1, VOCABULARY), np.float32)
    logits[0, [17, 30]] = 5
    assert sample([Row(Sampling(seed=0, temperature=0.0), 0)], logits) == [17]


def test_a_banned_token_is_not_chosen_even_if_it_is_the_likeliest() -> None:
    logits = np.random.default_rng(0).normal(size=(1, VOCABULARY)).astype(np.float32)
    best, second = np.argsort(-logits[0])[:2]
    row = Row(Sampling(seed=0, temperature=0.0), 0, adjustment=Adjustment(banned=np.array([best])))
    assert sample([row], logits) == [second]


def test_what_is_added_counts_before_the_choice_and_only_allowed_tokens_are_chosen() -> None:
    logits = np.zeros((1, VOCABULARY), np.float32)
    added = (np.array([3, 4]), np.array([2.0, 5.0], np.float32))
    greedy = Sampling(seed=0, temperature=0.0)
    assert sample([Row(greedy, 0, adjustment=Adjustment(added=added))], logits) == [4]
    allowed = np.zeros(VOCABULARY - 7, bool)
    allowed[[3, 50]] = True
    free = [Row(Sampling(seed=0), p, adjustment=Adjustment(allowed=allowed)) for p in range(50)]
    assert set(sample(free, np.repeat(logits, 50, axis=0))) == {3, 50}


def test_uniform_numbers_are_uniform_and_differ_by_seed_sample_and_position() -> None:
    rows = [Row(Sampling(seed=s), p, sample_index=i) for s in range(20) for i in range(10) for p in range(50)]
    numbers = uniform(rows)
    assert len(set(numbers.tolist())) == len(rows)
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3


def test_a_row_without_options_gets_its_likeliest_token() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    drawn = row_of(Sampling(seed=1))
    tokens, values = choose([None, drawn, None], *graph_output(logits, 1), logsumexp(logits), logits)
    assert tokens == [logits[0].argmax(), *sample([drawn], logits[1:2]), logits[2].argmax()]
    assert values == [logits[row, token] for row, token in enumerate(tokens)]


@given(st.lists(OPTIONS, min_size=1, max_size=5), st.integers(0, 20))
def test_the_graph_is_asked_for_enough_candidates(options: list[Sampling], logprobs: int) -> None:
    rows = [row_of(o) for o in options]
    k = graph_top_k(candidates(request_of(o, logprobs)) for o in options)
    assert k in TOP_K_SIZES
    assert k >= logprobs
    assert all(
        row.reads_logits or row.options.temperature == 0 or row.options.top_k <= k or k == MAX_GRAPH_TOP_K
        for row in rows
    )


@settings(deadline=None)
@given(
    st.sampled_from([0.2, 0.7, 1.0, 1.3, 3.0]),
    st.sampled_from([0.1, 0.5, 0.9, 0.95, 1.0]),
    st.sampled_from([0.0, 0.02, 0.3]),
    st.sampled_from([0.5, 2.0, 4.0, 30.0]),
    st.sampled_from([2_000, 2_000, 20_000]),
    st.integers(0, 2**32),
)
def test_what_the_best_tokens_decide_is_what_the_whole_vocabulary_says(
    temperature: float, top_p: float, min_p: float, scale: float, size: int, seed: int
) -> None:
    assume(top_p < 1.0 or min_p)  # else tokens are drawn by id
    logits = np.random.default_rng(seed).normal(0, scale, (1, size)).astype(np.float32)
    options = Sampling(seed=seed, temperature=temperature, top_p=top_p, min_p=min_p)
    rows = [Row(options, position) for position in range(40)]
    every = np.repeat(logits, 40, axis=0)
    without, told = without_logits(rows, every), sample(rows, every)
    weights = reference_weights(options, logits[0])
    order = np.argsort(-logits[0], kind="stable")
    reached = np.cumsum(weights[order])
    for row, token, chosen in zip(rows, without, told, strict=True):
        assert weights[chosen] > 0
        assert token in (None, chosen)
        (u,) = uniform([row])
        if np.abs(reached - u).min() > 1e-5:  # else rounding decides
            assert chosen == order[np.searchsorted(reached, u, side="right")]


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        (Sampling(seed=1, top_p=0.9), 8.0),
        (Sampling(seed=1, min_p=0.1), 2.0),
        (Sampling(seed=1, temperature=0.7, top_p=0.95), 6.0),
        (Sampling(seed=1, temperature=1.2, top_p=0.8), 12.0),
        (Sampling(seed=1, temperature=1.5, min_p=0.05, top_k=500), 4.0),
    ],
)
def test_where_the_best_tokens_suffice_the_vocabulary_is_not_looked_at(options: Sampling, scale: float) -> None:
    logits = np.random.default_rng(0).normal(0, scale, (1, 5_000)).astype(np.float32)
    assert without_logits([Row(options, 0)], logits) == sample([Row(options, 0)], logits)
    assert without_logits([Row(options, 0)], logits / 100) == [None]
