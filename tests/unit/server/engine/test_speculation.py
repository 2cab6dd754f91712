"""Guessing by prompt lookup."""

from hypothesis import given
from hypothesis import strategies as st

from polyhead.server.engine.speculation import LONGEST_DRAFT, PromptLookup


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 20))
def test_a_draft_is_what_followed_the_same_last_tokens_before(tokens: list[int], room: int) -> None:
    draft = PromptLookup(tokens).draft(room)
    assert len(draft) <= min(room, LONGEST_DRAFT)
    if draft:
        windows = [tokens[i - 2 : i + len(draft)] for i in range(2, len(tokens))]
        assert [*tokens[-2:], *draft] in windows


def test_drafts_grow_while_they_are_right() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 1, 2])
    lengths = []
    for _ in range(4):
        draft = lookup.draft(100)
        lengths.append(len(draft))
        lookup.learn(len(draft), len(draft))
    assert lengths == [4, 8, 16, 16]


def test_guessing_pauses_longer_each_time_it_was_wrong_and_comes_back_at_once_when_right() -> None:
    lookup = PromptLookup([1, 2, 3, 1, 2])
    pauses = []
    for right in (0, 0, 0, 1, 0):
        pause = 0
        while not lookup.draft(2):
            pause += 1
        pauses.append(pause)
        lookup.learn(2, right)
    assert pauses == [0, 1, 2, 4, 0]
