"""What callers say → request messages. Ranges are the server's to check; here a value only has to fit its field."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, TypeVar
from uuid import uuid4

from google.protobuf.message import Message as ProtobufMessage

from polyhead.client.errors import FieldViolation, InvalidInput
from polyhead.v1 import inference_pb2, model_pb2

Text: TypeAlias = str | Sequence[int]
"""A text, or the token ids somebody made of it."""
Texts: TypeAlias = str | Sequence[Text]
"""One text, or several of which each may be given as token ids."""
Pair: TypeAlias = tuple[str, str]
"""Two texts for a model that compares them."""


class Message(TypedDict):
    """A turn of a conversation."""

    role: str
    """`system`, `user`, `assistant` and whatever else the model's chat template knows."""
    content: str


class GenerateOptions(TypedDict, total=False):
    """How to generate. What is missing or None is decided by the model's bundle, else by the server."""

    temperature: float | None
    """0 to 100; logits are divided by it. 0: always the likeliest token."""
    top_k: int | None
    """Only the k likeliest tokens; 0: no limit."""
    top_p: float | None
    """Above 0 to 1: only the likeliest tokens that together reach this probability."""
    min_p: float | None
    """0 to 1: only tokens at least this many times as likely as the likeliest."""
    repetition_penalty: float | None
    """Above 0 to 10; 1 does nothing."""
    typical_p: float | None
    """Above 0 to 1: only the tokens whose surprise is nearest to the expected one, up to this probability together."""
    presence_penalty: float | None
    """-2 to 2: subtracted from the logits of tokens that the answer has already."""
    frequency_penalty: float | None
    """-2 to 2: subtracted from the logits of tokens, once for each time that the answer has them."""
    logit_bias: Mapping[int, float] | None
    """Token ids, each with -100 to 100 that is added to its logit."""
    bad_words: str | Sequence[str] | None
    """Up to 64 strings that must not appear, as their own tokenization writes them."""
    seed: int | None
    """0 to 2**64 - 1. The same seed and request give the same answer."""
    max_tokens: int | None
    """Length of the answer, at most."""
    min_tokens: int | None
    """No end token, stop token or stop string counts before that many tokens."""
    stop: str | Sequence[str] | None
    """Up to 16 strings; the answer ends before the first one that appears."""
    stop_token_ids: int | Sequence[int] | None
    """Up to 16 token ids; the answer ends with the first one that is chosen, whose text is left out."""
    ignore_eos: bool | None
    """Go on after the model's end tokens."""
    logprobs: int | None
    """0 to 20: each token's log-probability and those of that many likeliest alternatives."""
    prompt_logprobs: int | None
    """0 to 20: the same of the prompt's tokens after the first."""
    samples: int | None
    """1 to the number of the model's slots: so many independent answers; take them with `results()`."""
    json_schema: str | Mapping[str, Any] | None
    """A JSON schema that the answer fits. At most one of this and the next three may be given."""
    regex: str | None
    """A regular expression in the syntax of Rust's regex crate that matches all of the answer."""
    grammar: str | None
    """A context-free grammar in Lark's syntax, beginning with `start`, that the answer follows."""
    choices: str | Sequence[str] | None
    """Strings of which the answer is one."""
    prompt_lookup: bool | None
    """Guess next tokens from prompt and answer, several at once: faster where text repeats, but near ties may fall otherwise."""
    priority: int | None
    """-100 to 100: requests of higher priority leave the server's queue first."""
    beam_width: int | None
    """1 to 32, and at most the model's slots: search for the likeliest answers with so many beams instead of choosing token by
    token. The best answer comes first; `samples` says how many to send, of which there may be fewer. Not together with what
    samples, `stop` or `prompt_lookup`."""
    length_penalty: float | None
    """-10 to 10: an answer's score is the sum of its log-probabilities over its length to this power. Only with beam_width."""
    early_stopping: bool | None
    """End the search as soon as `beam_width` answers are complete. Only with beam_width."""
    return_alignment: bool | None
    """What each token of the answer attended to in the source, of sequence-to-sequence models with attention."""
    adapter: str | None
    """One of the model's adapters; without it the model answers as it is."""
    add_generation_prompt: bool | None
    """With messages: begin the assistant's next turn. Default true."""
    continue_final_message: bool | None
    """With messages: go on with the last one, the beginning of a turn of the assistant's."""
    chat_template_kwargs: str | Mapping[str, Any] | None
    """With messages: variables for the model's chat template, such as `{"enable_thinking": False}`; a mapping, or JSON of one."""


_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "typical_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)
_PAIR = ("text", "text_pair")
_STOPPING = ("max_tokens", "min_tokens", "ignore_eos")
_CHAT = ("add_generation_prompt", "continue_final_message")
_REQUEST = (
    "logprobs",
    "prompt_logprobs",
    "samples",
    "prompt_lookup",
    "priority",
    "adapter",
    "return_alignment",
    *_CHAT,
)
_BEAMS = ("length_penalty", "early_stopping")
_CONSTRAINTS = ("json_schema", "regex", "grammar", "choices")


def generate_request(
    prompt: Text | None,
    model: str | None,
    version: str | None,
    request_id: str | None,
    options: GenerateOptions,
    messages: Sequence[Message] | None = None,
) -> inference_pb2.GenerateRequest:
    """Raises TypeError for an option that there is not or that has a wrong type, InvalidInput for one out of its field's range
    or that lacks the one it belongs to, and unless either a prompt or messages are given."""
    if unknown := options.keys() - GenerateOptions.__annotations__.keys():
        raise TypeError(f"generate() has no option {', '.join(sorted(unknown))}")
    request = inference_pb2.GenerateRequest()
    _address(request, model, version, request_id)
    _set_prompt(request, prompt, messages)
    _fill(request.sampling, "sampling.", _SAMPLING, options)
    _fill(request.stopping, "stopping.", _STOPPING, options)
    _fill(request, "", _REQUEST, options)
    variables = _json("chat_template_kwargs", options.get("chat_template_kwargs"))
    _fill(request, "", ("chat_template_kwargs",), {"chat_template_kwargs": variables})
    _extend(request.stopping.stop, "stopping.stop", options.get("stop"))
    _extend(request.stopping.stop_token_ids, "stopping.stop_token_ids", options.get("stop_token_ids"))
    _extend(request.sampling.bad_words, "sampling.bad_words", options.get("bad_words"))
    if (bias := options.get("logit_bias")) is not None:
        _update(request.sampling.logit_bias, "sampling.logit_bias", bias)
    _search(request, options)
    _constrain(request, options)
    return request


def classify_request(
    texts: str | Sequence[Text | Pair],
    model: str | None,
    version: str | None,
    request_id: str | None,
    top_k: int | None,
    truncate: bool,
    adapter: str | None = None,
) -> inference_pb2.ClassifyRequest:
    """Raises TypeError or InvalidInput as `generate_request` does."""
    request = inference_pb2.ClassifyRequest(truncate=truncate)
    _address(request, model, version, request_id)
    _add_inputs(request, texts)
    _fill(request, "", ("top_k", "adapter"), {"top_k": top_k, "adapter": adapter})
    return request


def embed_request(
    texts: Texts,
    model: str | None,
    version: str | None,
    request_id: str | None,
    truncate: bool,
    adapter: str | None = None,
) -> inference_pb2.EmbedRequest:
    """Raises TypeError or InvalidInput as `generate_request` does."""
    request = inference_pb2.EmbedRequest(truncate=truncate)
    _address(request, model, version, request_id)
    _add_inputs(request, texts)
    _fill(request, "", ("adapter",), {"adapter": adapter})
    return request


def tokenize_request(
    texts: str | Sequence[str], model: str | None, version: str | None, request_id: str | None, add_special_tokens: bool
) -> inference_pb2.TokenizeRequest:
    """Raises TypeError or InvalidInput as `generate_request` does."""
    request = inference_pb2.TokenizeRequest(add_special_tokens=add_special_tokens)
    _address(request, model, version, request_id)
    _extend(request.texts, "texts", texts)
    return request


_ModelRequest = TypeVar(
    "_ModelRequest",
    model_pb2.GetModelRequest,
    model_pb2.LoadModelRequest,
    model_pb2.UnloadModelRequest,
    model_pb2.ReloadModelRequest,
)


def model_request(kind: type[_ModelRequest], name: str, version: str | None) -> _ModelRequest:
    """A request of that kind, about a model or one of its versions."""
    request = kind()
    _fill(request, "", ("name", "version"), {"name": name, "version": version})
    return request


def _address(request: Any, model: str | None, version: str | None, request_id: str | None) -> None:
    """Says who shall answer; a request without an id gets one here, so that failures can be told to it as well."""
    _fill(request.model, "model.", ("name", "version"), {"name": model, "version": version})
    _fill(request, "", ("request_id",), {"request_id": request_id or uuid4().hex})


def _fill(message: ProtobufMessage, path: str, names: Iterable[str], values: Mapping[str, object]) -> None:
    for name in names:
        value = values.get(name)
        if value is not None:
            try:
                setattr(message, name, value)
            except (TypeError, ValueError) as error:
                raise _refusal(path + name, value, error) from error


def _extend(values: Any, path: str, given: str | int | Iterable[object] | None) -> None:
    """One string or number needs no list."""
    several = [given] if isinstance(given, (str, int)) else given
    if not several:
        return  # else the message that has the field would count as set
    try:
        values.extend(several)
    except (TypeError, ValueError) as error:
        raise _refusal(path, given, error) from error


def _update(values: Any, path: str, given: Mapping[int, float]) -> None:
    try:
        values.update(given)
    except (TypeError, ValueError) as error:
        raise _refusal(path, given, error) from error


def _search(request: inference_pb2.GenerateRequest, options: GenerateOptions) -> None:
    width = options.get("beam_width")
    for name in _BEAMS:
        if width is None and options.get(name) is not None:
            raise _invalid(f"beam_search.{name}", "must not be set without beam_width")
    if width is not None:
        request.beam_search.SetInParent()  # so that a width of 0 is the server's to refuse
        _fill(request.beam_search, "beam_search.", ("width", *_BEAMS), {**options, "width": width})


def _constrain(request: inference_pb2.GenerateRequest, options: GenerateOptions) -> None:
    given = {name: options.get(name) for name in _CONSTRAINTS if options.get(name) is not None}
    if len(given) > 1:
        description = f"at most one of {', '.join(_CONSTRAINTS)} may be given, got {' and '.join(given)}"
        raise _invalid("constraint", description)
    if "choices" in given:
        request.constraint.choice.SetInParent()  # so that no choices at all are the server's to refuse
        _extend(request.constraint.choice.choices, "constraint.choice.choices", options.get("choices"))
    texts = {
        "json_schema": _json("constraint.json_schema", options.get("json_schema")),
        "regex": given.get("regex"),
        "lark": given.get("grammar"),
    }
    _fill(request.constraint, "constraint.", texts, texts)


def _json(path: str, given: object) -> object:
    """What is given as a mapping, as text."""
    if not isinstance(given, Mapping):
        return given
    try:
        return json.dumps(given)
    except (TypeError, ValueError) as error:
        raise _refusal(path, given, error) from error


def _add_inputs(
    request: inference_pb2.ClassifyRequest | inference_pb2.EmbedRequest, texts: str | Sequence[Text | Pair]
) -> None:
    for index, text in enumerate([texts] if isinstance(texts, str) else texts):
        if isinstance(text, tuple) and len(text) == 2 and isinstance(text[0], str):
            first, second = text
            _fill(request.inputs.add(), f"inputs[{index}].", _PAIR, {"text": first, "text_pair": second})
        else:
            _set_input(request.inputs.add(), f"inputs[{index}]", text)


def _set_prompt(
    request: inference_pb2.GenerateRequest, prompt: Text | None, messages: Sequence[Message] | None
) -> None:
    if messages is None:
        if prompt is None:
            raise TypeError("generate() needs a prompt or messages")
        _set_input(request.prompt, "prompt", prompt)
        return
    if prompt is not None:
        raise _invalid("messages", "must not be given together with prompt")
    if not messages:  # none at all would be no messages on their way, but an empty prompt
        raise _invalid("messages", "must be at least 1, got none")
    for index, message in enumerate(messages):
        _add_message(request, f"messages[{index}]", message)


def _add_message(request: inference_pb2.GenerateRequest, path: str, message: Message) -> None:
    if not isinstance(message, Mapping) or message.keys() != {"role", "content"}:
        raise TypeError(f"{path} must be a mapping with role and content, not {_short(message)}")
    _fill(request.messages.add(), f"{path}.", ("role", "content"), message)


def _set_input(message: inference_pb2.Input, path: str, text: Text) -> None:
    if isinstance(text, str):
        _fill(message, f"{path}.", ("text",), {"text": text})
    elif isinstance(text, Iterable):
        message.token_ids.SetInParent()  # so that no ids at all are still ids, not an unset input
        _extend(message.token_ids.ids, f"{path}.token_ids", text)
    else:
        raise TypeError(f"{path} must be a text or a list of token ids, not {text!r}")


def _refusal(path: str, value: object, error: Exception) -> Exception:
    if isinstance(error, ValueError):
        return _invalid(path, f"does not fit its field, given {_short(value)} ({error})")
    return TypeError(f"{path}: has a wrong type, given {_short(value)} ({error})")


def _invalid(path: str, description: str) -> InvalidInput:
    return InvalidInput(f"{path}: {description}", violations=(FieldViolation(path, description),))


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
