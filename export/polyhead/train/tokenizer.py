"""Tokenizers made from training data, as `tokenizers.Tokenizer`, whose JSON the server reads.

Special tokens have the first ids, in the order given.
"""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from polyhead.train.errors import UsageError

BOS, EOS, PAD, UNKNOWN = "<|bos|>", "<|eos|>", "<|pad|>", "<|unk|>"
BYTES = 256


def train_bpe(
    texts: Iterable[str],
    vocabulary_size: int,
    special_tokens: Sequence[str],
    begin: str | None = None,
    end: str | None = None,
    normalizer: normalizers.Normalizer | None = None,
) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2, section 2.2): any text has tokens, and they decode to it.

    `begin` and `end`, which must be special tokens, are put around every input. The vocabulary is smaller than asked
    where the texts are too few to fill it. Raises UsageError if it can't hold the bytes and special tokens.
    """
    if vocabulary_size < (least := BYTES + len(special_tokens)):
        raise UsageError(f"vocabulary must be at least {least}, the bytes and special tokens, not {vocabulary_size}")
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    _put_around(tokenizer, begin, end)
    return tokenizer


def character_tokenizer(
    texts: Iterable[str],
    special_tokens: Sequence[str],
    begin: str | None = None,
    end: str | None = None,
    normalizer: normalizers.Normalizer | None = None,
    unknown: str = UNKNOWN,
) -> Tokenizer:
    """One token for each code point in the texts, and `unknown`, the last special token, for every other: BPE without merges."""
    characters = sorted(set().union(*(normalizer.normalize_str(text) if normalizer else text for text in texts)))
    vocabulary = {token: id for id, token in enumerate([*special_tokens, unknown, *characters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token=unknown, cache_capacity=0))
    tokenizer.add_special_tokens([*special_tokens, unknown])
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Fuse()
    _put_around(tokenizer, begin, end)
    return tokenizer


def _put_around(tokenizer: Tokenizer, begin: str | None, end: str | None) -> None:
    tokens = [token for token in (begin, end) if token is not None]
    if tokens:
        template = [*([begin] if begin else []), "$A", *([end] if end else [])]
        special = [(token, token_id(tokenizer, token)) for token in tokens]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Id of a token that must be in the vocabulary. Raises UsageError if it is not."""
    if (id := tokenizer.token_to_id(token)) is None:
        raise UsageError(f"the tokenizer has no token {token!r}")
    return int(id)


def encode_plain(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text with nothing put around it; a special token's name inside a text is text like any other."""
    tokenizer.encode_special_tokens = True
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    finally:
        tokenizer.encode_special_tokens = False
