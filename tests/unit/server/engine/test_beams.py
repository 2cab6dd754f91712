"""Beam search on a real decoder of few tokens, where every answer can be counted."""

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import BeamOptions, FinishReason, GenerationRequest, Sampling, Stopping
from polyhead.server.runtime.decoder import Decoder
from tests.decoders import (
    CAPACITY,
    CHUNK,
    LIMITS,
    Faulty,
    byte_tokenizer,
    tiny_decoder,
    tiny_gpt,
    tiny_graph,
    tiny_manifest,
)
from tests.observers import Unwatched
from tests.traffic import samples

VOCABULARY = 5
END = 4
PROMPT = (1, 3, 2, 0, 1)
WIDTH = 32


class Watching(Unwatched):
    """Counts the model's calls, and holds up the engine after the fifth with so many rows until it may `go` on."""

    def __init__(self, pause_at_rows: int = 0) -> None:
        self.calls = self.last_rows = self._seen = 0
        self._pause_at_rows = pause_at_rows
        self.pausing, self.go = threading.Event(), threading.Event()

    def ran(self, **call: Any) -> None:
        self.calls += 1
        self.last_rows = call["rows"]
        self._seen += self.last_rows == self._pause_at_rows
        if self._seen == 5 and not self.pausing.is_set():
            self.pausing.set()
            self.go.wait(60)


def engine_with(decoder: Decoder, observer: Unwatched) -> Generator:
    generator = Generator(decoder, byte_tokenizer(END), LIMITS, observer)
    generator.start()
    return generator


def faulty(observer: Unwatched) -> tuple[Faulty, Generator]:
    decoder = Faulty(tiny_graph(VOCABULARY), tiny_manifest(VOCABULARY), slots=4, capacity=CAPACITY)
    return decoder, engine_with(decoder, observer)


async def ended(generator: Generator) -> None:
    """Wait for the last answer; then every slot must be free."""
    await generator.drain()
    generator.check_integrity()
    generator.close()


@pytest.fixture
async def engine() -> AsyncIterator[Generator]:
    generator = engine_with(tiny_decoder(slots=WIDTH, vocabulary=VOCABULARY), Unwatched())
    yield generator
    await ended(generator)


def search(
    width: int, length: int = 2, samples: int = 1, prompt: tuple[int, ...] = PROMPT, **options: object
) -> GenerationRequest:
    beams = BeamOptions(width, **options)  # type: ignore[arg-type]
    sampling, stopping = Sampling(seed=0, temperature=0.0), Stopping(max_tokens=length)
    return GenerationRequest(prompt, sampling, stopping, logprobs=0, samples=samples, beam_search=beams)


def endless(width: int) -> GenerationRequest:
    """A search that no end token ends."""
    return replace(search(width), stopping=Stopping(max_tokens=200, ignore_eos=True))


NEIGHBOUR = replace(search(1), prompt=(2, 2, 0), beam_search=None, stopping=Stopping(max_tokens=60, ignore_eos=True))


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


def adjusted_sum(sampling: Sampling, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """Of an answer's log-probabilities, which repetition penalty and biases change one by one."""
    biases, total = dict(sampling.logit_bias), 0.0
    with torch.inference_mode():
        logprobs = tiny_gpt(VOCABULARY)(torch.tensor([[*prompt, *answer]]))[0].log_softmax(-1)
    for i, token in enumerate(answer):
        logprob = float(logprobs[len(prompt) - 1 + i, token])
        logprob *= sampling.repetition_penalty if token in (*prompt, *answer[:i]) else 1.0
        total += logprob + biases.get(token, 0.0)
    return total


def adjusted_sums(sampling: Sampling, length: int) -> dict[tuple[int, ...], float]:
    return {answer: adjusted_sum(sampling, PROMPT, answer) for _, answer in every_answer(length, 0.0)}


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=0, temperature=0.0, repetition_penalty=1.7),
        Sampling(seed=0, temperature=0.0, repetition_penalty=0.5),
        Sampling(seed=0, temperature=0.0, logit_bias=((1, 3.5), (2, -2.0))),
        Sampling(seed=0, temperature=0.0, repetition_penalty=1.7, logit_bias=((1, 3.5), (END, 0.5))),
    ],
)
async def test_penalty_and_biases_change_the_log_probabilities_that_are_compared_and_told(
    engine: Generator, sampling: Sampling, length_penalty: float
) -> None:
    expected = adjusted_sums(sampling, 3)
    ranked = sorted(
        ((score / len(answer) ** length_penalty, answer) for answer, score in expected.items()), reverse=True
    )
    wanted = replace(search(WIDTH, 3, samples=5, length_penalty=length_penalty), sampling=sampling)
    found = await samples(engine, wanted)
    assert [answer.token_ids for answer in found] == [answer for _, answer in ranked[:5]]
    assert [answer.score for answer in found] == pytest.approx([score for score, _ in ranked[:5]], abs=1e-4)
    plain = {answer: score for score, answer in every_answer(3, 0.0)}
    for answer in found:  # what is reported of a token is the model's own
        assert sum(entry.logprob for entry in answer.logprobs) == pytest.approx(plain[answer.token_ids], abs=1e-4)


async def test_a_beam_knows_what_its_own_beginning_said_and_no_other_s(engine: Generator) -> None:
    """Far fewer beams than beginnings, so that rows take over others' beginnings all the time."""
    sampling = Sampling(seed=0, temperature=0.0, repetition_penalty=3.0)
    for prompt in ((0,), (1,), (2, 2), (3, 3, 3)):
        wanted = search(4, 8, samples=4, prompt=prompt, length_penalty=0.0)
        for answer in await samples(engine, replace(wanted, sampling=sampling)):
            assert answer.score == pytest.approx(adjusted_sum(sampling, prompt, answer.token_ids), abs=1e-4)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0])
async def test_a_search_goes_on_while_biases_may_bring_a_beginning_before_what_is_complete(
    engine: Generator, length_penalty: float
) -> None:
    sampling = Sampling(seed=0, temperature=0.0, logit_bias=((0, 4.0), (1, 4.0), (2, 4.0), (3, 4.0), (END, 6.0)))
    expected = adjusted_sums(sampling, 3)
    best = max(score / len(answer) ** length_penalty for answer, score in expected.items())
    (found,) = await samples(engine, replace(search(WIDTH, 3, length_penalty=length_penalty), sampling=sampling))
    assert found.score == pytest.approx(best, abs=1e-4)


async def test_a_stop_token_completes_an_answer_as_an_end_token_does_and_has_no_text(engine: Generator) -> None:
    ends = await samples(engine, search(3, 6, samples=3))
    stops = replace(search(3, 6, samples=3), stopping=Stopping(6, ignore_eos=True, stop_token_ids=(END,)))
    found = await samples(engine, stops)
    assert [one._replace(reason=FinishReason.EOS) for one in found if one.reason is FinishReason.STOP] == [
        one for one in ends if one.reason is FinishReason.EOS
    ]
    assert any(one.reason is FinishReason.STOP for one in found)


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


async def test_early_stopping_takes_fewer_steps_and_finds_nothing_better() -> None:
    observer = Watching()
    engine = engine_with(tiny_decoder(slots=WIDTH, vocabulary=VOCABULARY), observer)
    early = await samples(engine, search(3, 40, samples=3, early_stopping=True))
    early_calls, observer.calls = observer.calls, 0
    patient = await samples(engine, search(3, 40, samples=3))
    assert early_calls < observer.calls
    assert len(early) == len(patient) == 3
    assert (patient[0].score or 0) >= (early[0].score or 0)
    await ended(engine)


async def test_prompt_logprobs_come_with_the_first_answer_and_are_those_without_a_search(engine: Generator) -> None:
    prompt = tuple(i * i % VOCABULARY for i in range(2 * CHUNK + 3))
    wanted = replace(search(3, samples=3, prompt=prompt), prompt_logprobs=1)
    (plain,) = await samples(engine, replace(wanted, beam_search=None, samples=1))
    first, *others = await samples(engine, wanted)
    assert [entry.token_id for entry in first.prompt_logprobs] == list(prompt[1:])
    assert first.prompt_logprobs == plain.prompt_logprobs
    assert [answer.prompt_logprobs for answer in others] == [(), ()]


async def test_a_search_that_its_caller_leaves_frees_every_slot(engine: Generator) -> None:
    answer = engine.submit(search(WIDTH, 200))
    answer.cancel()
    assert await samples(engine, search(WIDTH, 3))


async def test_a_search_cancelled_while_it_decodes_ends_and_leaves_its_neighbour_the_same_bits() -> None:
    observer = Watching(pause_at_rows=4)
    engine = engine_with(tiny_decoder(slots=4, vocabulary=VOCABULARY), observer)
    alone = await samples(engine, NEIGHBOUR)
    searching = engine.submit(endless(3))  # first, so that the neighbour's row moves when it goes
    neighbour = asyncio.ensure_future(samples(engine, NEIGHBOUR))
    assert await asyncio.to_thread(observer.pausing.wait, 60)
    searching.cancel()
    observer.go.set()
    assert await neighbour == alone
    assert observer.last_rows == 1
    assert [piece async for piece in searching] == []
    await ended(engine)


async def test_a_search_whose_step_fails_tells_its_caller_and_frees_its_slots_for_who_waits() -> None:
    decoder, engine = faulty(Unwatched())
    alone = await samples(engine, search(3, 12))
    decoder.break_call = decoder.calls + 5
    failing, waiting = await asyncio.gather(
        samples(engine, endless(3)), samples(engine, search(3, 12)), return_exceptions=True
    )
    assert isinstance(failing, RuntimeError)
    assert str(failing) == "the call failed"
    assert waiting == alone
    await ended(engine)


async def test_a_search_with_logits_that_are_no_numbers_fails_alone() -> None:
    observer = Watching()
    decoder, engine = faulty(observer)
    alone = await samples(engine, NEIGHBOUR)
    decoder.break_row = decoder.calls + 5
    failing, neighbour = await asyncio.gather(
        samples(engine, endless(3)), samples(engine, NEIGHBOUR), return_exceptions=True
    )
    assert isinstance(failing, ArithmeticError)
    assert neighbour == alone
    assert observer.last_rows == 1
    await ended(engine)
