"""The `polyhead` command, as a process of its own, against the real server."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from dataclasses import dataclass
from typing import Any

import pytest

from tests.bundles import CLASSIFIER, EMBEDDER, EMBEDDING_SIZE, GENERATOR, LABELS
from tests.integration.conftest import Running

GREEDY = ("the cat", "--max-tokens", "8", "--temperature", "0", "--ignore-eos")


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        assert (self.code, self.err) == (0, "")
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Command:
    """`polyhead`, aimed at a server."""

    target: str

    async def __call__(self, *arguments: str, stdin: str = "") -> Done:
        command = [sys.executable, "-m", "polyhead.client", *arguments]
        environment = {**os.environ, "POLYHEAD_TARGET": self.target}
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment)
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), timeout=60)
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())


@pytest.fixture
def polyhead(running: Running) -> Command:
    return Command(f"127.0.0.1:{running.app.port}")


async def test_generate_prints_the_text_that_json_has(polyhead: Command) -> None:
    plain, as_json = await asyncio.gather(
        polyhead("generate", *GREEDY), polyhead("generate", *GREEDY, "--json", "--logprobs", "1")
    )
    (answer,) = as_json.objects
    assert len(answer["token_ids"]) == len(answer["logprobs"]) == answer["usage"]["generated_tokens"] == 8
    assert answer["finish_reason"] == "length"
    assert plain == Done(0, answer["text"] + "\n", "")


async def test_a_seed_gives_the_same_answer_again(polyhead: Command) -> None:
    arguments = ("generate", "the cat", "--max-tokens", "8", "--temperature", "2", "--ignore-eos", "--json")
    (drawn,) = (await polyhead(*arguments)).objects
    (again,) = (await polyhead(*arguments, "--seed", str(drawn["seed"]))).objects
    assert again["token_ids"] == drawn["token_ids"]


async def test_lines_of_standard_input_are_answered_in_order_with_the_same_bits(polyhead: Command) -> None:
    texts = ["the cat sat on the mat and the dog sat", "a", "the dog", "mat"]
    together, one_by_one = await asyncio.gather(
        polyhead("embed", "--json", "-", stdin="\n".join(texts)),
        polyhead("embed", "--json", "--concurrency", "1", *texts),
    )
    vectors = [answer["embedding"] for answer in together.objects]
    assert vectors == [answer["embedding"] for answer in one_by_one.objects]
    assert {len(vector) for vector in vectors} == {EMBEDDING_SIZE}
    assert len({tuple(vector) for vector in vectors}) == len(texts)


async def test_classify_models_and_health_show_what_the_server_has(polyhead: Command) -> None:
    classified, models, health = await asyncio.gather(
        polyhead("classify", "the cat sat"), polyhead("models"), polyhead("health", "--model", EMBEDDER)
    )
    assert {line.split()[0] for line in classified.out.splitlines()} == set(LABELS)
    tasks = {CLASSIFIER: "classify", EMBEDDER: "embed", GENERATOR: "generate"}
    rows = [line.split()[:4] for line in models.out.splitlines()[1:]]
    assert rows == [[name, "1", tasks[name], "ready"] for name in sorted(tasks)]
    assert health == Done(0, "serving\n", "")


async def test_a_refusal_is_one_line_and_exit_code_one(polyhead: Command) -> None:
    no_model, no_health, too_hot = await asyncio.gather(
        polyhead("generate", "--model", "nobody", "a"),
        polyhead("health", "--model", "nobody"),
        polyhead("generate", "--temperature", "500", "a"),
    )
    assert {done.code for done in (no_model, no_health, too_hot)} == {1}
    assert {done.err.count("\n") for done in (no_model, no_health, too_hot)} == {1}
    assert GENERATOR in no_model.err
    assert "`polyhead models`" in no_model.err
    assert "sampling.temperature" in too_hot.err
    assert "500" in too_hot.err
