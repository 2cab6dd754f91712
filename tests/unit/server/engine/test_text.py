"""Text that streams: whole characters, and no beginnings of stop strings."""

from hypothesis import given
from hypothesis import strategies as st

from polyhead.server.engine.text import StopStrings, TextStream
from tests.decoders import VOCABULARY, byte_tokenizer

TOKENIZER = byte_tokenizer()


@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=60))
def test_pieces_of_any_tokens_add_up_to_the_text_of_the_whole(ids: list[int]) -> None:
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == TOKENIZER.decode(ids)


@given(st.text(max_size=20))
def test_a_piece_never_splits_a_character(text: str) -> None:
    stream = TextStream(TOKENIZER)
    sent = ""
    for token in TOKENIZER.encode(text):
        piece = stream.push(token)
        assert "\N{REPLACEMENT CHARACTER}" not in piece or "\N{REPLACEMENT CHARACTER}" in text
        sent += piece
        assert text.startswith(sent)
    assert sent + stream.flush() == text


@given(st.lists(st.text("abc", max_size=4), max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_what_is_sent_ends_before_the_stop_string_that_completes_first(pieces: list[str], stop: list[str]) -> None:
    stops, sent, stopped = StopStrings(stop), "", False
    for piece in pieces:
        text, stopped = stops.push(piece)
        sent += text
        if stopped:
            break
    whole = "".join(pieces)
    if stopped:
        assert any(whole[len(sent) :].startswith(s) for s in stop)
    else:
        assert sent + stops.flush() == whole
    assert not any(s in sent for s in stop)


@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.integers(0, 12),
)
def test_what_is_complete_before_it_counts_is_text_and_what_straddles_is_found(
    pieces: list[str], stop: list[str], before: int
) -> None:
    stops, sent, stopped, given_ = StopStrings(stop), "", False, ""
    early = len("".join(pieces[:before]))
    for place, piece in enumerate(pieces):
        text, stopped = stops.push(piece, counts=place >= before)
        sent, given_ = sent + text, given_ + piece
        if stopped:
            break
    matches = [at for s in stop for at in range(len(given_)) if given_.startswith(s, at) and at + len(s) > early]
    assert stopped == bool(matches)
    assert sent + stops.flush() == (given_[: min(matches)] if matches else given_)


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    stops = StopStrings(["\n\nEnd"])
    assert stops.push("one\n") == ("one", False)
    assert stops.push("two\n\nEn") == ("\ntwo", False)
    assert stops.push("d and more") == ("", True)
