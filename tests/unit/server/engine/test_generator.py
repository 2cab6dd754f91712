"""The generation engine on a real graph: answers, ends, and that neither traffic nor neighbours change a bit."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from structlog.testing import capture_logs

from polyhead.server.constraints import Kind
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import BeamOptions, FinishReason, GenerationRequest, Sampling, Stopping
from polyhead.server.errors import InvalidInput, Overloaded, Unavailable
from polyhead.server.runtime.decoder import Decoder, StepOutput
from tests.decoders import (
    CAPACITY,
    CHUNK,
    END,
    LIMITS,
    VOCABULARY,
    Faulty,
    byte_tokenizer,
    tiny_decoder,
    tiny_gpt,
    tiny_graph,
    tiny_manifest,
)
from tests.observers import Unwatched
from tests.traffic import (
    INDEPENDENT,
    SHARED,
    TRAFFIC,
    Arrival,
    Whole,
    assert_answers_do_not_depend_on,
    bits,
    grammar,
    samples,
)
from tests.turns import started

GREEDY = Sampling(seed=0, temperature=0.0)


def generator(slots: int = 4, end: int | None = None, prefix_slots: int = 0, **limits: int) -> Generator:
    decoder = tiny_decoder(slots, prefix_slots)
    engine = Generator(decoder, byte_tokenizer(end), replace(LIMITS, **limits), Unwatched())
    engine.start()
    return engine


@pytest.fixture
async def engine() -> AsyncIterator[Generator]:
    engine = generator()
    yield engine
    engine.check_integrity()
    engine.close()


async def answer(engine: Generator, request: GenerationRequest) -> Whole:
    return (await samples(engine, request))[0]


def request(prompt: tuple[int, ...] = (5, 6, 7), sampling: Sampling = GREEDY, **stopping: object) -> GenerationRequest:
    return GenerationRequest(prompt, sampling, replace(Stopping(max_tokens=12), **stopping))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", INDEPENDENT)
@settings(max_examples=10, deadline=None)
@given(traffic=TRAFFIC)
def test_an_answer_is_bit_for_bit_the_same_alone_and_in_any_traffic(kind: str, traffic: list[Arrival]) -> None:
    """A small one; tests/long/test_bits.py goes on for ten minutes."""
    assert_answers_do_not_depend_on(traffic, kind)


async def test_greedy_text_is_what_torch_says(engine: Generator) -> None:
    prompts = [tuple((7 * i + j) % VOCABULARY for j in range(n)) for i, n in enumerate((1, 2, 15, 16, 17, 50))]
    answers = await asyncio.gather(*(answer(engine, request(p, max_tokens=24)) for p in prompts))
    assert [list(a.token_ids) for a in answers] == [tiny_gpt().generate(list(p), 24) for p in prompts]


async def test_logprobs_are_those_of_torch(engine: Generator) -> None:
    prompt = (3, 1, 4, 1, 5)
    whole = await answer(engine, GenerationRequest(prompt, GREEDY, Stopping(max_tokens=5), logprobs=2))
    with torch.inference_mode():
        expected = tiny_gpt()(torch.tensor([prompt + whole.token_ids]))[0].log_softmax(-1)
    for i, entry in enumerate(whole.logprobs):
        row = expected[len(prompt) - 1 + i]
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
        assert [t.token_id for t in entry.top] == row.topk(2).indices.tolist()


async def test_an_end_token_ends_the_answer_and_has_no_text() -> None:
    first = tiny_gpt().generate([5, 6, 7], 12)
    engine = generator(end=first[4])
    whole = await answer(engine, request())
    assert (list(whole.token_ids), whole.reason) == (first[: first.index(first[4]) + 1], FinishReason.EOS)
    ignoring = await answer(engine, request(ignore_eos=True))
    assert (list(ignoring.token_ids), ignoring.reason) == (first, FinishReason.LENGTH)
    engine.close()


async def test_before_min_tokens_no_end_token_is_chosen() -> None:
    first = tiny_gpt().generate([5, 6, 7], 12)
    engine = generator(end=first[2])
    whole = await answer(engine, request(min_tokens=8))
    assert len(whole.token_ids) >= 8
    assert first[2] not in whole.token_ids[:8]
    engine.close()


async def test_a_stop_string_ends_the_answer_before_its_first_character(engine: Generator) -> None:
    whole = await answer(engine, request(max_tokens=60))
    stop = whole.text[10:13]
    stopped = await answer(engine, request(max_tokens=60, stop=(stop,)))
    assert stopped.reason is FinishReason.STOP
    assert stopped.text == whole.text[: whole.text.index(stop)]


async def test_a_cancelled_answer_frees_its_slot_for_who_waits(engine: Generator) -> None:
    long = [engine.submit(request(max_tokens=200)) for _ in range(4)]
    waiting = asyncio.ensure_future(answer(engine, request()))
    await anext(long[0])
    assert not waiting.done()
    long[0].cancel()
    assert (await waiting).reason is FinishReason.LENGTH
    for other in long[1:]:
        other.cancel()
    await engine.drain()


async def test_cancelling_twice_or_after_the_end_does_nothing(engine: Generator) -> None:
    over = engine.submit(request(max_tokens=1))
    assert [p.finish_reason async for p in over] == [FinishReason.LENGTH]
    over.cancel()
    over.cancel()
    assert [p async for p in over] == []


async def test_a_full_queue_rejects_at_once_and_says_when_to_come_back() -> None:
    engine = generator(slots=1, max_queue_requests=1)
    running = engine.submit(request(max_tokens=200))
    await anext(running)
    waiting = engine.submit(request(max_tokens=2))
    with pytest.raises(Overloaded, match="1 requests are waiting, the limit is 1") as error:
        engine.submit(request())
    assert error.value.retry_after_seconds > 0
    running.cancel()
    assert [p async for p in waiting][-1].finish_reason is FinishReason.LENGTH
    engine.check_integrity()
    engine.close()


async def test_a_draining_engine_answers_what_it_has_and_takes_no_more() -> None:
    engine = generator()
    running = await started(answer(engine, request(max_tokens=30)))
    draining = await started(engine.drain())
    with pytest.raises(Unavailable, match="draining"):
        engine.submit(request())
    await draining
    assert len((await running).token_ids) == 30
    engine.close()


async def test_closing_tells_everyone_who_still_waits() -> None:
    engine = generator(slots=1)
    answers = [engine.submit(request(max_tokens=200)) for _ in range(3)]
    engine.close()
    for unfinished in answers:
        with pytest.raises(Unavailable, match="stops"):
            _ = [p async for p in unfinished]


async def test_a_prefill_that_fails_is_told_to_its_own_request_alone(engine: Generator) -> None:
    """An id over the vocabulary makes the graph itself fail, in the middle of a neighbour's answer."""
    alone = await answer(engine, request(max_tokens=60))
    under_way = engine.submit(request(max_tokens=60))
    pieces = [await anext(under_way)]
    with pytest.raises(Exception, match="Gather"):
        await answer(engine, request(prompt=(VOCABULARY + 5,)))
    pieces += [piece async for piece in under_way]
    assert [token for piece in pieces for token in piece.token_ids] == list(alone.token_ids)


class Picky(Decoder):
    """Refuses to read several prompts at once."""

    refused = 0

    def prefill(self, lane: int, chunks: Any, *args: Any, **kwargs: Any) -> StepOutput:
        if len(chunks) > 1:
            self.refused += 1
            raise RuntimeError("one at a time")
        return super().prefill(lane, chunks, *args, **kwargs)


async def test_chunks_whose_common_call_fails_are_read_one_by_one(engine: Generator) -> None:
    prompts = [request(prompt=tuple(range(start, start + 3 * CHUNK))) for start in (10, 90, 170)]
    alone = [await answer(engine, one) for one in prompts]
    decoder = Picky(tiny_graph(), tiny_manifest(), slots=4, capacity=CAPACITY)
    picky = Generator(decoder, byte_tokenizer(), LIMITS, Unwatched())
    first, *others = (picky.submit(one) for one in prompts)  # all are there when it starts
    picky.start()
    for submitted, expected in zip((first, *others), alone, strict=True):
        tokens = [token async for piece in submitted for token in piece.token_ids]
        assert tokens == list(expected.token_ids)
    assert decoder.refused > 0
    picky.close()


def faulty() -> tuple[Faulty, Generator]:
    decoder = Faulty(tiny_graph(), tiny_manifest(), slots=4, capacity=CAPACITY)
    engine = Generator(decoder, byte_tokenizer(), LIMITS, Unwatched())
    engine.start()
    return decoder, engine


async def test_a_row_whose_logits_are_no_numbers_fails_alone() -> None:
    decoder, engine = faulty()
    alone = await answer(engine, request(max_tokens=40))
    decoder.break_row = decoder.calls + 20
    one, other = await asyncio.gather(
        *(answer(engine, request(max_tokens=40)) for _ in range(2)), return_exceptions=True
    )
    assert one == alone
    assert isinstance(other, ArithmeticError)
    await engine.drain()
    engine.check_integrity()
    engine.close()


async def test_a_step_that_fails_is_told_to_those_in_it_and_not_to_who_waits() -> None:
    decoder, engine = faulty()
    alone = await answer(engine, request(max_tokens=40))
    decoder.break_call = decoder.calls + 20
    everyone = await asyncio.gather(*(answer(engine, request(max_tokens=40)) for _ in range(5)), return_exceptions=True)
    assert [isinstance(one, RuntimeError) for one in everyone] == [True] * 4 + [False]
    assert everyone[4] == alone
    engine.close()


class Broken(Unwatched):
    """An observer that breaks its promise never to raise, once."""

    broken = False

    def queue_size(self, requests: int) -> None:
        if requests == 0 and not self.broken:
            self.broken = True
            raise OSError("no more metrics")


async def test_an_engine_that_dies_tells_everyone_and_takes_no_more() -> None:
    engine = Generator(tiny_decoder(), byte_tokenizer(), LIMITS, Broken())
    engine.start()
    with pytest.raises(Unavailable, match="engine failed"):
        await answer(engine, request())
    assert not engine.alive
    for enter in (lambda: engine.submit(request()), engine.check_room):
        with pytest.raises(Unavailable, match="engine failed"):
            enter()
    await engine.drain()
    engine.close()


async def test_an_idle_engine_whose_books_are_wrong_says_so_and_goes_on() -> None:
    engine = generator()
    with capture_logs() as logs:
        await answer(engine, request())
        engine._scheduler._waiting_tokens += 1
        assert len((await answer(engine, request())).token_ids) == 12
        await engine.drain()
    assert {(line["event"], line["log_level"]) for line in logs} == {("an idle engine contradicts itself", "error")}
    assert engine.alive
    engine.close()


@pytest.mark.parametrize("sampling", [Sampling(seed=0, top_k=35), Sampling(seed=0, top_k=35, typical_p=0.9), GREEDY])
async def test_a_vocabulary_smaller_than_the_candidates_asked_for_is_no_problem(sampling: Sampling) -> None:
    engine = Generator(tiny_decoder(vocabulary=40), byte_tokenizer(), LIMITS, Unwatched())
    engine.start()
    whole = await answer(engine, replace(request(sampling=sampling), logprobs=20))
    assert [len(entry.top) for entry in whole.logprobs] == [20] * 12
    engine.close()


async def test_bans_on_everything_are_no_bans() -> None:
    engine = Generator(tiny_decoder(vocabulary=40), byte_tokenizer(), LIMITS, Unwatched())
    engine.start()
    everything = tuple((i,) for i in range(40))
    banned = await answer(engine, request(sampling=Sampling(seed=4, bad_words=everything)))
    assert banned == await answer(engine, request(sampling=Sampling(seed=4)))
    engine.close()


async def test_what_passes_the_capacity_is_refused(engine: Generator) -> None:
    with pytest.raises(ValueError, match=f"slots of {CAPACITY} tokens"):
        engine.submit(request(prompt=(1,) * CAPACITY, max_tokens=1))
    full = await answer(engine, request(prompt=(1,) * (CAPACITY - 1), max_tokens=1))
    assert len(full.token_ids) == 1


async def test_samples_of_one_prompt_differ_and_each_is_what_it_is_among_any_number(engine: Generator) -> None:
    free = Sampling(seed=3, temperature=1.2)
    three = await samples(engine, replace(request(sampling=free), samples=3))
    assert len({whole.token_ids for whole in three}) == 3
    four = await samples(engine, replace(request(sampling=free), samples=4))
    assert four[:3] == three


class Counting(Unwatched):
    """Of tokens."""

    def __init__(self) -> None:
        self.first = self.following = 0

    def first_token(self, seconds: float) -> None:
        self.first += 1

    def inter_token(self, seconds: float) -> None:
        self.following += 1


async def test_a_request_has_one_first_token_however_many_samples_it_has() -> None:
    observer = Counting()
    engine = Generator(tiny_decoder(4), byte_tokenizer(None), LIMITS, observer)
    engine.start()
    await samples(engine, replace(request(max_tokens=5), samples=3))
    await samples(engine, replace(request(max_tokens=5), beam_search=BeamOptions(2)))
    assert (observer.first, observer.following) == (2, 3 * 4)
    engine.close()


async def test_leaving_while_samples_wait_for_their_prompt_frees_every_slot() -> None:
    engine = generator(prefill_budget_tokens=1)
    busy = engine.submit(request(max_tokens=100))
    await anext(busy)
    leaving = engine.submit(replace(request(prompt=(1,) * 200, max_tokens=5), samples=3))
    await anext(busy)
    leaving.cancel()
    assert len(await samples(engine, replace(request(), samples=3))) == 3
    busy.cancel()
    await engine.drain()
    engine.check_integrity()
    engine.close()


async def test_a_shared_beginning_is_prefilled_once() -> None:
    engine = generator(prefix_slots=1)
    first = await answer(engine, request(prompt=(*SHARED, 5)))
    second = await answer(engine, request(prompt=(*SHARED, 5)))
    third = await answer(engine, request(prompt=(*SHARED[:CHUNK], 9, 9)))
    assert first.counts is not None
    assert second.counts is not None
    assert third.counts is not None
    assert [w.counts.cached_prompt_tokens for w in (first, second, third) if w.counts] == [0, 2 * CHUNK, CHUNK]
    assert bits([second]) == bits([first])
    engine.close()


async def test_prompt_logprobs_are_those_of_torch(engine: Generator) -> None:
    prompt = tuple((5 * i) % VOCABULARY for i in range(2 * CHUNK + 3))
    whole = await answer(engine, replace(request(prompt=prompt, max_tokens=1), prompt_logprobs=1))
    with torch.inference_mode():
        expected = tiny_gpt()(torch.tensor([prompt]))[0].log_softmax(-1)
    assert [entry.token_id for entry in whole.prompt_logprobs] == list(prompt[1:])
    for i, entry in enumerate(whole.prompt_logprobs):
        assert entry.logprob == pytest.approx(expected[i, prompt[i + 1]].item(), abs=1e-4)
        assert entry.top[0].token_id == expected[i].argmax().item()


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        ("regex", "(yes|no), [0-9]{3}!", "(yes|no), [0-9]{3}!"),
        ("lark", 'start: "<" /[a-c]+/ ">"', "<[a-c]+>?"),
        ("json_schema", '{"enum": ["red", "green"]}', '"(red|green)"'),
    ],
)
async def test_a_constrained_answer_matches_its_grammar(kind: Kind, text: str, pattern: str) -> None:
    engine = generator(end=END)
    requests = [
        replace(request(sampling=s, max_tokens=40), grammar=grammar(kind, text))
        for s in (GREEDY, Sampling(seed=1), Sampling(seed=2, top_k=3), Sampling(seed=3, repetition_penalty=1.5))
    ]
    wholes = await asyncio.gather(*(answer(engine, r) for r in requests))
    assert all(re.fullmatch(pattern, w.text) for w in wholes), [w.text for w in wholes]
    engine.close()


async def test_a_grammar_that_grows_too_ambiguous_ends_its_own_answer_only() -> None:
    engine = generator(end=END)
    ambiguous = replace(request(max_tokens=200), grammar=grammar("lark", 'start: x\nx: "a" | x x | x x x'), samples=2)
    alone = await answer(engine, request(max_tokens=200))
    failing, neighbour = await asyncio.gather(
        samples(engine, ambiguous), answer(engine, request(max_tokens=200)), return_exceptions=True
    )
    assert isinstance(failing, InvalidInput)
    assert failing.field == "constraint.lark"
    assert neighbour == alone
    assert len((await answer(engine, request())).token_ids) == 12
    engine.check_integrity()
    engine.close()


async def test_who_stops_waiting_for_the_drain_leaves_the_engine_whole(engine: Generator) -> None:
    running = await started(answer(engine, request(max_tokens=100)))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.drain(), 0)
    assert len((await running).token_ids) == 100
    await engine.drain()


async def test_prompt_lookup_is_used_where_text_repeats_and_gives_the_greedy_answer(engine: Generator) -> None:
    """Guesses are checked in calls whose bits differ, so only the tokens are compared, where torch is not near a tie."""
    prompt = tuple([10, 20, 30, 40, 50] * 6)
    plain = await answer(engine, request(prompt=prompt, max_tokens=60))
    guided = await answer(engine, replace(request(prompt=prompt, max_tokens=60), prompt_lookup=True))
    assert guided.token_ids == plain.token_ids
    assert guided.text == plain.text
    assert guided.counts is not None
    assert guided.counts.drafted_tokens > 0
    assert 0 <= guided.counts.accepted_tokens <= guided.counts.drafted_tokens
