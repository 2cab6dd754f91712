"""Text to token ids and back, by the `tokenizers` library and what the bundle's manifest says of special tokens."""

from collections.abc import Sequence
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


class Tokenizer:
    """Thread-safe: nothing changes after construction, and the library releases the GIL while it works."""

    def __init__(self, library: tokenizers.Tokenizer, spec: bundle_pb2.Tokenizer) -> None:
        library.no_truncation()  # too long is the caller's mistake to hear of, not ours to hide
        library.no_padding()
        self._library = library
        self.bos_token_id = spec.bos_token_id if spec.HasField("bos_token_id") else None
        self.pad_token_id = spec.pad_token_id if spec.HasField("pad_token_id") else None
        self.eos_token_ids = frozenset(spec.eos_token_ids)
        self.vocabulary_size = library.get_vocab_size(with_added_tokens=True)

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

    def spans(self, text: str, add_special_tokens: bool = True) -> list[TokenSpan]:
        encoding = self._library.encode(text, add_special_tokens=add_special_tokens)
        return [TokenSpan(i, t, *o) for i, t, o in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True)]

    def token(self, token_id: int) -> str:
        """As the vocabulary writes it; empty for an id that the vocabulary leaves out."""
        return self._library.id_to_token(token_id) or ""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the ids, without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return self._library.decode(list(token_ids), skip_special_tokens=True)
