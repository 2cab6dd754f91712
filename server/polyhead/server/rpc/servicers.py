"""The services of polyhead.v1: convert, call, convert."""
# ruff: noqa: N802 - gRPC wants methods named as in the .proto

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

from polyhead.server.config import Settings
from polyhead.server.errors import InvalidInput
from polyhead.server.loader import LiveModel
from polyhead.server.repository import Entry, Repository, State
from polyhead.server.rpc import bulk
from polyhead.server.rpc.call import Timer, current
from polyhead.server.rpc.encoding import classifications, embeddings, encode, label_count
from polyhead.server.rpc.generation import generate, generation_request
from polyhead.server.rpc.inputs import check_count, prompt_tokens, tokenize
from polyhead.server.rpc.workers import Workers
from polyhead.v1 import bundle_pb2, inference_pb2, model_pb2
from polyhead.v1.inference_pb2_grpc import InferenceServiceServicer
from polyhead.v1.model_pb2_grpc import ModelServiceServicer

STATES = {
    State.LOADING: model_pb2.MODEL_STATE_LOADING,
    State.READY: model_pb2.MODEL_STATE_READY,
    State.FAILED: model_pb2.MODEL_STATE_FAILED,
}


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
        model, header = self._find(request, bundle_pb2.TASK_GENERATE)
        timer = Timer()
        prompt = await prompt_tokens(request.prompt, model, self._workers)
        tokenize_seconds = timer.seconds()
        work = await generation_request(request, prompt, model, self._settings.default_max_tokens, self._workers)
        async with aclosing(generate(current.get(), model, header, work, tokenize_seconds)) as responses:
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
        model, header = self._find(request, None)
        check_count("texts", len(request.texts), self._settings.max_inputs)
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        results = await tokenize(request.texts, model.tokenizer, special, self._workers)
        tokens = sum(len(result.tokens) for result in results)
        current.get().accepted(model.name, model.version, tokens)
        return inference_pb2.TokenizeResponse(
            header=header,
            results=results,
            usage=inference_pb2.Usage(prompt_tokens=tokens),
            timing=inference_pb2.Timing(tokenize_seconds=timer.seconds(), total_seconds=timer.seconds()),
        )

    async def _classify(self, request: inference_pb2.ClassifyRequest) -> inference_pb2.ClassifyResponse:
        model, header = self._find(request, bundle_pb2.TASK_CLASSIFY)
        count, labels = label_count(request, model), list(model.manifest.labels)
        encoded = await encode(request, model, self._settings.max_inputs, self._workers)
        rows = encoded.result.rows
        results = await self._workers.write(len(rows) * count, classifications, rows, labels, count)
        return inference_pb2.ClassifyResponse(
            header=header, results=results, usage=encoded.usage(), timing=encoded.timing()
        )

    async def _embed(self, request: inference_pb2.EmbedRequest) -> inference_pb2.EmbedResponse:
        model, header = self._find(request, bundle_pb2.TASK_EMBED)
        encoded = await encode(request, model, self._settings.max_inputs, self._workers)
        rows = encoded.result.rows
        vectors = await self._workers.write(rows.size, embeddings, rows)
        return inference_pb2.EmbedResponse(
            header=header, embeddings=vectors, usage=encoded.usage(), timing=encoded.timing()
        )

    def _find(
        self, request: AnyRequest, task: "bundle_pb2.Task.ValueType | None"
    ) -> tuple[LiveModel, inference_pb2.ResponseHeader]:
        """The model that shall answer, and the header of its answers. Raises InvalidInput, ModelNotFound, …"""
        call = current.get()
        request_id = call.identify(request.request_id)
        model = self._repository.find(request.model.name, request.model.version, task)
        call.served_by(model.name, model.version)
        header = inference_pb2.ResponseHeader(request_id=request_id, model=model.name, version=model.version)
        return model, header


class ModelServicer(ModelServiceServicer):
    """`polyhead.v1.ModelService`: what a repository has."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=map(model_message, self._repository.entries()))

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        if not request.name:
            raise InvalidInput("name", "must not be empty")
        entry = self._repository.entry(request.name, request.version, field="version")
        model = model_message(entry)
        if entry.manifest:
            model.bundle.CopyFrom(entry.manifest)
        return model_pb2.GetModelResponse(model=model)


def model_message(entry: Entry) -> model_pb2.Model:
    model = model_pb2.Model(
        name=entry.name,
        version=str(entry.version),
        state=STATES[entry.state],
        reason=entry.reason,
        load_seconds=entry.load_seconds,
    )
    if entry.manifest:
        model.task = entry.manifest.task
        model.architecture = entry.manifest.architecture
        model.max_tokens = entry.model.max_tokens if entry.model else entry.manifest.limits.max_tokens
    return model
