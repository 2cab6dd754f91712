"""Where answers end: stop tokens, and stop strings beside `min_tokens`."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import FinishReason, GenerationRequest, Sampling, Stopping
from tests.decoders import END, LIMITS, byte_tokenizer, tiny_decoder
from tests.observers import Unwatched
from tests.traffic import Whole, grammar, samples


@pytest.fixture
async def engine() -> AsyncIterator[Generator]:
    generator = Generator(tiny_decoder(), byte_tokenizer(END), LIMITS, Unwatched())
    generator.start()
    yield generator
    generator.check_integrity()
    generator.close()


async def answer(engine: Generator, request: GenerationRequest) -> Whole:
    return (await samples(engine, request))[0]


def greedy(max_tokens: int = 40, **stopping: object) -> GenerationRequest:
    limits = replace(Stopping(max_tokens), **stopping)  # type: ignore[arg-type]
    return GenerationRequest((5, 6, 7), Sampling(seed=0, temperature=0.0), limits)


def only(letter: str, max_tokens: int = 20, **stopping: object) -> GenerationRequest:
    """Its answer is this letter over and over."""
    token = byte_tokenizer().encode(letter)[0]
    sampling = Sampling(seed=0, temperature=0.0, logit_bias=((token, 100.0),))
    return replace(greedy(max_tokens, **stopping), sampling=sampling)


@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize("prompt_lookup", [False, True])
async def test_a_stop_token_ends_the_answer_and_has_no_text(
    engine: Generator, ignore_eos: bool, prompt_lookup: bool
) -> None:
    whole = await answer(engine, greedy())
    token = whole.token_ids[20]
    tokens = whole.token_ids[: whole.token_ids.index(token) + 1]
    request = replace(greedy(stop_token_ids=(token,), ignore_eos=ignore_eos), prompt_lookup=prompt_lookup)
    stopped = await answer(engine, request)
    assert (stopped.token_ids, stopped.reason) == (tokens, FinishReason.STOP)
    assert stopped.text == byte_tokenizer().decode(tokens[:-1])


async def test_before_min_tokens_no_stop_token_is_chosen(engine: Generator) -> None:
    token = (await answer(engine, greedy())).token_ids[2]
    whole = await answer(engine, greedy(stop_token_ids=(token,), min_tokens=8, ignore_eos=True))
    assert len(whole.token_ids) >= 8
    assert token not in whole.token_ids[:8]


async def test_a_stop_token_may_cut_a_constrained_answer_short(engine: Generator) -> None:
    token = byte_tokenizer().encode("a")[0]
    request = replace(only("a", stop_token_ids=(token,)), grammar=grammar("regex", "ba{5}"))
    whole = await answer(engine, request)
    assert (whole.text, len(whole.token_ids), whole.reason) == ("b", 2, FinishReason.STOP)


async def test_before_min_tokens_a_stop_string_is_text_and_one_that_begins_there_still_ends_the_answer(
    engine: Generator,
) -> None:
    """Each token is a letter; the string is complete with the sixth."""
    found = {n: await answer(engine, only("a", stop=("aaaaaa",), min_tokens=n)) for n in (0, 3, 6, 7, 20)}
    assert [(len(one.token_ids), one.text, one.reason) for one in found.values()] == [
        (6, "", FinishReason.STOP),
        (6, "", FinishReason.STOP),
        (6, "", FinishReason.STOP),
        (7, "a", FinishReason.STOP),
        (20, "a" * 14, FinishReason.STOP),
    ]
