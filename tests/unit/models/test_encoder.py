from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from polyhead.models.attention import attention, merge_heads, split_heads
from polyhead.models.encoder import Classifier, ClassifierConfig, Embedder, EmbedderConfig, mean_pooling, ngram_hashes

SIZES = {"vocabulary_size": 50, "max_tokens": 16, "layers": 2, "heads": 2, "width": 16, "hidden": 32}


def make_classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(**SIZES, classes=3, ngrams=3)).eval()


def make_embedder() -> Embedder:
    torch.manual_seed(0)
    return Embedder(EmbedderConfig(**SIZES, embedding_size=8)).eval()


CLASSIFIER, EMBEDDER = make_classifier(), make_embedder()


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=8), min_size=1, max_size=4),
    st.integers(0, 8),
    st.integers(0, 49),
)
def test_a_text_is_answered_the_same_alone_and_padded_with_anything_among_others(
    texts: list[list[int]], more: int, padding: int
) -> None:
    longest = max(map(len, texts)) + more
    ids = torch.tensor([text + [padding] * (longest - len(text)) for text in texts])
    lengths = torch.tensor(list(map(len, texts)))
    for model in (CLASSIFIER, EMBEDDER):
        alone = torch.cat([model(torch.tensor([text]), torch.tensor([len(text)])) for text in texts])
        assert_close(model(ids, lengths), alone, rtol=1e-4, atol=1e-5)


def test_heads_have_the_shapes_they_promise_and_embeddings_length_one() -> None:
    ids, lengths = torch.ones(3, 5, dtype=torch.long), torch.tensor([5, 1, 3])
    assert CLASSIFIER(ids, lengths).shape == (3, 3)
    assert EMBEDDER(ids, lengths).shape == (3, 8)
    assert_close(EMBEDDER(ids, lengths).norm(dim=-1), torch.ones(3))


def test_every_position_sees_every_other() -> None:
    ids = torch.arange(6)[None]
    changed = ids.clone()
    changed[0, 5] = 40
    lengths = torch.tensor([6])
    assert not torch.allclose(CLASSIFIER.encoder(ids, lengths)[0, 0], CLASSIFIER.encoder(changed, lengths)[0, 0])


def test_the_attention_hook_gets_what_the_models_own_attention_gets() -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
        rows = []
        for row, length in enumerate(lengths.tolist()):
            q, k, v = (split_heads(x[row : row + 1], 2) for x in (query, key[:, :length], value[:, :length]))
            rows.append(merge_heads(attention(q, k, v)[0]))
        return torch.cat(rows)

    ids, lengths = torch.arange(12).view(2, 6), torch.tensor([6, 2])
    assert_close(CLASSIFIER(ids, lengths, attend), CLASSIFIER(ids, lengths))


def test_mean_pooling_is_the_mean_before_the_length() -> None:
    x = torch.tensor([[[1.0], [3.0], [1e9]], [[5.0], [-7.0], [8.0]]])
    assert_close(mean_pooling(x, torch.tensor([2, 1])), torch.tensor([[2.0], [5.0]]))


def test_word_order_matters() -> None:
    lengths = torch.tensor([2])
    assert not torch.allclose(EMBEDDER(torch.tensor([[1, 2]]), lengths), EMBEDDER(torch.tensor([[2, 1]]), lengths))


def test_dropout_acts_in_training_only() -> None:
    model = make_classifier().train()
    ids, lengths = torch.arange(6)[None], torch.tensor([6])
    assert not torch.equal(model(ids, lengths), model(ids, lengths))
    assert torch.equal(model.eval()(ids, lengths), model(ids, lengths))


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="width 16 must divide by the heads, 3"):
        replace(CLASSIFIER.config, heads=3)


def test_an_ngram_is_known_wherever_it_stands_and_nothing_of_it_is_seen_before_it_ends() -> None:
    ngrams = make_classifier().encoder.ngrams
    assert ngrams is not None
    vectors = ngrams(torch.tensor([[7, 8, 9, 5, 7, 8, 9], [7, 8, 1, 0, 0, 0, 0]]))
    assert torch.equal(vectors[0, 2], vectors[0, 6])  # 7 8 9 and its 8 9
    assert torch.equal(vectors[0, :2], vectors[1, :2])
    assert not torch.isclose(vectors[0, 2], vectors[1, 2]).any()


@settings(deadline=None)
@given(st.integers(1, 2**31 - 1), st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6))
def test_ngrams_of_any_ids_are_found_within_the_buckets(buckets: int, ids: list[int]) -> None:
    config = replace(CLASSIFIER.config, ngrams=4, ngram_buckets=buckets)
    found = torch.stack(list(ngram_hashes(torch.tensor([ids]), config.ngrams))) % buckets
    assert ((found >= 0) & (found < buckets)).all()
