"""A chat template writes what transformers' apply_chat_template writes, also on its way through an imported bundle."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from polyhead.export.pipeline import export_source, load_source
from polyhead.server.bundle import read_bundle
from polyhead.server.chat import ChatTemplate, Turn
from polyhead.server.loader import open_chat_template, open_tokenizer
from polyhead.server.rpc.chat import checked_kwargs
from tests.chats import CHATML, HEADERS
from tests.parity.huggingface import edit_json, tokenizer, write_decoder

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
MIXED = """
{%- for message in messages if message.content %}
    {#- a comment #}
    {%- if loop.first and message.role != 'system' %}{{ 'w1 ' }}{% endif %}
  {% if message.role == "user" %}
    [{{ loop.index0 }} {{ message['content'].strip().split(' ') | first }}]
  {% elif loop.last %}
    {{ message | tojson }}
  {% else %}{% continue %}
  {% endif %}
{%- endfor %}
{{ eos_token ~ (unk_token or 'none') ~ tools ~ ('w2' if add_generation_prompt) }}
"""
THINKING = """
{%- if tools %}{% for tool in tools %}{{ tool | tojson }}{{ tool.function.name }}{% endfor %}{% endif %}
{%- for message in messages %}{{ '<|' + message.role + '|>' + message.content }}{{ eos_token }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
    {%- if budget %}{% for number in budget.steps %}{{ number }}{% endfor %}{% endif %}
{%- endif %}"""
"""As that of Qwen 3."""
VARIABLES: tuple[dict[str, Any], ...] = (
    {},
    {"enable_thinking": True},
    {"enable_thinking": False, "budget": {"steps": [1, 2.5, None]}},
    {"eos_token": "<end>", "unknown": "w1"},
    {"tools": [{"type": "function", "function": {"name": "ä", "parameters": {}}}]},
)
CONVERSATIONS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "w1 w2"),),
    (("system", " w3\n"), ("user", "w1 <s> w2"), ("assistant", "  w4 w5 \n"), ("user", "ä🦊 {{ w1 }} <b>")),
    (("user", "w1"), ("assistant", "w2 ")),
)


def library(folder: Path, **fields: Any) -> Any:
    """transformers' tokenizer of a folder whose tokenizer_config.json gets these fields."""
    from transformers import PreTrainedTokenizerFast

    (folder / "tokenizer.json").write_text(tokenizer().to_str(), "utf-8")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **SPECIAL, **fields)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("source", [CHATML, HEADERS, MIXED], ids=["chatml", "headers", "mixed"])
def test_every_conversation_becomes_the_same_text(tmp_path: Path, source: str) -> None:
    theirs, ours = library(tmp_path, chat_template=source), ChatTemplate(source, SPECIAL)
    for conversation, add in product(CONVERSATIONS, (True, False)):
        messages = [{"role": role, "content": content} for role, content in conversation]
        turns = [Turn(*turn) for turn in conversation]
        wanted = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=add)
        assert ours.render(turns, add_generation_prompt=add) == wanted


@pytest.mark.parametrize("variables", VARIABLES)
def test_variables_of_a_request_reach_the_template(tmp_path: Path, variables: dict[str, Any]) -> None:
    theirs, ours = library(tmp_path, chat_template=THINKING), ChatTemplate(THINKING, SPECIAL)
    messages = [{"role": "user", "content": "w1"}]
    wanted = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    more = checked_kwargs(json.dumps(variables))
    assert ours.render([Turn("user", "w1")], add_generation_prompt=True, more=more) == wanted


@pytest.mark.parametrize("source", [CHATML, HEADERS], ids=["chatml", "headers"])
def test_the_last_message_is_gone_on_with_at_the_same_place(tmp_path: Path, source: str) -> None:
    theirs, ours = library(tmp_path, chat_template=source), ChatTemplate(source, SPECIAL)
    for content in ("w1 w2", " w1 \n", "w1 "):
        messages = [{"role": "user", "content": "w3"}, {"role": "assistant", "content": content}]
        wanted = theirs.apply_chat_template(messages, tokenize=False, continue_final_message=True)
        turns = [Turn("user", "w3"), Turn("assistant", content)]
        assert ours.render(turns, add_generation_prompt=False, continue_final=True) == wanted


def test_an_imported_checkpoint_turns_messages_into_the_same_tokens(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    write_decoder(checkpoint, "gpt2", n_layer=1)
    source = "{{ bos_token }}{% for m in messages %} {{ m.content }} {{ eos_token }}{% endfor %}"
    theirs = library(checkpoint, chat_template=source)
    bundle = read_bundle(export_source(load_source(checkpoint), tmp_path / "models" / "tiny"))
    ours = open_tokenizer(bundle)
    template = open_chat_template(bundle, ours)
    assert template is not None
    text = template.render([Turn("user", "w1 w2"), Turn("assistant", "w3")], add_generation_prompt=True)
    messages = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    wanted = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ours.encode(text, add_special_tokens=False) == wanted == [1, 4, 5, 2, 6, 2]
