"""Each option of Generate changes what it says, from the client through a real channel to a real model and back."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from polyhead.client import AsyncClient, Generation, InvalidInput
from tests import bundles
from tests.integration.conftest import Running, Start, until
from tests.integration.test_cli import Command

PROMPT = "the cat"
MODEL = {"model": bundles.GENERATOR, "version": "1"}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
SEEDED: dict[str, Any] = {"seed": 5, "max_tokens": 24, "ignore_eos": True, "logprobs": 2}
LONG_PROMPT = (
    "the cat sat on the mat and the dog sat on the cat " * 30
)  # some hundred tokens: several chunks of prefill


@pytest.fixture
async def client(running: Running) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(running.target) as client:
        yield client


async def answers(client: AsyncClient, **options: Any) -> list[Generation]:
    """Of seeds 0 to 5, sent at once, each to its own end."""
    streams = [client.generate(PROMPT, seed=seed, max_tokens=400, **options) for seed in range(6)]
    found = list(await asyncio.gather(*(stream.result() for stream in streams)))
    assert {answer.finish_reason for answer in found} == {"eos"}
    return found


async def test_an_answer_is_one_of_the_choices(client: AsyncClient) -> None:
    choices = ["the cat", "a dog", 'quotes " and \\ and é']
    texts = {answer.text for answer in await answers(client, choices=choices)}
    assert texts <= set(choices)
    assert len(texts) > 1


async def test_a_regular_expression_matches_the_whole_answer(client: AsyncClient) -> None:
    texts = {answer.text for answer in await answers(client, regex="[a-c]{3}-[0-9]{2}")}
    assert all(re.fullmatch("[a-c]{3}-[0-9]{2}", text) for text in texts)
    assert len(texts) > 1


async def test_an_answer_is_json_that_fits_the_schema(client: AsyncClient) -> None:
    schema = {
        "type": "object",
        "properties": {
            "animal": {"enum": ["cat", "dog"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 30},
            "tame": {"type": "boolean"},
        },
        "required": ["animal", "age", "tame"],
        "additionalProperties": False,
    }
    for answer in await answers(client, json_schema=schema, top_k=40):
        value = json.loads(answer.text)
        assert set(value) == {"animal", "age", "tame"}
        assert value["animal"] in ("cat", "dog")
        assert value["age"] in range(31)
        assert isinstance(value["tame"], bool)


async def test_an_answer_follows_the_grammar(client: AsyncClient) -> None:
    grammar = 'start: "(" start ")" | "x"'
    for answer in await answers(client, grammar=grammar):
        depth = answer.text.count("(")
        assert answer.text == "(" * depth + "x" + ")" * depth


@pytest.mark.parametrize(
    ("options", "field", "told"),
    [
        ({"json_schema": {"type": "nothing"}}, "constraint.json_schema", "nothing"),
        ({"json_schema": "{"}, "constraint.json_schema", "line 1 column 2"),
        ({"regex": "("}, "constraint.regex", "unclosed group"),
        ({"regex": ""}, "constraint.regex", "must have 1 to 65536 characters, got 0"),
        ({"grammar": "nope"}, "constraint.lark", "Expected token"),
        ({"choices": []}, "constraint.choice.choices", "must be 1 to 256 strings, got 0"),
        ({"choices": ["a", "a"]}, "constraint.choice.choices", "must be different from each other"),
        ({"regex": "a", "ignore_eos": True}, "stopping.ignore_eos", "must not be set together with constraint"),
        ({"samples": 17}, "samples", "must be 1 to 16, the model's slots, got 17"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "must be 0 to 20, got 21"),
        ({"priority": -101}, "priority", "must be -100 to 100, got -101"),
        ({"typical_p": 0}, "sampling.typical_p", "must be above 0 and at most 1, got 0"),
        ({"presence_penalty": 2.5}, "sampling.presence_penalty", "must be -2 to 2, got 2.5"),
        ({"logit_bias": {999999: 1}}, "sampling.logit_bias", "must be below the vocabulary size"),
        ({"logit_bias": {3: 101}}, "sampling.logit_bias[3]", "must be -100 to 100, got 101"),
        ({"stop_token_ids": [3, 999999]}, "stopping.stop_token_ids[1]", "must be below the vocabulary size"),
        ({"stop_token_ids": [3] * 17}, "stopping.stop_token_ids", "must be at most 16 tokens, got 17"),
        ({"bad_words": ["a", ""]}, "sampling.bad_words[1]", "must have 1 to 256 characters, got 0"),
    ],
)
async def test_an_option_that_makes_no_sense_is_refused_by_its_field(
    client: AsyncClient, options: dict[str, Any], field: str, told: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await client.generate(PROMPT, **options).results()
    assert refused.value.field == field
    assert told in refused.value.message


async def test_samples_differ_and_each_is_the_same_however_many_there_are(client: AsyncClient) -> None:
    alone = await client.generate(PROMPT, **SEEDED).result()
    two = await client.generate(PROMPT, samples=2, **SEEDED).results()
    five = await client.generate(PROMPT, samples=5, **SEEDED).results()
    assert len({sample.token_ids for sample in five}) == 5
    assert [(s.token_ids, s.logprobs) for s in two] == [(s.token_ids, s.logprobs) for s in five[:2]]
    assert (alone.token_ids, alone.logprobs) == (five[0].token_ids, five[0].logprobs)
    assert [sample.usage.generated_tokens for sample in five] == [24] * 5


async def test_prompt_log_probabilities_are_those_of_generating_the_same_tokens(client: AsyncClient) -> None:
    prompt = [token.id for token in (await client.tokenize(PROMPT, bundles.GENERATOR)).results[0]]
    answer = await client.generate(prompt, **SEEDED).result()
    whole = [*prompt, *answer.token_ids]
    echo = await client.generate(whole, max_tokens=1, prompt_logprobs=2).result()
    assert [item.token_id for item in echo.prompt_logprobs] == whole[1:]
    of_answer = echo.prompt_logprobs[len(prompt) - 1 :]
    assert [item.logprob for item in of_answer] == pytest.approx([item.logprob for item in answer.logprobs], abs=1e-4)
    assert {len(item.top) for item in echo.prompt_logprobs} == {2}


async def test_a_bad_word_never_appears(client: AsyncClient) -> None:
    plain = await client.generate(PROMPT, **GREEDY).result()
    word = next(word for word in reversed(plain.text.split()) if word.isascii())  # others may hold half a character
    clean = await client.generate(PROMPT, bad_words=[word], **GREEDY).result()
    assert word not in clean.text
    assert len(clean.token_ids) == len(plain.token_ids)


async def test_a_bias_forces_or_forbids_a_token(client: AsyncClient) -> None:
    plain = await client.generate(PROMPT, **SEEDED).result()
    forced = await client.generate(PROMPT, logit_bias={65: 100}, **SEEDED).result()
    assert set(forced.token_ids) == {65}
    forbidden = await client.generate(PROMPT, logit_bias=dict.fromkeys(plain.token_ids, -100.0), **SEEDED).result()
    assert not set(forbidden.token_ids) & set(plain.token_ids)


@pytest.mark.parametrize("option", ["presence_penalty", "frequency_penalty"])
async def test_a_penalty_makes_repetition_rarer(client: AsyncClient, option: str) -> None:
    plain = await client.generate(PROMPT, **GREEDY).result()
    penalized = await client.generate(PROMPT, **{**GREEDY, option: 2.0}).result()
    rewarded = await client.generate(PROMPT, **{**GREEDY, option: -2.0}).result()
    assert len(set(penalized.token_ids)) > len(set(plain.token_ids)) >= len(set(rewarded.token_ids))


async def test_a_typical_mass_near_nothing_leaves_one_token_whatever_the_seed(client: AsyncClient) -> None:
    seeds: list[dict[str, Any]] = [{**SEEDED, "seed": seed} for seed in (1, 2)]
    free = [(await client.generate(PROMPT, **options).result()).token_ids for options in seeds]
    typical = [(await client.generate(PROMPT, typical_p=1e-6, **options).result()).token_ids for options in seeds]
    likeliest = (await client.generate(PROMPT, **GREEDY).result()).token_ids
    assert free[0] != free[1]
    assert typical[0] == typical[1] != likeliest


async def test_a_prompt_seen_before_is_not_computed_again_and_the_answer_stays_the_same_bits(
    running: Running, client: AsyncClient, start: Start
) -> None:
    first, second = [await client.generate(LONG_PROMPT, **SEEDED).result() for _ in range(2)]
    assert running.metric("cached_prompt_tokens_total", **MODEL) == second.usage.cached_prompt_tokens
    assert first.usage.cached_prompt_tokens == 0
    assert 0 < second.usage.cached_prompt_tokens < second.usage.prompt_tokens == first.usage.prompt_tokens
    without = await start(prefix_slots=0)
    async with AsyncClient(without.target) as other:
        uncached = [await other.generate(LONG_PROMPT, **SEEDED).result() for _ in range(2)]
    assert [answer.usage.cached_prompt_tokens for answer in uncached] == [0, 0]
    assert len({(answer.token_ids, answer.logprobs) for answer in (first, second, *uncached)}) == 1


async def test_prompt_lookup_says_how_much_it_guessed(running: Running, client: AsyncClient) -> None:
    options = {**GREEDY, "max_tokens": 100}
    plain = (await client.generate(LONG_PROMPT, **options).result()).usage
    usage = (await client.generate(LONG_PROMPT, prompt_lookup=True, **options).result()).usage
    assert (plain.drafted_tokens, plain.accepted_tokens) == (0, 0)
    assert 0 < usage.accepted_tokens <= usage.drafted_tokens
    assert running.metric("drafted_tokens_total", **MODEL) == usage.drafted_tokens
    assert running.metric("accepted_tokens_total", **MODEL) == usage.accepted_tokens
    assert usage.accepted_tokens < usage.generated_tokens == 100


def waits(running: Running, requests: int) -> bool:
    return running.metric("queue_size", model=bundles.GENERATOR, version="1") == requests


async def test_of_those_who_wait_the_highest_priority_is_answered_first(start: Start) -> None:
    running = await start(slots=1)
    order: list[int] = []
    async with AsyncClient(running.target) as client:

        async def ask(priority: int) -> None:
            await client.generate(PROMPT, priority=priority, **GREEDY).result()
            order.append(priority)

        async with client.generate(PROMPT, max_tokens=1000, ignore_eos=True) as holder, asyncio.TaskGroup() as tasks:
            await anext(holder)
            for waiting, priority in enumerate((0, -5, 7, 0, 100)):
                await until(partial(waits, running, waiting))
                tasks.create_task(ask(priority))
            await until(partial(waits, running, 5))
            await holder.close()
    assert order == [100, 7, 0, 0, -5]


async def test_the_command_prints_an_object_a_sample_with_what_was_asked_for(running: Running) -> None:
    polyhead = Command(running.target)
    flags = ("--samples", "2", "--choice", "yes", "--choice", "no", "--prompt-logprobs", "0", "--seed", "3", "--json")
    as_json, plain = await asyncio.gather(
        polyhead("generate", PROMPT, *flags),
        polyhead("generate", PROMPT, *flags[:-1]),
    )
    first, second = as_json.objects
    assert [answer["sample_index"] for answer in (first, second)] == [0, 1]
    assert {first["text"], second["text"]} <= {"yes", "no"}
    assert (len(first["prompt_logprobs"]), second["prompt_logprobs"]) == (first["usage"]["prompt_tokens"] - 1, [])
    assert set(first["usage"]) >= {"cached_prompt_tokens", "drafted_tokens", "accepted_tokens"}
    lines = plain.out.splitlines()
    assert lines[:3] == ["--- sample 0 ---", first["text"], "of the prompt:"]
    assert lines[-2:] == ["--- sample 1 ---", second["text"]]
