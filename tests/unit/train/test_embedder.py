import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from polyhead.models.checkpoint import load_checkpoint
from polyhead.models.encoder import Embedder
from polyhead.train.__main__ import main
from polyhead.train.embedder import PRESETS, contrastive_loss, make_corpus, make_recipe, name_groups
from polyhead.train.tokenizer import PAD

TINY = ["--layers=1", "--heads=2", "--width=32", "--hidden=32", "--vocabulary=400", "--batch-size=32", "--device=cpu"]
PAIRS = [(f"number {i}", f"Zahl {i}") for i in range(100, 500)]


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "pairs.tsv"
    path.write_text("en\tde\n" + "".join(f"{a}\t{b}\n" for a, b in PAIRS), "utf-8")
    return str(path)


def train_embedder(out: Path, *arguments: str) -> int:
    return main(["embedder", "--out", str(out), *TINY, "--text-column=en", "--pair-column=de", *arguments])


def test_pairs_become_a_checkpoint_that_finds_translations_it_has_not_seen(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code = train_embedder(out, "--data", data, "--steps=100", "--learning-rate=1e-2", "--warmup-steps=5")
    assert code == 0, capsys.readouterr().err
    config, model = load_checkpoint(out)
    assert isinstance(model, Embedder)
    assert (config.task, config.architecture, config.special_tokens.pad) == ("embed", "encoder", PAD)
    assert set(config.quality) == {"validation_mrr", "recall_at_1", "mrr", "recall_at_1_all", "chance"}
    assert config.quality["recall_at_1"] > 3 * config.quality["chance"]
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    rows = [tokenizer.encode(text).ids for text in ("number 123", "Zahl 123", "Zahl 480")]
    query, right, wrong = (model(torch.tensor([ids]), torch.tensor([len(ids)]))[0] for ids in rows)
    assert query @ right > query @ wrong
    printed = capsys.readouterr().out
    assert f"right translation first {config.quality['recall_at_1']:.4f}" in printed
    assert " -> " in printed


def test_a_column_that_is_missing_is_named(tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_embedder(tmp_path / "run", "--data", data, "--pair-column=fr") == 1
    assert "no column 'fr'; there are en, de" in capsys.readouterr().err


def test_too_few_pairs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("en\tde\none\teins\n", "utf-8")
    assert train_embedder(tmp_path / "run", "--data", str(path)) == 1
    assert "pairs of different texts and needs 2; give more data" in capsys.readouterr().err


def test_held_out_groups_share_no_text_with_those_to_learn_from_and_have_something_to_find() -> None:
    groups = {str(i): {"a": f"x{i % 150}", "b": f"y{i}", "c": "SAME"} for i in range(300)}
    groups |= {f"same {i}": {"a": "one", "b": "One"} for i in range(50)}
    corpus = make_corpus("groups", groups)
    seen = {text.casefold() for group in corpus.training for text in group.values()}
    held_out = [*corpus.validation, *corpus.test]
    assert held_out
    assert not seen & {text.casefold() for group in held_out for text in group.values()}
    assert all(len({text.casefold() for text in group.values()}) > 1 for group in [*corpus.training, *held_out])


def test_test_pairs_replace_the_held_out_part() -> None:
    groups = {str(i): {"a": f"x{i}", "b": f"y{i}"} for i in range(100)}
    corpus = make_corpus("groups", groups, {"other": {"a": "p", "b": "q"}})
    assert corpus.test == [{"a": "p", "b": "q"}]
    assert len(corpus.training) + len(corpus.validation) == 100


def test_the_default_groups_are_what_languages_call_one_thing() -> None:
    groups = name_groups(("de", "en", "ru"))
    assert groups["territory/DE"] == {"de": "Deutschland", "en": "Germany", "ru": "Германия"}
    assert groups["unit/length-kilometer"]["en"] == "kilometers"
    assert not any(concept.startswith(("span/", "variant/")) for concept in groups)


def test_a_batch_pairs_different_texts_of_one_group_and_depends_on_seed_and_step_alone() -> None:
    settings = replace(PRESETS["demo"], vocabulary=400, batch_size=16, cut_share=0.0)
    corpus = make_corpus("pairs", {a: {"en": a, "de": b} for a, b in PAIRS})
    recipe, again = make_recipe(settings, corpus), make_recipe(settings, corpus)
    batch = recipe.batch(3)
    assert all(torch.equal(a, b) for a, b in zip(batch.tensors, again.batch(3).tensors, strict=True))
    texts = [recipe.segmenter.tokenizer.decode([id for id in row if id]).strip() for row in batch.tensors[0].tolist()]
    assert {frozenset(pair) for pair in zip(texts[:16], texts[16:], strict=True)} <= {
        frozenset((a.lower(), b.lower())) for a, b in PAIRS
    }
    assert not torch.equal(batch.tensors[1], recipe.batch(4).tensors[1])


def test_the_loss_is_the_cross_entropy_of_telling_ones_own_pair_in_both_directions() -> None:
    torch.manual_seed(0)
    first, second = (F.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    scores = (first @ second.T / 0.1).double()
    expected = 0.0
    for i in range(4):
        for direction in (scores[i], scores[:, i]):
            expected -= math.log(math.exp(direction[i]) / sum(math.exp(score) for score in direction)) / 8
    loss = contrastive_loss(first, second, torch.arange(4), torch.arange(4, 8), 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "numbers", [([0, 0, 2], [3, 4, 5]), ([0, 1, 2], [3, 3, 5]), ([0, 1, 2], [1, 4, 5]), ([0, 1, 2], [3, 0, 5])]
)
def test_pairs_that_share_a_text_are_not_pushed_apart(numbers: tuple[list[int], list[int]]) -> None:
    first, second = (torch.eye(3).requires_grad_() for _ in range(2))
    torch.autograd.backward(contrastive_loss(first, second, torch.tensor(numbers[0]), torch.tensor(numbers[1]), 1.0))
    for own, others in ((first, second), (second, first)):
        assert own.grad is not None
        assert others[2] @ own.grad[0] > 0  # away from pair 2
        assert own.grad[0, 1] == 0  # neither away from nor towards pair 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0"),
        ({"embedding_size": 0}, "embedding_size must be at least 1, not 0"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["demo"], **change)  # type: ignore[arg-type]
