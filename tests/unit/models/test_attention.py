import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from polyhead.models.attention import (
    additive_score,
    attention,
    causal_mask,
    dot_score,
    fused_attention,
    merge_heads,
    multi_head_attention,
    padding_mask,
    repeat_heads,
    rotary_tables,
    rotate,
    scaled_dot_score,
    split_heads,
)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_dot_scores_are_the_products_and_scaled_ones_are_divided_by_the_root_of_the_key_size() -> None:
    query, key = random(2, 3, 16), random(2, 5, 16)
    assert_close(dot_score(query, key), torch.einsum("btk,bsk->bts", query, key))
    assert_close(scaled_dot_score(query, key), dot_score(query, key) / 4)


def test_additive_scores_are_those_of_a_small_network_for_each_pair() -> None:
    w, u, v = random(7, 4), random(7, 6), random(7)
    query, key = random(2, 3, 4), random(2, 5, 6)
    scores = additive_score(w, u, v)(query, key)
    for b, t, s in ((0, 0, 0), (1, 2, 4), (0, 1, 3)):
        assert_close(scores[b, t, s], v @ torch.tanh(w @ query[b, t] + u @ key[b, s]))


@pytest.mark.parametrize("score", [dot_score, scaled_dot_score, additive_score(random(7, 8), random(7, 8), random(7))])
def test_attention_with_any_score_mixes_values_by_weights_that_sum_to_one(score) -> None:  # type: ignore[no-untyped-def]
    query, key, value = random(2, 3, 8), random(2, 5, 8), random(2, 5, 4)
    mixture, weights = attention(query, key, value, score=score)
    assert_close(weights.sum(-1), torch.ones(2, 3))
    assert_close(mixture, weights @ value)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("masking", ["none", "causal", "padding"])
def test_multi_head_attention_is_torchs(heads: int, masking: str) -> None:
    query, key, value = random(3, 4, 6, 8), random(3, heads, 6, 8), random(3, heads, 6, 8)
    masks = {"none": None, "causal": causal_mask(6, 6), "padding": padding_mask(torch.tensor([6, 1, 4]), 6)}
    mask = masks[masking]
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    assert_close(multi_head_attention(query, key, value, mask)[0], expected)
    assert_close(fused_attention(query, key, value, mask), expected)


def test_the_whole_of_a_multi_head_layer_is_torchs() -> None:
    layer = nn.MultiheadAttention(16, 4, bias=False, batch_first=True)
    x = random(2, 5, 16)
    q, k, v = (split_heads(F.linear(x, w), 4) for w in layer.in_proj_weight.chunk(3))
    mixture, weights = multi_head_attention(q, k, v, causal_mask(5, 5))
    expected, expected_weights = layer(x, x, x, attn_mask=~causal_mask(5, 5), average_attn_weights=False)
    assert_close(layer.out_proj(merge_heads(mixture)), expected)
    assert_close(weights, expected_weights)


def test_fused_causal_attention_is_the_masked_one() -> None:
    query, key, value = random(2, 4, 7, 8), random(2, 2, 7, 8), random(2, 2, 7, 8)
    assert_close(
        fused_attention(query, key, value, causal=True), multi_head_attention(query, key, value, causal_mask(7, 7))[0]
    )


def test_a_query_that_may_look_nowhere_gets_zeros() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    mixture, weights = attention(random(2, 4), random(2, 4), random(2, 4), mask)
    assert_close(weights, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert_close(mixture[1], torch.zeros(4))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(0, 6))
def test_the_causal_mask_lets_the_last_query_see_all_and_each_one_before_one_less(targets: int, more: int) -> None:
    mask = causal_mask(targets, targets + more)
    assert mask.sum(-1).tolist() == list(range(more + 1, more + targets + 1))
    assert bool((mask.int().diff(dim=-1) <= 0).all())  # what a query sees is a prefix


def test_the_padding_mask_ends_at_each_rows_length() -> None:
    assert padding_mask(torch.tensor([2, 0, 3]), 3).int().tolist() == [[[[1, 1, 0]]], [[[0, 0, 0]]], [[[1, 1, 1]]]]


def test_merging_undoes_splitting_and_a_head_is_a_slice_of_the_width() -> None:
    x = random(2, 3, 8)
    assert torch.equal(merge_heads(split_heads(x, 4)), x)
    assert torch.equal(split_heads(x, 4)[:, 1], x[..., 2:4])


def test_neighbouring_query_heads_share_a_key_value_head() -> None:
    x = random(1, 2, 3, 4)
    assert torch.equal(repeat_heads(x, 4), x[:, [0, 0, 1, 1]])
    assert repeat_heads(x, 2) is x


def test_rotation_is_multiplication_by_a_unit_complex_number() -> None:
    x = random(2, 3, 5, 8)
    cosine, sine = rotary_tables(5, 8, theta=100.0)
    frequencies = 100.0 ** (-torch.arange(4) / 4)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * torch.arange(5)[:, None] * frequencies)
    assert_close(rotate(x, cosine, sine), torch.cat((turned.real, turned.imag), -1))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_rotated_products_depend_on_the_distance_alone(first: int, second: int, shift: int) -> None:
    cosine, sine = rotary_tables(41, 16)
    query, key = random(16), random(1, 16)[0] + 1

    def product(i: int, j: int) -> float:
        return float(rotate(query, cosine[i], sine[i]) @ rotate(key, cosine[j], sine[j]))

    assert math.isclose(product(first, second), product(first + shift, second + shift), abs_tol=1e-4)


def test_scores_that_are_no_numbers_are_not_taken_for_places_nobody_may_look_at() -> None:
    key = random(1, 5, 8)
    key[0, 2] = torch.nan
    weights = attention(random(1, 3, 8), key, random(1, 5, 4), padding_mask(torch.tensor([4]), 5)[:, 0])[1]
    assert weights[..., :4].isnan().all()
    assert (weights[..., 4:] == 0).all()
