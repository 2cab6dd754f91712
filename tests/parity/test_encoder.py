"""Encoder graphs against torch, and a row's bits against its neighbours'."""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.export.errors import ParityError
from polyhead.export.own import OwnEncoder
from polyhead.export.parity import TOLERANCES
from polyhead.export.verify import verify_encoder
from polyhead.models.encoder import Classifier, Embedder
from polyhead.server.runtime.encoder import Encoder
from tests.parity.graphs import (
    MAX_TOKENS,
    VOCABULARY,
    classifier,
    classifying_encoder,
    embedder,
    embedding_encoder,
)

BOTH = pytest.mark.parametrize(
    ("model", "encoder"), [(classifier, classifying_encoder), (embedder, embedding_encoder)], ids=["classify", "embed"]
)


@BOTH
def test_padded_batches_give_what_torch_gives_of_single_rows(
    model: Callable[[], Classifier | Embedder], encoder: Callable[[], Encoder]
) -> None:
    verification = verify_encoder(OwnEncoder(model()), encoder(), TOLERANCES["none"])
    assert [check.error < 2e-6 for check in verification.parity] == [True] * 3
    assert verification.traffic_independent


@BOTH
def test_a_mismatch_names_the_tensor_and_the_batch(
    model: Callable[[], Classifier | Embedder], encoder: Callable[[], Encoder]
) -> None:
    changed = deepcopy(model())
    with torch.no_grad():
        changed.get_parameter("encoder.blocks.0.key.weight").view(-1)[0] += 0.5
    name = "probabilities" if isinstance(changed, Classifier) else "embeddings"
    with pytest.raises(
        ParityError, match=rf"disagree on 7 rows padded to \d+ tokens: the worst tensor is {name} \(error"
    ):
        verify_encoder(OwnEncoder(changed), encoder(), TOLERANCES["none"])


@BOTH
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_row_gets_the_same_bits_alone_as_among_others(
    model: Callable[[], Classifier | Embedder], encoder: Callable[[], Encoder], data: st.DataObject
) -> None:
    padded = data.draw(st.integers(1, MAX_TOKENS))
    lengths = np.array(data.draw(st.lists(st.integers(1, padded), min_size=2, max_size=33)), np.int32)
    ids = np.random.default_rng(padded).integers(0, VOCABULARY, (len(lengths), padded))
    together = encoder().run(ids, lengths)
    for i, row in enumerate(together):
        assert np.array_equal(encoder().run(ids[i : i + 1], lengths[i : i + 1])[0], row)
