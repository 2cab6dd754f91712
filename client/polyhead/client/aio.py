"""The asyncio client: the synchronous one with `await`."""

# ruff: noqa: ASYNC109 -- a timeout is a parameter because it becomes the deadline that the server sees and bounds the retries

from __future__ import annotations  # grpc's classes take type arguments only in their stubs

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import grpc
import grpc.aio

from polyhead.client import requests, responses
from polyhead.client.base import (
    CHANNEL_OPTIONS,
    HEALTH_CHECK,
    SERVING,
    BaseClient,
    HealthCheckRequest,
    HealthCheckResponse,
)
from polyhead.client.errors import cancelled, from_rpc_error
from polyhead.client.requests import GenerateOptions, Message, Pair, Text, Texts
from polyhead.client.results import ClassifyResult, EmbedResult, Generation, Model, Piece, TokenizeResult
from polyhead.client.retry import Attempts
from polyhead.client.stream import AnswerStream
from polyhead.v1 import inference_pb2, model_pb2
from polyhead.v1.inference_pb2_grpc import InferenceServiceStub
from polyhead.v1.model_pb2_grpc import ModelServiceStub

if TYPE_CHECKING:  # names that only the type stubs of the generated code have
    from polyhead.v1.inference_pb2_grpc import InferenceServiceAsyncStub
    from polyhead.v1.model_pb2_grpc import ModelServiceAsyncStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class AsyncGenerationStream(AnswerStream, AsyncIterator[Piece]):
    """The pieces of one answer, or of several samples in turn, as they come; `async with` or `close()` ends it early, and so does
    dropping it.

    The request is sent at once, and again as the client's retry policy says until its first message has come, after that
    never. Iterating raises a PolyheadError if the call fails.
    """

    def __init__(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse],
        request: inference_pb2.GenerateRequest,
        attempts: Attempts,
    ) -> None:
        super().__init__(request, attempts)
        self._method = method
        self._closing = asyncio.Event()
        self._start()

    def _start(self) -> None:
        self._call = self._method(self._request, timeout=self._attempts.remaining())
        self._messages = aiter(self._call)

    async def __anext__(self) -> Piece:
        while not self._closed:
            try:
                return self._add(await anext(self._messages))
            except StopAsyncIteration:
                self._ended = True
                raise
            except grpc.RpcError as error:
                await self._call_again_in(self._delay_after(error))
            except asyncio.CancelledError:
                if _task_is_cancelled():
                    raise
                if not self._closed:
                    self._failure = cancelled(self._request_id)
                    raise self._failure from None
        raise StopAsyncIteration

    async def _call_again_in(self, seconds: float) -> None:
        """Waits and sends the request again, unless the stream is closed by then."""
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            self._start()

    async def result(self) -> Generation:
        """The whole answer of a request for one sample, of a beam search the best; ValueError if the request asks for
        several."""
        self._only_one()
        return (await self.results())[0]

    async def results(self) -> tuple[Generation, ...]:
        """Reads what is still to come and returns each sample's whole answer, by sample index, of a beam search best first;
        raises Cancelled if the stream was closed before its end.
        """
        async for _ in self:
            pass
        return self._generations()

    async def close(self) -> None:
        """Ends the iteration, and the call if it still runs; the server then frees what it held for it."""
        self._closed = True
        self._closing.set()
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        # gRPC's call and its message iterator refer to each other, so without this a dropped call would run on until the
        # next collection of cycles. The loop may be closed by now, or the call never made.
        with contextlib.suppress(RuntimeError, AttributeError):
            self._call.cancel()


class AsyncClient(BaseClient):
    """`Client` for asyncio: the same arguments, methods and errors, with `await`. `generate` itself is not awaited:
    `async for piece in client.generate(...)`, or `await client.generate(...).result()`.
    """

    def generate(
        self,
        prompt: Text | None = None,
        model: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        version: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerationStream:
        """Continues a prompt, a text or token ids; `async for` over the pieces, or await `.result()` for the whole
        (`.results()` of several samples). In place of the prompt a conversation may be given, `messages=[{"role": "user",
        "content": "…"}]`, of which the model's chat template makes one.

        `GenerateOptions` says what the options are.
        """
        request = requests.generate_request(prompt, model, version, request_id, options, messages)
        return AsyncGenerationStream(self._inference.Generate, request, self._attempts(timeout))

    async def classify(
        self,
        texts: str | Sequence[Text | Pair],
        model: str | None = None,
        *,
        top_k: int | None = None,
        truncate: bool = False,
        adapter: str | None = None,
        version: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> ClassifyResult:
        """Scores each text against the model's labels and returns the `top_k` best, or all, of each; of each token, if that
        is what the model labels. Pairs of texts, `[("query", "passage"), …]`, are for models that compare two. `adapter`: one of the
        model's."""
        request = requests.classify_request(texts, model, version, request_id, top_k, truncate, adapter)
        return responses.classify_result(
            await self._unary(self._inference.Classify, request, timeout, request.request_id)
        )

    async def embed(
        self,
        texts: Texts,
        model: str | None = None,
        *,
        truncate: bool = False,
        adapter: str | None = None,
        version: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> EmbedResult:
        """Turns each text into one vector; `adapter`: with one of the model's."""
        request = requests.embed_request(texts, model, version, request_id, truncate, adapter)
        return responses.embed_result(await self._unary(self._inference.Embed, request, timeout, request.request_id))

    async def tokenize(
        self,
        texts: str | Sequence[str],
        model: str | None = None,
        *,
        add_special_tokens: bool = True,
        version: str | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> TokenizeResult:
        """Shows how a model splits each text into tokens."""
        request = requests.tokenize_request(texts, model, version, request_id, add_special_tokens)
        return responses.tokenize_result(
            await self._unary(self._inference.Tokenize, request, timeout, request.request_id)
        )

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """All models and versions, also those that failed to load; by name, then version."""
        response = await self._unary(self._models.ListModels, model_pb2.ListModelsRequest(), timeout)
        return [responses.model(model) for model in response.models]

    async def model(self, name: str, *, version: str | None = None, timeout: float | None = None) -> Model:
        """One model with its whole manifest in `.bundle`; without a version the newest that serves."""
        request = requests.model_request(model_pb2.GetModelRequest, name, version)
        response = await self._unary(self._models.GetModel, request, timeout)
        return responses.model(response.model)

    async def load_model(self, name: str, *, version: str | None = None, timeout: float | None = None) -> Model:
        """Has a version in memory (default: the newest in the server's folder) and returns when it serves; one that is named
        stays, whatever there is newer. Like the next two only with the server's `--allow-model-control`."""
        request = requests.model_request(model_pb2.LoadModelRequest, name, version)
        response = await self._unary(self._models.LoadModel, request, timeout)
        return responses.model(response.model)

    async def unload_model(self, name: str, *, version: str | None = None, timeout: float | None = None) -> None:
        """Takes a version, or all and those to come, out of memory; returns when what ran on it has ended and it is gone."""
        request = requests.model_request(model_pb2.UnloadModelRequest, name, version)
        await self._unary(self._models.UnloadModel, request, timeout)

    async def reload_model(self, name: str, *, version: str | None = None, timeout: float | None = None) -> Model:
        """Loads a version afresh (default: the newest in the server's folder) beside the one that serves, which it replaces."""
        request = requests.model_request(model_pb2.ReloadModelRequest, name, version)
        response = await self._unary(self._models.ReloadModel, request, timeout)
        return responses.model(response.model)

    async def health(self, service: str = "", *, timeout: float | None = None) -> bool:
        """Whether the server, or one of its models or gRPC services by name, takes requests now."""
        request = HealthCheckRequest(value=service)
        response = await self._unary(self._check_health, request, timeout)
        return response.value == SERVING

    async def close(self) -> None:
        """Ends what still runs and closes the connection; idempotent."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # A channel of grpc.aio belongs to the loop that runs when it is made, so the first call makes it.
    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.target, options=CHANNEL_OPTIONS)

    @cached_property
    def _inference(self) -> InferenceServiceAsyncStub:
        return InferenceServiceStub(self._channel)

    @cached_property
    def _models(self) -> ModelServiceAsyncStub:
        return ModelServiceStub(self._channel)

    @cached_property
    def _check_health(self) -> grpc.aio.UnaryUnaryMultiCallable[HealthCheckRequest, HealthCheckResponse]:
        return self._channel.unary_unary(
            HEALTH_CHECK,
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )

    async def _unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout: float | None,
        request_id: str = "",
    ) -> _Response:
        attempts = self._attempts(timeout)
        while True:
            try:
                return await method(request, timeout=attempts.remaining())
            except grpc.RpcError as error:
                await asyncio.sleep(attempts.delay_after(from_rpc_error(error, request_id)))
            except asyncio.CancelledError:
                if _task_is_cancelled():
                    raise
                raise cancelled(request_id) from None


def _task_is_cancelled() -> bool:
    """Whether it is this task that somebody cancelled; gRPC raises the same CancelledError for a call closed on this side."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
