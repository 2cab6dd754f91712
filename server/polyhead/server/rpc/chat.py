"""Messages of a Generate request → checked token ids."""

import json
from collections.abc import Mapping, Sequence
from typing import NoReturn

from polyhead.server.bundle import one_line
from polyhead.server.chat import ChatTemplate, Turn
from polyhead.server.errors import InvalidInput
from polyhead.server.loader import LiveModel
from polyhead.server.rpc.workers import Workers
from polyhead.server.tokenizer import Tokenizer
from polyhead.v1 import inference_pb2

MAX_MESSAGES = 1024
MAX_MESSAGE_CHARACTERS = 2**20
MAX_ROLE_CHARACTERS = 64
MAX_KWARGS_CHARACTERS = 65_536
KWARGS = "chat_template_kwargs"
ASSISTANT = "assistant"
TAKEN = ("messages", "add_generation_prompt")
"""Variables of a template that have fields of their own."""


async def chat_tokens(request: inference_pb2.GenerateRequest, model: LiveModel, workers: Workers) -> list[int]:
    """What the model's chat template makes of the messages. Always on a thread: a template is a program, and not ours.
    Raises InvalidInput, Overloaded."""
    template = model.chat_template
    if template is None:
        raise InvalidInput("messages", f"{model.name} {model.version} has no chat template; give a prompt")
    turns = checked_turns(request.messages)
    add, continue_final = generation_prompt(request)
    more = checked_kwargs(request.chat_template_kwargs)
    return await workers.run(encode, template, model.tokenizer, turns, add, continue_final, more)


def encode(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    turns: Sequence[Turn],
    add_generation_prompt: bool,
    continue_final: bool,
    more: Mapping[str, object],
) -> list[int]:
    text = template.render(turns, add_generation_prompt=add_generation_prompt, continue_final=continue_final, more=more)
    tokens = tokenizer.encode(text, add_special_tokens=False)  # the template wrote them
    if not tokens:
        raise InvalidInput("messages", "the model's chat template makes no text of them")
    return tokens


def checked_turns(messages: Sequence[inference_pb2.Message]) -> list[Turn]:
    """None too many, none without a role, all together not too long."""
    if len(messages) > MAX_MESSAGES:
        raise InvalidInput("messages", f"must be 1 to {MAX_MESSAGES}, got {len(messages)}")
    for index, message in enumerate(messages):
        if not 1 <= len(message.role) <= MAX_ROLE_CHARACTERS:
            limit = f"1 to {MAX_ROLE_CHARACTERS} characters"
            raise InvalidInput(f"messages[{index}].role", f"must have {limit}, got {len(message.role)}")
    characters = sum(len(message.content) for message in messages)
    if characters > MAX_MESSAGE_CHARACTERS:
        limit = f"at most {MAX_MESSAGE_CHARACTERS} characters together"
        raise InvalidInput("messages", f"must have {limit}, got {characters}")
    return [Turn(message.role, message.content) for message in messages]


def checked_kwargs(text: str) -> Mapping[str, object]:
    """A JSON object, not too long, of names that a template can write and that are not `TAKEN`."""
    if not text:
        return {}
    if len(text) > MAX_KWARGS_CHARACTERS:
        refuse_kwargs(f"must have at most {MAX_KWARGS_CHARACTERS} characters, got {len(text)}")
    try:
        found = json.loads(text, parse_constant=refuse_number)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(KWARGS, f"must be a JSON object: {one_line(error)}") from error
    if not isinstance(found, dict):
        refuse_kwargs("must be a JSON object")
    for name in found:
        if name in TAKEN or not (name.isidentifier() and name.isascii()):
            refuse_kwargs(f"must have names such as enable_thinking, but for {' and '.join(TAKEN)}")
    return found


def refuse_kwargs(description: str) -> NoReturn:
    raise InvalidInput(KWARGS, description)


def refuse_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in it")


def generation_prompt(request: inference_pb2.GenerateRequest) -> tuple[bool, bool]:
    """Whether to begin the assistant's next turn, and whether to go on with the last one; never both."""
    continue_final = request.continue_final_message
    if not continue_final:
        return not request.HasField("add_generation_prompt") or request.add_generation_prompt, False
    if request.add_generation_prompt:
        raise InvalidInput("add_generation_prompt", "must not be set together with continue_final_message")
    last = request.messages[-1].role
    if last != ASSISTANT:
        raise InvalidInput("continue_final_message", f"needs a last message by {ASSISTANT!r}, it is by {last!r}")
    return False, True
