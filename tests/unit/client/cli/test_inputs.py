import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.client import InvalidInput
from polyhead.client.cli.inputs import in_order, joined_pairs, pair
from tests.turns import one_turn


def refuse(message: str) -> NoReturn:
    raise SystemExit(message)


def test_arguments_become_pairs_in_twos_unless_they_are_pairs_already() -> None:
    assert joined_pairs(["a", "b", "c\td", "-", "e", "f"], refuse) == ["a\tb", "c\td", "-", "e\tf"]
    with pytest.raises(SystemExit, match="--pairs: 'c' has no second text"):
        joined_pairs(["a", "b", "c"], refuse)


def test_a_line_is_a_pair_with_a_tab_between() -> None:
    assert pair("a b\tc\td") == ("a b", "c\td")
    with pytest.raises(InvalidInput, match="two texts with a tab between, got 'a b'"):
        pair("a b")


async def each(texts: Sequence[str]) -> AsyncIterator[str]:
    for text in texts:
        yield text


@settings(deadline=None)
@given(turns=st.lists(st.integers(0, 5), max_size=12), limit=st.integers(1, 5))
def test_answers_keep_the_order_of_their_inputs_and_never_exceed_the_limit(turns: list[int], limit: int) -> None:
    """Each input says how many turns of the loop its answer takes."""
    begun = read = most = 0

    async def answer(text: str) -> AsyncIterator[str]:
        nonlocal begun, most
        begun += 1
        most = max(most, begun - read)
        for turn in range(int(text)):
            await one_turn()
            yield f"{text}.{turn}"

    async def collect() -> list[tuple[str, list[str]]]:
        nonlocal read
        answers = []
        async for text, parts in in_order(each([str(n) for n in turns]), answer, limit):
            answers.append((text, [part async for part in parts]))
            read += 1
        return answers

    assert asyncio.run(collect()) == [(str(n), [f"{n}.{turn}" for turn in range(n)]) for n in turns]
    assert most <= limit


async def test_an_error_comes_at_its_place() -> None:
    async def answer(text: str) -> AsyncIterator[str]:
        if text == "bad":
            raise ValueError(text)
        yield text

    answers = in_order(each(["good", "bad", "good"]), answer, 3)
    _, parts = await anext(answers)
    assert [part async for part in parts] == ["good"]
    _, parts = await anext(answers)
    with pytest.raises(ValueError, match="bad"):
        await anext(parts)


async def test_an_error_of_the_inputs_comes_after_the_answers_before_it() -> None:
    async def texts() -> AsyncIterator[str]:
        yield "good"
        raise ValueError("input")

    answers = in_order(texts(), lambda text: each([text]), 3)
    _, parts = await anext(answers)
    assert [part async for part in parts] == ["good"]
    with pytest.raises(ValueError, match="input"):
        await anext(answers)
