"""Penalties, biases and bans, token by token."""

import pytest

from polyhead.server.engine.adjustments import Adjustments
from polyhead.server.engine.sequence import GenerationRequest, Sampling, Sequence, Stopping

END = 9


def adjustments(
    sampling: Sampling, min_tokens: int = 0, ignore_eos: bool = False, stop_token_ids: tuple[int, ...] = ()
) -> tuple[Adjustments, Sequence]:
    stopping = Stopping(10, min_tokens, ignore_eos=ignore_eos, stop_token_ids=stop_token_ids)
    sequence = Sequence(GenerationRequest((1, 2, 2), sampling, stopping), arrived=0.0)
    return Adjustments(sequence, frozenset({END})), sequence


def append(tracker: Adjustments, sequence: Sequence, *tokens: int) -> None:
    for token in tokens:
        sequence.tokens.append(token)
        tracker.append(token)


def test_a_plain_request_needs_no_adjustment() -> None:
    tracker, sequence = adjustments(Sampling(seed=0))
    append(tracker, sequence, 5, 5)
    assert tracker.current() is None


def test_the_repetition_penalty_sees_prompt_and_answer() -> None:
    tracker, sequence = adjustments(Sampling(seed=0, repetition_penalty=1.2))
    append(tracker, sequence, 7)
    current = tracker.current()
    assert current is not None
    assert current.seen is not None
    assert sorted(current.seen.tolist()) == [1, 2, 7]


def test_presence_and_frequency_penalties_see_the_answer_alone_and_add_to_the_bias() -> None:
    sampling = Sampling(seed=0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((7, 2.0), (8, -1.0)))
    tracker, sequence = adjustments(sampling)
    append(tracker, sequence, 7, 7, 6)
    current = tracker.current()
    assert current is not None
    assert current.added is not None
    ids, values = current.added
    assert dict(zip(ids.tolist(), values.tolist(), strict=True)) == {7: 1.0, 8: -1.0, 6: -0.75}


def test_end_tokens_are_banned_until_min_tokens_unless_they_mean_nothing() -> None:
    tracker, sequence = adjustments(Sampling(seed=0), min_tokens=2)
    current = tracker.current()
    assert current is not None
    assert current.banned is not None
    assert current.banned.tolist() == [END]
    append(tracker, sequence, 5, 5)
    assert tracker.current() is None
    assert adjustments(Sampling(seed=0), min_tokens=2, ignore_eos=True)[0].current() is None


@pytest.mark.parametrize(("ignore_eos", "banned"), [(False, [4, END]), (True, [4])])
def test_stop_tokens_are_banned_until_min_tokens(ignore_eos: bool, banned: list[int]) -> None:
    tracker, _ = adjustments(Sampling(seed=0), min_tokens=2, ignore_eos=ignore_eos, stop_token_ids=(4,))
    current = tracker.current()
    assert current is not None
    assert current.banned is not None
    assert current.banned.tolist() == banned


def test_the_last_token_of_a_bad_word_is_banned_once_the_others_stand() -> None:
    tracker, sequence = adjustments(Sampling(seed=0, bad_words=((4, 5, 6), (8,))))
    first = tracker.current()
    append(tracker, sequence, 4, 5)
    second = tracker.current()
    assert first is not None
    assert second is not None
    assert first.banned is not None
    assert second.banned is not None
    assert (first.banned.tolist(), second.banned.tolist()) == ([8], [6, 8])
