"""A real gRPC server on a real port that answers from its requests and fails as a test scripts it.

It echoes a prompt, or the last of some messages, word by word, in each further sample with the sample's index after it,
scores the labels `long` and `short` by a text's length, and embeds a text as the code points of its first three characters.
A beam search finds two answers at most, whole, the second scoring worse. An alignment looks at the word that is echoed.
The text `endless` never ends, `cut short` ends without a finish reason, `after N` is answered when N requests have come.
"""

# ruff: noqa: N802 -- methods have the names of the contract

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from polyhead.v1 import bundle_pb2, inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc


@dataclass(frozen=True)
class Failure:
    """What the next call ends with; in Generate after so many messages."""

    code: grpc.StatusCode
    message: str = "scripted"
    details: tuple[Message, ...] = ()
    after: int = 0
    raw_details: bytes = b""
    """Sent in place of `details`."""


def retry_info(seconds: float) -> Message:
    delay = Duration()
    delay.FromNanoseconds(int(seconds * 1e9))
    detail: Message = error_details_pb2.RetryInfo(retry_delay=delay)
    return detail


def bad_request(field_path: str, description: str) -> Message:
    violation = error_details_pb2.BadRequest.FieldViolation(field=field_path, description=description)
    detail: Message = error_details_pb2.BadRequest(field_violations=[violation])
    return detail


@dataclass
class Script:
    """What is still to go wrong, and what has come in."""

    failures: deque[Failure] = field(default_factory=deque)
    requests: list[Any] = field(default_factory=list)
    streams_ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """Released once for each endless stream whose caller has left."""
    released: bool = False
    arrival: threading.Condition = field(default_factory=threading.Condition)

    def begin(self, request: Any) -> Failure | None:
        with self.arrival:
            self.requests.append(request)
            self.arrival.notify_all()
            return self.failures.popleft() if self.failures else None

    def wait_for_requests(self, count: int) -> None:
        with self.arrival:
            came = self.arrival.wait_for(lambda: self.released or len(self.requests) >= count, timeout=10)
        assert came, f"only {len(self.requests)} of {count} requests came"

    def release(self) -> None:
        """Lets go of everybody who waits for requests that will not come."""
        with self.arrival:
            self.released = True
            self.arrival.notify_all()


def abort(context: Any, failure: Failure) -> NoReturn:
    if failure.details or failure.raw_details:
        status = status_pb2.Status(code=failure.code.value[0], message=failure.message)
        for detail in failure.details:
            status.details.add().Pack(detail)
        rich = failure.raw_details or status.SerializeToString()
        context.set_trailing_metadata((("grpc-status-details-bin", rich),))
    context.abort(failure.code, failure.message)
    raise AssertionError("abort raises")


def header(request: Any, task: str) -> inference_pb2.ResponseHeader:
    return inference_pb2.ResponseHeader(
        request_id=request.request_id, model=request.model.name or task, version=request.model.version or "1"
    )


def text_of(given: inference_pb2.Input) -> str:
    return given.text if given.WhichOneof("input") == "text" else " ".join(map(str, given.token_ids.ids))


def prompt_of(request: inference_pb2.GenerateRequest) -> str:
    return request.messages[-1].content if request.messages else text_of(request.prompt)


def logprob(word: str) -> inference_pb2.TokenLogprob:
    top = [inference_pb2.TokenLogprob(token_id=1, token=word, logprob=-0.5)]
    return inference_pb2.TokenLogprob(token_id=1, token=word, logprob=-0.5, top=top)


TIMING = inference_pb2.Timing(queue_seconds=0.1, tokenize_seconds=0.2, inference_seconds=0.3, total_seconds=0.6)


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    def Generate(
        self, request: inference_pb2.GenerateRequest, context: Any
    ) -> Iterator[inference_pb2.GenerateResponse]:
        failure = self.script.begin(request)
        prompt = prompt_of(request)
        if prompt == "endless":
            context.add_callback(self.script.streams_ended.release)
        if request.HasField("beam_search"):
            yield from self._found(request, prompt, context, failure)
            return
        yield from self._words(request, prompt, context, failure)
        if prompt == "endless":
            over = threading.Event()
            context.add_callback(over.set)
            over.wait(30)
            return
        if prompt == "cut short":
            return
        for sample in range(request.samples or 1):
            yield self._end(request, sample)

    def _found(
        self, request: inference_pb2.GenerateRequest, prompt: str, context: Any, failure: Failure | None
    ) -> Iterator[inference_pb2.GenerateResponse]:
        if prompt == "cut short":
            return
        for sample in range(min(request.samples or 1, 2)):
            if failure and failure.after == sample:
                abort(context, failure)
            message = self._end(request, sample)
            message.score = -0.25 * (sample + 1)
            message.text = prompt if sample == 0 else f"{prompt} ({sample})"
            if sample == 0:
                message.header.CopyFrom(header(request, "generate"))
            yield message

    @staticmethod
    def _end(request: inference_pb2.GenerateRequest, sample: int) -> inference_pb2.GenerateResponse:
        words = len(prompt_of(request).split())
        timing = inference_pb2.Timing(time_to_first_token_seconds=0.4)
        timing.MergeFrom(TIMING)
        guessed = (2, 1) if request.prompt_lookup else (0, 0)
        usage = inference_pb2.Usage(
            prompt_tokens=words,
            generated_tokens=words + (sample > 0),
            cached_prompt_tokens=1,
            drafted_tokens=guessed[0],
            accepted_tokens=guessed[1],
        )
        response = inference_pb2.GenerateResponse(
            sample_index=sample, finish_reason=inference_pb2.FINISH_REASON_LENGTH, usage=usage, timing=timing
        )
        if request.return_alignment:
            source = [*prompt_of(request).split(), "</s>"]
            weights = [float(column == row) for row in range(words) for column in range(words + 1)]
            alignment = inference_pb2.Alignment(source_tokens=source, target_tokens=source[:-1], weights=weights)
            response.alignment.CopyFrom(alignment)
        return response

    def _words(
        self, request: inference_pb2.GenerateRequest, prompt: str, context: Any, failure: Failure | None
    ) -> Iterator[inference_pb2.GenerateResponse]:
        for index, word in enumerate([*prompt.split(), ""]):
            if failure and failure.after == index:
                abort(context, failure)
            for sample in range(request.samples or 1):
                text = word or (f"({sample})" if sample else "")
                if text:
                    yield self._word(request, text, index, sample)

    @staticmethod
    def _word(
        request: inference_pb2.GenerateRequest, word: str, index: int, sample: int
    ) -> inference_pb2.GenerateResponse:
        text = word if index == 0 else f" {word}"
        message = inference_pb2.GenerateResponse(text=text, token_ids=[index], sample_index=sample)
        if index == sample == 0:
            message.header.CopyFrom(header(request, "generate"))
            message.seed = request.sampling.seed or 7
            if request.HasField("prompt_logprobs"):
                message.prompt_logprobs.extend(map(logprob, text_of(request.prompt).split()[1:]))
        if request.HasField("logprobs"):
            message.logprobs.append(logprob(word))
        return message

    def Classify(self, request: inference_pb2.ClassifyRequest, context: Any) -> inference_pb2.ClassifyResponse:
        self._begin(request, context)
        response = inference_pb2.ClassifyResponse(
            header=header(request, "classify"), usage=inference_pb2.Usage(prompt_tokens=4), timing=TIMING
        )
        for given in request.inputs:
            long = min(len(text_of(given)), 20) / 20
            scores = sorted({"long": long, "short": 1 - long}.items(), key=lambda item: -item[1])
            labels = [inference_pb2.LabelScore(label=label, score=score) for label, score in scores]
            response.results.add(labels=labels[: request.top_k] if request.HasField("top_k") else labels)
        return response

    def Embed(self, request: inference_pb2.EmbedRequest, context: Any) -> inference_pb2.EmbedResponse:
        self._begin(request, context)
        response = inference_pb2.EmbedResponse(
            header=header(request, "embed"), usage=inference_pb2.Usage(prompt_tokens=4), timing=TIMING
        )
        for given in request.inputs:
            response.embeddings.add(values=[float(ord(c)) for c in text_of(given)[:3]])
        return response

    def _begin(self, request: inference_pb2.ClassifyRequest | inference_pb2.EmbedRequest, context: Any) -> None:
        if failure := self.script.begin(request):
            abort(context, failure)
        for index, given in enumerate(request.inputs):
            if text_of(given).startswith("after "):
                self.script.wait_for_requests(int(text_of(given).removeprefix("after ")))
            if not text_of(given):
                path = f"inputs[{index}]"
                detail = bad_request(path, "must not be empty")
                abort(context, Failure(grpc.StatusCode.INVALID_ARGUMENT, f"{path}: must not be empty", (detail,)))

    def Tokenize(self, request: inference_pb2.TokenizeRequest, context: Any) -> inference_pb2.TokenizeResponse:
        if failure := self.script.begin(request):
            abort(context, failure)
        response = inference_pb2.TokenizeResponse(header=header(request, "tokenize"), timing=TIMING)
        for text in request.texts:
            added = [inference_pb2.Token(id=0, token="<s>")] if request.add_special_tokens else []
            chars = [inference_pb2.Token(id=ord(c), token=c, start=i, end=i + 1) for i, c in enumerate(text)]
            response.results.add(tokens=added + chars)
        return response

    def StreamClassify(self, request_iterator: Any, context: Any) -> NoReturn:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not called by the client")
        raise AssertionError("abort raises")

    def StreamEmbed(self, request_iterator: Any, context: Any) -> NoReturn:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "not called by the client")
        raise AssertionError("abort raises")


MODELS = (
    model_pb2.Model(
        name="names",
        version="1",
        state=model_pb2.MODEL_STATE_READY,
        task=bundle_pb2.TASK_CLASSIFY,
        architecture="encoder",
        max_tokens=128,
        load_seconds=0.25,
        aliases=[model_pb2.Alias(name="canary", share=0.1), model_pb2.Alias(name="stable", share=1)],
        memory_bytes=3 * 2**19,
    ),
    model_pb2.Model(name="torn", version="2", state=model_pb2.MODEL_STATE_FAILED, reason="bundle.json: not JSON"),
)


BUNDLE = bundle_pb2.Bundle(
    schema_version=1,
    parameters=2**40,
    quantization=bundle_pb2.QUANTIZATION_INT8,
    traffic_independent=True,
    labels=["long", "short"],
    limits=bundle_pb2.Limits(max_tokens=128, vocabulary_size=30_000, padded_lengths=[64, 128]),
    quality={"accuracy": 0.91},
    adapters=[bundle_pb2.Adapter(name="formal", rank=8), bundle_pb2.Adapter(name="french", rank=16)],
    parity=[bundle_pb2.ParityCheck(name="probabilities", shape="1 × 16", error=3e-7, tolerance=5e-5)],
    made_with={"torch": "2.13"},
    license="apache-2.0",
    files=[bundle_pb2.File(path="encoder.onnx", size=2048)],
)


class Models(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, script: Script) -> None:
        self.script = script

    def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:
        if failure := self.script.begin(request):
            abort(context, failure)
        return model_pb2.ListModelsResponse(models=MODELS)

    def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        self.script.begin(request)
        for model in MODELS:
            if model.name == request.name and request.version in ("", model.version):
                found = model_pb2.Model(bundle=BUNDLE)
                found.MergeFrom(model)
                return model_pb2.GetModelResponse(model=found)
        context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.name!r}; there are names, torn")
        raise AssertionError("abort raises")

    def LoadModel(self, request: model_pb2.LoadModelRequest, context: Any) -> model_pb2.LoadModelResponse:
        if failure := self.script.begin(request):
            abort(context, failure)
        return model_pb2.LoadModelResponse(model=MODELS[0])

    def ReloadModel(self, request: model_pb2.ReloadModelRequest, context: Any) -> model_pb2.ReloadModelResponse:
        if failure := self.script.begin(request):
            abort(context, failure)
        return model_pb2.ReloadModelResponse(model=MODELS[0])

    def UnloadModel(self, request: model_pb2.UnloadModelRequest, context: Any) -> model_pb2.UnloadModelResponse:
        if failure := self.script.begin(request):
            abort(context, failure)
        return model_pb2.UnloadModelResponse()


class ScriptedServer:
    """Listens at `target` until `stop`; `health` sets who serves."""

    def __init__(self) -> None:
        self.script = Script()
        self.health = health.HealthServicer()
        self._server = grpc.server(ThreadPoolExecutor(32))
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(Inference(self.script), self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(Models(self.script), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self.health.set("", health_pb2.HealthCheckResponse.SERVING)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=0).wait()
