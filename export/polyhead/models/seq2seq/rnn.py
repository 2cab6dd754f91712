"""The recurrent encoder-decoder, with a fixed context or with attention.

The encoder's last states are the decoder's first (Sutskever et al. 2014, section 2), and with a fixed context no step sees them
again: that of Cho et al. 2014 goes into every step and into the output. Sources aren't reversed as Sutskever's are (section 3.3):
an encoder that reads in both directions has their beginning near its end, too. With attention, the decoder's state after reading
a token is the query, as in Luong et al. 2015 (section 3, "global"), for every score, also that of Bahdanau et al. 2014: so a
whole target is one call of each layer in training, unless the output is fed back.
Shapes: B batch, S source length, T target length, W width, E embedding size, L layers, V target vocabulary.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyhead.models.attention import (
    Score,
    additive_score,
    attention,
    dot_score,
    padding_mask,
    scaled_dot_score,
)
from polyhead.models.seq2seq import decoding
from polyhead.models.seq2seq.cells import RNN, cell_step, run, run_padded
from polyhead.models.seq2seq.results import Encoded, Output, Step
from polyhead.models.seq2seq.rnn_config import RNNSeq2SeqConfig


class Encoder(nn.Module):
    def __init__(self, config: RNNSeq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        directions = 2 if config.bidirectional else 1
        sizes = [config.embedding_size, *[config.width] * config.layers]
        self.layers = nn.ModuleList(
            _module(config)(a, b // directions, batch_first=True, bidirectional=config.bidirectional)
            for a, b in pairwise(sizes)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x (B, S, E) -> (B, S, W), and all layers' last states, (B, L, W) each."""
        last = []
        for number, layer in enumerate(self.layers):
            y, state = run_padded(layer, self.dropout(x), lengths)  # type: ignore[arg-type]
            x = x + y if self.config.residual and number else y
            last.append(state)
        return x, tuple(torch.stack(states, 1) for states in zip(*last, strict=True))


class AttentionWeights(nn.Module):
    """What the score of the configuration learns."""

    def __init__(self, config: RNNSeq2SeqConfig) -> None:
        super().__init__()
        self.kind, width = config.attention, config.width
        if self.kind in ("general", "additive"):
            self.key = nn.Linear(width, width, bias=False)
        if self.kind == "additive":
            self.query = nn.Linear(width, width, bias=False)
            self.vector = nn.Parameter(torch.empty(width).uniform_(-1, 1) / width**0.5)

    def memory(self, states: Tensor) -> tuple[Tensor, ...]:
        """States (B, S, W) -> keys, projected for the score, and values; one tensor where they are the same."""
        return (self.key(states), states) if self.kind in ("general", "additive") else (states,)

    @property
    def score(self) -> Score:
        """Of a query with a key of `memory`: what is left of general once keys are projected is a dot product."""
        if self.kind == "additive":
            return additive_score(self.query.weight, None, self.vector)
        return scaled_dot_score if self.kind == "scaled-dot" else dot_score


class RNNSeq2Seq(nn.Module):
    """Source and target token ids in, logits of each next target token out."""

    def __init__(self, config: RNNSeq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        E, W = config.embedding_size, config.width
        self.embedding = nn.Embedding(config.target_vocabulary_size, E)
        if not config.share_embeddings:
            self.source_embedding = nn.Embedding(config.source_vocabulary_size, E)
        self.encoder = Encoder(config)
        sizes = [E * (1 + config.input_feeding), *[W] * config.layers]
        self.decoder_layers = nn.ModuleList(_module(config)(a, b, batch_first=True) for a, b in pairwise(sizes))
        self.attention = AttentionWeights(config)
        self.readout = nn.Linear(W if config.attention == "none" else 2 * W, E)
        self.output_bias = nn.Parameter(torch.zeros(config.target_vocabulary_size))
        self.dropout = nn.Dropout(config.dropout)
        self.apply(_initialize)

    # -- the source

    def encode(self, source: Tensor, lengths: Tensor) -> Encoded:
        """source (B, S), lengths (B,) of at least 1. Padding influences nothing.

        Memory: nothing with a fixed context, states (B, S, W) where they are keys and values at once, else keys and
        values. State: h (B, L, W), of an LSTM c (B, L, W), and with input feeding the last attentional vector (B, E).
        """
        table = self.embedding if self.config.share_embeddings else self.source_embedding
        states, last = self.encoder(table(source), lengths)
        memory = () if self.config.attention == "none" else self.attention.memory(states)
        if self.config.input_feeding:
            last = (*last, states.new_zeros(source.shape[0], self.config.embedding_size))
        return Encoded(memory, last)

    # -- the answer

    def step(self, token: Tensor, lengths: Tensor, memory: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> Step:
        """Read one token (B,): plain products, sigmoid and tanh, no recurrent module. lengths (B,): of the sources."""
        recurrent = state[:-1] if self.config.input_feeding else state
        x = self.dropout(self.embedding(token))
        if self.config.input_feeding:
            x = torch.cat((x, state[-1]), -1)
        x, recurrent = self._step_layers(x, recurrent)
        readout, weights = self._read(x.unsqueeze(1), lengths, memory)
        fed = (readout[:, 0],) if self.config.input_feeding else ()
        logits = self._logits(readout[:, 0])
        return Step(logits, (*recurrent, *fed), None if weights is None else weights[:, 0])

    def _step_layers(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x (B, E or 2·E), each state (B, L, W) -> the last layer's output (B, W), and the new states."""
        after = []
        for number, layer in enumerate(self.decoder_layers):
            new = cell_step(_rnn(layer), x if not number else self.dropout(x), tuple(s[:, number] for s in state))
            x = x + new[0] if self.config.residual and number else new[0]
            after.append(new)
        return x, tuple(torch.stack(states, 1) for states in zip(*after, strict=True))

    def _read(self, query: Tensor, lengths: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """query (B, T, W) -> what the output layer reads (B, T, E) (Luong et al. 2015, equation 5), and (B, T, S)."""
        if not memory:
            return torch.tanh(self.readout(query)), None
        key, value = memory[0], memory[-1]
        mask = padding_mask(lengths, key.shape[1])[:, 0]  # (B, 1, S)
        context, weights = attention(query, key, value, mask, self.attention.score)
        return torch.tanh(self.readout(torch.cat((context, query), -1))), weights

    def _logits(self, readout: Tensor) -> Tensor:
        """(..., E) -> (..., V)."""
        return F.linear(self.dropout(readout), self.embedding.weight, self.output_bias)

    # -- a whole target

    def forward(self, source: Tensor, lengths: Tensor, target_in: Tensor, own_share: float = 0.0) -> Output:
        """Teacher forcing: target_in (B, T) begins with the begin token.

        own_share: that share of its tokens, drawn at random, is replaced by what the model itself would have written
        (Bengio et al. 2015, scheduled sampling).
        """
        encoded = self.encode(source, lengths)
        if own_share > 0 or self.config.input_feeding:
            return self._forward_by_steps(encoded, lengths, target_in, own_share)
        x = self.dropout(self.embedding(target_in))
        for number, layer in enumerate(self.decoder_layers):
            first = tuple(state[:, number].contiguous() for state in encoded.state)
            y, _ = run(_rnn(layer), x if not number else self.dropout(x), first)
            x = x + y if self.config.residual and number else y
        readout, weights = self._read(x, lengths, encoded.memory)
        return Output(self._logits(readout), weights)

    def _forward_by_steps(self, encoded: Encoded, lengths: Tensor, target_in: Tensor, own_share: float) -> Output:
        token, state = target_in[:, 0], encoded.state
        steps: list[Step] = []
        for t in range(target_in.shape[1]):
            if t:
                own = torch.rand(token.shape, device=token.device) < own_share
                token = torch.where(own, steps[-1].logits.argmax(-1), target_in[:, t])
            steps.append(self.step(token, lengths, encoded.memory, state))
            state = steps[-1].state
        weights = [step.weights for step in steps if step.weights is not None]
        return Output(torch.stack([step.logits for step in steps], 1), torch.stack(weights, 1) if weights else None)

    def decoder(self, source: Tensor, lengths: Tensor, max_tokens: int) -> "RNNDecoder":
        """Answers under way for these sources, of any length."""
        return RNNDecoder(self, source, lengths)

    def greedy(self, source: Tensor, lengths: Tensor, max_tokens: int, bos: int, eos: int) -> list[list[int]]:
        """An answer for each source (B, S), without its end token."""
        begin = torch.full_like(lengths, bos)
        return decoding.greedy(self.decoder(source, lengths, max_tokens), begin, max_tokens, eos)


class RNNDecoder:
    """See `decoding.Decoder`. `weights` are those of the last step."""

    @torch.inference_mode()
    def __init__(self, model: RNNSeq2Seq, source: Tensor, lengths: Tensor) -> None:
        self.model, self.lengths = model, lengths
        self.memory, self.state = model.encode(source, lengths)
        self.weights: Tensor | None = None

    @torch.inference_mode()
    def step(self, token: Tensor) -> Tensor:
        logits, self.state, self.weights = self.model.step(token, self.lengths, self.memory, self.state)
        return logits

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        self.lengths = self.lengths[rows]
        self.memory = tuple(tensor[rows] for tensor in self.memory)
        self.state = tuple(tensor[rows] for tensor in self.state)


def _module(config: RNNSeq2SeqConfig) -> type[nn.GRU] | type[nn.LSTM]:
    return nn.GRU if config.cell == "gru" else nn.LSTM


def _rnn(layer: nn.Module) -> RNN:
    assert isinstance(layer, nn.GRU | nn.LSTM)
    return layer


def _initialize(module: nn.Module) -> None:
    """Products within a state begin orthogonal (Saxe et al. 2014), so that it neither fades nor bursts; biases zero, but those of an
    LSTM's forget gates 1 (Jozefowicz et al. 2015, section 2.2), so that it doesn't begin by halving what it holds at each step."""
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.GRU | nn.LSTM):
        for name, parameter in module.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
            else:
                for gate in parameter.data.chunk(parameter.shape[0] // parameter.shape[1]):
                    nn.init.orthogonal_(gate)
            if isinstance(module, nn.LSTM) and name.startswith("bias_ih"):  # `bias_hh` is added to it
                nn.init.ones_(parameter.data.chunk(4)[1])  # input, forget, new, output
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
