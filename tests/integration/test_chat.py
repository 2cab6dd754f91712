"""Messages to a real server, over a real channel, through the client and the command line."""

import asyncio
import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from polyhead.client import AsyncClient, Client, InvalidInput, Message
from polyhead.v1 import inference_pb2 as pb
from tests import bundles
from tests.chats import CHATML, add_template
from tests.integration.conftest import Running, Start, until
from tests.integration.repositories import embed, listing
from tests.integration.test_cli import Command

HELLO: list[Message] = [{"role": "user", "content": "the cat"}]
ENDLESS = """{% if messages[0].role == 'poet' %}{{ raise_exception('No ' + messages[0].role + 's.') }}{% endif %}
{%- for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"""


def chat_models(folder: Path, template: str) -> Path:
    """The tiny bundles that generate and embed, the first with a template."""
    models = bundles.copy_models(folder / "models", bundles.GENERATOR, bundles.EMBEDDER)
    add_template(models, template)
    return models


@pytest.fixture
async def chatting(start: Start, tmp_path: Path) -> Running:
    return await start(models=chat_models(tmp_path, CHATML))


async def test_messages_get_the_answer_of_the_prompt_that_the_template_makes_of_them(chatting: Running) -> None:
    prompt = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"
    async with AsyncClient(chatting.target) as client:
        tokens = (await client.tokenize(prompt, bundles.GENERATOR, add_special_tokens=False)).results[0]
        from_ids = await client.generate([token.id for token in tokens], seed=3, max_tokens=8, logprobs=1).result()
        from_messages = await client.generate(messages=HELLO, seed=3, max_tokens=8, logprobs=1).result()
    assert from_messages.token_ids == from_ids.token_ids
    assert from_messages.logprobs == from_ids.logprobs
    assert from_messages.usage.prompt_tokens == len(tokens)


async def test_both_clients_and_the_command_line_get_the_same_answer(chatting: Running) -> None:
    def ask() -> str:
        with Client(chatting.target) as client:
            return client.generate(messages=HELLO, seed=3, max_tokens=8).text

    arguments = ("generate", "--chat", "the cat", "--seed", "3", "--max-tokens", "8", "--json")
    async with AsyncClient(chatting.target) as client:
        text = (await client.generate(messages=HELLO, seed=3, max_tokens=8).result()).text
    (answer,) = (await Command(chatting.target)(*arguments)).objects
    assert text == answer["text"] == await asyncio.to_thread(ask)


async def test_variables_for_the_template_come_from_clients_and_command_line(start: Start, tmp_path: Path) -> None:
    """The template writes the text of `said` and nothing else, unless it is to be silent."""
    template = "{% if not silent %}{{ messages[0].content }}{% endif %}{{ said.text }}"
    running = await start(models=chat_models(tmp_path, template))
    variables = {"silent": True, "said": {"text": "the dog"}}

    def ask() -> tuple[int, ...]:
        with Client(running.target) as client:
            given = json.dumps(variables)
            asked = client.generate(messages=HELLO, seed=3, max_tokens=8, chat_template_kwargs=given)
            return asked.result().token_ids

    options = ("--template-option", "silent=true", "--template-option", 'said={"text": "the dog"}')
    arguments = ("generate", "--chat", "the cat", "--seed", "3", "--max-tokens", "8", "--json")
    async with AsyncClient(running.target) as client:
        said = await client.tokenize("the dog", bundles.GENERATOR, add_special_tokens=False)
        wanted = await client.generate([t.id for t in said.results[0]], seed=3, max_tokens=8).result()
        asked = client.generate(messages=HELLO, seed=3, max_tokens=8, chat_template_kwargs=variables)
        assert (await asked.result()).token_ids == wanted.token_ids
    (answer,) = (await Command(running.target)(*arguments, *options)).objects
    assert tuple(answer["token_ids"]) == await asyncio.to_thread(ask) == wanted.token_ids


async def test_messages_and_a_prompt_contradict_each_other(chatting: Running) -> None:
    request = pb.GenerateRequest(prompt=pb.Input(text="a"), messages=[pb.Message(role="user", content="b")])
    async with AsyncClient(chatting.target) as client:
        with pytest.raises(InvalidInput, match="messages: must not be given together with prompt"):
            client.generate("a", messages=HELLO)
    answer = chatting.inference.Generate(request)
    assert "messages: must not be given together with prompt" in (await answer.details())


async def test_a_model_without_a_template_says_so(running: Running) -> None:
    async with AsyncClient(running.target) as client:
        with pytest.raises(InvalidInput, match=r"messages: tiny-gpt 1 has no chat template; give a prompt") as error:
            await client.generate(messages=HELLO).result()
    assert [violation.field for violation in error.value.violations] == ["messages"]


async def test_an_endless_template_is_ended_while_others_are_answered(start: Start, tmp_path: Path) -> None:
    running = await start(models=chat_models(tmp_path, ENDLESS))

    async def chat() -> None:
        async with AsyncClient(running.target) as client:
            await client.generate(messages=HELLO).result()

    stuck = asyncio.create_task(chat())
    answered = 0
    while not stuck.done():
        await embed(running)
        answered += 1
    with pytest.raises(InvalidInput, match="takes more than 100000 steps"):
        await stuck
    assert answered > 1


async def test_a_refusal_has_the_template_s_words_and_the_log_has_none_of_them(start: Start, tmp_path: Path) -> None:
    running = await start(models=chat_models(tmp_path, ENDLESS))
    with capture_logs() as logs:
        async with AsyncClient(running.target) as client:
            with pytest.raises(InvalidInput, match=r"messages: the model's chat template refuses them: No poets\."):
                await client.generate(messages=[{"role": "poet", "content": "a secret"}]).result()
        await until(lambda: any(line["event"] == "call" for line in logs))
    (line,) = [line for line in logs if line["event"] == "call"]
    assert (line["code"], line["field"]) == ("INVALID_ARGUMENT", "messages")
    assert "poet" not in str(logs)
    assert "secret" not in str(logs)


async def test_a_bundle_with_a_bad_template_fails_in_one_line_and_disturbs_no_other(
    start: Start, tmp_path: Path
) -> None:
    running = await start(models=chat_models(tmp_path, "one\n{% for %}"))
    failed = (await listing(running))[f"{bundles.GENERATOR}:1"]
    assert failed.reason.startswith("chat_template.jinja: not a chat template: line 2: ")
    assert "\n" not in failed.reason
    assert (await embed(running)).header.model == bundles.EMBEDDER
