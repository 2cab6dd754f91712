"""Text to token ids and back, by the `tokenizers` library and what the bundle's manifest says of special tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from polyhead.server.errors import BundleError
from polyhead.v1 import bundle_pb2


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A token and where it stands in the text, in code points: [start, end); both 0 for added tokens."""

    token_id: int
    token: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class EncoderInput:
    """What an encoder reads of one input."""

    ids: Sequence[int]
    token_types: Sequence[int] = ()
    """Of a pair of texts, which of them each token belongs to, 0 or 1, as the tokenizer says. Empty: all 0."""
    spans: Sequence[TokenSpan | None] = ()
    """One for each token if they were asked for; None for tokens that the tokenizer added around the texts."""


Text = str | tuple[str, str]
"""A text or a pair of them."""

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What `decode` gives for bytes that are no character, perhaps not yet."""

_MOST_CONTINUATIONS = 16_384
"""Pairs of tokens whose text is remembered, some 3 MB."""


class Tokenizer:
    """Thread-safe: after construction nothing changes but what is remembered, and the library releases the GIL while it works."""

    def __init__(self, library: tokenizers.Tokenizer, spec: bundle_pb2.Tokenizer) -> None:
        library.no_truncation()  # too long is the caller's mistake to hear of, not ours to hide
        library.no_padding()
        self._library = library
        self.bos_token_id = spec.bos_token_id if spec.HasField("bos_token_id") else None
        self.pad_token_id = spec.pad_token_id if spec.HasField("pad_token_id") else None
        self.eos_token_ids = frozenset(spec.eos_token_ids)
        self.takes_pairs = takes_pairs(library)
        self._texts: dict[int, str] = {}  # of single tokens, as they are asked for
        self._continuations: dict[tuple[int, int], str] = {}
        self._special = frozenset(i for i, added in library.get_added_tokens_decoder().items() if added.special)

    @classmethod
    def from_file(cls, path: Path, spec: bundle_pb2.Tokenizer) -> "Tokenizer":
        """Read `tokenizer.json`. Raises BundleError if it is not one."""
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)), spec)
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path.name}: not a tokenizer: {error}") from error

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._library.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        encodings = self._library.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def encoder_inputs(
        self, texts: Sequence[Text], longest: int | None, *, spans: bool, parallel: bool
    ) -> list[EncoderInput]:
        """Texts with the tokens that the tokenizer adds around them, cut to `longest` tokens unless it is None. `parallel`:
        share them out over threads, which costs a tenth of a millisecond."""
        library = self._library
        encodings = (
            library.encode_batch(list(texts))
            if parallel
            else [library.encode(*text) if isinstance(text, tuple) else library.encode(text) for text in texts]
        )
        return [encoder_input(encoding, longest, spans) for encoding in encodings]

    def spans(self, text: str, add_special_tokens: bool = True) -> list[TokenSpan]:
        encoding = self._library.encode(text, add_special_tokens=add_special_tokens)
        return [TokenSpan(i, t, *o) for i, t, o in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True)]

    def highest_id(self) -> int:
        """Of all tokens, which may leave ids out; -1 if there are none. Looks at every one."""
        return max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)

    def token(self, token_id: int) -> str:
        """As the vocabulary writes it; empty for an id that the vocabulary leaves out."""
        return self._library.id_to_token(token_id) or ""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids, without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return self._library.decode(list(token_ids), skip_special_tokens=True)

    def is_silent(self, token_id: int) -> bool:
        """Whether `decode` passes over it wherever it stands."""
        return not self.text_of(token_id) and (token_id in self._special or not self.token(token_id))

    def text_of(self, token_id: int) -> str:
        """As `decode` gives it of this token alone."""
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self.decode((token_id,))
        return text

    def continuation(self, previous: int, token_id: int) -> str:
        """What a token adds to the text of the one before it; empty if that is nothing, or ends with what may be part of a
        character."""
        pair = (previous, token_id)
        text = self._continuations.get(pair)
        if text is None:
            both = self.decode(pair)
            text = "" if self.is_silent(token_id) or both.endswith(INCOMPLETE) else both[len(self.text_of(previous)) :]
            if len(self._continuations) >= _MOST_CONTINUATIONS:
                self._continuations.clear()
            self._continuations[pair] = text
        return text


def takes_pairs(library: tokenizers.Tokenizer) -> bool:
    """Whether its post-processor puts something between two texts; otherwise they would read as one."""
    single, pair = (library.num_special_tokens_to_add(is_pair) for is_pair in (False, True))
    return bool(pair > single)


def encoder_input(encoding: tokenizers.Encoding, longest: int | None, spans: bool) -> EncoderInput:
    ids: list[int] = encoding.ids
    kept = range(len(ids)) if longest is None or len(ids) <= longest else shortened(encoding.sequence_ids, longest)
    return EncoderInput(
        ids=ids if len(kept) == len(ids) else [ids[i] for i in kept],
        token_types=[encoding.type_ids[i] for i in kept] if encoding.n_sequences > 1 else (),
        spans=list(spans_of_texts(encoding, kept)) if spans else (),
    )


def spans_of_texts(encoding: tokenizers.Encoding, kept: Sequence[int]) -> Iterator[TokenSpan | None]:
    ids, tokens, offsets, texts = encoding.ids, encoding.tokens, encoding.offsets, encoding.sequence_ids
    for i in kept:
        yield None if texts[i] is None else TokenSpan(ids[i], tokens[i], *offsets[i])


def shortened(texts: Sequence[int | None], longest: int) -> list[int]:
    """Positions that stay when an input is cut: of all added tokens (`texts` has None), and of as many tokens of the beginning of
    text 0, and 1 of a pair, as fit beside them."""
    counts = texts.count(0), texts.count(1)
    left = list(longest_first(*counts, max(0, longest - len(texts) + sum(counts))))
    kept = []
    for position, text in enumerate(texts):
        if text is None:
            kept.append(position)
        elif left[text]:
            left[text] -= 1
            kept.append(position)
    return kept[:longest]


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens two texts of so many keep of `room`: the longer one loses tokens first, then both the same number. A text
    by itself (`second` is 0) keeps what fits."""
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)
