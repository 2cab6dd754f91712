"""Grammars that match nothing, or that can't be followed to their end, are refused in words and never end an answer by themselves."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from polyhead.server.constraints import Constraint, DeadEnd, GrammarCompiler, Kind, Matcher
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import BeamOptions, GenerationRequest, Sampling, Stopping
from polyhead.server.errors import InvalidInput
from polyhead.train.tokenizer import character_tokenizer
from tests.decoders import END, LIMITS, byte_grammars, byte_tokenizer, tiny_decoder
from tests.observers import Unwatched
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
    engine = Generator(tiny_decoder(), byte_tokenizer(END), LIMITS, Unwatched())
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


CHARACTERS = "0123456789-"
UNWRITABLE = r"constraint.\w+: the model's vocabulary cannot write what must come next"
NOTHING = r"constraint.\w+: matches nothing here that the model's tokens can write"


def character_library() -> tokenizers.Tokenizer:
    return character_tokenizer([CHARACTERS], ["<pad>", "<s>", "</s>"])


@pytest.fixture
def characters(tmp_path: Path) -> GrammarCompiler:
    """Of a model that writes no other characters; an unknown one is a token of its tokenizer."""
    library = character_library()
    library.save(str(tmp_path / "tokenizer.json"))
    pad, begin, end = library.encode("<pad><s></s>").ids
    return GrammarCompiler(
        tmp_path / "tokenizer.json", library.get_vocab_size(), frozenset({end}), frozenset({pad, begin})
    )


def written(matcher: Matcher) -> str:
    """What may come next, `$` for the end."""
    vocabulary = character_library()
    tokens = (str(vocabulary.id_to_token(int(token))) for token in np.flatnonzero(matcher.allowed()))
    return "".join(sorted("$" if token == "</s>" else token for token in tokens))


def follow(matcher: Matcher, text: str) -> None:
    vocabulary = character_library()
    for token in vocabulary.encode(text).ids:
        assert matcher.allowed()[token]
        matcher.consume(token)


@pytest.mark.parametrize(
    "constraint",
    [Constraint("choice", choices=("yes",)), Constraint("choice", choices=("yes", "no")), Constraint("regex", "x+")],
)
def test_a_grammar_whose_first_token_the_vocabulary_lacks_is_refused_when_it_is_compiled(
    characters: GrammarCompiler, constraint: Constraint
) -> None:
    with pytest.raises(InvalidInput, match=f"{UNWRITABLE}|{NOTHING}"):
        characters.compile(constraint)


def test_where_only_unknown_characters_could_follow_there_is_a_dead_end_and_elsewhere_none(
    characters: GrammarCompiler,
) -> None:
    matcher = characters.compile(Constraint("choice", choices=("2024-04-03", "1-x"))).matcher()
    assert written(matcher) == "12"
    other = matcher.copy()
    follow(other, "1-")
    with pytest.raises(DeadEnd, match=UNWRITABLE):
        other.allowed()
    follow(matcher, "2024-04-03")
    assert written(matcher) == "$"


def test_tokens_that_begin_or_pad_an_answer_never_come_next_though_a_grammar_names_them(
    characters: GrammarCompiler,
) -> None:
    named = "start: <s> | <pad> | A\nA: /1/"
    assert written(characters.compile(Constraint("lark", named)).matcher()) == "1"
