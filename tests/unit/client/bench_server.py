"""A real gRPC server on a real port for load: it answers with as many tokens as asked for, in a message each, and fails or
waits as a test scripts it.
"""

# ruff: noqa: N802 -- methods have the names of the contract

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc

from polyhead.v1 import bundle_pb2, inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc

VOCABULARY, MAX_TOKENS = 50, 64
TASKS = {"gpt": bundle_pb2.TASK_GENERATE, "names": bundle_pb2.TASK_CLASSIFY, "pairs": bundle_pb2.TASK_EMBED}
TIMING = inference_pb2.Timing(
    queue_seconds=0.25,
    tokenize_seconds=0.125,
    inference_seconds=0.5,
    time_to_first_token_seconds=0.375,
    total_seconds=0.75,
)


@dataclass
class Script:
    """What has come in, and what is still to go wrong."""

    requests: list[Any] = field(default_factory=list)
    failures: dict[str, grpc.StatusCode] = field(default_factory=dict)
    """By request id; the call fails after its first message."""
    models: list[str] = field(default_factory=lambda: list(TASKS))
    together: threading.Barrier | None = None
    """No answer begins before so many requests are there."""
    cut_short: bool = False
    """Streams end without a finish reason."""

    def begin(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        if self.together:
            self.together.wait(10)
        if self.failures.get(request.request_id) is grpc.StatusCode.RESOURCE_EXHAUSTED:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")

    def ids(self) -> list[str]:
        return [request.request_id for request in self.requests]


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    def Generate(
        self, request: inference_pb2.GenerateRequest, context: Any
    ) -> Iterator[inference_pb2.GenerateResponse]:
        self.script.begin(request, context)
        wanted = request.stopping.max_tokens
        for index in range(wanted):
            yield inference_pb2.GenerateResponse(text="a", token_ids=[index])
            if failure := self.script.failures.get(request.request_id):
                context.abort(failure, "scripted")
        if not self.script.cut_short:
            usage = inference_pb2.Usage(prompt_tokens=len(request.prompt.token_ids.ids), generated_tokens=wanted)
            yield inference_pb2.GenerateResponse(
                finish_reason=inference_pb2.FINISH_REASON_LENGTH, usage=usage, timing=TIMING
            )

    def Classify(self, request: inference_pb2.ClassifyRequest, context: Any) -> inference_pb2.ClassifyResponse:
        self.script.begin(request, context)
        results = [inference_pb2.Classification() for _ in request.inputs]
        return inference_pb2.ClassifyResponse(results=results, usage=usage_of(request), timing=TIMING)

    def Embed(self, request: inference_pb2.EmbedRequest, context: Any) -> inference_pb2.EmbedResponse:
        self.script.begin(request, context)
        embeddings = [inference_pb2.Embedding() for _ in request.inputs]
        return inference_pb2.EmbedResponse(embeddings=embeddings, usage=usage_of(request), timing=TIMING)

    def Tokenize(self, request: inference_pb2.TokenizeRequest, context: Any) -> NoReturn:
        raise AssertionError("a benchmark does not call it")

    def StreamClassify(self, request_iterator: Any, context: Any) -> NoReturn:
        raise AssertionError("a benchmark does not call it")

    def StreamEmbed(self, request_iterator: Any, context: Any) -> NoReturn:
        raise AssertionError("a benchmark does not call it")


def usage_of(request: inference_pb2.ClassifyRequest | inference_pb2.EmbedRequest) -> inference_pb2.Usage:
    """A word is a token."""
    tokens = sum(len(given.token_ids.ids) + len(given.text.split()) for given in request.inputs)
    return inference_pb2.Usage(prompt_tokens=tokens)


class Models(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=[model(name) for name in self.script.models])

    def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        limits = bundle_pb2.Limits(vocabulary_size=VOCABULARY, max_tokens=MAX_TOKENS)
        found = model(request.name)
        found.bundle.limits.CopyFrom(limits)
        return model_pb2.GetModelResponse(model=found)

    def LoadModel(self, request: Any, context: Any) -> NoReturn:
        raise AssertionError("not called by a benchmark")

    ReloadModel = UnloadModel = LoadModel


def model(name: str) -> model_pb2.Model:
    task = next(task for begin, task in TASKS.items() if name.startswith(begin))
    ready = model_pb2.MODEL_STATE_READY
    return model_pb2.Model(name=name, version="1", state=ready, task=task, max_tokens=MAX_TOKENS)


class BenchServer:
    """Listens at `target` until `stop`."""

    def __init__(self) -> None:
        self.script = Script()
        self._server = grpc.server(ThreadPoolExecutor(16))
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(Inference(self.script), self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(Models(self.script), self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=0).wait()
