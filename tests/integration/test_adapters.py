"""Adapters over a real server: chosen by request, several in one batch, and refused where there are none."""

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import grpc
import pytest
import torch

from polyhead.client import AsyncClient, InvalidInput
from polyhead.export.pipeline import ExportOptions, export_source, load_source
from polyhead.server.bundle import read_manifest
from polyhead.server.config import Settings
from polyhead.server.loader import memory_needed
from polyhead.server.rpc.servicers import routing_key
from polyhead.v1 import bundle_pb2, inference_pb2
from tests import bundles
from tests.adapters import with_adapter, write_adapter
from tests.integration.conftest import Start

GENERATOR_ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "east": {"layers": ["query", "value"], "seed": 1},
    "north": {"layers": ["output", "down"], "seed": 2, "r": 20},
    "west": {"layers": ["gate", "key"], "seed": 3, "lora_alpha": 2},
}
CLASSIFIER_ADAPTERS: Mapping[str, Mapping[str, Any]] = {
    "east": {"layers": ["query", "value"], "seed": 1, "saved": ["head"]},
    "north": {"layers": ["up"], "seed": 2},
}
EMBEDDER_ADAPTERS: Mapping[str, Mapping[str, Any]] = {"east": {"layers": ["projection", "key"], "seed": 1}}
PROMPTS = ("the cat sat", "the", "on the mat and the dog sat on the cat and the mat")


@cache
def folder() -> Path:
    """`models` with the tiny bundles, exported anew with adapters, and `adapters/NAME/ADAPTER`; made once a test run."""
    made = Path(mkdtemp(prefix="polyhead-test-"))
    for name, adapters in {
        bundles.GENERATOR: GENERATOR_ADAPTERS,
        bundles.CLASSIFIER: CLASSIFIER_ADAPTERS,
        bundles.EMBEDDER: EMBEDDER_ADAPTERS,
    }.items():
        model = bundles.torch_model(name)
        given = [(adapter, made / "adapters" / name / adapter) for adapter in adapters]
        for adapter, path in given:
            write_adapter(path, model, **adapters[adapter])
        source = load_source(bundles.checkpoint(name))
        export_source(source, made / "models" / name, ExportOptions(adapters=tuple(given)))
    return made


async def test_adapters_and_none_mixed_in_one_batch_answer_as_each_alone_and_as_torch(start: Start) -> None:
    running = await start(models=folder() / "models", slots=12)
    asked = [(adapter, prompt) for prompt in PROMPTS for adapter in ("", *GENERATOR_ADAPTERS)]
    async with AsyncClient(running.target) as client:

        async def answer(adapter: str, prompt: str) -> Any:
            stream = client.generate(
                prompt, adapter=adapter, max_tokens=24, temperature=0, ignore_eos=True, logprobs=2, seed=1
            )
            found = await stream.result()
            return found.token_ids, found.logprobs

        alone = [await answer(*one) for one in asked]
        mixed = await asyncio.gather(*(answer(*one) for one in asked))
        assert mixed == alone
        prompts = [(await client.tokenize(text, bundles.GENERATOR)).results[0] for text in PROMPTS]
    model: Any = bundles.torch_model(bundles.GENERATOR)
    ids = {text: [token.id for token in tokens] for text, tokens in zip(PROMPTS, prompts, strict=True)}
    told = dict(zip(asked, (list(tokens) for tokens, _ in alone), strict=True))
    for text in PROMPTS:
        assert told["", text] == model.generate(ids[text], 24)
        assert len({tuple(told[adapter, text]) for adapter in ("", *GENERATOR_ADAPTERS)}) == 4
    for adapter in GENERATOR_ADAPTERS:
        with with_adapter(model, folder() / "adapters" / bundles.GENERATOR / adapter):
            assert [told[adapter, text] for text in PROMPTS] == [model.generate(ids[text], 24) for text in PROMPTS]


async def test_a_classifier_scores_with_each_adapter_as_torch(start: Start) -> None:
    running = await start(models=folder() / "models")
    model: Any = bundles.torch_model(bundles.CLASSIFIER)
    async with AsyncClient(running.target) as client:
        names = ("", *CLASSIFIER_ADAPTERS) * 3
        results = await asyncio.gather(*(client.classify("the cat sat", adapter=name) for name in names))
        tokens = (await client.tokenize("the cat sat", bundles.CLASSIFIER)).results[0]
    ids = torch.tensor([[token.id for token in tokens]])
    scores = [{label.label: label.score for label in result.results[0].labels} for result in results]
    assert scores[:3] == scores[3:6] == scores[6:]
    for name, found in zip(names[:3], scores[:3], strict=True):
        with merged(model, name):
            expected = model(ids, torch.tensor([ids.shape[1]]))[0].softmax(-1)
        assert [found[label] for label in bundles.LABELS] == pytest.approx(expected.tolist(), abs=1e-5)
    assert len({tuple(found.values()) for found in scores}) == 3


def merged(model: Any, adapter: str) -> AbstractContextManager[None]:
    path = folder() / "adapters" / bundles.CLASSIFIER / adapter
    return with_adapter(model, path) if adapter else nullcontext()


async def test_an_embedder_takes_its_adapter_also_in_bulk(start: Start) -> None:
    running = await start(models=folder() / "models")

    async def requests() -> Any:
        for adapter in ("", "east", ""):
            inputs = [inference_pb2.Input(text="the cat")]
            yield inference_pb2.StreamEmbedRequest(request=inference_pb2.EmbedRequest(inputs=inputs, adapter=adapter))

    answers = [list(a.response.embeddings[0].values) async for a in running.inference.StreamEmbed(requests())]
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize("call", ["generate", "classify", "embed"])
async def test_an_adapter_that_there_is_not_is_refused_by_name(call: str, start: Start) -> None:
    running = await start(models=folder() / "models")
    known = {"generate": "east, north, west", "classify": "east, north", "embed": "east"}[call]
    async with AsyncClient(running.target) as client:
        with pytest.raises(InvalidInput) as refusal:
            await (
                client.generate("the", adapter="south").result()
                if call == "generate"
                else getattr(client, call)("the", adapter="south")
            )
    assert refusal.value.code == grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = refusal.value.violations
    assert (violation.field, violation.description) == ("adapter", f"must be empty or one of {known}; got 'south'")


async def test_a_model_without_adapters_says_so(running: Any) -> None:
    async with AsyncClient(running.target) as client:
        with pytest.raises(InvalidInput, match="must be empty, as the model has no adapters; got 'south'"):
            await client.embed("the", adapter="south")


def test_adapters_count_in_the_memory_that_a_model_needs() -> None:
    manifest = read_manifest(folder() / "models" / bundles.CLASSIFIER / "1")
    without = bundle_pb2.Bundle()
    without.CopyFrom(manifest)
    del without.files[:]
    without.files.extend(file for file in manifest.files if not file.path.startswith("adapters/"))
    sizes = [path.stat().st_size for path in (folder() / "models" / bundles.CLASSIFIER / "1" / "adapters").iterdir()]
    settings = Settings(models=Path("unused"))
    assert memory_needed(manifest, settings) == memory_needed(without, settings) + sum(sizes)


def test_the_same_seed_and_prompt_go_to_the_same_version_with_the_same_adapter() -> None:
    def key(adapter: str, request_id: str) -> bytes:
        request = inference_pb2.GenerateRequest(prompt=inference_pb2.Input(text="the"), adapter=adapter)
        request.sampling.seed = 1
        return routing_key(request, request_id)

    assert key("east", "a") == key("east", "b")
    assert len({key("east", "a"), key("west", "a"), key("", "a")}) == 3
