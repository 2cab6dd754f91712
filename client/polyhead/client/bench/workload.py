"""What to send: a seed decides every length, arrival and prompt, so that two runs, or two servers, get the same load."""

import itertools
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace

from polyhead.client.bench.errors import BenchError
from polyhead.client.bench.lengths import Lengths


@dataclass(frozen=True, slots=True)
class Job:
    """One request: which one, and when to send it, in seconds after the begin."""

    index: int
    due: float = 0.0
    """Only an open loop looks at it."""


@dataclass(frozen=True, slots=True)
class GenerateJob(Job):
    """A prompt and an answer of so many tokens."""

    prompt_tokens: int = 1
    max_tokens: int = 1


def arrivals(seed: str, rate: float | None) -> Iterator[Job]:
    """Endless. With a rate, requests a second, a Poisson process: the times between arrivals are exponential."""
    rng = random.Random(f"{seed} arrivals")
    due = 0.0
    for index in itertools.count():
        yield Job(index, due)
        if rate is not None:
            due += rng.expovariate(rate)


def generate_jobs(
    seed: str, rate: float | None, prompt: Lengths, answer: Lengths, limit: int, answer_limit: int = 0
) -> Iterator[GenerateJob]:
    """Endless; lengths depend on the seed alone, not on the rate. Draws beyond the model's limits, as `refusal` has them, are
    cut to them.

    Raises BenchError at once if prompt and answer cannot fit.
    """
    longest = GenerateJob(0, 0.0, prompt.largest or 1, answer.largest or 1)
    if why := refusal(longest, limit, answer_limit):
        raise BenchError(f"{why}; lower --prompt-tokens or --max-tokens")
    return _draw_jobs(seed, rate, (prompt, answer), (limit, answer_limit))


def _draw_jobs(
    seed: str, rate: float | None, lengths: tuple[Lengths, Lengths], limits: tuple[int, int]
) -> Iterator[GenerateJob]:
    rng = random.Random(f"{seed} lengths")
    prompt, answer = lengths
    for job in arrivals(seed, rate):
        yield fitted(GenerateJob(job.index, job.due, prompt.draw(rng), answer.draw(rng)), *limits)


def refusal(job: GenerateJob, limit: int, answer_limit: int = 0) -> str | None:
    """Why a model does not take a job, None if it does. It takes prompt and answer of `limit` tokens together; with an
    `answer_limit`, of a sequence-to-sequence model, a source and an answer of so many each."""
    prompt, answer = job.prompt_tokens, job.max_tokens
    if not answer_limit:
        too_long = f"prompt and answer of {prompt} + {answer} tokens are too long for the model, which takes {limit}"
        return too_long if prompt + answer > limit else None
    if prompt > limit:
        return f"a prompt of {prompt} tokens is too long for the model, whose longest source has {limit}"
    if answer > answer_limit:
        return f"an answer of {answer} tokens is too long for the model, whose longest has {answer_limit}"
    return None


def fitted(job: GenerateJob, limit: int, answer_limit: int = 0) -> GenerateJob:
    """The job with its answer cut to what any prompt leaves of `limit` tokens, then its prompt to what the answer leaves; with
    an `answer_limit` each to its own."""
    if refusal(job, limit, answer_limit) is None:
        return job
    if answer_limit:
        return replace(job, max_tokens=min(job.max_tokens, answer_limit), prompt_tokens=min(job.prompt_tokens, limit))
    answer = min(job.max_tokens, limit - 1)
    return replace(job, max_tokens=answer, prompt_tokens=min(job.prompt_tokens, limit - answer))


def random_ids(rng: random.Random, count: int, vocabulary_size: int) -> list[int]:
    """Token ids, each in [0, vocabulary size)."""
    return rng.choices(range(vocabulary_size), k=count)


def random_words(rng: random.Random, count: int) -> str:
    """Made-up words of 2 to 9 letters with a space between them."""
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(count))
