"""Texts and token ids of a request → checked token ids."""

from collections.abc import Sequence

from polyhead.server.errors import InvalidInput
from polyhead.server.loader import LiveModel
from polyhead.server.rpc.chat import chat_tokens
from polyhead.server.rpc.workers import LONG_TEXT_CHARACTERS, Workers
from polyhead.server.tokenizer import Tokenizer, TokenSpan
from polyhead.v1 import inference_pb2


async def prompt_tokens(request: inference_pb2.GenerateRequest, model: LiveModel, workers: Workers) -> tuple[int, ...]:
    """At least one token, at most what leaves room for an answer. An empty prompt is the begin token."""
    if chat := is_chat(request):
        tokens: Sequence[int] = await chat_tokens(request, model, workers)
    elif request.prompt.WhichOneof("input") == "token_ids":
        tokens = request.prompt.token_ids.ids
    else:
        text = request.prompt.text
        tokens = await workers.read(len(text), model.tokenizer.encode, text)
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
    return False


def checked_prompt(field: str, tokens: Sequence[int], model: LiveModel) -> tuple[int, ...]:
    longest = model.max_tokens - 1
    if len(tokens) > longest:
        raise InvalidInput(field, f"must have at most {longest} tokens to leave room for an answer, got {len(tokens)}")
    if tokens:
        return tuple(checked_ids(field, tokens, model))
    begin = model.tokenizer.bos_token_id
    if begin is None:
        raise InvalidInput(field, "must have at least 1 token, as the model has no begin token; got none")
    return (begin,)


async def input_tokens(
    inputs: Sequence[inference_pb2.Input], model: LiveModel, workers: Workers, *, truncate: bool, max_inputs: int
) -> list[list[int]]:
    """Of Classify and Embed: 1 to `max_inputs` inputs of 1 to the model's longest length each, as lists of token ids."""
    check_count("inputs", len(inputs), max_inputs)
    texts = {index: item.text for index, item in enumerate(inputs) if item.WhichOneof("input") != "token_ids"}
    for index, text in texts.items():
        if not text:
            raise InvalidInput(f"inputs[{index}]", "must not be empty")
    encoded = await workers.read(
        sum(map(len, texts.values())), encode_texts, model.tokenizer, list(texts.values()), model.max_tokens, truncate
    )
    rows = dict(zip(texts, encoded, strict=True))
    return [checked_row(index, rows.get(index), item, model, truncate=truncate) for index, item in enumerate(inputs)]


def checked_row(
    index: int, tokens: list[int] | None, item: inference_pb2.Input, model: LiveModel, *, truncate: bool
) -> list[int]:
    """`tokens` is None where the caller gave ids."""
    field, longest = f"inputs[{index}]", model.max_tokens
    row: Sequence[int] = item.token_ids.ids if tokens is None else tokens
    if not row:
        raise InvalidInput(field, "must have at least 1 token, got none")
    if len(row) > longest and not truncate:
        raise InvalidInput(field, f"must have at most {longest} tokens unless truncate is set, got {len(row)}")
    return checked_ids(field, row[:longest], model) if tokens is None else tokens


def checked_ids(field: str, ids: Sequence[int], model: LiveModel) -> list[int]:
    size = model.manifest.limits.vocabulary_size
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
    return inference_pb2.Tokenization(
        tokens=[
            inference_pb2.Token(id=span.token_id, token=span.token, start=span.start, end=span.end) for span in spans
        ]
    )


def check_count(field: str, count: int, limit: int) -> None:
    if not 1 <= count <= limit:
        raise InvalidInput(field, f"must be 1 to {limit}, got {count}")


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], longest: int, truncate: bool) -> list[list[int]]:
    """One text at a time while they are short: sharing them out over threads costs a tenth of a millisecond."""
    long = sum(map(len, texts)) > LONG_TEXT_CHARACTERS
    rows = tokenizer.encode_batch(texts) if long else [tokenizer.encode(text) for text in texts]
    if not truncate:
        return rows
    return [
        cut(row, tokenizer.encode(text, add_special_tokens=False), longest) if len(row) > longest else row
        for text, row in zip(texts, rows, strict=True)
    ]


def cut(tokens: list[int], bare: list[int], longest: int) -> list[int]:
    """Shorten an input but keep the special tokens around it; `bare` is the same input without them."""
    special = len(tokens) - len(bare)
    before = next((n for n in range(special + 1) if tokens[n : n + len(bare)] == bare), 0)
    after = tokens[before + len(bare) :]
    return [*tokens[:before], *bare[: max(0, longest - special)], *after][:longest]
