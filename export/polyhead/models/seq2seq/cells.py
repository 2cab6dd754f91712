"""Recurrent cells as pure functions over the weights of `nn.GRU` and `nn.LSTM`, and those modules over padded batches.

Training and reading a source run the modules, which torch has fused, and which are ONNX's GRU and LSTM nodes in exported
graphs. A decoder's step runs the functions on the same weights: a few products, which fuse with what is around them.
Shapes: B batch, S length, I input size, W width of a direction.
"""

from typing import Any, cast

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
    (B, directions·W). In an exported graph it is one node of ONNX (`onnx_node`), for any batch and length.
    """
    if torch.compiler.is_exporting():
        y, states = onnx_node(rnn, x, lengths)
    else:
        packed, last = rnn(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
        y, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
        states = last if isinstance(last, tuple) else (last,)
    return y, tuple(tensor.transpose(0, 1).flatten(1) for tensor in states)  # (directions, B, W) -> (B, directions·W)


def onnx_node(rnn: RNN, x: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
    """ONNX's GRU or LSTM in the place of a module: torch.export would fix the length, as it looks into the module.

    Outputs (B, S, directions·W), states (directions, B, W).
    """
    (B, S, _), W, directions = x.shape, rnn.hidden_size, 2 if rnn.bidirectional else 1
    is_gru = isinstance(rnn, nn.GRU)
    attributes: dict[str, Any] = {
        "hidden_size": W,
        "direction": "bidirectional" if rnn.bidirectional else "forward",
    }
    if is_gru:
        attributes["linear_before_reset"] = 1
    states = 1 if is_gru else 2
    y, *last = torch.onnx.ops.symbolic_multi_out(
        "GRU" if is_gru else "LSTM",
        (x.transpose(0, 1), *_onnx_weights(rnn), lengths.to(torch.int32)),
        attributes,
        dtypes=(x.dtype,) * (1 + states),
        shapes=((S, directions, B, W), *((directions, B, W),) * states),
        version=22,
    )
    return y.permute(2, 0, 1, 3).flatten(2), tuple(last)


def _onnx_weights(rnn: RNN) -> tuple[Tensor, Tensor, Tensor]:
    """Input and hidden weights (directions, gates·W, I or W) and biases (directions, 2·gates·W), gates in ONNX's order."""
    order = (1, 0, 2) if isinstance(rnn, nn.GRU) else (0, 3, 1, 2)  # update, reset, new; input, output, forget, new

    W = rnn.hidden_size

    def stacked(name: str) -> Tensor:
        tensors = [getattr(rnn, f"{name}_l0{end}") for end in ("", "_reverse")[: 1 + rnn.bidirectional]]
        return torch.stack([torch.cat([tensor.narrow(0, gate * W, W) for gate in order]) for tensor in tensors])

    return stacked("weight_ih"), stacked("weight_hh"), torch.cat((stacked("bias_ih"), stacked("bias_hh")), 1)
