import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from polyhead.models.seq2seq.cells import RNN, cell_step, run, run_padded

MODULES = (nn.GRU, nn.LSTM)


def states(kind: type[RNN], rows: int, width: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(rows, width) for _ in range(1 if kind is nn.GRU else 2))


@pytest.mark.parametrize("kind", MODULES)
def test_steps_of_the_pure_cell_are_what_torch_computes(kind: type[RNN]) -> None:
    torch.manual_seed(0)
    rnn = kind(6, 8, batch_first=True)
    x, state = torch.randn(3, 5, 6), states(kind, 3, 8)
    expected, last = run(rnn, x, state)
    for t in range(5):
        state = cell_step(rnn, x[:, t], state)
        assert_close(state[0], expected[:, t])
    for mine, theirs in zip(state, last, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize(("kind", "bidirectional"), list(itertools.product(MODULES, (False, True))))
def test_a_padded_row_is_read_as_if_it_were_alone(kind: type[RNN], bidirectional: bool) -> None:
    torch.manual_seed(0)
    rnn = kind(6, 8, batch_first=True, bidirectional=bidirectional)
    x, lengths = torch.randn(3, 7, 6), torch.tensor([5, 1, 7])
    y, last = run_padded(rnn, x, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, state = run_padded(rnn, x[row : row + 1, :length], lengths[row : row + 1])
        assert_close(y[row, :length], alone[0])
        assert not y[row, length:].any()
        for batched, single in zip(last, state, strict=True):
            assert_close(batched[row], single[0])


def test_the_last_state_from_right_to_left_is_that_of_the_first_position() -> None:
    torch.manual_seed(0)
    rnn = nn.GRU(6, 8, batch_first=True, bidirectional=True)
    y, (h,) = run_padded(rnn, torch.randn(2, 4, 6), torch.tensor([4, 2]))
    assert_close(h[:, 8:], y[:, 0, 8:])
    assert_close(h[:, :8], torch.stack((y[0, 3, :8], y[1, 1, :8])))
