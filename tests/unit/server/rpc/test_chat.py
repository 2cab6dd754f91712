"""Messages of a request → checked tokens of what the model's chat template makes of them."""

import dataclasses

import pytest

from polyhead.server.chat import ChatTemplate
from polyhead.server.errors import InvalidInput
from polyhead.server.loader import LiveModel
from polyhead.server.rpc.inputs import prompt_tokens
from polyhead.server.rpc.workers import Workers
from polyhead.v1 import inference_pb2 as pb
from tests import bundles

TEMPLATE = """{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""
WORKERS = Workers(16)


@pytest.fixture
def chatting(generator: LiveModel) -> LiveModel:
    return dataclasses.replace(generator, chat_template=ChatTemplate(TEMPLATE, {"bos_token": bundles.BEGIN}))


def says(*contents: str, role: str = "user") -> list[pb.Message]:
    return [pb.Message(role=role, content=content) for content in contents]


async def tokens(request: pb.GenerateRequest, model: LiveModel) -> list[int]:
    return list(await prompt_tokens(request, model, WORKERS))


async def test_the_template_writes_the_special_tokens_and_none_are_added(chatting: LiveModel) -> None:
    given = await tokens(pb.GenerateRequest(messages=says("the cat")), chatting)
    plain = chatting.tokenizer.encode(f"{bundles.BEGIN}[user]the cat[assistant]", add_special_tokens=False)
    assert given == plain
    assert given.count(chatting.tokenizer.bos_token_id or -1) == 1


async def test_the_assistant_s_turn_is_begun_left_out_or_gone_on_with(chatting: LiveModel) -> None:
    turns = [*says("the cat"), *says("sat", role="assistant")]
    requests = (
        pb.GenerateRequest(messages=turns),
        pb.GenerateRequest(messages=turns, add_generation_prompt=False),
        pb.GenerateRequest(messages=turns, continue_final_message=True),
    )
    open_, shut, going_on = [chatting.tokenizer.decode(await tokens(request, chatting)) for request in requests]
    assert open_ == "[user]the cat[assistant]sat[assistant]"
    assert shut == going_on == "[user]the cat[assistant]sat"


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (pb.GenerateRequest(messages=says("a"), prompt=pb.Input(text="b")), "messages: must not be given together with prompt"),
        (pb.GenerateRequest(messages=says("a"), prompt=pb.Input()), "messages: must not be given together with prompt"),
        (pb.GenerateRequest(add_generation_prompt=False), "add_generation_prompt: must not be set without messages"),
        (pb.GenerateRequest(continue_final_message=True), "continue_final_message: must not be set without messages"),
        (pb.GenerateRequest(messages=says("a"), continue_final_message=True),
         "continue_final_message: needs a last message by 'assistant', it is by 'user'"),
        (pb.GenerateRequest(messages=says("a"), continue_final_message=True, add_generation_prompt=True),
         "add_generation_prompt: must not be set together with continue_final_message"),
        (pb.GenerateRequest(messages=says(*"a" * 1025)), "messages: must be 1 to 1024, got 1025"),
        (pb.GenerateRequest(messages=says("a" * 2**19, "b" * (2**19 + 1))),
         "messages: must have at most 1048576 characters together, got 1048577"),
        (pb.GenerateRequest(messages=[*says("a"), *says("a", role="")]), r"messages\[1\].role: must have 1 to 64 characters, got 0"),
        (pb.GenerateRequest(messages=says("a", role="r" * 65)), r"messages\[0\].role: must have 1 to 64 characters, got 65"),
        (pb.GenerateRequest(chat_template_kwargs="{}"), "chat_template_kwargs: must not be set without messages"),
        (pb.GenerateRequest(messages=says("a"), chat_template_kwargs="{"), "chat_template_kwargs: must be a JSON object: "),
        (pb.GenerateRequest(messages=says("a"), chat_template_kwargs="[" * 9999), "chat_template_kwargs: must be a JSON object"),
        (pb.GenerateRequest(messages=says("a"), chat_template_kwargs='{"a": NaN}'), "must be a JSON object: NaN is no number"),
        (pb.GenerateRequest(messages=says("a"), chat_template_kwargs="[]"), "chat_template_kwargs: must be a JSON object$"),
        (pb.GenerateRequest(messages=says("a"), chat_template_kwargs='{"messages": []}'), "but for messages and add_generation_prompt"),
        (pb.GenerateRequest(messages=says("a"), chat_template_kwargs='{"the budget": 1}'), "must have names such as enable_thinking"),
        (pb.GenerateRequest(messages=says("a"), chat_template_kwargs=" " * 65537), "must have at most 65536 characters, got 65537"),
        (pb.GenerateRequest(messages=says("zyx" * 2000)), r"messages: must have at most 1023 tokens .*, got \d{4}"),
    ],
)  # fmt: skip
async def test_contradictions_and_limits_are_named_by_field(
    chatting: LiveModel, request_: pb.GenerateRequest, complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        await tokens(request_, chatting)


async def test_a_model_without_a_template_says_so(generator: LiveModel) -> None:
    with pytest.raises(InvalidInput, match=r"messages: tiny-gpt 1 has no chat template; give a prompt"):
        await tokens(pb.GenerateRequest(messages=says("a")), generator)


async def test_a_template_that_writes_nothing_is_no_empty_prompt(generator: LiveModel) -> None:
    silent = dataclasses.replace(generator, chat_template=ChatTemplate("", {}))
    with pytest.raises(InvalidInput, match="messages: the model's chat template makes no text of them"):
        await tokens(pb.GenerateRequest(messages=says("a")), silent)
