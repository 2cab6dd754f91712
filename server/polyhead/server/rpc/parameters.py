"""Generate's parameters: message → the plain values of a GenerationRequest, every one checked and decided."""

import secrets
from collections.abc import Sequence

from polyhead.server.constraints import Constraint, Grammar
from polyhead.server.engine.generator import Generator
from polyhead.server.engine.sequence import BeamOptions, Sampling, Stopping
from polyhead.server.errors import InvalidInput
from polyhead.server.loader import LiveModel
from polyhead.server.ranges import LENGTH_PENALTY, LOGIT_BIAS, SAMPLING
from polyhead.server.rpc.workers import Workers
from polyhead.v1 import bundle_pb2, inference_pb2

MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 16
MAX_BAD_WORDS = 64
MAX_STRING_CHARACTERS = 256
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_CHOICES = 256
MAX_CONSTRAINT_CHARACTERS = 65_536
MAX_PRIORITY = 100
MAX_BEAMS = 32


def sampling(given: inference_pb2.SamplingParameters, model: LiveModel, *, searches: bool = False) -> Sampling:
    """What is unset comes from the bundle, else from `Sampling`. A seed is drawn if there is none. Beam search takes what the
    request itself says, and nothing of the bundle's."""
    plain = plain_values(given, bundle_pb2.SamplingDefaults() if searches else model.manifest.sampling_defaults)
    if searches:
        plain["temperature"] = 0.0
    size = model.manifest.limits.vocabulary_size
    seed = int(plain.pop("seed")) if "seed" in plain else secrets.randbits(64)
    top_k = min(int(plain.pop("top_k", 0)), size)
    return Sampling(
        seed=seed, top_k=top_k, logit_bias=logit_bias(given, size), bad_words=bad_words(given.bad_words, model), **plain
    )


def plain_values(given: inference_pb2.SamplingParameters, defaults: bundle_pb2.SamplingDefaults) -> dict[str, float]:
    """Every number that is set somewhere, checked."""
    fields = (field for message in (defaults, given) for field in message.ListFields())
    values = {field.name: value for field, value in fields if field.name not in ("logit_bias", "bad_words")}
    for name, value in values.items():
        if name != "seed":
            SAMPLING[name].check(f"sampling.{name}", value)
    return values


def logit_bias(given: inference_pb2.SamplingParameters, vocabulary_size: int) -> tuple[tuple[int, float], ...]:
    if len(given.logit_bias) > MAX_LOGIT_BIAS:
        raise InvalidInput(
            "sampling.logit_bias", f"must have at most {MAX_LOGIT_BIAS} tokens, got {len(given.logit_bias)}"
        )
    for token, value in given.logit_bias.items():
        if token >= vocabulary_size:
            raise InvalidInput(
                "sampling.logit_bias", f"tokens must be below the vocabulary size {vocabulary_size}, got {token}"
            )
        LOGIT_BIAS.check(f"sampling.logit_bias[{token}]", value)
    return tuple(sorted(given.logit_bias.items()))


def bad_words(words: Sequence[str], model: LiveModel) -> tuple[tuple[int, ...], ...]:
    """Each as the tokens it has at the beginning of a text and after a space."""
    check_strings("sampling.bad_words", words, MAX_BAD_WORDS)
    encode = model.tokenizer.encode
    encoded = (tuple(encode(text, add_special_tokens=False)) for word in words for text in (word, f" {word}"))
    return tuple({tokens: None for tokens in encoded if tokens})  # a word that has no tokens can't be said either


def stopping(
    given: inference_pb2.StoppingCriteria, room: int, taken: int, default_max_tokens: int, vocabulary_size: int
) -> Stopping:
    """`room`: what the slot can hold of an answer, in tokens, at least 1; `taken`: what the prompt takes of the slot."""
    max_tokens = given.max_tokens if given.HasField("max_tokens") else min(default_max_tokens, room)
    if not 1 <= max_tokens <= room:
        less = f" minus the prompt's {taken}" if taken else ""
        limit = f"1 to {room} (a slot's {room + taken} tokens{less})"
        raise InvalidInput("stopping.max_tokens", f"must be {limit}, got {max_tokens}")
    if given.min_tokens > max_tokens:
        raise InvalidInput("stopping.min_tokens", f"must be 0 to max_tokens {max_tokens}, got {given.min_tokens}")
    check_strings("stopping.stop", given.stop, MAX_STOP_STRINGS)
    tokens = stop_token_ids(given.stop_token_ids, vocabulary_size)
    return Stopping(max_tokens, given.min_tokens, tuple(given.stop), given.ignore_eos, tokens)


def stop_token_ids(given: Sequence[int], vocabulary_size: int) -> tuple[int, ...]:
    field = "stopping.stop_token_ids"
    if len(given) > MAX_STOP_TOKENS:
        raise InvalidInput(field, f"must be at most {MAX_STOP_TOKENS} tokens, got {len(given)}")
    for index, token in enumerate(given):
        if token >= vocabulary_size:
            raise InvalidInput(f"{field}[{index}]", f"must be below the vocabulary size {vocabulary_size}, got {token}")
    return tuple(given)


def check_strings(field: str, texts: Sequence[str], most: int) -> None:
    """At most so many, none empty and none too long."""
    if len(texts) > most:
        raise InvalidInput(field, f"must be at most {most} strings, got {len(texts)}")
    for index, text in enumerate(texts):
        if not 1 <= len(text) <= MAX_STRING_CHARACTERS:
            limit = f"1 to {MAX_STRING_CHARACTERS} characters"
            raise InvalidInput(f"{field}[{index}]", f"must have {limit}, got {len(text)}")


def alternatives(request: inference_pb2.GenerateRequest, field: str, vocabulary_size: int) -> int | None:
    """`logprobs` or `prompt_logprobs`; None if unset."""
    if not request.HasField(field):  # type: ignore[arg-type]
        return None
    limit, given = min(MAX_LOGPROBS, vocabulary_size), int(getattr(request, field))
    if given > limit:
        raise InvalidInput(field, f"must be 0 to {limit}, got {given}")
    return given


def sample_count(request: inference_pb2.GenerateRequest, slots: int, beams: BeamOptions | None) -> int:
    count = request.samples if request.HasField("samples") else 1
    limit, what = (beams.width, "the width of the beam search") if beams else (slots, "the model's slots")
    if not 1 <= count <= limit:
        raise InvalidInput("samples", f"must be 1 to {limit}, {what}, got {count}")
    return count


def beam_search(request: inference_pb2.GenerateRequest, slots: int) -> BeamOptions | None:
    """Raises InvalidInput for a search that is too wide, or asked for together with what it can't do."""
    if not request.HasField("beam_search"):
        return None
    given, widest = request.beam_search, min(MAX_BEAMS, slots)
    if not 1 <= given.width <= widest:
        limit = f"1 to {widest}" + (", the model's slots" if slots < MAX_BEAMS else "")
        raise InvalidInput("beam_search.width", f"must be {limit}, got {given.width}")
    length_penalty = given.length_penalty if given.HasField("length_penalty") else 1.0
    LENGTH_PENALTY.check("beam_search.length_penalty", length_penalty)
    check_no_choice(request)
    return BeamOptions(given.width, length_penalty, given.early_stopping)


def check_no_choice(request: inference_pb2.GenerateRequest) -> None:
    """Raises InvalidInput for what chooses token by token, which a search does not."""
    set_values = {f"sampling.{field.name}": value for field, value in request.sampling.ListFields()}
    allowed = {f"sampling.{name}" for name in ("seed", "bad_words", "logit_bias", "repetition_penalty")} | (
        {"sampling.temperature"} if request.sampling.temperature == 0 else set()
    )
    refused = [name for name in set_values if name not in allowed]
    refused += ["stopping.stop"] if request.stopping.stop else []
    refused += ["prompt_lookup"] if request.prompt_lookup else []
    if refused:
        raise InvalidInput(
            refused[0], "must not be set together with beam_search, which does not choose token by token"
        )


def check_source(request: inference_pb2.GenerateRequest, engine: Generator) -> None:
    """Raises InvalidInput for what only a model with a source can do, or only one without."""
    if request.return_alignment and not engine.has_alignment:
        raise InvalidInput("return_alignment", "must not be set: the model does not attend to a source")
    if engine.continues_prompt:
        return
    for field, is_set in (
        ("prompt_lookup", request.prompt_lookup),
        ("prompt_logprobs", request.HasField("prompt_logprobs")),
    ):
        if is_set:
            raise InvalidInput(field, "must not be set: the model's answers do not continue the prompt")


def priority(request: inference_pb2.GenerateRequest) -> int:
    if abs(request.priority) > MAX_PRIORITY:
        raise InvalidInput("priority", f"must be -{MAX_PRIORITY} to {MAX_PRIORITY}, got {request.priority}")
    return request.priority


def adapter(given: str, model: LiveModel) -> str:
    """One of the model's adapters, or "" for none."""
    known = [adapter.name for adapter in model.manifest.adapters]
    if given and given not in known:
        there_are = (
            f"must be empty or one of {', '.join(known)}" if known else "must be empty, as the model has no adapters"
        )
        raise InvalidInput("adapter", f"{there_are}; got {given[:MAX_STRING_CHARACTERS]!r}")
    return given


async def grammar(request: inference_pb2.GenerateRequest, model: LiveModel, workers: Workers) -> Grammar | None:
    """The compiled constraint, if there is one. Compiling may take a second. Raises InvalidInput, Overloaded."""
    if not request.HasField("constraint"):
        return None
    constraint = checked_constraint(request.constraint)
    if request.stopping.ignore_eos:
        raise InvalidInput("stopping.ignore_eos", "must not be set together with constraint, whose end is an end token")
    if request.stopping.min_tokens:
        raise InvalidInput("stopping.min_tokens", "must not be set together with constraint, which says when to end")
    assert model.grammars is not None, "a model that generates has a compiler"
    return await workers.run(model.grammars.compile, constraint)


def checked_constraint(given: inference_pb2.Constraint) -> Constraint:
    kind = given.WhichOneof("constraint")
    if kind is None:
        raise InvalidInput("constraint", "must have one of json_schema, regex, lark and choice; got none")
    if kind == "choice":
        return Constraint(kind, choices=checked_choices(given.choice.choices))
    text: str = getattr(given, kind)
    if not 1 <= len(text) <= MAX_CONSTRAINT_CHARACTERS:
        raise InvalidInput(
            f"constraint.{kind}", f"must have 1 to {MAX_CONSTRAINT_CHARACTERS} characters, got {len(text)}"
        )
    return Constraint(kind, text)


def checked_choices(choices: Sequence[str]) -> tuple[str, ...]:
    field, characters = "constraint.choice.choices", sum(map(len, choices))
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise InvalidInput(field, f"must be 1 to {MAX_CHOICES} strings, got {len(choices)}")
    if characters > MAX_CONSTRAINT_CHARACTERS:
        raise InvalidInput(
            field, f"must have at most {MAX_CONSTRAINT_CHARACTERS} characters together, got {characters}"
        )
    if "" in choices or len(set(choices)) < len(choices):
        raise InvalidInput(field, "must be different from each other and not empty")
    return tuple(choices)
