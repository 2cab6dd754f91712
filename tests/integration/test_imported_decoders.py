"""Imported decoders of several architectures in one server, over gRPC: each answers as transformers does."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.v1 import inference_pb2 as pb
from tests.integration.conftest import Running, Start
from tests.parity.huggingface import DECODERS, VOCABULARY
from tests.parity.test_huggingface_decoders import SMALL_SUITE, exported, generate

LENGTHS = (1, 2, 5, 31, 32, 33, 40, 90)
ANSWER = 20


def request(model: str, prompt: list[int]) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model=pb.ModelReference(name=model),
        prompt=pb.Input(token_ids=pb.TokenIds(ids=prompt)),
        sampling=pb.SamplingParameters(temperature=0),
        stopping=pb.StoppingCriteria(max_tokens=ANSWER, ignore_eos=True),
    )


async def answer(running: Running, asked: pb.GenerateRequest) -> list[int]:
    return [token async for response in running.inference.Generate(asked) for token in response.token_ids]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(SMALL_SUITE, id="-".join(SMALL_SUITE)),
        pytest.param(tuple(DECODERS), id="all", marks=pytest.mark.long),
    ],
)
async def test_prompts_of_all_lengths_to_all_models_at_once_are_answered_as_transformers_answers(
    start: Start, tmp_path: Path, names: Sequence[str]
) -> None:
    """Each model has fewer slots than prompts, so that rows come and go while others decode."""
    for name in names:
        shutil.copytree(exported(name)[1], tmp_path / name / "1")
    running = await start(models=tmp_path, slots=6)
    random = np.random.default_rng(1)
    asked: list[tuple[str, list[int], Any]] = []
    for length in LENGTHS:
        prompt = random.integers(3, VOCABULARY, length).tolist()
        asked += [(name, prompt, answer(running, request(name, prompt))) for name in names]
    answers = await asyncio.gather(*(each for *_, each in asked))
    for (name, prompt, _), tokens in zip(asked, answers, strict=True):
        assert [*prompt, *tokens] == generate(exported(name)[0], prompt, ANSWER), f"{name}, {len(prompt)} tokens"
