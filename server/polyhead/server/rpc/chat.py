"""Messages of a Generate request → checked token ids."""

from collections.abc import Sequence

from polyhead.server.chat import ChatTemplate, Turn
from polyhead.server.errors import InvalidInput
from polyhead.server.loader import LiveModel
from polyhead.server.rpc.workers import Workers
from polyhead.server.tokenizer import Tokenizer
from polyhead.v1 import inference_pb2

MAX_MESSAGES = 1024
MAX_MESSAGE_CHARACTERS = 2**20
MAX_ROLE_CHARACTERS = 64
ASSISTANT = "assistant"


async def chat_tokens(request: inference_pb2.GenerateRequest, model: LiveModel, workers: Workers) -> list[int]:
    """What the model's chat template makes of the messages. Always on a thread: a template is a program, and not ours.
    Raises InvalidInput, Overloaded."""
    template = model.chat_template
    if template is None:
        raise InvalidInput("messages", f"{model.name} {model.version} has no chat template; give a prompt")
    turns = checked_turns(request.messages)
    add, continue_final = generation_prompt(request)
    return await workers.run(encode, template, model.tokenizer, turns, add, continue_final)


def encode(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    turns: Sequence[Turn],
    add_generation_prompt: bool,
    continue_final: bool,
) -> list[int]:
    text = template.render(turns, add_generation_prompt=add_generation_prompt, continue_final=continue_final)
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
