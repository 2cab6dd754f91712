"""Response messages → results."""

from collections.abc import Iterable
from typing import TypedDict

from polyhead.client.results import (
    Alignment,
    Classification,
    ClassifyResult,
    EmbedResult,
    LabelScore,
    Model,
    Piece,
    Timing,
    Token,
    TokenizeResult,
    TokenLabels,
    TokenLogprob,
    Usage,
)
from polyhead.v1 import bundle_pb2, inference_pb2, model_pb2

_FINISH_REASONS = {
    inference_pb2.FINISH_REASON_EOS: "eos",
    inference_pb2.FINISH_REASON_STOP: "stop",
    inference_pb2.FINISH_REASON_LENGTH: "length",
}
_TASKS = {
    bundle_pb2.TASK_GENERATE: "generate",
    bundle_pb2.TASK_CLASSIFY: "classify",
    bundle_pb2.TASK_EMBED: "embed",
}
_STATES = {
    model_pb2.MODEL_STATE_LOADING: "loading",
    model_pb2.MODEL_STATE_READY: "ready",
    model_pb2.MODEL_STATE_FAILED: "failed",
    model_pb2.MODEL_STATE_UNLOADED: "unloaded",
    model_pb2.MODEL_STATE_UNLOADING: "unloading",
}


def piece(message: inference_pb2.GenerateResponse) -> Piece:
    # Runs once a token: most messages have but a text and a token id, so the rest is only looked at where it is.
    text, token_ids = message.text, tuple(message.token_ids)
    logprobs = tuple(map(_token_logprob, message.logprobs)) if message.logprobs else ()
    of_prompt = tuple(map(_token_logprob, message.prompt_logprobs)) if message.prompt_logprobs else ()
    if not message.finish_reason:
        return Piece(text, token_ids, logprobs, message.sample_index, prompt_logprobs=of_prompt)
    return Piece(
        text,
        token_ids,
        logprobs,
        message.sample_index,
        _FINISH_REASONS.get(message.finish_reason, str(message.finish_reason)),
        _usage(message.usage),
        _timing(message.timing),
        of_prompt,
        message.score if message.HasField("score") else None,
        _alignment(message.alignment) if message.HasField("alignment") else None,
    )


def classify_result(message: inference_pb2.ClassifyResponse) -> ClassifyResult:
    return ClassifyResult(
        **_envelope(message),
        results=tuple(
            Classification(
                _labels(result.labels), tuple(TokenLabels(_token(t.token), _labels(t.labels)) for t in result.tokens)
            )
            for result in message.results
        ),
    )


def embed_result(message: inference_pb2.EmbedResponse) -> EmbedResult:
    return EmbedResult(
        **_envelope(message),
        embeddings=[list(embedding.values) for embedding in message.embeddings],
    )


def tokenize_result(message: inference_pb2.TokenizeResponse) -> TokenizeResult:
    return TokenizeResult(
        **_envelope(message),
        results=tuple(tuple(map(_token, result.tokens)) for result in message.results),
    )


def model(message: model_pb2.Model) -> Model:
    return Model(
        name=message.name,
        version=message.version,
        state=_STATES.get(message.state, "unknown"),
        reason=message.reason,
        task=_TASKS.get(message.task),
        architecture=message.architecture,
        max_tokens=message.max_tokens,
        load_seconds=message.load_seconds,
        bundle=message.bundle if message.HasField("bundle") else None,
        aliases={alias.name: alias.share for alias in message.aliases},
        on_demand=message.on_demand,
        memory_bytes=message.memory_bytes,
        max_answer_tokens=message.max_answer_tokens,
    )


class _Envelope(TypedDict):
    request_id: str
    model: str
    version: str
    usage: Usage
    timing: Timing


def _envelope(
    message: inference_pb2.ClassifyResponse | inference_pb2.EmbedResponse | inference_pb2.TokenizeResponse,
) -> _Envelope:
    header = message.header
    return _Envelope(
        request_id=header.request_id,
        model=header.model,
        version=header.version,
        usage=_usage(message.usage),
        timing=_timing(message.timing),
    )


def _alignment(message: inference_pb2.Alignment) -> Alignment:
    source, target, weights = tuple(message.source_tokens), tuple(message.target_tokens), tuple(message.weights)
    rows = (weights[row * len(source) : (row + 1) * len(source)] for row in range(len(target)))
    return Alignment(source, target, tuple(rows))


def _labels(messages: Iterable[inference_pb2.LabelScore]) -> tuple[LabelScore, ...]:
    return tuple(LabelScore(message.label, message.score) for message in messages)


def _token(message: inference_pb2.Token) -> Token:
    return Token(message.id, message.token, message.start, message.end)


def _usage(message: inference_pb2.Usage) -> Usage:
    return Usage(
        message.prompt_tokens,
        message.generated_tokens,
        message.cached_prompt_tokens,
        message.drafted_tokens,
        message.accepted_tokens,
    )


def _timing(message: inference_pb2.Timing) -> Timing:
    first_token = message.time_to_first_token_seconds if message.HasField("time_to_first_token_seconds") else None
    return Timing(
        message.queue_seconds, message.tokenize_seconds, message.inference_seconds, message.total_seconds, first_token
    )


def _token_logprob(message: inference_pb2.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.token_id, message.token, message.logprob, tuple(map(_token_logprob, message.top)))
