"""The decoder graph against torch, and a row's bits against its neighbours'."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from polyhead.export.errors import ParityError
from polyhead.export.own import OwnDecoder
from polyhead.export.parity import TOLERANCES
from polyhead.export.verify import answer, verify_decoder
from polyhead.models.gpt import GPT
from polyhead.server.runtime.session import open_session
from tests.parity.graphs import CAPACITY, TWINS, VOCABULARY, decoder, decoder_graph, gpt

tokens = st.integers(0, VOCABULARY - 1)


def changed(weight: str) -> GPT:
    """The GPT with one number of a weight changed."""
    model = deepcopy(gpt())
    with torch.no_grad():
        model.get_parameter(weight).view(-1)[0] += 0.5
    return model


def test_logits_caches_and_greedy_tokens_are_those_of_torch() -> None:
    verification = verify_decoder(OwnDecoder(gpt()), decoder(), TOLERANCES["none"])
    errors = {check.name: check.error for check in verification.parity}
    assert list(errors) == [
        "logits",
        "logsumexp",
        "present.key, present.value",
        "greedy tokens",
        "topk_values, topk_ids",
    ]
    assert max(errors.values()) < 2e-6
    assert verification.traffic_independent


@pytest.mark.parametrize(
    ("weight", "first", "before_it"),
    [
        ("blocks.1.attention.value.weight", "present.value.1", "present.key.1"),
        ("blocks.0.mlp.down.weight", "present.key.1", "present.value.0"),
        ("norm.weight", "logits", "present"),
    ],
)
def test_a_mismatch_names_the_worst_tensor_and_the_first(weight: str, first: str, before_it: str) -> None:
    with pytest.raises(ParityError, match=rf"disagree on \d prompts of .* {first} \(error") as caught:
        verify_decoder(OwnDecoder(changed(weight)), decoder(), TOLERANCES["none"])
    assert before_it not in str(caught.value)


def test_not_a_number_is_a_mismatch() -> None:
    model = deepcopy(gpt())
    nn.init.constant_(model.norm.weight, float("nan"))
    with pytest.raises(ParityError, match="the worst tensor is logits"):
        verify_decoder(OwnDecoder(model), decoder(), TOLERANCES["none"])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(tokens, min_size=1, max_size=50), min_size=2, max_size=8))
def test_a_row_gets_the_same_bits_alone_as_among_others(prompts: list[list[int]]) -> None:
    together = answer(decoder(), prompts, steps=4)
    for prompt, expected in zip(prompts, together, strict=True):
        assert answer(decoder(), [prompt], steps=4)[0].same_bits(expected)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_right_padded_chunks_get_the_same_bits_as_alone_for_one_wanted_position_or_many(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.lists(tokens, min_size=2, max_size=20), min_size=2, max_size=5))
    past = np.array(data.draw(st.lists(st.integers(0, 30), min_size=len(rows), max_size=len(rows))))
    config = gpt().config
    shape = (2 * config.layers, len(rows), config.kv_heads, CAPACITY, config.head_size)
    caches = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    lengths = np.array([len(row) for row in rows])
    width = lengths.max()
    ids = np.array([row + [0] * (width - len(row)) for row in rows])
    together = chunk(ids, lengths, past, caches, np.arange(ids.size))["logits"].reshape(len(rows), width, -1)
    for i, row in enumerate(rows):
        own = slice(i, i + 1)
        alone = (np.array([row]), lengths[own], past[own], caches[:, own])
        assert np.array_equal(chunk(*alone, np.arange(len(row)))["logits"], together[i, : len(row)])
        assert np.array_equal(chunk(*alone, np.array([len(row) - 1]))["logits"][0], together[i, len(row) - 1])


def test_the_whole_vocabulary_can_be_asked_for_and_equal_logits_come_by_lower_id() -> None:
    config = gpt().config
    caches = np.zeros((2 * config.layers, 1, config.kv_heads, CAPACITY, config.head_size), np.float32)
    ids = np.array([[1, 2, 3]])
    output = chunk(ids, np.array([3]), np.array([0]), caches, np.array([2]), top_k=VOCABULARY)
    expected = np.argsort(-output["logits"][0], kind="stable")
    assert np.array_equal(output["topk_ids"][0], expected)
    place = output["topk_ids"][0].tolist().index
    assert place(TWINS[1]) == place(TWINS[0]) + 1


def chunk(
    ids: NDArray[Any],
    lengths: NDArray[Any],
    past: NDArray[Any],
    caches: NDArray[np.float32],
    positions: NDArray[Any],
    top_k: int = 1,
) -> dict[str, NDArray[Any]]:
    """One call by hand, over copies of caches (2 · layers, B, kv_heads, capacity, head_size): the server's own runtime
    prefills row by row and wants one position of each."""
    session = open_session(decoder_graph())
    names = [node.name for node in session.get_inputs() if node.name.startswith("past.")]
    feeds = {
        "input_ids": ids,
        "seqlens_k": (past + lengths - 1).astype(np.int32),
        "query_seqlens": lengths.astype(np.int32),
        "capacity": np.array(CAPACITY, np.int32),
        "logit_positions": positions,
        "top_k": np.array([top_k]),
        **dict(zip(names, caches, strict=True)),
    }
    outputs = ("logits", "topk_ids")
    return dict(zip(outputs, session.run(outputs, feeds), strict=True))
