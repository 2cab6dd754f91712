"""Contradictions between a model and its tokenizer."""

import dataclasses

import pytest

from polyhead.export.errors import ExportError
from polyhead.export.source import tokenizer_entry
from polyhead.models.checkpoint import SpecialTokens
from tests.unit.export.exports import SPECIAL, WORDS, tokenizer_json


@pytest.mark.parametrize(
    ("special", "text"),
    [
        (dataclasses.replace(SPECIAL, bos="<begin>"), r"special_tokens\.bos: '<begin>' is not in"),
        (dataclasses.replace(SPECIAL, eos=("</s>", ".")), r"special_tokens\.eos: '\.' is not in"),
    ],
)
def test_a_special_token_that_the_tokenizer_lacks_is_named(special: SpecialTokens, text: str) -> None:
    with pytest.raises(ExportError, match=text):
        tokenizer_entry(special, tokenizer_json(), len(WORDS))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    with pytest.raises(ExportError, match=r"tokenizer\.json: 'w46' has id 49, the model knows 49 tokens, 0 to 48"):
        tokenizer_entry(SPECIAL, tokenizer_json(), 49)


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(ExportError, match=r"tokenizer\.json: not a tokenizer"):
        tokenizer_entry(SPECIAL, "{}", 50)
