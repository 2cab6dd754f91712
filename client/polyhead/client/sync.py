"""The synchronous client. Threads may share one."""

from __future__ import annotations  # grpc's classes take type arguments only in their stubs

import time
from collections.abc import Iterator, Sequence
from threading import Condition
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from polyhead.client import requests, responses
from polyhead.client.base import (
    CHANNEL_OPTIONS,
    DEFAULT_TIMEOUT,
    HEALTH_CHECK,
    SERVING,
    BaseClient,
    HealthCheckRequest,
    HealthCheckResponse,
)
from polyhead.client.errors import from_rpc_error
from polyhead.client.requests import GenerateOptions, Message, Pair, Text, Texts
from polyhead.client.results import ClassifyResult, EmbedResult, Generation, Model, Piece, TokenizeResult
from polyhead.client.retry import Attempts, RetryPolicy
from polyhead.client.stream import AnswerStream
from polyhead.v1 import inference_pb2, model_pb2
from polyhead.v1.inference_pb2_grpc import InferenceServiceStub
from polyhead.v1.model_pb2_grpc import ModelServiceStub

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class GenerationStream(AnswerStream, Iterator[Piece]):
    """The pieces of one answer, or of several samples in turn, as they come; `with` or `close()` ends it early, and so does
    dropping it.

    The request is sent at once, and again as the client's retry policy says until its first message has come, after that
    never. Iterating raises a PolyheadError if the call fails.
    """

    def __init__(
        self,
        method: grpc.UnaryStreamMultiCallable[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse],
        request: inference_pb2.GenerateRequest,
        attempts: Attempts,
    ) -> None:
        super().__init__(request, attempts)
        self._method = method
        self._closing = Condition()
        self._call = method(request, timeout=attempts.remaining())

    def __next__(self) -> Piece:
        while not self._closed:
            try:
                return self._add(next(self._call))
            except StopIteration:
                self._ended = True
                raise
            except grpc.RpcError as error:
                if self._closed:  # by another thread, while this one waited
                    break
                self._call_again_in(self._delay_after(error))
        raise StopIteration

    def _call_again_in(self, seconds: float) -> None:
        """Waits and sends the request again, unless the stream is closed by then."""
        with self._closing:
            if not self._closing.wait_for(lambda: self._closed, timeout=seconds):
                self._call = self._method(self._request, timeout=self._attempts.remaining())

    def result(self) -> Generation:
        """The whole answer of a request for one sample, of a beam search the best; ValueError if the request asks for
        several."""
        self._only_one()
        return (self.results())[0]

    def results(self) -> tuple[Generation, ...]:
        """Reads what is still to come and returns each sample's whole answer, by sample index, of a beam search best first;
        raises Cancelled if the stream was closed before its end.
        """
        for _ in self:
            pass
        return self._generations()

    @property
    def text(self) -> str:
        """The whole text; waits for what is still to come."""
        return self.result().text

    def close(self) -> None:
        """Ends the iteration, and the call if it still runs; the server then frees what it held for it."""
        with self._closing:
            self._closed = True
            self._closing.notify_all()
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Client(BaseClient):
    """Calls a Polyhead server at `target` (host:port; default POLYHEAD_TARGET, else localhost:50051).

    `timeout` is how many seconds a call may take with its retries if the call does not say otherwise; None: for ever.
    Every method raises a PolyheadError (see `polyhead.client.errors`) if the call fails, and TypeError for an argument of
    the wrong type. `model` and `version` may be left out: the only model of that task, its newest version. Who gives no
    `request_id` gets one made.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(target, timeout=timeout, retry=retry)
        self._channel = grpc.insecure_channel(self.target, options=CHANNEL_OPTIONS)
        self._inference = InferenceServiceStub(self._channel)
        self._models = ModelServiceStub(self._channel)
        self._check_health = self._channel.unary_unary(
            HEALTH_CHECK,
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )

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
    ) -> GenerationStream:
        """Continues a prompt, a text or token ids; iterate over the pieces, or take `.result()` or `.text` as a whole
        (`.results()` of several samples). In place of the prompt a conversation may be given, `messages=[{"role": "user",
        "content": "…"}]`, of which the model's chat template makes one.

        `GenerateOptions` says what the options are.
        """
        request = requests.generate_request(prompt, model, version, request_id, options, messages)
        return GenerationStream(self._inference.Generate, request, self._attempts(timeout))

    def classify(
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
        return responses.classify_result(self._unary(self._inference.Classify, request, timeout, request.request_id))

    def embed(
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
        return responses.embed_result(self._unary(self._inference.Embed, request, timeout, request.request_id))

    def tokenize(
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
        return responses.tokenize_result(self._unary(self._inference.Tokenize, request, timeout, request.request_id))

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """All models and versions, also those that failed to load; by name, then version."""
        response = self._unary(self._models.ListModels, model_pb2.ListModelsRequest(), timeout)
        return [responses.model(model) for model in response.models]

    def model(self, name: str, *, version: str | None = None, timeout: float | None = None) -> Model:
        """One model with its whole manifest in `.bundle`; without a version the newest that serves."""
        request = requests.model_request(model_pb2.GetModelRequest, name, version)
        return responses.model(self._unary(self._models.GetModel, request, timeout).model)

    def load_model(self, name: str, *, version: str | None = None, timeout: float | None = None) -> Model:
        """Has a version in memory (default: the newest in the server's folder) and returns when it serves; one that is named
        stays, whatever there is newer. Like the next two only with the server's `--allow-model-control`."""
        request = requests.model_request(model_pb2.LoadModelRequest, name, version)
        response = self._unary(self._models.LoadModel, request, timeout)
        return responses.model(response.model)

    def unload_model(self, name: str, *, version: str | None = None, timeout: float | None = None) -> None:
        """Takes a version, or all and those to come, out of memory; returns when what ran on it has ended and it is gone."""
        request = requests.model_request(model_pb2.UnloadModelRequest, name, version)
        self._unary(self._models.UnloadModel, request, timeout)

    def reload_model(self, name: str, *, version: str | None = None, timeout: float | None = None) -> Model:
        """Loads a version afresh (default: the newest in the server's folder) beside the one that serves, which it replaces."""
        request = requests.model_request(model_pb2.ReloadModelRequest, name, version)
        response = self._unary(self._models.ReloadModel, request, timeout)
        return responses.model(response.model)

    def health(self, service: str = "", *, timeout: float | None = None) -> bool:
        """Whether the server, or one of its models or gRPC services by name, takes requests now."""
        request = HealthCheckRequest(value=service)
        return self._unary(self._check_health, request, timeout).value == SERVING

    def close(self) -> None:
        """Ends what still runs and closes the connection; idempotent."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout: float | None,
        request_id: str = "",
    ) -> _Response:
        attempts = self._attempts(timeout)
        while True:
            try:
                return method(request, timeout=attempts.remaining())
            except grpc.RpcError as error:
                time.sleep(attempts.delay_after(from_rpc_error(error, request_id)))
