from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from polyhead.models.attention import attention, causal_mask, repeat_heads, rotate, split_heads
from polyhead.models.gpt import GPT, GPTConfig

CONFIG = GPTConfig(vocabulary_size=50, max_tokens=32, layers=2, heads=4, kv_heads=2, width=32, hidden=48)


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(CONFIG).eval()


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(length))


def test_no_position_sees_a_later_token(model: GPT) -> None:
    ids = tokens(1, 12)
    changed = ids.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 50
    before, after = model(ids), model(changed)
    assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7], after[:, 7])


def test_padding_on_the_right_changes_nothing_before_it(model: GPT) -> None:
    ids = tokens(2, 9)
    padded = torch.cat((ids, torch.zeros(2, 6, dtype=torch.long)), 1)
    assert_close(model(padded)[:, :9], model(ids))


def test_rows_of_a_batch_do_not_see_each_other(model: GPT) -> None:
    ids = tokens(4, 8)
    assert_close(model(ids), torch.cat([model(row[None]) for row in ids]))


def test_the_attention_hook_gets_what_training_attention_gets(model: GPT) -> None:
    """Export replaces it: projections in, mixture out, positions and causality its own."""

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows = []
        for t in range(query.shape[1]):  # one position after the other, as a cache would
            q = rotate(split_heads(query[:, t : t + 1], 4), model.cosine[t : t + 1], model.sine[t : t + 1])
            k = rotate(split_heads(key[:, : t + 1], 2), model.cosine[: t + 1], model.sine[: t + 1])
            v = split_heads(value[:, : t + 1], 2)
            mixture, _ = attention(q, repeat_heads(k, 4), repeat_heads(v, 4), causal_mask(1, t + 1))
            rows.append(mixture.transpose(1, 2).flatten(2))
        return torch.cat(rows, 1)

    ids = tokens(2, 7)
    assert_close(model.logits(model.hidden_states(ids, attend)), model(ids))


def test_order_matters_though_no_position_is_added(model: GPT) -> None:
    assert not torch.allclose(model(torch.tensor([[1, 2, 3]]))[0, -1], model(torch.tensor([[2, 1, 3]]))[0, -1])


def test_generation_is_greedy_and_ends_with_an_end_token(model: GPT) -> None:
    prompt = [1, 2, 3]
    answer = model.generate(prompt, 6)
    for n, token in enumerate(answer):
        assert token == int(model(torch.tensor([prompt + answer[:n]]))[0, -1].argmax())
    end = answer[2]
    assert model.generate(prompt, 6, frozenset({end})) == answer[: answer.index(end) + 1]


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = GPT(replace(CONFIG, dropout=0.5))
    ids = tokens(1, 8)
    assert not torch.equal(model(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


def test_the_output_matrix_is_the_embedding_and_is_stored_once(model: GPT) -> None:
    assert [name for name in model.state_dict() if "embedding" in name] == ["embedding.weight"]
    assert not [name for name in model.state_dict() if "sine" in name]


def test_an_untrained_model_finds_every_token_about_equally_likely(model: GPT) -> None:
    assert model(tokens(4, 16)).softmax(-1).max().item() < 0.1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"width": 36}, "width 36 must divide by twice the heads, 4"),
        ({"kv_heads": 3}, "heads 4 must divide by kv_heads 3"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(changes: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(CONFIG, **changes)
