"""What is sent and when: lengths, arrivals, prompts."""

import itertools
import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.client.bench import workload
from polyhead.client.bench.errors import BenchError
from polyhead.client.bench.lengths import Uniform, parse_lengths
from polyhead.client.bench.workload import GenerateJob

LENGTHS = st.sampled_from(["1", "7", "3-9", "normal:8:4", "normal:0:2.5", "lognormal:8:1", "lognormal:1:0"])
SEEDS = st.integers(0, 2**63).map(str)


@given(LENGTHS)
def test_lengths_are_written_as_they_are_read(text: str) -> None:
    assert str(parse_lengths(text)) == text


@given(LENGTHS, st.integers())
def test_every_length_is_at_least_one_and_none_is_above_the_largest(text: str, seed: int) -> None:
    lengths = parse_lengths(text)
    draws = [lengths.draw(random.Random(seed)) for _ in range(20)]
    assert min(draws) >= 1
    assert lengths.largest is None or max(draws) <= lengths.largest


def test_a_range_reaches_both_its_ends_and_a_median_splits_the_draws() -> None:
    rng = random.Random(0)
    assert {parse_lengths("3-5").draw(rng) for _ in range(100)} == {3, 4, 5}
    draws = [parse_lengths("lognormal:100:1").draw(rng) for _ in range(2000)]
    assert 90 < statistics.median(draws) < 110
    assert statistics.mean(draws) > 150  # exp(1/2) times the median
    draws = [parse_lengths("normal:100:10").draw(rng) for _ in range(2000)]
    assert statistics.stdev(draws) == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "1 or more"),
        ("9-3", "not fall, not 9-3"),
        ("-3", "N-M"),
        ("", "normal:MEAN:DEVIATION"),
        ("gamma:1:2", "not 'gamma:1:2'"),
        ("normal:1", "not 'normal:1'"),
        ("lognormal:0:1", "the median must be 1 or more, not 0"),
        ("lognormal:10:50", "sigma must be 5 or less, not 50"),
    ],
)
def test_what_is_no_length_is_refused_with_a_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_lengths(text)


@given(seed=SEEDS, rate=st.floats(0.01, 1000))
def test_poisson_arrivals_rise_scale_with_the_rate_and_depend_on_the_seed_alone(seed: str, rate: float) -> None:
    times = [job.due for job in itertools.islice(workload.arrivals(seed, rate), 50)]
    assert times[0] == 0
    assert times == sorted(times)
    doubled = [job.due for job in itertools.islice(workload.arrivals(seed, 2 * rate), 50)]
    assert doubled == pytest.approx([time / 2 for time in times])


def test_the_times_between_poisson_arrivals_are_exponential() -> None:
    """Mean and standard deviation are 1/rate, and one in e is longer than the mean."""
    times = [job.due for job in itertools.islice(workload.arrivals("0", 4.0), 5001)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.05)
    assert sum(gap > 0.25 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)


def test_without_a_rate_everything_is_due_at_once() -> None:
    assert {job.due for job in itertools.islice(workload.arrivals("0", None), 9)} == {0.0}


@given(seed=SEEDS, prompt=LENGTHS, answer=LENGTHS, limit=st.integers(18, 40))
def test_jobs_fit_the_model_and_depend_on_the_seed_not_on_the_rate(
    seed: str, prompt: str, answer: str, limit: int
) -> None:
    lengths = parse_lengths(prompt), parse_lengths(answer)
    slow = list(itertools.islice(workload.generate_jobs(seed, 1.0, *lengths, limit), 20))
    closed = list(itertools.islice(workload.generate_jobs(seed, None, *lengths, limit), 20))
    assert closed == [replace(job, due=0.0) for job in slow]
    assert all(job.prompt_tokens >= 1 and job.max_tokens >= 1 for job in slow)
    assert all(job.prompt_tokens + job.max_tokens <= limit for job in slow)


def test_lengths_that_cannot_fit_are_refused_before_anything_is_drawn() -> None:
    with pytest.raises(
        BenchError, match=r"of 10 \+ 64 tokens are too long for the model, which takes 64; lower --prompt-"
    ):
        workload.generate_jobs("0", None, Uniform(1, 10), Uniform(64, 64), 64)


def test_a_job_that_is_too_long_keeps_its_answer_as_far_as_any_prompt_can() -> None:
    assert workload.fitted(GenerateJob(0, 0.0, 60, 20), 64) == GenerateJob(0, 0.0, 44, 20)
    assert workload.fitted(GenerateJob(0, 0.0, 5, 100), 64) == GenerateJob(0, 0.0, 1, 63)
    assert workload.fitted(GenerateJob(0, 0.0, 32, 32), 64) == GenerateJob(0, 0.0, 32, 32)


def test_source_and_answer_of_a_sequence_to_sequence_model_have_a_limit_each() -> None:
    assert workload.fitted(GenerateJob(0, 0.0, 60, 20), 64, 20) == GenerateJob(0, 0.0, 60, 20)
    assert workload.fitted(GenerateJob(0, 0.0, 99, 99), 64, 20) == GenerateJob(0, 0.0, 64, 20)
    jobs = workload.generate_jobs("0", None, Uniform(60, 64), Uniform(20, 20), 64, 20)
    assert 60 <= next(jobs).prompt_tokens <= 64
    with pytest.raises(BenchError, match="prompt of 65 tokens is too long for the model, whose longest source has 64"):
        workload.generate_jobs("0", None, Uniform(1, 65), Uniform(20, 20), 64, 20)
    with pytest.raises(BenchError, match="an answer of 21 tokens is too long for the model, whose longest has 20"):
        workload.generate_jobs("0", None, Uniform(1, 64), Uniform(21, 21), 64, 20)


def test_random_ids_cover_the_vocabulary_and_stay_in_it() -> None:
    assert set(workload.random_ids(random.Random(0), 500, 7)) == set(range(7))


def test_made_up_words_are_as_many_as_asked_for() -> None:
    words = workload.random_words(random.Random(0), 30).split(" ")
    assert len(words) == 30
    assert {2 <= len(word) <= 9 and word.isalpha() for word in words} == {True}
