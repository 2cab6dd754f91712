"""Recurrent cells as pure functions over the weights of `nn.GRU` and `nn.LSTM`, and those modules over padded batches.

Training and reading a source run the modules, which torch has fused, and which export turns into ONNX's GRU and LSTM
nodes. A decoder's step runs the functions on the same weights: a few products, which fuse with what is around them.
Shapes: B batch, S length, I input size, W width of a direction.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

RNN = nn.GRU | nn.LSTM
State = tuple[Tensor, ...]
"""(h,) of a GRU, (h, c) of an LSTM."""


def gru_cell(x: Tensor, state: State, weights: tuple[Tensor, ...]) -> State:
    """Cho et al. 2014, section 2.3, with the reset gate after the product, as in torch. x (B, I), state ((B, W),)."""
    input_weight, hidden_weight, input_bias, hidden_bias = weights
    (h,) = state
    reset_x, update_x, new_x = F.linear(x, input_weight, input_bias).chunk(3, -1)
    reset_h, update_h, new_h = F.linear(h, hidden_weight, hidden_bias).chunk(3, -1)
    reset, update = torch.sigmoid(reset_x + reset_h), torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + reset * new_h)
    return (new + update * (h - new),)


def lstm_cell(x: Tensor, state: State, weights: tuple[Tensor, ...]) -> State:
    """Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000. x (B, I), state ((B, W), (B, W))."""
    input_weight, hidden_weight, input_bias, hidden_bias = weights
    h, c = state
    gates = F.linear(x, input_weight, input_bias) + F.linear(h, hidden_weight, hidden_bias)
    enter, forget, new, leave = gates.chunk(4, -1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(leave) * torch.tanh(c), c


def cell_step(rnn: RNN, x: Tensor, state: State) -> State:
    """One step of a module's only layer and direction. x (B, I), each state (B, W)."""
    weights = tuple(
        cast(Tensor, getattr(rnn, f"{name}_l0")) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    return gru_cell(x, state, weights) if isinstance(rnn, nn.GRU) else lstm_cell(x, state, weights)


def run(rnn: RNN, x: Tensor, state: State) -> tuple[Tensor, State]:
    """All steps of a module's only layer and direction: x (B, S, I), each state (B, W) -> outputs (B, S, W), last state."""
    first = tuple(tensor.unsqueeze(0) for tensor in state)
    y, last = rnn(x, first if isinstance(rnn, nn.LSTM) else first[0])
    return y, tuple(tensor[0] for tensor in (last if isinstance(last, tuple) else (last,)))


def run_padded(rnn: RNN, x: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
    """x (B, S, I), padded to the right -> outputs (B, S, directions·W), zeros at padding, and the last states.

    Last is a row's last position before its length, of the direction from right to left the first one; each state
    (B, directions·W). Exported graphs read one source at a time, without padding, as packed sequences have no graph.
    """
    if torch.compiler.is_exporting():
        y, last = rnn(x)
    else:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        y, last = rnn(packed)
        y, _ = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
    states = last if isinstance(last, tuple) else (last,)
    return y, tuple(tensor.transpose(0, 1).flatten(1) for tensor in states)  # (directions, B, W) -> (B, directions·W)
