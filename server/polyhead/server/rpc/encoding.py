"""Classify and Embed: inputs → numbers for each of them → messages."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polyhead.server.engine.encoder import EncoderResult
from polyhead.server.errors import InvalidInput
from polyhead.server.loader import LiveModel
from polyhead.server.rpc import parameters
from polyhead.server.rpc.call import Timer, current
from polyhead.server.rpc.inputs import encoder_inputs, token
from polyhead.server.rpc.workers import Workers
from polyhead.server.tokenizer import EncoderInput
from polyhead.v1 import inference_pb2

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an encoder made of a request, and what the answer tells beside it."""

    inputs: Sequence[EncoderInput]
    result: EncoderResult
    prompt_tokens: int
    tokenize_seconds: float
    timer: Timer
    """Runs since the request arrived."""

    def usage(self) -> inference_pb2.Usage:
        return inference_pb2.Usage(prompt_tokens=self.prompt_tokens)

    def timing(self) -> inference_pb2.Timing:
        """Up to now; ask when the answer is complete."""
        return inference_pb2.Timing(
            queue_seconds=self.result.queue_seconds,
            tokenize_seconds=self.tokenize_seconds,
            inference_seconds=self.result.inference_seconds,
            total_seconds=self.timer.seconds(),
        )


async def encode(
    request: inference_pb2.ClassifyRequest | inference_pb2.EmbedRequest,
    model: LiveModel,
    max_inputs: int,
    workers: Workers,
) -> Encoded:
    """Tokenize and run all inputs of a request. Raises InvalidInput, Overloaded, Unavailable."""
    timer = Timer()
    model.encoder.check_room()
    adapter = parameters.adapter(request.adapter, model)
    inputs = await encoder_inputs(request.inputs, model, workers, truncate=request.truncate, max_inputs=max_inputs)
    rows = [given.ids for given in inputs]
    tokenize_seconds, prompt_tokens = timer.seconds(), sum(map(len, rows))
    call, answer = current.get(), model.encoder.submit(rows, [given.token_types for given in inputs], adapter)
    call.accepted(model.name, model.version, prompt_tokens)
    try:
        result = await answer.result()
    finally:
        call.worked(model.name, model.version, *answer.seconds())
    return Encoded(inputs, result, prompt_tokens, tokenize_seconds, timer)


def label_count(request: inference_pb2.ClassifyRequest, model: LiveModel) -> int:
    """How many labels to return for each input: all unless the request wants fewer. Raises InvalidInput."""
    labels = len(model.manifest.labels)
    if not request.HasField("top_k"):
        return labels
    if request.top_k < 1:
        raise InvalidInput("top_k", f"must be at least 1, got {request.top_k}")
    return min(request.top_k, labels)


def classifications(encoded: Encoded, labels: list[str], count: int) -> list[inference_pb2.Classification]:
    """The `count` best labels of each input or, of a model that labels tokens, of each of its tokens."""
    return [
        inference_pb2.Classification(labels=best_labels(row, labels, count))
        if row.ndim == 1
        else inference_pb2.Classification(tokens=labelled_tokens(given, row, labels, count))
        for given, row in zip(encoded.inputs, encoded.result.rows, strict=True)
    ]


def embeddings(rows: Sequence[Floats]) -> list[inference_pb2.Embedding]:
    """Of each input's row (embedding,)."""
    return [inference_pb2.Embedding(values=row.tolist()) for row in rows]


def labelled_tokens(
    given: EncoderInput, rows: Floats, labels: list[str], count: int
) -> list[inference_pb2.TokenLabels]:
    """Of each token but those that were added. rows: (tokens, labels)."""
    return [
        inference_pb2.TokenLabels(token=token(span), labels=best_labels(row, labels, count))
        for span, row in zip(given.spans, rows, strict=True)
        if span is not None
    ]


def best_labels(row: Floats, labels: list[str], count: int) -> list[inference_pb2.LabelScore]:
    """The `count` likeliest, best first; equal ones in the model's order. row: (labels,)."""
    best = np.argsort(-row, kind="stable")[:count]
    scores = row[best].tolist()
    return [
        inference_pb2.LabelScore(label=labels[index], score=score)
        for index, score in zip(best.tolist(), scores, strict=True)
    ]
