import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polyhead.train.errors import UsageError
from polyhead.train.settings import (
    LoopSettings,
    choose_device,
    choose_precision,
    learning_rate,
    make_optimizer,
    progress,
    step_seed,
)

SETTINGS = LoopSettings(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("steps", 0, "steps must be above 0, not 0"),
        ("learning_rate", math.nan, "learning_rate must be above 0, not nan"),
        ("learning_rate", math.inf, "not inf"),
        ("eval_every", -1, "eval_every must be above 0, not -1"),
        ("warmup_steps", -1, "warmup_steps must be at least 0, not -1"),
        ("beta2", 1.0, "beta2 must be at least 0 and below 1, not 1.0"),
        ("final_learning_rate", 2.0, "from 0 to 1, not 2.0"),
        ("clock", "sun", "clock must be wall or processor, not 'sun'"),
        ("max_seconds", 0.0, "max_seconds must be above 0, not 0.0"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_limit(field: str, value: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(SETTINGS, **{field: value})


def test_the_learning_rate_warms_up_linearly_and_falls_along_a_cosine() -> None:
    rates = [learning_rate(SETTINGS, step, 0.0) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == max(rates) == 1.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.55)  # halfway down
    assert rates[-1] == pytest.approx(0.1, abs=2e-3)


def test_a_spent_time_budget_lowers_the_learning_rate_as_the_steps_would() -> None:
    budget = replace(SETTINGS, max_seconds=60.0)
    assert learning_rate(budget, 20, 60.0) == pytest.approx(0.1)
    assert learning_rate(budget, 55, 1.0) == learning_rate(SETTINGS, 55, 0.0)


def test_progress_is_the_larger_share_of_steps_and_of_time() -> None:
    assert [progress(SETTINGS, step, 1e9) for step in (0, 25, 100, 130)] == [0.0, 0.25, 1.0, 1.0]
    budget = replace(SETTINGS, max_seconds=60.0)
    assert [progress(budget, 25, seconds) for seconds in (3.0, 30.0, 90.0)] == [0.25, 0.5, 1.0]
    assert progress(SETTINGS, 55, 0.0, beginning=10) == 0.5
    assert progress(SETTINGS, 5, 0.0, beginning=10) == 0.0


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.floats(0, 1e6), st.one_of(st.none(), st.floats(1e-3, 1e6)))
def test_the_learning_rate_stays_between_nothing_and_its_peak(step: int, elapsed: float, budget: float | None) -> None:
    assert 0 < learning_rate(replace(SETTINGS, max_seconds=budget), step, elapsed) <= 1.0


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    matrices, vectors = make_optimizer(model, SETTINGS).param_groups
    assert [(tuple(p.shape), matrices["weight_decay"]) for p in matrices["params"]] == [((3, 3), 0.1)]
    assert len(vectors["params"]) == 3
    assert vectors["weight_decay"] == 0.0


def test_every_seed_and_step_have_random_numbers_of_their_own() -> None:
    draws = {
        torch.rand(1, generator=torch.Generator().manual_seed(step_seed(*pair))).item()
        for pair in product(range(3), range(99))
    }
    assert len(draws) == 297


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="device 'tpu9000'"):
        choose_device("tpu9000")


def test_a_cpu_trains_in_full_precision_unless_told() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) is None
    assert choose_precision("bf16", cpu) is torch.bfloat16
