"""How pieces reach who waits for them."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from polyhead.server.engine import generator
from polyhead.server.engine.answer import Answer, deliver_all
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import FinishReason, GenerationRequest, Piece, Sampling, Stopping
from tests.decoders import LIMITS, byte_tokenizer, tiny_decoder
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
    assert await wakes(monkeypatch, seconds, [(5,), tuple(range(1, 17))], tokens=1) == times


@pytest.mark.parametrize(("answers", "seconds", "times"), [(2, 60.0, 2), (2, 0.0, 8), (1, 60.0, 8)])
async def test_what_is_in_the_middle_of_several_answers_is_told_together_and_of_a_single_one_step_by_step(
    monkeypatch: pytest.MonkeyPatch, answers: int, seconds: float, times: int
) -> None:
    assert await wakes(monkeypatch, seconds, [(5,)] * answers, tokens=8) == times


async def wakes(monkeypatch: pytest.MonkeyPatch, seconds: float, prompts: list[tuple[int, ...]], tokens: int) -> int:
    """How often an engine calls the event loop of who reads its answers, which begin together and have so many tokens."""
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
    answers = [engine.submit(GenerationRequest(prompt, greedy, stopping)) for prompt in prompts]
    engine.start()
    for answer in answers:
        assert len([token async for piece in answer for token in piece.token_ids]) == tokens
    engine.close()
    return woken
