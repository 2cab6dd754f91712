"""Grammars that match nothing, or that can't be followed to their end, are refused in words and never end an answer by themselves."""

import asyncio

import numpy as np
import pytest

from polyhead.server.constraints import Constraint, Kind
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import BeamOptions, GenerationRequest, Sampling, Stopping
from polyhead.server.errors import InvalidInput
from tests.decoders import END, LIMITS, SilentObserver, byte_grammars, byte_tokenizer, tiny_decoder
from tests.traffic import grammar, samples

A = byte_tokenizer().encode("a")[0]

COSTLY = "((a{0,200}){0,200}b)"
"""After a hundred times "a" the library gives up, in computing what may come next."""


@pytest.mark.parametrize(
    ("kind", "text"), [("regex", r"[^\s\S]"), ("regex", r"a[^\s\S]"), ("lark", "start: A\nA: /a/ & /b/")]
)
def test_a_grammar_that_nothing_matches_is_refused_when_it_is_compiled(kind: Kind, text: str) -> None:
    with pytest.raises(InvalidInput, match=f"constraint.{kind}: matches nothing"):
        byte_grammars().compile(Constraint(kind, text))


@pytest.mark.parametrize("text", ["", "a{0}"])
def test_a_grammar_that_the_empty_answer_matches_is_none_of_these(text: str) -> None:
    allowed = byte_grammars().compile(Constraint("regex", text)).matcher().allowed()
    assert np.flatnonzero(allowed).tolist() == [END]


def test_a_grammar_that_can_not_be_followed_further_is_refused_and_not_taken_for_complete() -> None:
    matcher = grammar("regex", COSTLY).matcher()

    def follow() -> None:
        for _ in range(300):
            assert matcher.allowed()[A]
            matcher.consume(A)

    with pytest.raises(InvalidInput, match=r"constraint.regex: can't be followed any further"):
        follow()


@pytest.mark.parametrize("beams", [None, BeamOptions(1)])
async def test_an_answer_whose_grammar_gives_up_fails_alone(beams: BeamOptions | None) -> None:
    engine = Generator(tiny_decoder(), byte_tokenizer(END), LIMITS, SilentObserver())
    engine.start()
    sampling = Sampling(seed=0, temperature=0.0, logit_bias=((A, 100.0),))
    plain = GenerationRequest((5, 6, 7), sampling, Stopping(max_tokens=200, ignore_eos=True))
    costly = GenerationRequest(
        (5, 6, 7), sampling, Stopping(max_tokens=200), grammar=grammar("regex", COSTLY), beam_search=beams
    )
    failing, neighbour = await asyncio.gather(samples(engine, costly), samples(engine, plain), return_exceptions=True)
    assert isinstance(failing, InvalidInput)
    assert isinstance(neighbour, list)
    assert neighbour[0].text == "a" * 200
    engine.check_integrity()
    engine.close()
