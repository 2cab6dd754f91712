"""Beam search on a real decoder of few tokens, where every answer can be counted."""

from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import BeamOptions, FinishReason, GenerationRequest, Sampling, Stopping
from tests.decoders import LIMITS, SilentObserver, byte_tokenizer, tiny_decoder, tiny_gpt
from tests.traffic import samples

VOCABULARY = 5
END = 4
PROMPT = (1, 3, 2, 0, 1)
WIDTH = 32


@pytest.fixture
async def engine() -> AsyncIterator[Generator]:
    generator = Generator(
        tiny_decoder(slots=WIDTH, vocabulary=VOCABULARY), byte_tokenizer(END), LIMITS, SilentObserver()
    )
    generator.start()
    yield generator
    await generator.drain()
    generator.check_integrity()
    generator.close()


def search(
    width: int, length: int = 2, samples: int = 1, prompt: tuple[int, ...] = PROMPT, **options: object
) -> GenerationRequest:
    beams = BeamOptions(width, **options)  # type: ignore[arg-type]
    sampling, stopping = Sampling(seed=0, temperature=0.0), Stopping(max_tokens=length)
    return GenerationRequest(prompt, sampling, stopping, logprobs=0, samples=samples, beam_search=beams)


def every_answer(length: int, length_penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """All answers of at most so many tokens with their scores, by torch, the best first."""
    found: dict[tuple[int, ...], float] = {}
    for tokens in product(range(VOCABULARY), repeat=length):
        answer = tokens[: tokens.index(END) + 1] if END in tokens else tokens
        with torch.inference_mode():
            logprobs = tiny_gpt(VOCABULARY)(torch.tensor([[*PROMPT, *answer]]))[0].log_softmax(-1)
        places = range(len(PROMPT) - 1, len(PROMPT) - 1 + len(answer))
        total = sum(float(logprobs[place, token]) for place, token in zip(places, answer, strict=True))
        found[answer] = total / len(answer) ** length_penalty
    return sorted(((score, answer) for answer, score in found.items()), reverse=True)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
async def test_beams_as_many_as_there_are_answers_find_the_best_of_all_in_order(
    engine: Generator, length_penalty: float
) -> None:
    found = await samples(engine, search(WIDTH, samples=10, length_penalty=length_penalty))
    expected = every_answer(2, length_penalty)[:10]
    assert [answer.token_ids for answer in found] == [answer for _, answer in expected]
    assert [answer.score for answer in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [answer.reason for answer in found] == [
        FinishReason.EOS if answer[-1] == END else FinishReason.LENGTH for _, answer in expected
    ]


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0])
async def test_whatever_the_width_no_answer_comes_first_that_is_worse_than_the_greedy_one(
    engine: Generator, length_penalty: float
) -> None:
    random = np.random.default_rng(0)
    for _ in range(12):
        prompt = tuple(random.integers(0, END, 4).tolist())
        plain = replace(search(1, 12, prompt=prompt), beam_search=None)
        (greedy,) = await samples(engine, plain)
        own = sum(entry.logprob for entry in greedy.logprobs) / len(greedy.token_ids) ** length_penalty
        for width in (2, 3):
            (best,) = await samples(engine, search(width, 12, prompt=prompt, length_penalty=length_penalty))
            assert best.score is not None
            assert best.score >= own - 1e-5


async def test_early_stopping_ends_with_the_first_answers_that_are_complete(engine: Generator) -> None:
    early = await samples(engine, search(3, 40, samples=3, early_stopping=True))
    patient = await samples(engine, search(3, 40, samples=3))
    assert len(early) == len(patient) == 3
    assert (patient[0].score or 0) >= (early[0].score or 0)


async def test_a_search_that_its_caller_leaves_frees_every_slot(engine: Generator) -> None:
    answer = engine.submit(search(WIDTH, 200))
    answer.cancel()
    assert await samples(engine, search(WIDTH, 3))
