"""What each command does: call the server and print the answers in the order of the texts. Each returns its exit code."""

import asyncio
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from polyhead.client.aio import AsyncClient
from polyhead.client.cli import alignments, chat, generation, output
from polyhead.client.cli.failures import LocalFailure
from polyhead.client.cli.inputs import in_order, joined_pairs, pair, texts
from polyhead.client.errors import PolyheadError
from polyhead.client.requests import GenerateOptions
from polyhead.client.results import ClassifyResult, EmbedResult, Generation, Piece, TokenizeResult
from polyhead.client.retry import RetryPolicy
from polyhead.client.sync import Client

SHOWN_LABELS = 5

T = TypeVar("T")


def generate(options: Namespace) -> int:
    chat.check(options)
    alignments.check(options)
    if flag := generation.without_beams(options):
        options.refuse(f"{flag} needs --beams N")
    names = (name for name in GenerateOptions.__annotations__ if hasattr(options, name))
    wanted: GenerateOptions = {name: getattr(options, name) for name in names}  # type: ignore[assignment]

    several = (options.samples or 1) > 1  # their pieces come in turn, so each is shown when all are whole
    pictures = alignments.Pictures(options)

    async def answer(client: AsyncClient, text: str) -> AsyncIterator[Piece | Generation]:
        prompt, messages = (None, chat.conversation(options.system, text)) if options.chat else (text, None)
        stream = client.generate(prompt, options.model, version=options.model_version, messages=messages, **wanted)
        if not (options.json or several):
            async for piece in stream:
                yield piece
        for sample in await stream.results():
            yield sample

    def show(part: Piece | Generation) -> None:
        if isinstance(part, Piece):
            print(part.text, end="", flush=True)
        elif options.json:
            output.print_json(output.generation_json(part))
            pictures.draw(part)
        else:
            if several:
                print(output.sample_title(part), part.text, sep="\n", end="")
            _end_generation(part)
            pictures.draw(part)

    return _answer_all(options, answer, show) if options.texts else chat.converse(options, wanted, show)


def _end_generation(answer: Generation) -> None:
    """What stands under the text."""
    _print_lines(["", *output.generation_lines(answer)])
    if sys.stderr.isatty():
        print(output.summary(answer), file=sys.stderr)


def classify(options: Namespace) -> int:
    shown = SHOWN_LABELS if options.top_k is None else options.top_k
    if options.pairs:
        options.texts = joined_pairs(options.texts, options.refuse)

    async def answer(client: AsyncClient, text: str) -> AsyncIterator[ClassifyResult]:
        yield await client.classify(
            [pair(text)] if options.pairs else text,
            options.model,
            top_k=options.top_k if options.json else shown,
            truncate=options.truncate,
            adapter=options.adapter,
            version=options.model_version,
        )

    return _answer_all(
        options,
        answer,
        _printer(options, output.classification_json, lambda result: output.classification_lines(result.results[0])),
    )


def embed(options: Namespace) -> int:
    async def answer(client: AsyncClient, text: str) -> AsyncIterator[EmbedResult]:
        yield await client.embed(
            text, options.model, truncate=options.truncate, adapter=options.adapter, version=options.model_version
        )

    return _answer_all(
        options,
        answer,
        _printer(options, output.embedding_json, lambda result: [output.embedding_line(result.embeddings[0])]),
    )


def tokenize(options: Namespace) -> int:
    async def answer(client: AsyncClient, text: str) -> AsyncIterator[TokenizeResult]:
        yield await client.tokenize(
            text, options.model, add_special_tokens=not options.no_special_tokens, version=options.model_version
        )

    return _answer_all(
        options, answer, _printer(options, output.tokens_json, lambda result: output.token_lines(result.results[0]))
    )


def health(options: Namespace) -> int:
    # A check says how things are now: it does not try again until they are better.
    with Client(options.target, timeout=options.timeout, retry=RetryPolicy(attempts=1)) as client:
        serving = client.health(options.model)
    if options.json:
        output.print_json({"serving": serving})
    else:
        print("serving" if serving else "not serving")
    return 0 if serving else 1


def _answer_all(
    options: Namespace, answer: Callable[[AsyncClient, str], AsyncIterator[T]], show: Callable[[T], None]
) -> int:
    async def run() -> None:
        async with AsyncClient(options.target, timeout=options.timeout) as client:
            answers = in_order(texts(options.texts), lambda text: answer(client, text), options.concurrency)
            await _show_all(options, answers, show)

    asyncio.run(run())
    return 0


async def _show_all(
    options: Namespace, answers: AsyncIterator[tuple[str, AsyncIterator[T]]], show: Callable[[T], None]
) -> None:
    several = len(options.texts) > 1 or "-" in options.texts
    number = 0
    async for text, parts in answers:
        number += 1
        if several and not options.json:
            _print_lines(["", output.title(text)] if number > 1 else [output.title(text)])
        part: T | None = None
        try:
            async for part in parts:
                show(part)
        except (PolyheadError, LocalFailure) as error:
            if isinstance(part, Piece):
                print(flush=True)  # the error shall not continue the half-written answer
            if several:
                error.add_note(f"input {number}")
            raise


def _printer(
    options: Namespace, as_json: Callable[[T], dict[str, Any]], as_lines: Callable[[T], list[str]]
) -> Callable[[T], None]:
    def show(result: T) -> None:
        if options.json:
            output.print_json(as_json(result))
        else:
            _print_lines(as_lines(result))

    return show


def _print_lines(lines: list[str]) -> None:
    print("\n".join(lines), flush=True)
