"""What the server answers is what the torch model behind its bundle computes, also when everybody asks at once."""

import asyncio
import random
import string
from functools import cache

import numpy as np
import pytest
import tokenizers
import torch
from numpy.typing import NDArray

from polyhead.client import AsyncClient
from polyhead.models.encoder import Classifier, Embedder
from polyhead.models.gpt import GPT
from tests import bundles
from tests.integration.conftest import Running

FloatArray = NDArray[np.float32]

TOKENS = 64
TOLERANCE = 1e-4
PROMPT_CHARACTERS = (0, 1, 2, 4, 7, 12, 20, 31, 33, 54, 63, 66, 88, 127, 131, 143, 232, 376, 609, 800)
"""Less than a prefill chunk, about one, several, and nearly a whole slot."""
INPUT_CHARACTERS = range(1, 30)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The reference shares the processors with the server."""
    torch.set_num_threads(1)


async def test_greedy_text_is_torchs_for_prompts_of_differing_length_sent_all_at_once(running: Running) -> None:
    prompts = [some_text(length) for length in PROMPT_CHARACTERS]
    model = bundles.torch_model(bundles.GENERATOR)
    assert isinstance(model, GPT)
    prompt_ids = [token_ids(bundles.GENERATOR, prompt) for prompt in prompts]
    expected = [model.generate(ids, TOKENS) for ids in prompt_ids]
    assert len({len(ids) for ids in prompt_ids}) == len(prompts) == 20

    async with AsyncClient(running.target) as client:
        streams = [client.generate(p, temperature=0, max_tokens=TOKENS, ignore_eos=True) for p in prompts]
        answers = await asyncio.gather(*(stream.result() for stream in streams))

    variety = sorted(len(set(ids)) for ids in expected)
    print(
        f"\n20 prompts of {len(prompt_ids[0])} to {len(prompt_ids[-1])} tokens; {variety[0]} to {variety[-1]} different"
    )
    assert variety[10] >= 10, "answers that hardly vary would prove little"
    assert [list(answer.token_ids) for answer in answers] == expected
    assert [answer.text for answer in answers] == [library(bundles.GENERATOR).decode(ids) for ids in expected]


async def test_embeddings_are_torchs_for_texts_of_differing_length_sent_all_at_once(running: Running) -> None:
    texts = [some_text(length) for length in INPUT_CHARACTERS]
    expected = np.stack([reference(bundles.EMBEDDER, text) for text in texts])
    assert least_difference(expected) > 10 * TOLERANCE, "inputs that all look alike would prove little"

    async with AsyncClient(running.target) as client:
        answers = await asyncio.gather(*(client.embed(text) for text in texts), client.embed(texts))

    alone = np.array([answer.embeddings[0] for answer in answers[:-1]])
    errors = [np.linalg.norm(got - expected, axis=1).max() for got in (alone, np.array(answers[-1].embeddings))]
    print(f"\nembeddings: worst relative L2 {max(errors):.1e} (at most {TOLERANCE:.0e})")  # the expected have length 1
    assert max(errors) <= TOLERANCE


async def test_class_probabilities_are_torchs_for_texts_of_differing_length_sent_all_at_once(running: Running) -> None:
    texts = [some_text(length) for length in INPUT_CHARACTERS]
    expected = np.stack([reference(bundles.CLASSIFIER, text) for text in texts])
    assert least_difference(expected) > 10 * TOLERANCE, "inputs that all look alike would prove little"

    async with AsyncClient(running.target) as client:
        answers = await asyncio.gather(*(client.classify(text) for text in texts), client.classify(texts))

    results = [answer.results[0] for answer in answers[:-1]] + list(answers[-1].results)
    scores = [{label.label: label.score for label in result.labels} for result in results]
    got = np.array([[by_label[label] for label in bundles.LABELS] for by_label in scores])
    error = np.abs(got - np.concatenate([expected, expected])).max()
    print(f"\nclass probabilities: worst difference {error:.1e} (at most {TOLERANCE:.0e})")
    assert error <= TOLERANCE


def some_text(characters: int) -> str:
    """Letters and spaces, the same each time and different for each length."""
    return "".join(random.Random(characters).choices(string.ascii_lowercase + " ", k=characters))


@cache
def library(name: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(bundles.models_folder() / name / "1" / "tokenizer.json"))


def token_ids(name: str, text: str) -> list[int]:
    ids: list[int] = library(name).encode(text).ids
    return ids


@torch.inference_mode()
def reference(name: str, text: str) -> FloatArray:
    """One text alone and without padding through the torch model: its probabilities (classes,) or embedding (size,)."""
    model = bundles.torch_model(name)
    assert isinstance(model, Classifier | Embedder)
    ids = torch.tensor([token_ids(name, text)])
    output = model(ids, torch.tensor([ids.shape[1]]))[0]
    values: FloatArray = (output.softmax(-1) if isinstance(model, Classifier) else output).numpy()
    return values


def least_difference(rows: FloatArray) -> float:
    """L2 distance of the two rows that are nearest to each other."""
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    return float(distances[~np.eye(len(rows), dtype=bool)].min())
