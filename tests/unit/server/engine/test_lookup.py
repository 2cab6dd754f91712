"""Prompt lookup in the engine: guesses take calls of their own, and rows without one share theirs as ever."""

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import GenerationRequest, Sampling, Stopping
from polyhead.server.runtime.decoder import Decoder, StepOutput
from tests.decoders import CAPACITY, END, LIMITS, byte_tokenizer, tiny_graph, tiny_manifest
from tests.observers import Unwatched
from tests.traffic import bits, samples


class Counting(Decoder):
    """Of calls, by kind and rows; `fails` breaks those that check guesses."""

    fails = False

    def __init__(self) -> None:
        super().__init__(tiny_graph(), tiny_manifest(), slots=2, capacity=CAPACITY)
        self.calls: Counter[str] = Counter()

    def decode(self, tokens: Any, *args: Any, **kwargs: Any) -> StepOutput:
        self.calls[f"rows {len(tokens)}"] += 1
        return super().decode(tokens, *args, **kwargs)

    def extend(self, *args: Any, **kwargs: Any) -> StepOutput:
        self.calls["guesses"] += 1
        if self.fails:
            raise RuntimeError("the check failed")
        return super().extend(*args, **kwargs)


def engine_of(decoder: Decoder) -> Generator:
    engine = Generator(decoder, byte_tokenizer(END), LIMITS, Unwatched())
    engine.start()
    return engine


VARIED = GenerationRequest((5, 6, 7), Sampling(seed=1, temperature=1.5), Stopping(max_tokens=60, ignore_eos=True))
GUESSING = replace(VARIED, prompt=(9, 8, 7), prompt_lookup=True)
REPEATING = replace(
    GUESSING,
    prompt=(10, 20, 30) * 6,
    sampling=Sampling(seed=0, temperature=0.0, logit_bias=((10, 100.0),)),
)
"""Nearly always has a guess, and it is right."""


async def test_rows_without_a_guess_share_their_call_though_one_asks_for_guesses() -> None:
    decoder = Counting()
    engine = engine_of(decoder)
    await asyncio.gather(samples(engine, VARIED), samples(engine, GUESSING))
    engine.close()
    assert not decoder.calls["guesses"], "this request's tokens do not repeat"
    assert decoder.calls["rows 2"] >= 55
    assert decoder.calls["rows 1"] <= 5


async def test_guesses_are_checked_in_a_call_of_their_own_beside_the_neighbours_step_whose_bits_stay() -> None:
    decoder = Counting()
    engine = engine_of(decoder)
    alone = bits(await samples(engine, VARIED))
    plain, _ = await asyncio.gather(samples(engine, VARIED), samples(engine, REPEATING))
    engine.close()
    assert bits(plain) == alone
    assert decoder.calls["guesses"] > 0


async def test_a_check_that_fails_is_told_to_its_own_request_alone() -> None:
    decoder = Counting()
    engine = engine_of(decoder)
    alone = bits(await samples(engine, VARIED))
    decoder.fails = True
    plain, guessing = await asyncio.gather(samples(engine, VARIED), samples(engine, REPEATING), return_exceptions=True)
    assert isinstance(guessing, RuntimeError)
    assert isinstance(plain, list)
    assert bits(plain) == alone
    engine.check_integrity()
    engine.close()
