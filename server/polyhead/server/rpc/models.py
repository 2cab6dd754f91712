"""`polyhead.v1.ModelService`: what a repository has, and orders to it."""
# ruff: noqa: N802 - gRPC wants methods named as in the .proto

from typing import Any, Protocol

from polyhead.server.errors import InvalidInput, NotAllowed
from polyhead.server.repository import Entry, Repository, State
from polyhead.v1 import bundle_pb2, model_pb2
from polyhead.v1.model_pb2_grpc import ModelServiceServicer

STATES = {
    State.WAITING: model_pb2.MODEL_STATE_LOADING,
    State.LOADING: model_pb2.MODEL_STATE_LOADING,
    State.READY: model_pb2.MODEL_STATE_READY,
    State.FAILED: model_pb2.MODEL_STATE_FAILED,
    State.UNLOADED: model_pb2.MODEL_STATE_UNLOADED,
    State.UNLOADING: model_pb2.MODEL_STATE_UNLOADING,
}


class Order(Protocol):
    """What all requests that change something have."""

    @property
    def name(self) -> str: ...


class ModelServicer(ModelServiceServicer):
    """`polyhead.v1.ModelService` over a repository."""

    def __init__(self, repository: Repository, *, allow_control: bool) -> None:
        """`allow_control`: whether callers may load, unload and reload models."""
        self._repository = repository
        self._allow_control = allow_control

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=map(self._message, self._repository.everything()))

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        require_name(request)
        entry = self._repository.entry(request.name, request.version, field="version")
        model = self._message(entry)
        if entry.manifest:
            model.bundle.CopyFrom(entry.manifest)
        return model_pb2.GetModelResponse(model=model)

    async def LoadModel(self, request: model_pb2.LoadModelRequest, context: Any) -> model_pb2.LoadModelResponse:
        self._admit(request)
        entry = await self._repository.load_version(request.name, request.version)
        return model_pb2.LoadModelResponse(model=self._message(entry))

    async def UnloadModel(self, request: model_pb2.UnloadModelRequest, context: Any) -> model_pb2.UnloadModelResponse:
        self._admit(request)
        await self._repository.unload_version(request.name, request.version)
        return model_pb2.UnloadModelResponse()

    async def ReloadModel(self, request: model_pb2.ReloadModelRequest, context: Any) -> model_pb2.ReloadModelResponse:
        self._admit(request)
        entry = await self._repository.reload_version(request.name, request.version)
        return model_pb2.ReloadModelResponse(model=self._message(entry))

    def _admit(self, request: Order) -> None:
        if not self._allow_control:
            raise NotAllowed("models can't be changed by callers; the server's --allow-model-control lets them")
        require_name(request)

    def _message(self, entry: Entry) -> model_pb2.Model:
        model = model_pb2.Model(
            name=entry.name,
            version=str(entry.version),
            state=STATES[entry.state],
            reason=entry.reason,
            load_seconds=entry.load_seconds,
            on_demand=entry.on_demand,
            memory_bytes=entry.memory,
            aliases=[
                model_pb2.Alias(name=alias, share=weights[entry.version] / sum(weights.values()))
                for alias, weights in sorted(self._repository.aliases(entry.name).routes.items())
                if entry.version in weights
            ],
        )
        if entry.manifest:
            model.task = entry.manifest.task
            model.architecture = entry.manifest.architecture
            model.max_tokens, model.max_answer_tokens = longest(entry, entry.manifest)
        return model


def longest(entry: Entry, manifest: bundle_pb2.Bundle) -> tuple[int, int]:
    """Tokens of an input, and of an answer where that has a limit of its own, else 0; what is loaded may have less room than its
    manifest allows."""
    live, reads_source = entry.model, manifest.HasField("seq2seq")
    if live:
        return live.max_tokens, live.generator.capacity if reads_source else 0
    if reads_source:
        return manifest.seq2seq.max_source_tokens, manifest.limits.max_tokens
    return manifest.limits.max_tokens, 0


def require_name(request: Order) -> None:
    if not request.name:
        raise InvalidInput("name", "must not be empty")
