"""Szegedy et al. 2016, section 7: the target is (1 - p) of the true token and p of all tokens alike."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch.testing import assert_close

from polyhead.models.seq2seq.results import Output
from polyhead.train.seq2seq import IGNORED, Seq2SeqRecipe
from polyhead.train.seq2seq_settings import preset

VOCABULARY = 7


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_the_loss_is_the_cross_entropy_with_the_smoothed_target_over_every_token_but_padding(smoothing: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, VOCABULARY)
    targets = torch.tensor([[1, 4, 2], [6, 2, IGNORED]])
    settings = replace(preset("sentences", "rnn"), label_smoothing=smoothing)
    recipe = SimpleNamespace(settings=settings, model=lambda *_: Output(logits, None))
    nothing = torch.zeros(2, 3)
    loss = Seq2SeqRecipe.loss(cast(Seq2SeqRecipe, recipe), nothing, nothing, nothing, targets, torch.tensor(0.0))
    logprobs = logits - logits.exp().sum(-1, keepdim=True).log()
    expected = 0.0
    for row, place in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        for token in range(VOCABULARY):
            share = smoothing / VOCABULARY + (1 - smoothing) * (token == int(targets[row, place]))
            expected -= share * float(logprobs[row, place, token])
    assert_close(float(loss), expected / 5, rtol=1e-5, atol=1e-6)
