"""Text that streams: whole characters, and no beginnings of stop strings."""

from collections.abc import Sequence

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from polyhead.server import tokenizer
from polyhead.server.engine.text import StopStrings, TextStream
from polyhead.server.tokenizer import Tokenizer
from polyhead.v1 import bundle_pb2
from tests.decoders import VOCABULARY, byte_tokenizer

TOKENIZER = byte_tokenizer()


def letters_of_bytes() -> dict[int, str]:
    """How byte-level vocabularies write bytes (GPT-2's `bytes_to_unicode`): printable ones as themselves, the others from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTES = {byte: TOKENIZER._library.token_to_id(letter) for byte, letter in letters_of_bytes().items()}
"""Of each byte, its token."""


class Counting(Tokenizer):
    """Of all tokens together, how often they were decoded."""

    def __init__(self) -> None:
        super().__init__(TOKENIZER._library, bundle_pb2.Tokenizer())
        self.decoded = 0

    def decode(self, token_ids: Sequence[int]) -> str:
        self.decoded += len(token_ids)
        return super().decode(token_ids)


def fallback_tokenizer() -> Tokenizer:
    """Tokens 0 to 255 are bytes, token 256 is "a"."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"a": 256}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], byte_fallback=True))
    library.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    return Tokenizer(library, bundle_pb2.Tokenizer())


@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=60))
def test_pieces_of_any_tokens_add_up_to_the_text_of_the_whole(ids: list[int]) -> None:
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == TOKENIZER.decode(ids)


def test_pieces_add_up_also_if_no_more_than_two_pairs_of_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_MOST_CONTINUATIONS", 2)
    fresh = Tokenizer(TOKENIZER._library, bundle_pb2.Tokenizer())
    ids = fresh.encode("to be, or not to be, that is the question")
    for stream in (TextStream(fresh), TextStream(fresh)):
        assert "".join(map(stream.push, ids)) + stream.flush() == fresh.decode(ids)


@pytest.mark.parametrize("tokens", [[BYTES[0xFF]], [BYTES[0xC3]], [BYTES[0xE4], BYTES[0xBD]], [VOCABULARY - 1]])
def test_tokens_that_form_no_character_wait_for_a_bounded_time_only(tokens: list[int]) -> None:
    """However many there are, none is decoded more than a few times."""
    stream, ids = TextStream(counting := Counting()), tokens * 200
    text = "".join(map(stream.push, ids))
    assert len(TOKENIZER.decode(ids)) - len(text) <= 8
    assert text + stream.flush() == TOKENIZER.decode(ids)
    assert counting.decoded < 30 * len(ids)


@given(st.lists(st.sampled_from([*range(256), *(BYTES[b] for b in (0xC3, 0xA9, 0xE4, 0xBD, 0xA0, 0xF0, 0xFF))])))
def test_pieces_of_mostly_broken_characters_add_up_to_the_text_of_the_whole(ids: list[int]) -> None:
    stream = TextStream(TOKENIZER)
    assert "".join(map(stream.push, ids)) + stream.flush() == TOKENIZER.decode(ids)


def test_characters_after_bytes_that_fall_back_to_nothing_are_sent_whole() -> None:
    """Of tokenizers that take a run of bytes for characters as a whole, or not at all."""
    ids = [0xFF] * 20 + [256] + list("é😀".encode()) + [256]
    stream = TextStream(fallback := fallback_tokenizer())
    assert "".join(map(stream.push, ids)) + stream.flush() == fallback.decode(ids) == "\ufffd" * 20 + "aé😀a"


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
