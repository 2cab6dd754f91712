"""The tokenizers of a pair: one for both sides or one for each, of BPE tokens or characters."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer, normalizers

from polyhead.train.pairs import Pair
from polyhead.train.tokenizer import character_tokenizer, encode_plain, token_id, train_bpe

PAD, BEGIN, END, UNKNOWN_TOKEN = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL_TOKENS = (PAD, BEGIN, END)

Row = tuple[list[int], list[int]]
"""Ids of a source, which ends with END, and of a target, without begin and end."""


@dataclass(frozen=True)
class Vocabularies:
    """What source and target are read and written with: the same object if they share one."""

    source: Tokenizer
    target: Tokenizer

    @property
    def shared(self) -> bool:
        return self.source is self.target

    @cached_property
    def begin(self) -> int:
        return token_id(self.target, BEGIN)

    @cached_property
    def end(self) -> int:
        return token_id(self.target, END)

    def encode_sources(self, texts: Sequence[str]) -> list[list[int]]:
        """As the server will: with the end token after it."""
        end = token_id(self.source, END)
        return [[*ids, end] for ids in encode_plain(self.source, texts)]

    def encode(self, pairs: Sequence[Pair]) -> list[Row]:
        sources = self.encode_sources([pair.source for pair in pairs])
        targets = encode_plain(self.target, [pair.target for pair in pairs])
        return list(zip(sources, targets, strict=True))

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of answers without their special tokens."""
        return [text.strip() for text in self.target.decode_batch([list(row) for row in rows])]


def make_vocabularies(pairs: Sequence[Pair], size: int, shared: bool, lowercase: bool) -> Vocabularies:
    """Trained on pairs. size: of each BPE vocabulary at most, 0 for characters. lowercase: sources, in a vocabulary of their own.

    The source's tokenizer puts the end token after its text; it is the target's, too, if that is shared.
    """
    sources, targets = [pair.source for pair in pairs], [pair.target for pair in pairs]
    plain = normalizers.NFC()
    if shared:
        both = _train([*sources, *targets], size, END, plain)
        return Vocabularies(both, both)
    form = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]) if lowercase else normalizers.NFKC()
    return Vocabularies(_train(sources, size, END, form), _train(targets, size, None, plain))


def _train(texts: Sequence[str], size: int, end: str | None, form: normalizers.Normalizer) -> Tokenizer:
    if size:
        return train_bpe(texts, size, SPECIAL_TOKENS, end=end, normalizer=form)
    return character_tokenizer(texts, SPECIAL_TOKENS, end=end, normalizer=form, unknown=UNKNOWN_TOKEN)
