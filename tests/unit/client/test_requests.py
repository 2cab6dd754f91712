from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.client import InvalidInput
from polyhead.client.requests import (
    GenerateOptions,
    classify_request,
    embed_request,
    generate_request,
    model_request,
    tokenize_request,
)
from polyhead.v1 import inference_pb2 as pb
from polyhead.v1.model_pb2 import GetModelRequest


def generate(prompt: Any = "hi", messages: Any = None, **options: Any) -> Any:
    return generate_request(prompt, None, None, None, cast("GenerateOptions", options), messages)


def test_every_option_of_generate_reaches_its_field() -> None:
    request = generate_request(
        "hi",
        "gpt",
        "3",
        "r-1",
        {
            "temperature": 0.5,
            "top_k": 4,
            "top_p": 0.25,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "seed": 2**64 - 1,
            "max_tokens": 9,
            "min_tokens": 2,
            "stop": ["a", "b"],
            "ignore_eos": True,
            "stop_token_ids": [7, 2**32 - 1],
            "logprobs": 0,
        },
    )
    sampling, stopping = request.sampling, request.stopping
    assert (request.model.name, request.model.version, request.request_id) == ("gpt", "3", "r-1")
    assert (request.prompt.text, request.HasField("logprobs"), request.logprobs) == ("hi", True, 0)
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.5, 4, 0.25, 0.125)
    assert (sampling.repetition_penalty, sampling.seed) == (1.5, 2**64 - 1)
    assert (stopping.max_tokens, stopping.min_tokens, list(stopping.stop)) == (9, 2, ["a", "b"])
    assert (stopping.ignore_eos, list(stopping.stop_token_ids)) == (True, [7, 2**32 - 1])


def test_what_weighs_tokens_and_how_to_serve_reach_their_fields() -> None:
    request = generate(
        typical_p=0.5,
        presence_penalty=-1.5,
        frequency_penalty=0.25,
        logit_bias={3: -100, 2**32 - 1: 1.5},
        bad_words=["a", "b"],
        samples=4,
        prompt_logprobs=0,
        prompt_lookup=True,
        priority=-7,
        adapter="french",
    )
    sampling = request.sampling
    assert (sampling.typical_p, sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -1.5, 0.25)
    assert (dict(sampling.logit_bias), list(sampling.bad_words)) == ({3: -100, 2**32 - 1: 1.5}, ["a", "b"])
    assert (request.samples, request.prompt_lookup, request.priority) == (4, True, -7)
    assert request.adapter == "french"
    assert (request.HasField("prompt_logprobs"), request.prompt_logprobs) == (True, 0)


def test_beams_and_an_alignment_reach_their_fields_and_are_unset_otherwise() -> None:
    request = generate(
        beam_width=4, length_penalty=0.0, early_stopping=True, return_alignment=True, temperature=None, samples=3
    )
    beams = request.beam_search
    assert (beams.width, beams.HasField("length_penalty"), beams.length_penalty) == (4, True, 0)
    assert (beams.early_stopping, request.return_alignment, request.samples) == (True, True, 3)
    plain = generate(beam_width=1)
    assert (plain.HasField("beam_search"), plain.beam_search.HasField("length_penalty")) == (True, False)
    assert generate(beam_width=0).HasField("beam_search")  # the server says what a width may be
    assert not generate().HasField("beam_search")
    assert not generate(return_alignment=False).return_alignment


@pytest.mark.parametrize("option", [{"length_penalty": 1.0}, {"early_stopping": True}])
def test_what_belongs_to_beams_needs_their_width(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(InvalidInput, match=rf"beam_search\.{name}: must not be set without beam_width") as caught:
        generate(**option)
    assert caught.value.field == f"beam_search.{name}"


def test_a_width_that_fits_no_field_is_refused_by_its_path() -> None:
    with pytest.raises(InvalidInput, match=r"beam_search\.width: does not fit its field, given -1"):
        generate(beam_width=-1)
    with pytest.raises(TypeError, match=r"beam_search\.width: has a wrong type"):
        generate(beam_width="four")


@pytest.mark.parametrize(
    ("options", "kind", "value"),
    [
        ({"json_schema": '{"type": "null"}'}, "json_schema", '{"type": "null"}'),
        ({"json_schema": {"type": "object", "required": ["é"]}}, "json_schema", r'{"type": "object", "required": ["\u00e9"]}'),
        ({"json_schema": {}}, "json_schema", "{}"),
        ({"regex": ""}, "regex", ""),
        ({"grammar": "start: /a/"}, "lark", "start: /a/"),
        ({"choices": ["yes", "no"]}, "choice", pb.Choice(choices=["yes", "no"])),
        ({"choices": "yes"}, "choice", pb.Choice(choices=["yes"])),
        ({"choices": []}, "choice", pb.Choice()),
    ],
)  # fmt: skip
def test_each_kind_of_constraint_reaches_its_field(options: dict[str, Any], kind: str, value: object) -> None:
    constraint = generate(**options).constraint
    assert constraint.WhichOneof("constraint") == kind
    assert getattr(constraint, kind) == value


def test_a_second_constraint_is_refused_with_the_names_of_both() -> None:
    with pytest.raises(InvalidInput) as caught:
        generate(regex="a", choices=["b"], grammar=None)
    assert caught.value.field == "constraint"
    assert str(caught.value) == (
        "constraint: at most one of json_schema, regex, grammar, choices may be given, got regex and choices"
    )


def test_what_is_not_said_stays_unset() -> None:
    request = generate(temperature=None, stop=None, bad_words=(), logit_bias=None, regex=None)
    assert [field.name for field, _ in request.ListFields()] == ["request_id", "prompt"]


def test_a_request_without_an_id_gets_one_of_its_own() -> None:
    assert generate().request_id != generate().request_id != ""


def test_one_stop_string_or_token_needs_no_list() -> None:
    assert list(generate(stop="end").stopping.stop) == ["end"]
    assert list(generate(stop_token_ids=0).stopping.stop_token_ids) == [0]


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1)))
def test_a_prompt_may_be_token_ids_even_none_of_them(ids: list[int]) -> None:
    prompt = generate(ids).prompt
    assert prompt.WhichOneof("input") == "token_ids"
    assert list(prompt.token_ids.ids) == ids


@settings(deadline=None)
@given(st.lists(st.one_of(st.text(st.characters(codec="utf-8")), st.lists(st.integers(0, 9)))))
def test_texts_keep_their_order_and_kind(texts: list[str | list[int]]) -> None:
    inputs = classify_request(texts, None, None, None, None, False).inputs
    assert [i.text if i.WhichOneof("input") == "text" else list(i.token_ids.ids) for i in inputs] == texts


def test_two_texts_in_a_tuple_are_a_pair() -> None:
    inputs = classify_request([("a", "b"), "c", (3, 4)], None, None, None, None, False).inputs
    assert list(inputs) == [
        pb.Input(text="a", text_pair="b"), pb.Input(text="c"), pb.Input(token_ids=pb.TokenIds(ids=[3, 4]))
    ]  # fmt: skip
    with pytest.raises(TypeError, match=r"inputs\[0\]\.text_pair"):
        classify_request([("a", 4)], None, None, None, None, False)  # type: ignore[list-item]


def test_one_text_needs_no_list() -> None:
    assert [given.text for given in embed_request("hi", None, None, None, True).inputs] == ["hi"]
    assert list(tokenize_request("hi", None, None, None, True).texts) == ["hi"]


def test_classify_embed_tokenize_and_model_carry_their_settings() -> None:
    classify = classify_request("a", "m", "2", "r", 3, True)
    assert (classify.top_k, classify.truncate, classify.model.name, classify.request_id) == (3, True, "m", "r")
    assert embed_request("a", None, None, None, True).truncate
    assert embed_request("a", None, None, None, False, "french").adapter == "french"
    assert classify_request("a", None, None, None, None, False, "french").adapter == "french"
    tokenize = tokenize_request(["a"], None, None, None, False)
    assert tokenize.HasField("add_special_tokens")
    assert not tokenize.add_special_tokens
    assert model_request(GetModelRequest, "m", "4") == GetModelRequest(name="m", version="4")


@pytest.mark.parametrize(
    ("options", "field", "given"),
    [
        ({"top_k": -1}, "sampling.top_k", "-1"),
        ({"seed": 2**64}, "sampling.seed", "18446744073709551616"),
        ({"max_tokens": -5}, "stopping.max_tokens", "-5"),
        ({"stop": ["\ud800"]}, "stopping.stop", "ud800"),
        ({"stop_token_ids": [-1]}, "stopping.stop_token_ids", "-1"),
        ({"prompt": [1, -2]}, "prompt.token_ids", "-2"),
        ({"prompt": "\ud800"}, "prompt.text", "ud800"),
        ({"logit_bias": {-1: 1.0}}, "sampling.logit_bias", "-1"),
        ({"bad_words": ["\ud800"]}, "sampling.bad_words", "ud800"),
        ({"samples": -1}, "samples", "-1"),
        ({"priority": 2**31}, "priority", "2147483648"),
        ({"choices": ["\ud800"]}, "constraint.choice.choices", "ud800"),
    ],
)
def test_a_value_that_cannot_be_sent_is_refused_by_name(options: dict[str, Any], field: str, given: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        generate(**options)
    assert caught.value.field == field
    assert field in str(caught.value)
    assert given in str(caught.value)


def test_a_long_value_is_shown_in_short() -> None:
    with pytest.raises(InvalidInput) as caught:
        generate([*range(1000), -1])
    assert "[0, 1, 2" in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": "many"}, "sampling.top_k: has a wrong type, given 'many'"),
        ({"topk": 1}, "generate.* has no option topk"),
        ({"prompt": 5}, "prompt must be a text or a list of token ids, not 5"),
        ({"prompt": ["a"]}, "prompt.token_ids: has a wrong type"),
        ({"stop": [1]}, "stopping.stop: has a wrong type"),
        ({"logit_bias": {"a": 1.0}}, "sampling.logit_bias: has a wrong type"),
        ({"logit_bias": 5}, "sampling.logit_bias: has a wrong type, given 5"),
        ({"json_schema": {"const": {1}}}, "constraint.json_schema: has a wrong type"),
        ({"regex": 5}, "constraint.regex: has a wrong type, given 5"),
    ],
)
def test_a_wrong_type_is_a_type_error_that_names_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        generate(**options)


def test_token_ids_of_one_text_are_a_list_in_a_list() -> None:
    with pytest.raises(TypeError, match=r"inputs\[0\] must be a text or a list of token ids, not 1"):
        embed_request(cast("Any", [1, 2]), None, None, None, False)


def test_messages_and_what_becomes_of_them_reach_their_fields() -> None:
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ""}]
    request = generate(None, messages=told, add_generation_prompt=False, continue_final_message=True)
    assert [(message.role, message.content) for message in request.messages] == [("system", "Be brief."), ("user", "")]
    assert (request.HasField("prompt"), request.continue_final_message) == (False, True)
    assert (request.HasField("add_generation_prompt"), request.add_generation_prompt) == (True, False)
    assert not generate(None, messages=told).HasField("add_generation_prompt")


def test_variables_of_a_template_are_an_object_or_its_text() -> None:
    hello = [{"role": "user", "content": "hello"}]
    assert generate(None, messages=hello, chat_template_kwargs={"a": [False]}).chat_template_kwargs == '{"a": [false]}'
    assert generate(None, messages=hello, chat_template_kwargs="{").chat_template_kwargs == "{"
    assert generate(None, messages=hello).chat_template_kwargs == ""
    with pytest.raises(TypeError, match="chat_template_kwargs"):
        generate(None, messages=hello, chat_template_kwargs={"a": object()})


def test_either_a_prompt_or_messages_are_given() -> None:
    hello = [{"role": "user", "content": "hello"}]
    with pytest.raises(TypeError, match="needs a prompt or messages"):
        generate(None)
    with pytest.raises(InvalidInput, match="messages: must not be given together with prompt"):
        generate("", messages=hello)
    with pytest.raises(InvalidInput, match="messages: must be at least 1, got none") as error:
        generate(None, messages=[])
    assert [violation.field for violation in error.value.violations] == ["messages"]


@pytest.mark.parametrize("message", ["hello", {"role": "user"}, {"role": "user", "content": "a", "name": "b"}])
def test_a_message_is_a_role_and_a_content_and_nothing_else(message: object) -> None:
    with pytest.raises(TypeError, match=r"messages\[0\] must be a mapping with role and content"):
        generate(None, messages=[message])


def test_a_content_that_is_no_text_is_named() -> None:
    with pytest.raises(TypeError, match=r"messages\[0\]\.content: has a wrong type, given 3"):
        generate(None, messages=[{"role": "user", "content": 3}])
