import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from polyhead.train.errors import UsageError
from polyhead.train.tokenizer import BOS, EOS, PAD, UNKNOWN, character_tokenizer, encode_plain, token_id, train_bpe

TEXTS = ["def f(x):\n    return x\n" * 20, "class A:\n    def f(self):\n        pass\n" * 20]
any_text = st.text().filter(lambda text: "<|" not in text)


def served(tokenizer: Tokenizer) -> Tokenizer:
    """What the server has after reading tokenizer.json."""
    return Tokenizer.from_str(tokenizer.to_str())


BPE = served(train_bpe(TEXTS, 300, [BOS, EOS], begin=BOS))
CHARACTERS = served(character_tokenizer(["abc \n  d", "é😀"], [BOS, EOS], begin=BOS))


@settings(deadline=None, max_examples=50)
@given(any_text)
def test_bytes_decode_to_any_text_exactly(text: str) -> None:
    assert BPE.decode(BPE.encode(text).ids) == text


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="abc \nd\u00e9😀"))
def test_known_characters_decode_exactly(text: str) -> None:
    assert CHARACTERS.decode(CHARACTERS.encode(text).ids) == text


@settings(deadline=None, max_examples=50)
@given(any_text)
def test_every_character_is_one_token_and_an_unknown_one_is_unk(text: str) -> None:
    tokens = CHARACTERS.encode(text).tokens[1:]
    assert tokens == [character if character in "abc \ndé😀" else UNKNOWN for character in text]


def test_special_tokens_come_first_and_the_begin_token_is_put_before_every_input() -> None:
    for tokenizer in (BPE, CHARACTERS):
        assert [tokenizer.id_to_token(id) for id in (0, 1)] == [BOS, EOS]
        assert tokenizer.encode("").ids == [0]
        assert tokenizer.encode("abc").tokens[0] == BOS


def test_both_ends_can_be_marked() -> None:
    tokenizer = served(train_bpe(TEXTS, 300, [PAD, BOS, EOS], begin=BOS, end=EOS))
    assert tokenizer.encode("x").tokens == [BOS, "x", EOS]
    assert token_id(tokenizer, PAD) == 0


def test_a_normalizer_travels_with_the_tokenizer() -> None:
    tokenizer = served(train_bpe(TEXTS, 300, [PAD], normalizer=normalizers.Lowercase()))
    assert tokenizer.encode("DEF").ids == tokenizer.encode("def").ids


def test_characters_can_be_normalized_too() -> None:
    tokenizer = served(character_tokenizer(["DEF"], [PAD], normalizer=normalizers.Lowercase()))
    assert tokenizer.encode("Def").tokens == ["d", "e", "f"]


def test_merges_are_learned_and_the_same_each_time() -> None:
    assert 258 < BPE.get_vocab_size() <= 300
    assert len(BPE.encode("return").ids) < len("return")
    assert train_bpe(TEXTS, 300, [BOS, EOS], begin=BOS).to_str() == BPE.to_str()


@pytest.mark.parametrize("tokenizer", [BPE, CHARACTERS])
def test_the_name_of_a_special_token_in_training_text_is_plain_text(tokenizer: Tokenizer) -> None:
    [ids] = encode_plain(tokenizer, [f"a{EOS}b"])
    assert token_id(tokenizer, EOS) not in ids
    assert tokenizer.encode(f"a{EOS}").ids[-1] == token_id(tokenizer, EOS)


def test_a_vocabulary_too_small_for_the_bytes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"vocabulary must be at least 258, .*, not 100"):
        train_bpe(TEXTS, 100, [BOS, EOS])


def test_a_token_that_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match=r"no token '<\|pad\|>'"):
        token_id(BPE, PAD)
