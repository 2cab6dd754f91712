import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from polyhead.models.checkpoint import load_checkpoint
from polyhead.models.gpt import GPT
from polyhead.train.__main__ import main
from polyhead.train.gpt import PRESETS, make_model, split_documents, spread_windows
from polyhead.train.tokenizer import BOS, EOS

TINY = ["--layers=1", "--heads=2", "--kv-heads=1", "--width=32", "--context=16", "--batch-size=4", "--steps=6"]
TEXT = "To be, or not to be, that is the question.\n" * 20


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return str(path)


def train_gpt(out: Path, *arguments: str) -> int:
    return main(["gpt", "--out", str(out), *TINY, "--eval-every=3", "--device=cpu", *arguments])


@pytest.mark.parametrize("tokenizer", ["bpe", "character"])
def test_a_text_file_becomes_a_checkpoint_that_loads_and_generates(
    tmp_path: Path, text_file: str, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train_gpt(out, "--data", text_file, "--tokenizer", tokenizer, "--vocabulary", "300") == 0
    config, model = load_checkpoint(out)
    served = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert isinstance(model, GPT)
    assert (config.task, config.architecture, config.special_tokens.bos, config.special_tokens.eos) == (
        "generate",
        "gpt",
        BOS,
        (EOS,),
    )
    assert model.config.vocabulary_size == served.get_vocab_size()
    assert set(config.quality) == {"validation_loss", "perplexity", "bits_per_byte"}
    assert config.training["steps"] == 6
    assert len(model.generate(served.encode("").ids, 4)) == 4
    assert "--- sample" in capsys.readouterr().out


def test_bits_per_byte_are_the_loss_spread_over_the_bytes_of_the_text(tmp_path: Path, text_file: str) -> None:
    out = tmp_path / "run"
    train_gpt(out, "--data", text_file, "--tokenizer", "character")
    quality = load_checkpoint(out)[0].quality
    held_out = len(TEXT) - round(len(TEXT) * 0.9)
    bits_a_token = torch.tensor(quality["validation_loss"]).div(torch.tensor(2.0).log()).item()
    assert quality["bits_per_byte"] == pytest.approx(
        bits_a_token * (held_out + 2) / held_out
    )  # begin and end count as tokens


def test_test_data_takes_the_place_of_the_held_out_part(
    tmp_path: Path, text_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("x" * 100, "utf-8")
    assert train_gpt(tmp_path / "run", "--data", text_file, "--test-data", str(other), "--tokenizer", "character") == 0
    assert f"{len(TEXT) + 2:,} tokens to learn from, 102 held out" in capsys.readouterr().out


def test_a_resumed_run_of_the_command_is_the_uninterrupted_one(tmp_path: Path, text_file: str) -> None:
    arguments = ("--data", text_file, "--tokenizer", "character", "--dropout", "0.1")
    assert train_gpt(tmp_path / "a", *arguments) == 0
    assert train_gpt(tmp_path / "b", *arguments, "--max-seconds", "0.001") == 0  # stops after one step
    assert json.loads((tmp_path / "b" / "last" / "state.json").read_text())["step"] == 1
    assert train_gpt(tmp_path / "b", *arguments) == 0
    first, second = (load_checkpoint(tmp_path / name)[1].state_dict() for name in "ab")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--data", "{missing}"], 1, "missing: no such file"),
        (["--data", "{text}", "--context", "5000"], 1, "part has .* tokens, and one window takes 5001"),
        (["--data", "{text}", "--width", "33"], 2, "width 33 must divide by twice the heads, 2"),
        (["--data", "{text}", "--layers", "0"], 2, "layers must be at least 1, not 0"),
        (["--data", "{text}", "--steps", "0"], 2, "steps must be above 0, not 0"),
        (["--data", "{text}", "--dropout", "1"], 2, "dropout must be at least 0 and below 1, not 1.0"),
        (["--data", "{text}", "--vocabulary", "5"], 2, "vocabulary must be at least 258"),
        (["--data", "{text}", "--encoding", "utf-9"], 2, "encoding 'utf-9' is unknown"),
        (["--data", "{text}", "--resume"], 2, "nothing to resume"),
        (["--data", "{text}", "--resume", "--restart"], 2, "not allowed with argument"),
        (["--preset", "huge"], 2, "invalid choice: 'huge'"),
    ],
)
def test_wrong_usage_ends_in_one_line_and_a_failure_in_another(
    tmp_path: Path, text_file: str, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str
) -> None:
    filled = [argument.format(text=text_file, missing=tmp_path / "missing") for argument in arguments]
    assert train_gpt(tmp_path / "run", *filled) == code
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(text, last_line)


def test_one_document_is_split_by_position_and_several_by_their_hash() -> None:
    assert split_documents(["0123456789" * 10]) == (["0123456789" * 9], ["0123456789"])
    documents = [f"document {number}" for number in range(200)]
    training, held_out = split_documents(documents)
    assert sorted(training + held_out) == sorted(documents)
    assert 5 < len(held_out) < 40
    assert split_documents(documents[::-1])[1] == held_out[::-1]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(min_size=1), min_size=2, max_size=6, unique=True))
def test_neither_part_of_several_documents_is_empty(documents: list[str]) -> None:
    training, held_out = split_documents(documents)
    assert training
    assert held_out
    assert {*training, *held_out} == {*documents}


@settings(deadline=None, max_examples=50)
@given(st.integers(10, 300), st.integers(1, 9), st.integers(1, 400))
def test_evaluation_windows_share_no_target_and_keep_to_their_limit(
    length: int, context: int, most_tokens: int
) -> None:
    windows = spread_windows(torch.arange(length), context, most_tokens)
    targets = windows[:, 1:].flatten().tolist()
    assert len(targets) == len({*targets})
    assert context <= len(targets) <= max(context, most_tokens)
    assert max(targets) < length


def test_without_a_limit_every_target_but_a_rest_is_evaluated() -> None:
    assert spread_windows(torch.arange(101), 10, 1000)[:, 1:].flatten().tolist() == list(range(1, 101))


@pytest.mark.parametrize(
    ("preset", "vocabulary", "least", "most"),
    [("char-small", 68, 700_000, 820_000), ("demo", 2048, 900_000, 3_000_000)],
)
def test_presets_have_the_size_they_promise_and_heads_that_export_can_rotate(
    preset: str, vocabulary: int, least: int, most: int
) -> None:
    model = make_model(PRESETS[preset], vocabulary)
    assert least <= sum(parameter.numel() for parameter in model.parameters()) <= most
    assert model.config.head_size % 16 == 0
