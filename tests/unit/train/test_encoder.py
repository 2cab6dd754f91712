from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyhead.train.encoder import EncoderSettings, EpochBatches, Segmenter, pad, run_in_batches, text_tokenizer
from polyhead.train.settings import LoopSettings
from polyhead.train.tokenizer import PAD

TEXTS = ["Deutschland", "die Republik Österreich", "日本", "a"] * 5
SEGMENTER = Segmenter(text_tokenizer(TEXTS, 300), 64)
SETTINGS = EncoderSettings(300, 64, 8, 1, 2, 16, 32, 0.0, 0.1, 0.1, LoopSettings())


def test_case_and_composition_do_not_matter_and_padding_is_id_0() -> None:
    assert SEGMENTER.encode(["ÖSTERREICH", "O\u0308sterreich"]) == SEGMENTER.encode(["österreich"] * 2)
    assert SEGMENTER.tokenizer.token_to_id(PAD) == 0


def test_a_word_at_the_start_has_the_tokens_it_has_inside() -> None:
    (alone,), (inside,) = SEGMENTER.encode(["republik"]), SEGMENTER.encode(["die republik"])
    assert inside[-len(alone) :] == alone


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4), st.floats(0, 0.9), st.integers(0, 99))
def test_a_cut_text_says_the_same_and_the_same_seed_cuts_the_same(texts: list[str], share: float, seed: int) -> None:
    tokenizer = SEGMENTER.tokenizer
    segmenter = Segmenter(tokenizer, 1000)
    cut = segmenter.encode_varied(texts, share, 0.0, seed)
    assert [tokenizer.decode(ids) for ids in cut] == [tokenizer.decode(ids) for ids in segmenter.encode(texts)]
    assert cut == segmenter.encode_varied(texts, share, 0.0, seed)


def test_no_cuts_leave_the_tokens_the_server_makes_and_many_make_more() -> None:
    assert SEGMENTER.encode_varied(TEXTS, 0.0, 0.0, 1) == SEGMENTER.encode(TEXTS)
    assert sum(map(len, SEGMENTER.encode_varied(TEXTS, 0.9, 0.0, 1))) > sum(map(len, SEGMENTER.encode(TEXTS)))


def test_dropped_tokens_leave_the_others_in_order_and_at_least_one() -> None:
    for seed in range(20):
        dropped = SEGMENTER.encode_varied(TEXTS, 0.0, 0.5, seed)
        for ids, left in zip(SEGMENTER.encode(TEXTS), dropped, strict=True):
            remaining = iter(ids)
            assert left
            assert all(id in remaining for id in left)
    whole, half = SEGMENTER.encode(TEXTS), SEGMENTER.encode_varied(TEXTS, 0.0, 0.5, 0)
    assert sum(map(len, half)) < sum(map(len, whole))


def test_long_texts_are_cut_to_the_limit() -> None:
    segmenter = Segmenter(SEGMENTER.tokenizer, 3)
    assert segmenter.encode(["abcdefgh"]) == [SEGMENTER.encode(["abcdefgh"])[0][:3]]
    assert len(segmenter.encode_varied(["abcdefgh"], 0.5, 0.0, 0)[0]) == 3


def test_padding_is_on_the_right() -> None:
    padded, lengths = pad([[5], [7, 8, 9]])
    assert padded.tolist() == [[5, 0, 0], [7, 8, 9]]
    assert lengths.tolist() == [1, 3]


def test_outputs_come_in_the_order_of_their_texts_whatever_the_batches() -> None:
    def total(ids: Tensor, lengths: Tensor) -> Tensor:
        return torch.stack([ids.sum(1), lengths], dim=1)

    rows = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10], [11]]
    expected = [[6, 3], [4, 1], [11, 2], [34, 4], [11, 1]]
    assert run_in_batches(total, rows, torch.device("cpu"), size=2).tolist() == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=80), st.integers(1, 7), st.integers(0, 5))
def test_an_epoch_has_each_text_once_and_depends_on_the_seed_alone(lengths: list[int], size: int, seed: int) -> None:
    batches, again = EpochBatches(lengths, size, seed), EpochBatches(lengths, size, seed)
    steps = 0
    for _ in range(2):
        seen: list[int] = []
        while len(seen) < len(lengths):
            seen += batches.at(steps)
            steps += 1
        assert sorted(seen) == list(range(len(lengths)))
    assert again.at(steps - 1) == batches.at(steps - 1)
    assert again.at(0) == batches.at(0)


def test_texts_of_a_batch_are_of_like_length() -> None:
    batches = EpochBatches([1, 9] * 64, 8, seed=0)
    assert all(len({i % 2 for i in batches.at(step)}) == 1 for step in range(16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"cut_share": -0.1}, "cut_share must be at least 0 and below 1, not -0.1"),
        ({"drop_share": 1.0}, "drop_share must be at least 0 and below 1, not 1.0"),
        ({"ngrams": 0}, "ngrams must be at least 1, a token on its own, not 0"),
        ({"ngram_buckets": 0}, "ngram_buckets must be from 1 to 2147483647, not 0"),
        ({"heads": 3}, "width 16 must divide by the heads, 3"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)  # type: ignore[arg-type]
