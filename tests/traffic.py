"""Mixes of requests drawn by hypothesis, and the promise that they are for: an answer does not depend on the traffic."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple
from unittest.mock import patch

import onnx_ir as ir
from hypothesis import strategies as st

from polyhead.export.adapter_inputs import add_adapters, write_adapters
from polyhead.export.quantize import CacheType, Quantization, QuantizationOptions, quantize_graph
from polyhead.export.quantize_cache import calibration_samples, to_int8_cache
from polyhead.server.bundle import Bundle
from polyhead.server.constraints import Constraint, Grammar, Kind
from polyhead.server.engine import scheduler
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import (
    BeamOptions,
    Counts,
    FinishReason,
    GenerationRequest,
    Piece,
    Sampling,
    Stopping,
    TokenLogprob,
)
from polyhead.server.runtime import threads
from polyhead.server.runtime.decoder import Decoder
from tests.adapters import random_adapter
from tests.decoders import (
    CAPACITY,
    CHUNK,
    END,
    LIMITS,
    VOCABULARY,
    byte_grammars,
    byte_tokenizer,
    tiny_gpt,
    tiny_graph,
    tiny_manifest,
)
from tests.observers import Unwatched


class Whole(NamedTuple):
    """An answer put together."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...]
    reason: FinishReason | None
    prompt_logprobs: tuple[TokenLogprob, ...]
    counts: Counts | None
    score: float | None = None
    """Of an answer that beam search found."""


def whole(pieces: list[Piece]) -> Whole:
    return Whole(
        tuple(i for p in pieces for i in p.token_ids),
        "".join(p.text for p in pieces),
        tuple(t for p in pieces for t in p.logprobs),
        pieces[-1].finish_reason,
        pieces[0].prompt_logprobs,
        pieces[-1].counts,
        pieces[-1].score,
    )


def bits(wholes: list[Whole]) -> list[Whole]:
    """What must not depend on the traffic: everything but how it was computed."""
    return [one._replace(counts=None) for one in wholes]


def grammar(kind: Kind, text: str) -> Grammar:
    return byte_grammars().compile(Constraint(kind, text))


async def samples(engine: Generator, request: GenerationRequest, seen: asyncio.Semaphore | None = None) -> list[Whole]:
    """All samples of a request, or answers of its search, put together; `seen` is released once a piece."""
    pieces: list[list[Piece]] = [[] for _ in range(request.samples)]
    async for piece in engine.submit(request):
        pieces[piece.sample_index].append(piece)
        if seen:
            seen.release()
    return [whole(parts) for parts in pieces if parts]  # beams may find fewer answers than were asked for


SHARED = tuple(range(40, 40 + 2 * CHUNK))
"""A beginning that some prompts share, for the prefix cache."""

PROMPTS = st.builds(
    lambda shared, own: (SHARED if shared else ()) + tuple(own),
    st.booleans(),
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=3 * CHUNK + 2),
)

STOPPINGS = st.builds(
    lambda max_tokens, min_tokens, stop, ignore_eos, stop_tokens: Stopping(
        max_tokens, min(min_tokens, max_tokens), tuple(stop), ignore_eos, stop_tokens
    ),
    max_tokens=st.integers(1, 24),
    min_tokens=st.sampled_from([0, 0, 5, 24]),
    stop=st.lists(st.text("abcdeé", min_size=1, max_size=2), max_size=2),
    ignore_eos=st.sampled_from([False, False, True]),
    stop_tokens=st.sampled_from([(), (), tuple(range(100, 110))]),
)


def without_contradiction(request: GenerationRequest) -> GenerationRequest:
    """A grammar says when to end, so that a server refuses what would have to end elsewhere."""
    if request.grammar is None:
        return request
    return replace(request, stopping=replace(request.stopping, min_tokens=0, ignore_eos=False))


PLAIN = st.builds(
    GenerationRequest,
    prompt=PROMPTS,
    sampling=st.builds(
        Sampling,
        seed=st.integers(0, 2**64 - 1),
        temperature=st.sampled_from([0.0, 0.8, 1.5]),
        top_k=st.sampled_from([0, 10, 100, 200]),
        top_p=st.sampled_from([0.8, 1.0]),
        min_p=st.sampled_from([0.0, 0.02]),
        typical_p=st.sampled_from([1.0, 0.9]),
        repetition_penalty=st.sampled_from([1.0, 1.2]),
        presence_penalty=st.sampled_from([0.0, 0.5]),
        frequency_penalty=st.sampled_from([0.0, 0.7]),
        logit_bias=st.sampled_from([(), ((7, 3.0),)]),
        bad_words=st.sampled_from([(), ((5,), (6, 7))]),
    ),
    stopping=STOPPINGS,
    logprobs=st.sampled_from([None, 0, 3]),
    prompt_logprobs=st.sampled_from([None, None, 2]),
    samples=st.sampled_from([1, 1, 1, 3]),
    grammar=st.sampled_from([None, None, "[a-z]{2,9}( [0-9]+)?"]).map(lambda r: r and grammar("regex", r)),
    priority=st.sampled_from([0, 0, 1]),
    adapter=st.sampled_from(["", "", "north", "south"]),
).map(without_contradiction)


SEARCHES = st.builds(
    lambda request, width, samples, length_penalty, early_stopping: replace(
        request,
        sampling=Sampling(seed=0, temperature=0.0, bad_words=request.sampling.bad_words),
        stopping=replace(request.stopping, stop=()),
        samples=min(samples, width),
        beam_search=BeamOptions(width, length_penalty, early_stopping),
    ),
    PLAIN,
    width=st.integers(1, 3),
    samples=st.integers(1, 3),
    length_penalty=st.sampled_from([0.0, 1.0, -1.0]),
    early_stopping=st.booleans(),
)

GUESSED = st.builds(
    lambda request, token, repeats: replace(
        request,
        prompt=(token, 7, 7) * 5,
        prompt_lookup=True,
        sampling=replace(request.sampling, temperature=0.0, logit_bias=((7, 100.0),)) if repeats else request.sampling,
    ),
    PLAIN,
    token=st.integers(0, VOCABULARY - 1),
    repeats=st.booleans(),
)
"""Neighbours whose guesses are checked in calls of their own; their own bits are not promised."""

REQUESTS = st.one_of(PLAIN, PLAIN, PLAIN, SEARCHES, GUESSED)


@dataclass(frozen=True)
class Arrival:
    """A request, and how many pieces of the others' answers come before it."""

    request: GenerationRequest
    pieces_before: int
    leaves_after: int | None
    """It is cancelled after so many pieces of its own; None: it stays."""


TRAFFIC = st.lists(
    st.builds(
        Arrival,
        REQUESTS,
        pieces_before=st.sampled_from([0, 0, 1, 5, 20]),
        leaves_after=st.sampled_from([None, None, None, 0, 1, 4]),
    ),
    min_size=2,
    max_size=9,
)
"""Mixes of requests, arrivals, cancellations and seeds."""


ADAPTERS = (
    random_adapter("north", tiny_gpt(), ["query", "value", "down"], 4, seed=1),
    random_adapter("south", tiny_gpt(), ["query", "key", "up"], 20, seed=2),
)
"""Layers that both change, that one changes, and that none does; ranks within a group and beyond."""


INDEPENDENT: dict[str, tuple[Quantization, CacheType]] = {
    "fp32": ("none", "float"),
    "int8": ("int8", "float"),
    "int8 with int8 cache": ("int8", "int8"),
}
"""Weights and cache of the bundles whose answers do not depend on the traffic."""


def traffic_decoder(kind: str, slots: int, prefix_slots: int) -> Decoder:
    threads.configure(None)
    bundle = quantized_bundle(kind)
    return Decoder(bundle.graph, bundle.manifest, slots=slots, capacity=CAPACITY, prefix_slots=prefix_slots)


@cache
def quantized_bundle(kind: str) -> Bundle:
    """The tiny decoder with its adapters, quantized as an export does."""
    quantization, slots = INDEPENDENT[kind]
    model = ir.load(tiny_graph())
    add_adapters(model, ADAPTERS)
    quantize_graph(model, QuantizationOptions(quantization, smallest_table=0))
    path = Path(mkdtemp(prefix="polyhead-test-")) / "decoder.onnx"
    ir.save(model, path)
    manifest = tiny_manifest()
    manifest.graphs.add(name="decoder", file=path.name)
    manifest.adapters.extend(write_adapters(path.parent, ADAPTERS))
    bundle = Bundle(path.parent, manifest)
    if slots == "int8":
        to_int8_cache(bundle, calibration_samples(bundle))
    return bundle


def assert_answers_do_not_depend_on(traffic: list[Arrival], kind: str) -> None:
    """Every answer that stays, but for those with guesses, is bit for bit the same in the traffic as alone: tokens, text,
    log-probabilities, end.

    There are fewer slots than requests, a budget of one chunk and a prefix cache, so that requests wait, prompts are read
    between steps, rows move between slots and prompts begin with copies. Contexts count as long early, so that chunks have both
    lengths.
    """

    async def compare() -> None:
        limits = replace(LIMITS, prefill_budget_tokens=CHUNK)
        decoder = traffic_decoder(kind, slots=3, prefix_slots=2)
        engine = Generator(decoder, byte_tokenizer(END), limits, Unwatched())
        engine.start()
        stay = [arrival.request for arrival in traffic if arrival.leaves_after is None]
        alone = [bits(await samples(engine, request)) for request in stay if not request.prompt_lookup]
        together = zip(stay, await _all_at_once(engine, traffic), strict=True)
        assert [bits(answers) for request, answers in together if not request.prompt_lookup] == alone
        await engine.drain()
        engine.check_integrity()
        engine.close()

    with patch.object(scheduler, "LONG_CONTEXT", 2 * CHUNK):
        asyncio.run(compare())


async def _all_at_once(engine: Generator, traffic: list[Arrival]) -> list[list[Whole]]:
    """Answers of those who stay, in order of arrival."""
    seen = asyncio.Semaphore(0)
    tasks: list[asyncio.Task[list[Whole] | None]] = []
    for arrival in traffic:
        for _ in range(arrival.pieces_before):
            if all(task.done() for task in tasks):
                break  # nobody is left whose pieces could come
            await seen.acquire()
        tasks.append(asyncio.create_task(_ending(_arrive(engine, arrival, seen), seen)))
    return [answers for answers in await asyncio.gather(*tasks) if answers is not None]


async def _ending(arriving: Coroutine[None, None, list[Whole] | None], seen: asyncio.Semaphore) -> list[Whole] | None:
    """An end counts as a piece: who waits for one must not wait for ever."""
    try:
        return await arriving
    finally:
        seen.release()


async def _arrive(engine: Generator, arrival: Arrival, seen: asyncio.Semaphore) -> list[Whole] | None:
    if arrival.leaves_after is None:
        return await samples(engine, arrival.request, seen)
    answer = engine.submit(arrival.request)
    for _ in range(arrival.leaves_after):
        if await anext(answer, None) is None:
            break
        seen.release()
    answer.cancel()
    return None
