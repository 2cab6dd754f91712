"""How pieces reach who waits for them."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from polyhead.server.engine import generator
from polyhead.server.engine.answer import Answer, deliver_all
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import FinishReason, GenerationRequest, Piece, Sampling, Stopping
from polyhead.server.errors import Unavailable
from polyhead.server.runtime.decoder import Decoder, StepOutput
from tests.decoders import CAPACITY, LIMITS, byte_tokenizer, tiny_decoder, tiny_graph, tiny_manifest
from tests.observers import Unwatched
from tests.turns import started


def empty_answer() -> Answer:
    return Answer(lambda: None, lambda: None)


async def test_a_reader_gets_what_came_before_it_waited_and_what_comes_while_it_does() -> None:
    answer = empty_answer()
    answer.deliver([Piece("a", (1,))])
    assert (await anext(answer)).text == "a"
    waiting = await started(anext(answer))
    answer.deliver([Piece("b", (2,))])
    answer.deliver([Piece("c", (3,), finish_reason=FinishReason.EOS)])
    assert (await waiting).token_ids == (2, 3)
    with pytest.raises(StopAsyncIteration):
        await anext(answer)


async def test_a_reader_who_stopped_waiting_can_come_back() -> None:
    answer = empty_answer()
    waiting = await started(anext(answer))
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    answer.deliver([Piece("a", (1,))])
    assert (await anext(answer)).text == "a"


@pytest.mark.parametrize(("seconds", "times"), [(60.0, 1), (0.0, 2)])
async def test_first_tokens_that_come_soon_after_each_other_wake_the_loop_once(
    monkeypatch: pytest.MonkeyPatch, seconds: float, times: int
) -> None:
    """Prompts that differ too much in length to share a call, and whose first token is the last one."""
    woken, _ = await read_all(monkeypatch, seconds, [(5,), tuple(range(1, 17))], tokens=1)
    assert woken == times


@pytest.mark.parametrize(("answers", "seconds", "times"), [(2, 60.0, 2), (2, 0.0, 8), (1, 60.0, 8)])
async def test_what_is_in_the_middle_of_several_answers_is_told_together_and_of_a_single_one_step_by_step(
    monkeypatch: pytest.MonkeyPatch, answers: int, seconds: float, times: int
) -> None:
    woken, _ = await read_all(monkeypatch, seconds, [(5,)] * answers, tokens=8)
    assert woken == times


async def test_answers_are_the_same_told_together_and_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [(5,), (6, 7), (8,) * 20]
    at_once, together = [(await read_all(monkeypatch, seconds, prompts, tokens=9, samples=2))[1] for seconds in (0, 60)]
    assert at_once == together


class Slow(Decoder):
    """Reads prompts in an hour each by its own clock, on which everything else takes no time. From the third on it first waits until
    somebody has read on."""

    def __init__(self) -> None:
        super().__init__(tiny_graph(), tiny_manifest(), slots=4, capacity=CAPACITY)
        self.hours = self.pairs = 0
        self.has_more_to_tell, self.third_is_there, self.has_read_on = (threading.Event() for _ in range(3))

    def decode(self, tokens: Any, *args: Any, **kwargs: Any) -> StepOutput:
        self.pairs += len(tokens) == 2
        if self.pairs == 2:  # the first two have got tokens behind their first ones
            self.has_more_to_tell.set()
            assert self.third_is_there.wait(60)
        return super().decode(tokens, *args, **kwargs)

    def prefill(self, *args: Any, **kwargs: Any) -> StepOutput:
        self.hours += 1
        assert self.hours < 3 or self.has_read_on.wait(60), "what was there already came no earlier"
        return super().prefill(*args, **kwargs)


async def test_tokens_in_the_middle_of_answers_do_not_wait_for_a_prompt_that_takes_long() -> None:
    decoder = Slow()
    engine = Generator(decoder, byte_tokenizer(), LIMITS, Unwatched(), clock=lambda: 3600 * decoder.hours)
    greedy, stopping = Sampling(seed=0, temperature=0.0), Stopping(max_tokens=60, ignore_eos=True)
    engine.start()
    first, second = (engine.submit(GenerationRequest(prompt, greedy, stopping)) for prompt in ((5,), (6,) * 16))
    await anext(first)
    await anext(second)
    assert await asyncio.to_thread(decoder.has_more_to_tell.wait, 60)
    third = engine.submit(GenerationRequest((7,), greedy, stopping))
    decoder.third_is_there.set()
    await anext(first)
    decoder.has_read_on.set()
    await anext(third)
    assert decoder.hours == 3
    engine.close()


async def test_who_still_reads_when_the_engine_closes_gets_all_tokens_before_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generator, "TOLD_TOGETHER_SECONDS", 60.0)
    engine = Generator(tiny_decoder(4), byte_tokenizer(), LIMITS, Unwatched())
    request = GenerationRequest((5,), Sampling(seed=0, temperature=0.0), Stopping(max_tokens=60, ignore_eos=True))
    engine.start()
    alone = [token async for piece in engine.submit(request) for token in piece.token_ids]
    answers = [engine.submit(request) for _ in range(2)]
    told = [list((await anext(answer)).token_ids) for answer in answers]
    engine.close()
    for answer, tokens in zip(answers, told, strict=True):
        with suppress(Unavailable):  # unless it was over by then
            async for piece in answer:
                tokens += piece.token_ids
        assert len(tokens) > 1
        assert tokens == alone[: len(tokens)]


async def read_all(
    monkeypatch: pytest.MonkeyPatch, seconds: float, prompts: list[tuple[int, ...]], tokens: int, samples: int = 1
) -> tuple[int, list[list[tuple[str, list[int]]]]]:
    """How often an engine calls the event loop of who reads its answers, which begin together and have so many tokens; and text and
    tokens of each sample of each answer."""
    monkeypatch.setattr(generator, "TOLD_TOGETHER_SECONDS", seconds)
    loop, woken = asyncio.get_running_loop(), 0
    wake = loop.call_soon_threadsafe

    def counting(callback: Callable[..., Any], *arguments: Any) -> asyncio.Handle:
        nonlocal woken
        woken += callback is deliver_all
        return wake(callback, *arguments)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
    engine = Generator(tiny_decoder(4), byte_tokenizer(), LIMITS, Unwatched())
    greedy, stopping = Sampling(seed=0, temperature=0.0), Stopping(max_tokens=tokens, ignore_eos=True)
    answers = [engine.submit(GenerationRequest(prompt, greedy, stopping, samples=samples)) for prompt in prompts]
    engine.start()
    told = []
    for answer in answers:
        of_samples: list[tuple[str, list[int]]] = [("", [])] * samples
        async for piece in answer:
            text, ids = of_samples[piece.sample_index]
            of_samples[piece.sample_index] = text + piece.text, [*ids, *piece.token_ids]
        told.append(of_samples)
    engine.close()
    assert all(len(ids) == tokens for of_samples in told for _, ids in of_samples)
    return woken, told
