"""Errors as numbers, and what is said of too large ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.export.errors import ParityError
from polyhead.export.parity import Difference, relative_l2, require_parity, worst_error


@given(st.floats(1e-6, 1e6), st.floats(-0.5, 0.5))
def test_scaling_a_tensor_is_an_error_of_that_share(size: float, share: float) -> None:
    tensor = np.full(5, size, np.float32)
    assert relative_l2(tensor, tensor * np.float32(1 + share)) == pytest.approx(abs(share), abs=1e-6)


def test_nothing_differs_from_itself_even_if_it_is_zero() -> None:
    zeros = np.zeros(3, np.float32)
    assert relative_l2(zeros, zeros) == 0


def test_the_worst_row_counts_not_the_mean() -> None:
    ones = np.ones(4, np.float32)
    assert worst_error([(ones, ones), (ones, 2 * ones)]) == 1


def test_one_tensor_out_of_tolerance_is_named_once() -> None:
    with pytest.raises(ParityError) as caught:
        require_parity([Difference("a", 1e-6, 5e-5), Difference("b", 0.5, 5e-5)], "3 rows")
    expected = (
        "torch and the exported graph disagree on 3 rows: the worst tensor is b (error 0.5, at most 5e-05 accepted)"
    )
    assert str(caught.value) == expected


def test_of_several_the_first_is_named_too_and_nan_is_the_worst() -> None:
    with pytest.raises(
        ParityError, match=r"the worst tensor is c \(error nan, .*; the first to differ is a \(error 0.1"
    ):
        require_parity(
            [Difference("a", 0.1, 0.01), Difference("b", 0.5, 0.01), Difference("c", float("nan"), 0.01)], "3 rows"
        )


def test_what_is_within_its_own_tolerance_passes() -> None:
    require_parity([Difference("a", 0.0, 0.0), Difference("b", 0.1, 0.1)], "")
    with pytest.raises(ParityError):
        require_parity([Difference("a", 0.0, 0.0), Difference("b", 0.11, 0.1)], "")
