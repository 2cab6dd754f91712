"""`polyhead generate --chat`: texts as messages, and without a text a conversation on a terminal."""

import contextlib
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator

from polyhead.client.cli.failures import explain
from polyhead.client.errors import PolyheadError
from polyhead.client.requests import GenerateOptions, Message
from polyhead.client.results import Generation, Piece
from polyhead.client.sync import Client, GenerationStream

_PROMPT = "> "


def check(options: Namespace) -> None:
    """Wrong usage ends the command."""
    if options.system is not None and not options.chat:
        options.refuse("--system needs --chat")
    if options.chat_template_kwargs and not options.chat:
        options.refuse("--template-option needs --chat")
    if options.texts:
        return
    if not options.chat:
        options.refuse("the following arguments are required: TEXT")
    if not sys.stdin.isatty():
        options.refuse("--chat without TEXT needs a terminal; give TEXT, or - to read lines of standard input")
    if (options.samples or 1) > 1:
        options.refuse("--samples needs TEXT: a conversation goes on from one answer")


def conversation(system: str | None, *turns: str) -> list[Message]:
    """What the user and the assistant said in turn."""
    told = [] if system is None else [Message(role="system", content=system)]
    roles = ("user", "assistant")
    return [*told, *(Message(role=roles[index % 2], content=turn) for index, turn in enumerate(turns))]


def converse(options: Namespace, wanted: GenerateOptions, show: Callable[[Piece | Generation], None]) -> int:
    """Answer what is typed until the input ends. Ctrl-C ends an answer; what fails is told and forgotten, and it goes on."""
    turns: list[str] = []
    with Client(options.target, timeout=options.timeout) as client:
        for text in _typed(options):
            messages = conversation(options.system, *turns, text)
            stream = client.generate(model=options.model, version=options.model_version, messages=messages, **wanted)
            if said := _answer(stream, show, quiet=options.json):
                turns += [text, said]
    return 0


def _answer(stream: GenerationStream, show: Callable[[Piece | Generation], None], *, quiet: bool) -> str:
    """Show an answer, piece by piece unless `quiet`, and give its text: so far after Ctrl-C, empty if it failed."""
    said = ""
    try:
        with stream:
            for piece in stream:
                said += piece.text
                if not quiet:
                    show(piece)
            show(stream.result())
    except KeyboardInterrupt:
        print()
    except PolyheadError as error:
        if said and not quiet:
            print(flush=True)  # the error shall not continue the half-written answer
        print(explain(error), file=sys.stderr)
        return ""
    return said


def _typed(options: Namespace) -> Iterator[str]:
    """Lines that say something, until Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() then knows the arrow keys
    shown = sys.stdout.isatty() and not options.json
    while True:
        if not shown:  # standard output is for answers
            print(_PROMPT, end="", file=sys.stderr, flush=True)
        try:
            line = input(_PROMPT if shown else "")
        except EOFError:
            print(file=sys.stdout if shown else sys.stderr)
            return
        if line.strip():
            yield line
