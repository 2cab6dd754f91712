"""Messages become the text that a chat template writes; a template that means harm gets nowhere."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.server.chat import ChatTemplate, Turn
from polyhead.server.errors import BundleError, InvalidInput
from polyhead.v1 import bundle_pb2
from tests.chats import CHATML, HEADERS
from tests.decoders import byte_tokenizer

HELLO = [Turn("user", " Hello ")]


def render(source: str, *turns: Turn, add_generation_prompt: bool = True, continue_final: bool = False) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"})
    return template.render(turns or HELLO, add_generation_prompt=add_generation_prompt, continue_final=continue_final)


def test_turns_stand_between_the_marks_of_chatml() -> None:
    asked = "<|im_start|>user\n Hello <|im_end|>\n"
    assert render(CHATML) == asked + "<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False) == asked


def test_a_template_may_set_variables_and_give_a_system_message_of_its_own() -> None:
    end = "<|header|>user<|end|>\n\nHello<|eot|><|header|>assistant<|end|>\n\n"
    assert render(HEADERS) == "<s><|header|>system<|end|>\n\nBe brief.<|eot|>" + end
    told = render(HEADERS, Turn("system", "Rhyme."), *HELLO)
    assert told == "<s><|header|>system<|end|>\n\nRhyme.<|eot|>" + end


@pytest.mark.parametrize(("source", "content"), [(CHATML, "Well, \n"), (HEADERS, "Well,")])
def test_the_last_turn_is_gone_on_with_where_its_content_ends(source: str, content: str) -> None:
    turns = (*HELLO, Turn("assistant", "Well, \n"))
    begun = render(source, *turns, continue_final=True, add_generation_prompt=False)
    assert begun.endswith(content)
    assert render(source, *turns, add_generation_prompt=False).startswith(begun)


def test_a_template_that_drops_the_last_turn_can_not_go_on_with_it() -> None:
    with pytest.raises(InvalidInput, match="leaves the last message's end out"):
        render("{{ messages[0].content }}", *HELLO, Turn("assistant", "Well"), continue_final=True)


def test_what_transformers_gives_a_template_is_there() -> None:
    assert render("{{ messages|tojson }}") == json.dumps([{"role": "user", "content": " Hello "}])
    assert render("{{ {'b': '<ä>', 'a': 1}|tojson(indent=1, sort_keys=true) }}") == '{\n "a": 1,\n "b": "<ä>"\n}'
    assert render("{{ strftime_now('%Y') | length }}") == "4"
    assert render("{{ tools is none and documents is none }}{{ unknown }}") == "True"
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{% if true %}\n  {% set x = 1 %}\nx\n{% endif %}\n") == "x\n"


def test_a_refusal_has_the_template_s_own_words() -> None:
    with pytest.raises(InvalidInput, match=r"refuses them: Who is a poet\?") as error:
        render(HEADERS, Turn("a poet", "Hello"))
    assert error.value.field == "messages"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ messages[0].parts.text }}", "has no attribute 'parts'"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{% include '/etc/passwd' %}", "no loader"),
    ],
)
def test_a_template_that_fails_says_why(source: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=f"messages: the model's chat template fails on them: .*{complaint}"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ (''|attr('__class__')).mro() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ lipsum() }}",
    ],
)
def test_the_sandbox_refuses_what_is_none_of_a_template_s_business(source: str) -> None:
    with pytest.raises(InvalidInput, match=r"unsafe|is undefined"):
        render(source)


NESTED = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
FILTERED = "{% for a in range(100000) %}{% for b in range(100000) if false %}{% endfor %}{% endfor %}"
MACROS = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
DEEP = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
DOUBLING = "{%% set ns = namespace(x='aaaa') %%}{%% for i in range(99) %%}{%% set ns.x = %s %%}{%% endfor %%}"
LONG = "{% macro f() %}{% for i in range(90000) %}" + "a" * 9999 + "{% endfor %}{% endmacro %}{{ f()|length }}"


@pytest.mark.parametrize(
    ("source", "limit"),
    [
        (NESTED, "takes more than 100000 steps"),
        (FILTERED, "takes more than 100000 steps"),
        (MACROS, "takes more than 100000 steps"),
        (DEEP, "maximum recursion depth"),
        (LONG, "makes more than 4194304 characters"),
        (DOUBLING % "ns.x ~ ns.x", "makes more than 4194304 characters"),
        (DOUBLING % "ns.x + ns.x", "makes more than 4194304 characters"),
        (DOUBLING % "[ns.x, ns.x]|join", "makes more than 4194304 characters"),
        (DOUBLING % "ns.x * 3", "makes more than 4194304 characters"),
        ("{{ 'a' * 10 ** 12 }}", "makes more than 4194304 characters"),
        ("{{ 9 ** (10 ** 9) }}", "makes more than 4194304 characters"),
        ("{{ [0] * 10 ** 12 }}", "makes more than 4194304 characters"),
        ("{% for i in range(10 ** 12) %}{% endfor %}", "Range too big"),
    ],
)
def test_a_template_that_would_never_end_is_ended(source: str, limit: str) -> None:
    with pytest.raises(InvalidInput, match=f"chat template fails on them: {limit}"):
        render(source)


def test_a_rendering_does_not_use_up_what_the_next_may_do() -> None:
    template = ChatTemplate("{% for i in range(60000) %}{% endfor %}done", {})
    assert [template.render(HELLO, add_generation_prompt=True) for _ in range(3)] == ["done"] * 3


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text()), min_size=1, max_size=5))
def test_counting_changes_nothing_of_what_is_written(conversation: list[tuple[str, str]]) -> None:
    turns = [Turn(role, content) for role, content in conversation]
    marks = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
    assert render(CHATML, *turns, add_generation_prompt=False) == marks


def write(folder: Path, source: str | bytes) -> Path:
    path = folder / "chat_template.jinja"
    path.write_bytes(source.encode() if isinstance(source, str) else source)
    return path


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("one\n{% for %}", "line 2: "),
        ("{{ 1|nothing }}", "line 1: No filter named 'nothing'"),
        ("{% if true %}", "line 1: Unexpected end of template"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
        (b"\xff", "utf-8"),
    ],
)
def test_a_bad_template_is_one_line_when_its_bundle_is_opened(
    tmp_path: Path, source: str | bytes, complaint: str
) -> None:
    with pytest.raises(BundleError, match=f"^chat_template.jinja: not a chat template: .*{complaint}") as error:
        ChatTemplate.from_file(write(tmp_path, source), bundle_pb2.Tokenizer(), byte_tokenizer())
    assert "\n" not in str(error.value)


def test_special_tokens_are_those_the_bundle_names_else_those_of_its_ids(tmp_path: Path) -> None:
    path = write(tmp_path, "{{ bos_token }} {{ eos_token }} {{ pad_token }}")
    spec = bundle_pb2.Tokenizer(eos_token_ids=[299, 298])
    by_id = ChatTemplate.from_file(path, spec, byte_tokenizer())
    assert by_id.render(HELLO, add_generation_prompt=True) == " <299> "
    spec.special_tokens["bos_token"] = "<s>"
    named = ChatTemplate.from_file(path, spec, byte_tokenizer())
    assert named.render(HELLO, add_generation_prompt=True) == "<s>  "
