"""What an encoder reads of texts: cut, with types and places."""

from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import BertProcessing, RobertaProcessing, TemplateProcessing

from polyhead.server.tokenizer import EncoderInput, Tokenizer, TokenSpan, longest_first
from polyhead.v1 import bundle_pb2

WORDS = [f"w{i}" for i in range(20)]
BERT, ROBERTA = BertProcessing(("</s>", 2), ("<s>", 1)), RobertaProcessing(("</s>", 2), ("<s>", 1))
texts = st.lists(st.sampled_from([*WORDS, "</s>"]), min_size=1, max_size=20).map(" ".join)
processors = st.sampled_from(
    [BERT, ROBERTA, TemplateProcessing(single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", 2)])]
)


def library(processor: Any = BERT) -> tokenizers.Tokenizer:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = processor
    return made


def read(text: str | tuple[str, str], longest: int | None = None, processor: Any = BERT) -> EncoderInput:
    tokenizer = Tokenizer(library(processor), bundle_pb2.Tokenizer())
    (found,) = tokenizer.encoder_inputs([text], longest, spans=True, parallel=False)
    return found


@given(texts, texts, st.integers(6, 45), processors)
def test_a_pair_is_cut_as_the_library_cuts_it(first: str, second: str, longest: int, processor: Any) -> None:
    cutting = library(processor)
    cutting.enable_truncation(longest, strategy="longest_first")
    expected = cutting.encode(first, second)
    found = read((first, second), longest, processor)
    assert (found.ids, found.token_types) == (expected.ids, expected.type_ids)


@given(texts, st.integers(3, 25), processors)
def test_a_text_is_cut_at_its_end_and_keeps_the_tokens_around_it(text: str, longest: int, processor: Any) -> None:
    cutting = library(processor)
    cutting.enable_truncation(longest)
    assert read(text, longest, processor).ids == cutting.encode(text).ids


@given(texts, texts, st.integers(1, 5))
def test_nothing_is_ever_too_long(first: str, second: str, longest: int) -> None:
    assert len(read((first, second), longest).ids) <= longest
    assert len(read(first, longest).ids) <= longest


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))
def test_two_texts_use_all_room_that_they_need(first: int, second: int, room: int) -> None:
    kept = longest_first(first, second, room)
    assert sum(kept) == min(room, first + second)
    assert 0 <= kept[0] <= first
    assert 0 <= kept[1] <= second


def test_only_tokens_of_the_text_itself_have_a_place_also_if_they_look_like_others() -> None:
    found = read("w1 </s>  w2")
    assert found.spans == [None, TokenSpan(4, "w1", 0, 2), TokenSpan(2, "</s>", 3, 7), TokenSpan(5, "w2", 9, 11), None]
    assert found.token_types == ()


def test_many_texts_and_pairs_are_read_alike_on_one_thread_and_on_several() -> None:
    tokenizer = Tokenizer(library(), bundle_pb2.Tokenizer())
    mixed: list[str | tuple[str, str]] = ["w1", ("w1", "w2 w3"), "w4 w5"]
    here, there = (tokenizer.encoder_inputs(mixed, 4, spans=True, parallel=parallel) for parallel in (False, True))
    assert here == there


@pytest.mark.parametrize(
    ("processor", "takes"),
    [(BERT, True), (ROBERTA, True), (None, False), (TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]), False)],
)  # fmt: skip
def test_pairs_are_for_tokenizers_that_put_something_between(processor: Any, takes: bool) -> None:
    made = library()
    if processor is None:
        made = tokenizers.Tokenizer(made.model)
    else:
        made.post_processor = processor
    assert Tokenizer(made, bundle_pb2.Tokenizer()).takes_pairs == takes
