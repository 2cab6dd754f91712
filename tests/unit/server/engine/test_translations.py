"""Answers about sources of all lengths in one batch: the same bits as alone, whoever comes, leaves or searches beside them."""

import asyncio
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.server.bundle import Bundle, read_bundle
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import BeamOptions, GenerationRequest, Sampling, Stopping
from polyhead.server.runtime import threads
from polyhead.server.runtime.seq2seq import Seq2SeqDecoder
from polyhead.server.tokenizer import Tokenizer
from tests.decoders import LIMITS
from tests.observers import Unwatched
from tests.translators import ANSWER_TOKENS, ATTENTION, DEEP, SOURCE_TOKENS, TRANSFORMER, translators_folder

SLOTS = 5

REQUESTS = st.builds(
    GenerationRequest,
    prompt=st.integers(1, SOURCE_TOKENS).flatmap(
        lambda length: st.builds(lambda seed: tuple((seed + i * i) % 30 for i in range(length)), st.integers(0, 29))
    ),
    sampling=st.builds(Sampling, seed=st.integers(0, 2**64 - 1), temperature=st.sampled_from([0.0, 1.0, 1.5])),
    stopping=st.builds(Stopping, max_tokens=st.integers(1, ANSWER_TOKENS)),
    logprobs=st.sampled_from([None, 1]),
    samples=st.integers(1, 2),
    beam_search=st.sampled_from([None, None, BeamOptions(2), BeamOptions(4, 0.0)]),
    return_alignment=st.booleans(),
)


@cache
def bundle(name: str) -> Bundle:
    return read_bundle(translators_folder() / name / "1")


def engine_of(name: str) -> Generator:
    threads.configure(None)
    opened = bundle(name)
    decoder = Seq2SeqDecoder(
        opened.folder, opened.manifest, slots=SLOTS, capacity=ANSWER_TOKENS, source_capacity=SOURCE_TOKENS
    )
    tokenizer = Tokenizer.from_file(opened.tokenizer, opened.manifest.tokenizer)
    engine = Generator(decoder, tokenizer, LIMITS, Unwatched())
    engine.start()
    return engine


async def told(engine: Generator, request: GenerationRequest, leaves_after: int | None = None) -> list[Any]:
    """All that an answer says, by sample, but when."""
    answer, pieces = engine.submit(request), []
    async for piece in answer:
        pieces.append(piece)
        if leaves_after is not None and len(pieces) > leaves_after:
            answer.cancel()
    return sorted(
        (
            sample,
            [token for piece in pieces if piece.sample_index == sample for token in piece.token_ids],
            "".join(piece.text for piece in pieces if piece.sample_index == sample),
            [entry for piece in pieces if piece.sample_index == sample for entry in piece.logprobs],
            [
                (piece.score, [row.tolist() for row in piece.alignment])
                for piece in pieces
                if piece.sample_index == sample and piece.finish_reason
            ],
        )
        for sample in {piece.sample_index for piece in pieces}
    )


@pytest.mark.parametrize("name", [ATTENTION, DEEP, TRANSFORMER])
@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(REQUESTS, st.sampled_from([None, None, None, 0, 3])), min_size=2, max_size=9))
def test_an_answer_does_not_depend_on_the_other_sources(
    name: str, traffic: list[tuple[GenerationRequest, int | None]]
) -> None:
    """With fewer slots than rows, so that requests wait, rows move and pools lose rows in the middle."""

    async def compare() -> None:
        engine = engine_of(name)
        alone = [await told(engine, request) for request, leaves in traffic if leaves is None]
        together = await asyncio.gather(*(told(engine, request, leaves) for request, leaves in traffic))
        stayed = [answer for answer, (_, leaves) in zip(together, traffic, strict=True) if leaves is None]
        assert stayed == alone
        await engine.drain()
        engine.check_integrity()
        engine.close()

    asyncio.run(compare())
