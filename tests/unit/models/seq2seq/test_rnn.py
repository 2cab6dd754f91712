import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from polyhead.models.seq2seq import RNNSeq2Seq, RNNSeq2SeqConfig
from polyhead.models.seq2seq.rnn_config import AttentionScore, Cell
from tests.unit.models.seq2seq.sources import (
    SOURCES,
    TARGETS,
    assert_padding_and_other_rows_change_nothing,
    padded_sources,
    targets,
)

CONFIG = RNNSeq2SeqConfig(SOURCES, TARGETS, width=16, embedding_size=8)
SCORES: tuple[AttentionScore, ...] = ("none", "dot", "scaled-dot", "general", "additive")
CELLS: tuple[Cell, ...] = ("gru", "lstm")


def build(**changes: Any) -> RNNSeq2Seq:
    torch.manual_seed(0)
    return RNNSeq2Seq(replace(CONFIG, **changes)).eval()


VARIANTS: list[dict[str, Any]] = [
    *({"attention": score, "cell": cell} for score, cell in itertools.product(SCORES, CELLS)),
    {"bidirectional": False},
    {"layers": 3, "residual": True, "cell": "lstm"},
    {"input_feeding": True, "layers": 2, "attention": "general"},
    {"input_feeding": True, "cell": "lstm"},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_steps_give_what_a_whole_target_gives(changes: dict[str, Any]) -> None:
    model = build(**changes)
    (source, lengths), target = padded_sources(6, 1, 9), targets(3, 5)
    with torch.inference_mode():
        whole = model(source, lengths, target)
        memory, state = model.encode(source, lengths)
        for t in range(5):
            logits, state, weights = model.step(target[:, t], lengths, memory, state)
            assert_close(logits, whole.logits[:, t])
            if weights is None:
                assert whole.weights is None
            else:
                assert_close(weights, whole.weights[:, t])


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_padding_and_other_rows_change_nothing(changes: dict[str, Any]) -> None:
    assert_padding_and_other_rows_change_nothing(build(**changes))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@torch.inference_mode()
def test_a_residual_layer_adds_to_what_it_reads_and_the_first_one_never(cell: Cell, residual: bool) -> None:
    """Wu et al. 2016, section 3.1: x_i = h_i + x_(i-1), of the encoder, of whole targets and of steps alike."""
    model = build(cell=cell, layers=3, residual=residual)
    source, lengths = torch.arange(6)[None], torch.tensor([6])
    target = torch.arange(4)[None]
    sums, states = model.source_embedding(source), []
    for number, layer in enumerate(model.encoder.layers):
        y, last = layer(sums)
        sums = sums + y if residual and number else y
        states.append([tensor.transpose(0, 1).flatten(1) for tensor in (last if cell == "lstm" else (last,))])
    assert_close(model.encode(source, lengths).memory[-1], sums)
    x = model.embedding(target)
    for number, layer in enumerate(model.decoder_layers):
        first = tuple(tensor[None] for tensor in states[number])
        y, _ = layer(x, first if cell == "lstm" else first[0])
        x = x + y if residual and number else y
    memory, state = model.encode(source, lengths)
    expected = model._logits(model._read(x, lengths, memory)[0])
    assert_close(model(source, lengths, target).logits, expected)
    for t in range(4):
        logits, state, _ = model.step(target[:, t], lengths, memory, state)
        assert_close(logits, expected[:, t])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_forget_gates_begin_open_and_all_other_biases_at_zero(bidirectional: bool) -> None:
    """Jozefowicz et al. 2015: a bias of 1. torch adds two biases, of which one has it."""
    model = build(cell="lstm", layers=2, bidirectional=bidirectional)
    lstms = [module for module in model.modules() if isinstance(module, torch.nn.LSTM)]
    assert len(lstms) == 4
    for lstm in lstms:
        for end in ("", "_reverse")[: 1 + lstm.bidirectional]:
            both = getattr(lstm, f"bias_ih_l0{end}") + getattr(lstm, f"bias_hh_l0{end}")
            enter, forget, new, leave = both.chunk(4)
            assert torch.equal(forget, torch.ones(lstm.hidden_size))
            assert not torch.cat((enter, new, leave)).any()
    biases: list[torch.Tensor] = [weight for name, weight in build(cell="gru").named_parameters() if ".bias_" in name]
    assert len(biases) == 6
    assert not torch.cat(biases).any()


def test_weights_sum_to_one() -> None:
    (source, lengths), target = padded_sources(6, 2), targets(2, 3)
    weights = build()(source, lengths, target).weights
    assert weights.shape == (2, 3, 6)
    assert_close(weights.sum(-1), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("score", "count"), [("none", 0), ("dot", 1), ("scaled-dot", 1), ("general", 2), ("additive", 2)]
)
def test_memory_has_the_source_at_dimension_1_and_state_has_no_time(score: AttentionScore, count: int) -> None:
    (source, lengths) = padded_sources(6, 2)
    encoded = build(attention=score, cell="lstm", layers=2, input_feeding=score != "none").encode(source, lengths)
    assert [tensor.shape for tensor in encoded.memory] == [(2, 6, 16)] * count
    fed = [] if score == "none" else [(2, 8)]
    assert [tensor.shape for tensor in encoded.state] == [(2, 2, 16), (2, 2, 16), *fed]


def test_a_fixed_context_is_all_that_the_decoder_knows_of_the_source() -> None:
    model = build(attention="none")
    (source, lengths), target = padded_sources(6, 4), targets(2, 3)
    memory, state = model.encode(source, lengths)
    assert memory == ()
    assert torch.equal(model.step(target[:, 0], lengths, memory, state).logits,
                       model.step(target[:, 0], lengths + 1, memory, state).logits)  # fmt: skip


def test_its_own_choices_replace_what_it_reads_by_their_share() -> None:
    """With a share of 1 only the begin token is read; what comes then is what it writes greedily."""
    model = build()
    (source, lengths), target = padded_sources(6, 4, 5), targets(3, 8)
    with torch.inference_mode():
        own = model(source, lengths, target, own_share=1.0).logits.argmax(-1)
        changed = model(source, lengths, torch.cat((target[:, :1], target[:, 1:] * 0), 1), own_share=1.0)
    assert torch.equal(own, changed.logits.argmax(-1))
    for row in range(3):
        one = slice(row, row + 1)
        assert model.greedy(source[one], lengths[one], 8, int(target[row, 0]), eos=-1) == [own[row].tolist()]


def test_greedy_answers_end_before_the_end_token_or_at_the_limit() -> None:
    model = build()
    source, lengths = padded_sources(6, 4, 5)
    free = model.greedy(source, lengths, 10, bos=1, eos=-1)
    assert [len(answer) for answer in free] == [10, 10, 10]
    end = free[0][3]
    for answer, ended in zip(free, model.greedy(source, lengths, 10, bos=1, eos=end), strict=True):
        assert ended == (answer[: answer.index(end)] if end in answer else answer)


def test_every_weight_learns() -> None:
    for changes in VARIANTS:
        model = build(**changes).train()
        (source, lengths), target = padded_sources(6, 4, 5), targets(3, 4)
        model(source, lengths, target).logits.square().sum().backward()
        without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
        assert without == []


def test_one_vocabulary_has_one_matrix() -> None:
    shared = RNNSeq2Seq(RNNSeq2SeqConfig(SOURCES, SOURCES, width=16, embedding_size=8, share_embeddings=True))
    assert [name for name in shared.state_dict() if "embedding" in name] == ["embedding.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": "rnn"}, "cell must be one of gru, lstm, not 'rnn'"),
        ({"attention": "cosine"}, "attention must be one of none, dot, scaled-dot, general, additive, not 'cosine'"),
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"width": 20}, "width must be a multiple of 8, not 20"),
        ({"attention": "none", "input_feeding": True}, "input_feeding needs attention, and attention is none"),
        (
            {"share_embeddings": True},
            "share_embeddings needs one vocabulary, not 20 source tokens and 24 target tokens",
        ),
    ],
)
def test_contradictory_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)
