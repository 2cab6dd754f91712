"""Generate: message → GenerationRequest, pieces of an answer → messages."""

import secrets
from collections.abc import AsyncGenerator

from google.protobuf.message import Message

from polyhead.server.engine.sequence import (
    FinishReason,
    GenerationRequest,
    GenerationTimes,
    Piece,
    Sampling,
    Stopping,
    TokenLogprob,
)
from polyhead.server.errors import InvalidInput
from polyhead.server.loader import LiveModel
from polyhead.server.ranges import SAMPLING
from polyhead.server.rpc.call import Call
from polyhead.v1 import bundle_pb2, inference_pb2

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_LOGPROBS = 20
FINISH_REASONS = {
    FinishReason.EOS: inference_pb2.FINISH_REASON_EOS,
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}


def generation_request(
    request: inference_pb2.GenerateRequest, prompt: tuple[int, ...], model: LiveModel, default_max_tokens: int
) -> GenerationRequest:
    """Decide every value that the message leaves open. Raises InvalidInput."""
    room = model.max_tokens - len(prompt)
    return GenerationRequest(
        prompt,
        sampling(request.sampling, model.manifest.sampling_defaults, model.manifest.limits.vocabulary_size),
        stopping(request.stopping, room, len(prompt), default_max_tokens),
        logprobs(request, model.manifest.limits.vocabulary_size),
    )


def sampling(
    given: inference_pb2.SamplingParameters, defaults: bundle_pb2.SamplingDefaults, vocabulary_size: int
) -> Sampling:
    """What is unset comes from the bundle, else from `Sampling`. A seed is drawn if there is none."""
    values = {field.name: value for message in (defaults, given) for field, value in message.ListFields()}
    seed = values.pop("seed") if "seed" in values else secrets.randbits(64)
    for name, value in values.items():
        SAMPLING[name].check(f"sampling.{name}", value)
    if "top_k" in values:
        values["top_k"] = min(values["top_k"], vocabulary_size)
    return Sampling(seed=seed, **values)


def stopping(given: inference_pb2.StoppingCriteria, room: int, prompt_tokens: int, default_max_tokens: int) -> Stopping:
    """`room`: what the slot can still hold after the prompt, in tokens; at least 1."""
    max_tokens = given.max_tokens if given.HasField("max_tokens") else min(default_max_tokens, room)
    if not 1 <= max_tokens <= room:
        limit = f"1 to {room} (a slot's {room + prompt_tokens} tokens minus the prompt's {prompt_tokens})"
        raise InvalidInput("stopping.max_tokens", f"must be {limit}, got {max_tokens}")
    if given.min_tokens > max_tokens:
        raise InvalidInput("stopping.min_tokens", f"must be 0 to max_tokens {max_tokens}, got {given.min_tokens}")
    check_stop_strings(given)
    return Stopping(max_tokens, given.min_tokens, tuple(given.stop), given.ignore_eos)


def check_stop_strings(given: inference_pb2.StoppingCriteria) -> None:
    if len(given.stop) > MAX_STOP_STRINGS:
        raise InvalidInput("stopping.stop", f"must be at most {MAX_STOP_STRINGS} strings, got {len(given.stop)}")
    for index, text in enumerate(given.stop):
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            limit = f"1 to {MAX_STOP_CHARACTERS} characters"
            raise InvalidInput(f"stopping.stop[{index}]", f"must have {limit}, got {len(text)}")


def logprobs(request: inference_pb2.GenerateRequest, vocabulary_size: int) -> int | None:
    if not request.HasField("logprobs"):
        return None
    limit = min(MAX_LOGPROBS, vocabulary_size)
    if request.logprobs > limit:
        raise InvalidInput("logprobs", f"must be 0 to {limit}, got {request.logprobs}")
    return request.logprobs


async def generate(
    call: Call,
    model: LiveModel,
    header: inference_pb2.ResponseHeader,
    request: GenerationRequest,
    tokenize_seconds: float,
) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
    """Submit, and give a message for each piece; the answer ends with this iterator, whoever ends it."""
    submitted = call.timer.seconds()
    answer = model.generator.submit(request)
    call.accepted(model.name, model.version, len(request.prompt))
    first: dict[str, Message | int] = {"header": header, "seed": request.sampling.seed}
    try:
        async for piece in answer:
            call.generated_tokens += len(piece.token_ids)
            response = message(piece, **first)
            first = {}
            if piece.times:
                call.worked(model.name, model.version, piece.times.queue, piece.times.inference)
                response.usage.prompt_tokens = len(request.prompt)
                response.usage.generated_tokens = call.generated_tokens
                response.timing.CopyFrom(timing(piece.times, submitted, tokenize_seconds, call.timer.seconds()))
            yield response
    finally:
        answer.cancel()


def message(piece: Piece, **first: object) -> inference_pb2.GenerateResponse:
    response = inference_pb2.GenerateResponse(text=piece.text, token_ids=piece.token_ids, **first)  # type: ignore[arg-type]
    if piece.logprobs:
        response.logprobs.extend(map(logprob_message, piece.logprobs))
    if piece.finish_reason:
        response.finish_reason = FINISH_REASONS[piece.finish_reason]
    return response


def logprob_message(item: TokenLogprob) -> inference_pb2.TokenLogprob:
    return inference_pb2.TokenLogprob(
        token_id=item.token_id, token=item.token, logprob=item.logprob, top=map(logprob_message, item.top)
    )


def timing(times: GenerationTimes, submitted: float, tokenize_seconds: float, total: float) -> inference_pb2.Timing:
    """Engine times count from submission; the caller's from the arrival of the call, `submitted` seconds earlier."""
    return inference_pb2.Timing(
        queue_seconds=times.queue,
        tokenize_seconds=tokenize_seconds,
        inference_seconds=times.inference,
        time_to_first_token_seconds=submitted + times.first_token,
        total_seconds=total,
    )
