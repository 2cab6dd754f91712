"""Imported models that label tokens or compare two texts, over a real channel, beside what transformers computes."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tokenizers
import torch

from polyhead.client import AsyncClient, InvalidInput
from polyhead.client.cli import main
from polyhead.v1 import inference_pb2 as pb
from tests.integration.conftest import Running, Start
from tests.parity.huggingface import LABELS, POSITIONS, write_cross_encoder, write_token_classifier

QUERY, PASSAGE = "w1 w2", "w3 w4 w5 w6"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A models folder with `tagger` and `ranker`, and transformers' models."""
    from polyhead.export.pipeline import export_source, load_source

    folder = tmp_path_factory.mktemp("heads")
    models = {
        "tagger": write_token_classifier(folder / "tagger", "bert", num_hidden_layers=1),
        "ranker": write_cross_encoder(folder / "ranker", "bert", num_hidden_layers=1),
    }
    for name in models:
        export_source(load_source(folder / name), folder / "models" / name)
    return folder, models


@pytest.fixture
async def running(start: Start, made: tuple[Path, dict[str, Any]]) -> Running:
    return await start(models=made[0] / "models")


@pytest.fixture
async def client(running: Running) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(running.target) as client:
        yield client


@pytest.fixture
def tokenizer(made: tuple[Path, dict[str, Any]]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(made[0] / "ranker" / "tokenizer.json"))


@torch.inference_mode()
def logits(model: Any, encoding: tokenizers.Encoding, types: bool = True) -> torch.Tensor:
    kwargs = {"token_type_ids": torch.tensor([encoding.type_ids])} if types else {}
    output: torch.Tensor = model(input_ids=torch.tensor([encoding.ids]), **kwargs).logits[0]
    return output


async def test_each_token_of_a_text_has_its_place_and_its_labels(
    client: AsyncClient, made: tuple[Path, dict[str, Any]], tokenizer: tokenizers.Tokenizer
) -> None:
    text = "w7  w50 w3"
    (result,) = (await client.classify(text, "tagger")).results
    assert result.labels == ()
    assert [(t.token.token, text[t.token.start : t.token.end]) for t in result.tokens] == [(w, w) for w in text.split()]
    expected = logits(made[1]["tagger"], tokenizer.encode(text)).softmax(-1)[1:-1].numpy()
    for token, row in zip(result.tokens, expected, strict=True):
        assert [label.label for label in token.labels] == [LABELS[i] for i in np.argsort(-row)]
        np.testing.assert_allclose([label.score for label in token.labels], np.sort(row)[::-1], atol=1e-6)


async def test_only_the_best_labels_of_a_token_are_told_if_so_asked(client: AsyncClient) -> None:
    (all_of_them,) = (await client.classify("w1 w2", "tagger")).results
    (best,) = (await client.classify("w1 w2", "tagger", top_k=1)).results
    assert [token.labels for token in best.tokens] == [token.labels[:1] for token in all_of_them.tokens]


async def test_given_token_ids_are_all_labelled_and_have_no_place(client: AsyncClient) -> None:
    (text,) = (await client.classify("w1 w2", "tagger")).results
    (ids,) = (await client.classify([[1, 4, 5, 2]], "tagger")).results
    assert [(t.token.id, t.token.token, t.token.start, t.token.end) for t in ids.tokens] == [
        (1, "<s>", 0, 0), (4, "w1", 0, 0), (5, "w2", 0, 0), (2, "</s>", 0, 0)
    ]  # fmt: skip
    assert [token.labels for token in ids.tokens[1:3]] == [token.labels for token in text.tokens]


async def test_a_text_that_is_cut_has_labels_for_what_is_left(client: AsyncClient) -> None:
    long = " ".join(["w1"] * 300)
    with pytest.raises(InvalidInput, match=f"at most {POSITIONS} tokens"):
        await client.classify(long, "tagger")
    (result,) = (await client.classify(long, "tagger", truncate=True)).results
    assert len(result.tokens) == POSITIONS - 2
    assert result.tokens[-1].token.end == 3 * (POSITIONS - 2) - 1


async def test_labels_of_tokens_are_the_same_bits_alone_and_among_others(client: AsyncClient) -> None:
    texts = [" ".join(f"w{(i * j) % 90}" for j in range(i)) for i in range(1, 60)]
    alone = [(await client.classify(text, "tagger")).results[0] for text in texts]
    together = await asyncio.gather(*(client.classify(texts[i::4], "tagger") for i in range(4)))
    for i in range(4):
        assert list(together[i].results) == alone[i::4]


async def test_a_pair_is_scored_as_transformers_scores_it(
    client: AsyncClient, made: tuple[Path, dict[str, Any]], tokenizer: tokenizers.Tokenizer
) -> None:
    answer = await client.classify([(QUERY, PASSAGE), (PASSAGE, QUERY), QUERY], "ranker")
    encodings = [tokenizer.encode(QUERY, PASSAGE), tokenizer.encode(PASSAGE, QUERY), tokenizer.encode(QUERY)]
    expected = [float(logits(made[1]["ranker"], encoding).sigmoid()[0]) for encoding in encodings]
    np.testing.assert_allclose([result.best.score for result in answer.results], expected, atol=1e-6)
    assert answer.results[0].best.label == "score"
    assert answer.usage.prompt_tokens == sum(len(encoding.ids) for encoding in encodings)


async def test_pairs_are_the_same_bits_alone_and_among_others(client: AsyncClient) -> None:
    pairs = [(" ".join(["w1", "w9"] * i), " ".join(["w5"] * j)) for i in range(1, 8) for j in range(1, 8)]
    alone = [(await client.classify([pair], "ranker")).results[0] for pair in pairs]
    together = await asyncio.gather(*(client.classify(pairs[i::3], "ranker") for i in range(3)))
    for i in range(3):
        assert list(together[i].results) == alone[i::3]


@pytest.mark.parametrize(("first", "second"), [(2, 300), (300, 2), (300, 200), (100, 101), (78, 300)])
async def test_a_pair_is_cut_from_its_longer_text(
    client: AsyncClient, tokenizer: tokenizers.Tokenizer, made: tuple[Path, dict[str, Any]], first: int, second: int
) -> None:
    pair = (" ".join(["w1", "w2"] * first)[: 3 * first], " ".join(["w3"] * second))
    tokenizer.enable_truncation(POSITIONS, strategy="longest_first")
    expected = float(logits(made[1]["ranker"], tokenizer.encode(*pair)).sigmoid()[0])
    answer = await client.classify([pair], "ranker", truncate=True)
    assert answer.usage.prompt_tokens == POSITIONS
    assert answer.results[0].best.score == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("item", "model", "complaint"),
    [
        (pb.Input(text="w1", text_pair=""), "ranker", "inputs[0].text_pair: must not be empty"),
        (pb.Input(text="", text_pair="w1"), "ranker", "inputs[0]: must not be empty"),
        (pb.Input(token_ids=pb.TokenIds(ids=[5]), text_pair="w1"), "ranker",
         "inputs[0].text_pair: must not be given together with token_ids"),
        (pb.Input(text="w1", text_pair="w2"), "tagger", "inputs[0].text_pair: must not be given to a model that labels tokens"),
    ],
)  # fmt: skip
async def test_pairs_that_no_model_can_take_are_refused(
    running: Running, item: pb.Input, model: str, complaint: str
) -> None:
    request = pb.ClassifyRequest(model=pb.ModelReference(name=model), inputs=[item])
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await running.inference.Classify(request)
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, complaint)


def run(*arguments: str) -> "asyncio.Future[int]":
    return asyncio.get_running_loop().run_in_executor(None, main, list(arguments))


async def test_the_command_line_takes_pairs_as_two_arguments_or_with_a_tab(
    running: Running, client: AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("classify", "--pairs", "--json", "--model", "ranker", "--target", running.target)
    assert await run(*common, QUERY, PASSAGE, f"{PASSAGE}\t{QUERY}") == 0
    scores = [json.loads(line)["labels"][0]["score"] for line in capsys.readouterr().out.splitlines()]
    answer = await client.classify([(QUERY, PASSAGE), (PASSAGE, QUERY)], "ranker")
    assert scores == [result.best.score for result in answer.results]


async def test_the_command_line_shows_a_token_a_line(
    running: Running, client: AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("classify", "w1 w22", "--model", "tagger", "--target", running.target)
    (expected,) = (await client.classify("w1 w22", "tagger", top_k=1)).results
    assert await run(*common, "--top-k", "1") == 0
    best = [f"{token.best.label} {token.best.score:.4f}" for token in expected.tokens]
    assert capsys.readouterr().out == f"      0:2  w1   {best[0]}\n      3:6  w22  {best[1]}\n"
    assert await run(*common, "--top-k", "1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tokens"][1] == {
        "id": 25, "token": "w22", "start": 3, "end": 6,
        "labels": [{"label": expected.tokens[1].best.label, "score": expected.tokens[1].best.score}],
    }  # fmt: skip
