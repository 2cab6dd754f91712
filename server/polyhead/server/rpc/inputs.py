"""Texts and token ids of a request → checked token ids."""

from collections.abc import Sequence
from functools import partial

from polyhead.server.errors import InvalidInput
from polyhead.server.loader import LiveModel
from polyhead.server.rpc.chat import chat_tokens
from polyhead.server.rpc.workers import LONG_TEXT_CHARACTERS, Workers
from polyhead.server.tokenizer import EncoderInput, Text, Tokenizer, TokenSpan
from polyhead.v1 import bundle_pb2, inference_pb2


async def prompt_tokens(request: inference_pb2.GenerateRequest, model: LiveModel, workers: Workers) -> tuple[int, ...]:
    """At least one token, at most what leaves room for an answer. An empty prompt is the begin token."""
    if chat := is_chat(request):
        tokens: Sequence[int] = await chat_tokens(request, model, workers)
    elif request.prompt.HasField("text_pair"):
        raise InvalidInput("prompt.text_pair", "is for Classify only")
    elif request.prompt.WhichOneof("input") == "token_ids":
        tokens = request.prompt.token_ids.ids
    else:
        text = request.prompt.text
        if not text and not model.generator.continues_prompt:
            raise InvalidInput("prompt", "must not be empty, as it is what the answer is about")
        tokens = await workers.read(len(text), model.input_tokenizer.encode, text)
    return checked_prompt("messages" if chat else "prompt", tokens, model)


def is_chat(request: inference_pb2.GenerateRequest) -> bool:
    """Whether messages stand for the prompt. Raises InvalidInput where the request says both."""
    if request.messages:
        if request.HasField("prompt"):
            raise InvalidInput("messages", "must not be given together with prompt")
        return True
    if request.HasField("add_generation_prompt"):
        raise InvalidInput("add_generation_prompt", "must not be set without messages")
    if request.continue_final_message:
        raise InvalidInput("continue_final_message", "must not be set without messages")
    if request.chat_template_kwargs:
        raise InvalidInput("chat_template_kwargs", "must not be set without messages")
    return False


def checked_prompt(field: str, tokens: Sequence[int], model: LiveModel) -> tuple[int, ...]:
    longest, continues = model.generator.longest_prompt, model.generator.continues_prompt
    if len(tokens) > longest:
        why = " to leave room for an answer" if continues else ""
        raise InvalidInput(field, f"must have at most {longest} tokens{why}, got {len(tokens)}")
    if tokens:
        return tuple(checked_ids(field, tokens, model))
    if not continues:
        raise InvalidInput(field, "must have at least 1 token, as it is what the answer is about; got none")
    begin = model.tokenizer.bos_token_id
    if begin is None:
        raise InvalidInput(field, "must have at least 1 token, as the model has no begin token; got none")
    return (begin,)


async def encoder_inputs(
    inputs: Sequence[inference_pb2.Input], model: LiveModel, workers: Workers, *, truncate: bool, max_inputs: int
) -> list[EncoderInput]:
    """Of Classify and Embed: 1 to `max_inputs` inputs of 1 to the model's longest length each; with spans for a model that
    labels tokens."""
    check_count("inputs", len(inputs), max_inputs)
    texts = {
        index: checked_text(f"inputs[{index}]", item, model)
        for index, item in enumerate(inputs)
        if item.WhichOneof("input") != "token_ids"
    }
    longest = model.max_tokens if truncate else None
    characters = sum(len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts.values())
    read = partial(
        model.tokenizer.encoder_inputs,
        list(texts.values()),
        longest,
        spans=model.manifest.labels_tokens,
        parallel=characters > LONG_TEXT_CHARACTERS,
    )
    encoded = dict(zip(texts, await workers.read(characters, read), strict=True))
    return [checked_input(index, encoded.get(index), item, model, truncate) for index, item in enumerate(inputs)]


def checked_text(field: str, item: inference_pb2.Input, model: LiveModel) -> Text:
    """A text, or a pair where the model compares two."""
    if not item.text:
        raise InvalidInput(field, "must not be empty")
    if not item.HasField("text_pair"):
        return item.text
    check_pairs(f"{field}.text_pair", model)
    if not item.text_pair:
        raise InvalidInput(f"{field}.text_pair", "must not be empty")
    return item.text, item.text_pair


def check_pairs(field: str, model: LiveModel) -> None:
    """Raises InvalidInput unless the model compares two texts."""
    if model.task != bundle_pb2.TASK_CLASSIFY:
        raise InvalidInput(field, "is for Classify only")
    if model.manifest.labels_tokens:
        raise InvalidInput(field, "must not be given to a model that labels tokens")
    if not model.tokenizer.takes_pairs:
        raise InvalidInput(field, "must not be given: the model's tokenizer puts nothing between two texts")


def checked_input(
    index: int, encoded: EncoderInput | None, item: inference_pb2.Input, model: LiveModel, truncate: bool
) -> EncoderInput:
    """`encoded` is None where the caller gave ids."""
    field, longest = f"inputs[{index}]", model.max_tokens
    if encoded is None and item.HasField("text_pair"):
        raise InvalidInput(f"{field}.text_pair", "must not be given together with token_ids")
    ids = item.token_ids.ids if encoded is None else encoded.ids
    if not ids:
        raise InvalidInput(field, "must have at least 1 token, got none")
    if len(ids) > longest and not truncate:
        raise InvalidInput(field, f"must have at most {longest} tokens unless truncate is set, got {len(ids)}")
    return encoded or given_ids(checked_ids(field, ids[:longest], model), model)


def given_ids(ids: list[int], model: LiveModel) -> EncoderInput:
    """Ids that somebody else made of a text, so that nobody knows where they stand in it."""
    if not model.manifest.labels_tokens:
        return EncoderInput(ids)
    return EncoderInput(ids, spans=[TokenSpan(i, model.tokenizer.token(i), 0, 0) for i in ids])


def checked_ids(field: str, ids: Sequence[int], model: LiveModel) -> list[int]:
    size = model.input_vocabulary_size
    if ids and max(ids) >= size:
        index = next(index for index, token in enumerate(ids) if token >= size)
        raise InvalidInput(
            f"{field}.token_ids.ids[{index}]", f"must be below the vocabulary size {size}, got {ids[index]}"
        )
    return list(ids)


async def tokenize(
    texts: Sequence[str], tokenizer: Tokenizer, add_special_tokens: bool, workers: Workers
) -> list[inference_pb2.Tokenization]:
    """Every text's tokens and where they stand in it."""

    def work() -> list[inference_pb2.Tokenization]:
        return [tokenization(tokenizer.spans(text, add_special_tokens)) for text in texts]

    return await workers.read(sum(map(len, texts)), work)


def tokenization(spans: Sequence[TokenSpan]) -> inference_pb2.Tokenization:
    return inference_pb2.Tokenization(tokens=map(token, spans))


def token(span: TokenSpan) -> inference_pb2.Token:
    return inference_pb2.Token(id=span.token_id, token=span.token, start=span.start, end=span.end)


def check_count(field: str, count: int, limit: int) -> None:
    if not 1 <= count <= limit:
        raise InvalidInput(field, f"must be 1 to {limit}, got {count}")
