"""Imported decoders of several architectures in one server, called at the same time, beside transformers' own answers."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.v1 import inference_pb2 as pb
from tests.integration.conftest import Running, Start
from tests.parity.huggingface import VOCABULARY
from tests.parity.test_huggingface_decoders import SMALL_SUITE, exported, generate

LENGTHS = (1, 2, 5, 31, 32, 33, 40, 90)
ANSWER = 20


@pytest.fixture
async def running(start: Start, tmp_path: Path) -> Running:
    """A model of each architecture, with fewer slots than prompts."""
    for name in SMALL_SUITE:
        shutil.copytree(exported(name)[1], tmp_path / name / "1")
    return await start(models=tmp_path, slots=6)


def request(model: str, prompt: list[int]) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model=pb.ModelReference(name=model),
        prompt=pb.Input(token_ids=pb.TokenIds(ids=prompt)),
        sampling=pb.SamplingParameters(temperature=0),
        stopping=pb.StoppingCriteria(max_tokens=ANSWER, ignore_eos=True),
    )


async def answer(running: Running, asked: pb.GenerateRequest) -> list[int]:
    return [token async for response in running.inference.Generate(asked) for token in response.token_ids]


async def test_prompts_of_all_lengths_to_all_models_at_once_are_answered_as_transformers_answers(
    running: Running,
) -> None:
    random = np.random.default_rng(1)
    asked: list[tuple[Any, list[int], pb.GenerateRequest]] = []
    for length in LENGTHS:
        prompt = random.integers(3, VOCABULARY, length).tolist()
        asked += [(exported(name)[0], prompt, request(name, prompt)) for name in SMALL_SUITE]
    answers = await asyncio.gather(*(answer(running, each) for *_, each in asked))
    for (model, prompt, _), tokens in zip(asked, answers, strict=True):
        assert [*prompt, *tokens] == generate(model, prompt, ANSWER)
