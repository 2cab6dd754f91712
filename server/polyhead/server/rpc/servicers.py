"""`polyhead.v1.InferenceService`: convert, call, convert."""
# ruff: noqa: N802 - gRPC wants methods named as in the .proto

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol

from polyhead.server.config import Settings
from polyhead.server.loader import LiveModel
from polyhead.server.repository import Repository
from polyhead.server.rpc import bulk
from polyhead.server.rpc.call import Timer, current
from polyhead.server.rpc.encoding import classifications, embeddings, encode, label_count
from polyhead.server.rpc.generation import generate, generation_request
from polyhead.server.rpc.inputs import check_count, prompt_tokens, tokenize
from polyhead.server.rpc.workers import Workers
from polyhead.v1 import bundle_pb2, inference_pb2
from polyhead.v1.inference_pb2_grpc import InferenceServiceServicer


class AnyRequest(Protocol):
    """What all requests to a model have."""

    @property
    def model(self) -> inference_pb2.ModelReference: ...
    @property
    def request_id(self) -> str: ...


class InferenceServicer(InferenceServiceServicer):
    """`polyhead.v1.InferenceService` over the models of a repository."""

    def __init__(self, repository: Repository, settings: Settings, workers: Workers) -> None:
        self._repository = repository
        self._settings = settings
        self._workers = workers

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Any
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        async with self._use(request, bundle_pb2.TASK_GENERATE) as (model, header):
            timer = Timer()
            model.generator.check_room()
            prompt = await prompt_tokens(request, model, self._workers)
            tokenize_seconds = timer.seconds()
            work = await generation_request(request, prompt, model, self._settings.default_max_tokens, self._workers)
            messages = generate(current.get(), model, header, work, tokenize_seconds, self._workers)
            async with aclosing(messages) as responses:
                async for response in responses:
                    yield response

    async def Classify(self, request: inference_pb2.ClassifyRequest, context: Any) -> inference_pb2.ClassifyResponse:
        return await self._classify(request)

    async def Embed(self, request: inference_pb2.EmbedRequest, context: Any) -> inference_pb2.EmbedResponse:
        return await self._embed(request)

    async def StreamClassify(
        self, request_iterator: AsyncIterator[inference_pb2.StreamClassifyRequest], context: Any
    ) -> AsyncGenerator[inference_pb2.StreamClassifyResponse, None]:
        requests = (message.request async for message in request_iterator)
        async with aclosing(bulk.in_order(requests, self._classify, current.get().draining)) as responses:
            async for response in responses:
                yield inference_pb2.StreamClassifyResponse(response=response)

    async def StreamEmbed(
        self, request_iterator: AsyncIterator[inference_pb2.StreamEmbedRequest], context: Any
    ) -> AsyncGenerator[inference_pb2.StreamEmbedResponse, None]:
        requests = (message.request async for message in request_iterator)
        async with aclosing(bulk.in_order(requests, self._embed, current.get().draining)) as responses:
            async for response in responses:
                yield inference_pb2.StreamEmbedResponse(response=response)

    async def Tokenize(self, request: inference_pb2.TokenizeRequest, context: Any) -> inference_pb2.TokenizeResponse:
        timer = Timer()
        async with self._use(request, None) as (model, header):
            check_count("texts", len(request.texts), self._settings.max_inputs)
            special = request.add_special_tokens if request.HasField("add_special_tokens") else True
            results = await tokenize(request.texts, model.input_tokenizer, special, self._workers)
            tokens = sum(len(result.tokens) for result in results)
            current.get().accepted(model.name, model.version, tokens)
        return inference_pb2.TokenizeResponse(
            header=header,
            results=results,
            usage=inference_pb2.Usage(prompt_tokens=tokens),
            timing=inference_pb2.Timing(tokenize_seconds=timer.seconds(), total_seconds=timer.seconds()),
        )

    async def _classify(self, request: inference_pb2.ClassifyRequest) -> inference_pb2.ClassifyResponse:
        async with self._use(request, bundle_pb2.TASK_CLASSIFY) as (model, header):
            count, labels = label_count(request, model), list(model.manifest.labels)
            encoded = await encode(request, model, self._settings.max_inputs, self._workers)
        scores = sum(row.size for row in encoded.result.rows)
        results = await self._workers.write(scores, classifications, encoded, labels, count)
        return inference_pb2.ClassifyResponse(
            header=header, results=results, usage=encoded.usage(), timing=encoded.timing()
        )

    async def _embed(self, request: inference_pb2.EmbedRequest) -> inference_pb2.EmbedResponse:
        async with self._use(request, bundle_pb2.TASK_EMBED) as (model, header):
            encoded = await encode(request, model, self._settings.max_inputs, self._workers)
        rows = encoded.result.rows
        vectors = await self._workers.write(sum(row.size for row in rows), embeddings, rows)
        return inference_pb2.EmbedResponse(
            header=header, embeddings=vectors, usage=encoded.usage(), timing=encoded.timing()
        )

    @asynccontextmanager
    async def _use(
        self, request: AnyRequest, task: "bundle_pb2.Task.ValueType | None"
    ) -> AsyncIterator[tuple[LiveModel, inference_pb2.ResponseHeader]]:
        """The model that shall answer, which stays until the end of the block, and the header of its answers. Raises
        InvalidInput, ModelNotFound, …"""
        call = current.get()
        request_id = call.identify(request.request_id)
        wanted, key = request.model, routing_key(request, request_id)
        async with self._repository.use(wanted.name, wanted.version, task, key) as model:
            call.served_by(model.name, model.version)
            header = inference_pb2.ResponseHeader(request_id=request_id, model=model.name, version=model.version)
            yield model, header


def routing_key(request: AnyRequest, request_id: str) -> bytes:
    """Requests with the same key go to the same version of an alias: the same prompt with the same seed and
    adapter, so that it is answered alike, else the same request id."""
    if isinstance(request, inference_pb2.GenerateRequest) and request.sampling.HasField("seed"):
        asked = inference_pb2.GenerateRequest(prompt=request.prompt, messages=request.messages, adapter=request.adapter)
        return request.sampling.seed.to_bytes(8) + asked.SerializeToString(deterministic=True)
    return request_id.encode()
