from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from polyhead.models.attention import causal_mask, merge_heads, multi_head_attention, padding_mask, split_heads
from polyhead.models.seq2seq import TransformerSeq2Seq, TransformerSeq2SeqConfig
from tests.unit.models.seq2seq.sources import (
    SOURCES,
    TARGETS,
    assert_padding_and_other_rows_change_nothing,
    padded_sources,
    targets,
)

CONFIG = TransformerSeq2SeqConfig(SOURCES, TARGETS, layers=2, heads=2, width=16, hidden=24)
VARIANTS: list[dict[str, Any]] = [{}, {"norm": "post"}, {"positions": "learned"}]


def build(**changes: Any) -> TransformerSeq2Seq:
    torch.manual_seed(0)
    return TransformerSeq2Seq(replace(CONFIG, **changes)).eval()


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_decoder_s_steps_give_what_a_whole_target_gives(changes: dict[str, Any]) -> None:
    model = build(**changes)
    (source, lengths), target = padded_sources(6, 1, 9), targets(3, 5)
    with torch.inference_mode():
        whole = model(source, lengths, target).logits
    decoder = model.decoder(source, lengths, 5)
    for t in range(5):
        assert_close(decoder.step(target[:, t]), whole[:, t])


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_padding_and_other_rows_change_nothing(changes: dict[str, Any]) -> None:
    assert_padding_and_other_rows_change_nothing(build(**changes))


def test_no_position_of_the_target_sees_a_later_one() -> None:
    model = build()
    (source, lengths), target = padded_sources(6), targets(1, 8)
    changed = target.clone()
    changed[0, 5:] = (changed[0, 5:] + 1) % TARGETS
    before, after = model(source, lengths, target).logits, model(source, lengths, changed).logits
    assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5], after[:, 5])


def test_the_hooks_of_a_step_get_what_attention_needs() -> None:
    """Export puts fused nodes there: projections in, mixtures out; the memory is `cross`'s, key and value of each layer."""
    model, (source, lengths), target = build(), padded_sources(6, 3), targets(2, 4)
    heads, keys, values = CONFIG.heads, [[], []], [[], []]  # type: ignore[var-annotated]
    memory = model.cross(model.encode(source, lengths))
    assert [tensor.shape for tensor in memory] == [(2, 6, 16)] * 4

    def self_attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys[layer].append(key)
        values[layer].append(value)
        q, k, v = (split_heads(x, heads) for x in (query, torch.cat(keys[layer], 1), torch.cat(values[layer], 1)))
        return merge_heads(multi_head_attention(q, k, v, causal_mask(1, k.shape[-2]))[0])

    def cross_attend(layer: int, query: Tensor) -> Tensor:
        q, k, v = (split_heads(x, heads) for x in (query, memory[2 * layer], memory[2 * layer + 1]))
        return merge_heads(multi_head_attention(q, k, v, padding_mask(lengths, 6))[0])

    for t in range(4):
        logits = model.step(target[:, t], torch.full((2,), t), self_attend, cross_attend)
        assert_close(logits, model(source, lengths, target).logits[:, t])


def test_the_encoder_s_hook_gets_what_training_attention_gets() -> None:
    model, (source, lengths) = build(), padded_sources(6, 3)

    def attend(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
        q, k, v = (split_heads(x, CONFIG.heads) for x in (query, key, value))
        return merge_heads(multi_head_attention(q, k, v, padding_mask(lengths, 6))[0])

    hooked, plain = model.encode(source, lengths, attend), model.encode(source, lengths)
    assert_close(hooked[0], plain[0])
    assert_close(hooked[1, :3], plain[1, :3])


def test_its_own_choices_replace_what_it_reads_but_the_begin_token() -> None:
    model, (source, lengths), target = build(), padded_sources(6, 3), targets(2, 5)
    with torch.inference_mode():
        own = model(source, lengths, target).logits.argmax(-1)
        read = torch.cat((target[:, :1], own[:, :-1]), 1)
        assert_close(model(source, lengths, target, own_share=1.0).logits, model(source, lengths, read).logits)


def test_greedy_answers_are_those_of_recomputing_everything() -> None:
    model, (source, lengths) = build(), padded_sources(6, 3, 8)
    answers = model.greedy(source, lengths, 7, bos=1, eos=-1)
    ids = torch.ones(3, 1, dtype=torch.long)
    for _ in range(7):
        ids = torch.cat((ids, model(source, lengths, ids).logits[:, -1:].argmax(-1)), 1)
    assert answers == ids[:, 1:].tolist()


def test_rows_of_a_decoder_can_be_repeated_and_left_out() -> None:
    model, (source, lengths), target = build(), padded_sources(6, 3, 8), targets(3, 2)
    decoder, rows = model.decoder(source, lengths, 4), torch.tensor([2, 0, 2])
    decoder.step(target[:, 0])
    decoder.select(rows)
    expected = model(source[rows], lengths[rows], torch.stack((target[rows, 0], target[:, 1]), 1)).logits[:, 1]
    assert_close(decoder.step(target[:, 1]), expected)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_weight_learns(changes: dict[str, Any]) -> None:
    model = build(**changes).train()
    (source, lengths), target = padded_sources(6, 4, 5), targets(3, 4)
    model(source, lengths, target).logits.square().sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_one_matrix_embeds_targets_and_gives_the_output_and_with_one_vocabulary_sources_too() -> None:
    assert {n: tuple(w.shape) for n, w in build().state_dict().items() if "embedding" in n} == {
        "embedding.weight": (TARGETS, 16),
        "source_embedding.weight": (SOURCES, 16),
    }
    shared = build(source_vocabulary_size=TARGETS, share_embeddings=True)
    assert [name for name in shared.state_dict() if "embedding" in name] == ["embedding.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "none"}, "norm must be one of pre, post, not 'none'"),
        ({"positions": "rotary"}, "positions must be one of sinusoidal, learned, not 'rotary'"),
        ({"heads": 4}, "width 16 must divide by 8 times the heads, 4"),
        ({"hidden": 0}, "hidden must be at least 1, not 0"),
        (
            {"share_embeddings": True},
            "share_embeddings needs one vocabulary, not 20 source tokens and 24 target tokens",
        ),
    ],
)
def test_contradictory_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)
