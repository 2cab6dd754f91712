import torch
from torch.testing import assert_close

from polyhead.models.attention import additive_score, attention, dot_score, general_score


def test_the_general_score_is_the_query_times_a_matrix_times_the_key() -> None:
    torch.manual_seed(0)
    query, key, weight = torch.randn(2, 3, 4), torch.randn(2, 5, 6), torch.randn(4, 6)
    scores = general_score(weight)(query, key)
    assert scores.shape == (2, 3, 5)
    assert_close(scores[1, 2, 4], query[1, 2] @ weight @ key[1, 4])


def test_keys_may_be_projected_before() -> None:
    torch.manual_seed(0)
    query, key, weight, other = torch.randn(2, 3, 4), torch.randn(2, 5, 6), torch.randn(4, 6), torch.randn(4, 4)
    vector = torch.randn(4)
    projected = key @ weight.T
    assert_close(dot_score(query, projected), general_score(weight)(query, key))
    assert_close(
        additive_score(other, None, vector)(query, projected), additive_score(other, weight, vector)(query, key)
    )


def test_attention_takes_any_score_and_gives_its_weights() -> None:
    torch.manual_seed(0)
    query, key, weight = torch.randn(2, 3, 4), torch.randn(2, 5, 6), torch.randn(4, 6)
    mixture, weights = attention(query, key, key, score=general_score(weight))
    assert_close(weights, (query @ weight @ key.mT).softmax(-1))
    assert_close(mixture, weights @ key)
