"""One request over raw asyncio stubs: `AsyncClient`'s pieces would cost 15 % more a message, threads 30 %."""

# ruff: noqa: ASYNC109 -- a timeout is a parameter because it becomes the deadline that the server sees

from __future__ import annotations  # grpc's classes take type arguments only in their stubs

import time
from typing import TYPE_CHECKING

import grpc

from polyhead.client.bench.outcome import Outcome
from polyhead.client.errors import ServerError, from_rpc_error
from polyhead.v1 import inference_pb2

if TYPE_CHECKING:  # names that only the type stubs of the generated code have
    from polyhead.v1.inference_pb2_grpc import InferenceServiceAsyncStub


async def generate(stub: InferenceServiceAsyncStub, request: inference_pb2.GenerateRequest, timeout: float) -> Outcome:
    """Reads the whole stream. An end without a finish reason is a failure: DATA_LOSS."""
    clock = time.perf_counter
    outcome = Outcome(clock())
    arrivals, tokens = outcome.arrivals, outcome.tokens
    try:
        async for message in stub.Generate(request, timeout=timeout):  # runs once a token: as little as possible here
            if message.token_ids:
                arrivals.append(clock())
                tokens.append(len(message.token_ids))
            if message.finish_reason:
                outcome.usage, outcome.timing = message.usage, message.timing
    except grpc.RpcError as error:
        outcome.error = from_rpc_error(error, request.request_id)
    outcome.ended = clock()
    if outcome.usage is None and outcome.error is None:
        message_text = "the server ended the stream without a finish reason"
        outcome.error = ServerError(message_text, code=grpc.StatusCode.DATA_LOSS, request_id=request.request_id)
    return outcome


async def encode(
    stub: InferenceServiceAsyncStub,
    request: inference_pb2.ClassifyRequest | inference_pb2.EmbedRequest,
    timeout: float,
) -> Outcome:
    """Classifies or embeds, as the request says."""
    outcome = Outcome(time.perf_counter(), inputs=len(request.inputs))
    response: inference_pb2.ClassifyResponse | inference_pb2.EmbedResponse
    try:
        if isinstance(request, inference_pb2.ClassifyRequest):
            response = await stub.Classify(request, timeout=timeout)
        else:
            response = await stub.Embed(request, timeout=timeout)
        outcome.usage, outcome.timing = response.usage, response.timing
    except grpc.RpcError as error:
        outcome.error = from_rpc_error(error, request.request_id)
    outcome.ended = time.perf_counter()
    return outcome
