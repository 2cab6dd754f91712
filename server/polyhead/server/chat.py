"""Messages → a prompt, by the chat template that a checkpoint brought along.

Somebody else wrote the template, so it runs in Jinja's sandbox, with the names that transformers gives it and no others,
and it can't run for ever: steps (turns of loops, calls of macros) and characters (of what it writes and of what operators,
filters and calls make in between) are counted, and end it. The counts depend on template and messages alone, never on the traffic.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from polyhead.server.bundle import one_line, read_text
from polyhead.server.errors import BundleError, InvalidInput
from polyhead.server.tokenizer import Tokenizer
from polyhead.v1 import bundle_pb2

MAX_STEPS = 100_000
"""About a second of macros calling each other, a third of one of loops."""
MAX_CHARACTERS = 4 * 2**20
"""Four times what a request's messages may have."""

BUDGET = "the budget"
"""Where a rendering keeps its budget among the template's variables: under a name that no template can write."""
MARK = "\ue000\uf8ff\ue000"
"""Behind a message that the model goes on with, while it is rendered: private characters, which templates leave alone."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of a conversation."""

    role: str
    content: str


class ChatTemplate:
    """A compiled template. Thread-safe: what a rendering changes is its own."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens`: their texts by names such as `bos_token`. Raises what Jinja and Python say of a bad template."""
        self._template: Template = ENVIRONMENT.from_string(Counted().visit(ENVIRONMENT.parse(source)))
        self._special_tokens = dict(special_tokens)

    @classmethod
    def from_file(cls, path: Path, spec: bundle_pb2.Tokenizer, tokenizer: Tokenizer) -> "ChatTemplate":
        """Read and compile it. Raises BundleError in one line, with the template's line where Jinja names it."""
        try:
            return cls(read_text(path), spec.special_tokens or tokens_by_id(spec, tokenizer))
        except BundleError:
            raise
        except Exception as error:  # Jinja's, RecursionError, and what Python says of code that is nested too deeply
            line = f"line {error.lineno}: " if getattr(error, "lineno", None) else ""  # type: ignore[attr-defined]
            raise BundleError(f"{path.name}: not a chat template: {line}{one_line(error)}") from error

    def render(
        self,
        turns: Sequence[Turn],
        *,
        add_generation_prompt: bool,
        continue_final: bool = False,
        more: Mapping[str, object] | None = None,
    ) -> str:
        """The text of a conversation with its special tokens. Raises InvalidInput where the template refuses or fails.

        `add_generation_prompt`: with the beginning of the assistant's next turn. `continue_final`: without what the template
        writes behind the last turn's content. `more`: variables in JSON's types, also in place of special tokens.
        """
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        if continue_final:
            messages[-1]["content"] += MARK + " "
        defaults = {**self._special_tokens, "tools": None, "documents": None}
        variables = {"messages": messages, "add_generation_prompt": add_generation_prompt, BUDGET: Budget()}
        text = self._run({**defaults, **(more or {}), **variables})
        if not continue_final:
            return text
        before, mark, after = text.rpartition(MARK)
        if not mark:
            refuse("leaves the last message's end out, so nothing can go on with it")
        return before if after.startswith(" ") else before.rstrip()  # as it does to contents' ends

    def _run(self, variables: dict[str, object]) -> str:
        try:
            return self._template.render(variables)
        except Refused as error:
            refuse(f"refuses them: {one_line(error)}", error)
        except Exception as error:  # templates are programs: they fail in any way that Python knows
            refuse(f"fails on them: {one_line(error)}", error)


def refuse(description: str, cause: Exception | None = None) -> NoReturn:
    raise InvalidInput("messages", f"the model's chat template {description}") from cause


def tokens_by_id(spec: bundle_pb2.Tokenizer, tokenizer: Tokenizer) -> dict[str, str]:
    """Of a bundle that doesn't name them."""
    ids = {"bos_token": tokenizer.bos_token_id, "pad_token": tokenizer.pad_token_id}
    ids["eos_token"] = spec.eos_token_ids[0] if spec.eos_token_ids else None
    return {name: tokenizer.token(token) for name, token in ids.items() if token is not None}


class Refused(TemplateError):
    """The template called `raise_exception`."""


class TooMuch(Exception):
    """The template goes on for too long."""


class Budget:
    """What a rendering may still do."""

    def __init__(self) -> None:
        self._steps, self._characters = MAX_STEPS, MAX_CHARACTERS

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise TooMuch(f"takes more than {MAX_STEPS} steps")

    def write(self, characters: int) -> None:
        self._characters -= characters
        if self._characters < 0:
            raise TooMuch(f"makes more than {MAX_CHARACTERS} characters")


def budget(context: Context) -> Budget:
    found = context.parent[BUDGET]
    assert isinstance(found, Budget)
    return found


@pass_context
def step(context: Context, characters: int) -> bool:
    """Count a step and the characters of plain text in it."""
    budget(context).step()
    budget(context).write(characters)
    return True


@pass_context
def charged(context: Context, value: Any) -> Any:
    """Count the length of what was made: of a text, a list, or a number's bits."""
    budget(context).write(size(value))
    return value


@pass_context
def written(context: Context, value: Any) -> str:
    """Count what goes out."""
    text = str(value)
    budget(context).write(len(text))
    return text


def size(value: object) -> int:
    if isinstance(value, int):
        return value.bit_length()
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


class Counted(NodeTransformer):
    """Puts the counting into a template: the sandbox knows what a template may touch, but not how much of it."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the visitor's names
        self._count(node)
        if node.test is not None:
            node.test = nodes.And(call("step", nodes.Const(0)), node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._count(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        node.body = [self.visit(part) for part in node.body]  # its call has to stay one
        return self._begin(node)

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> nodes.Node:  # noqa: N802
        node.body = [self.visit(part) for part in node.body]  # and its filter
        return node

    visit_AssignBlock = visit_FilterBlock  # noqa: N815

    def visit_Concat(self, node: nodes.Expr) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return call("charged", node)

    visit_Add = visit_Filter = visit_Call = visit_Concat  # noqa: N815

    def _count(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return self._begin(node)

    def _begin(self, node: Any) -> nodes.Node:
        characters = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        node.body.insert(0, nodes.ExprStmt(call("step", nodes.Const(characters))))
        result: nodes.Node = node.set_lineno(node.lineno).set_environment(ENVIRONMENT)
        return result


def call(name: str, argument: nodes.Expr) -> nodes.Call:
    """Of a function that is an attribute of the environment."""
    made = nodes.Call(nodes.EnvironmentAttribute(name), [argument], [], None, None)
    made.set_lineno(argument.lineno or 1).set_environment(ENVIRONMENT)
    return made


class Generation(Extension):
    """`{% generation %}`, which marks the assistant's words for training: just its body here."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox with transformers' names and settings, counting."""

    intercepted_binops = frozenset({"*", "**"})
    step = staticmethod(step)
    charged = staticmethod(charged)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation], finalize=written)
        self.filters["tojson"] = tojson
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
        del self.globals["lipsum"]  # makes as much text as it is asked for

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """These two make much of little, so they are counted before they do."""
        times = next((factor for factor in (right, left) if isinstance(factor, int)), 1)
        several = operator == "**" or not (isinstance(left, int) and isinstance(right, int))
        budget(context).write(max(size(left), size(right)) * (max(times, 1) if several else 2))
        return super().call_binop(context, operator, left, right)


def raise_exception(message: object) -> NoReturn:
    raise Refused(str(message))


def strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # local time, as transformers has it


def tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own it escapes no HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


ENVIRONMENT = ChatEnvironment()
