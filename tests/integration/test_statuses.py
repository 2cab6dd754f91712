"""Each row of the table of statuses, over a real channel."""

import asyncio
import json
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc import StatusCode
from grpc_status import rpc_status
from structlog.testing import capture_logs

from polyhead.server.config import Settings
from polyhead.server.loader import LiveModel, Loader
from polyhead.server.metrics import Metrics
from polyhead.v1 import inference_pb2 as pb
from polyhead.v1 import model_pb2
from tests import bundles
from tests.integration.conftest import Running, Start, endless, until

M = TypeVar("M", bound=Message)


def text(content: str) -> pb.Input:
    return pb.Input(text=content)


def model(name: str = "", version: str = "") -> pb.ModelReference:
    return pb.ModelReference(name=name, version=version)


def detail(error: grpc.aio.AioRpcError, kind: type[M]) -> M:
    """The only detail of a status."""
    (packed,) = rpc_status.from_call(error).details
    found = kind()
    assert packed.Unpack(found)
    return found


async def read(call: Any) -> None:
    """To its end, whether it gives one response or many."""
    if hasattr(call, "__aiter__"):
        async for _ in call:
            pass
    else:
        await call


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await read(call)
    return error.value


STOP = pb.StoppingCriteria
SAMPLING = pb.SamplingParameters


@pytest.mark.parametrize(
    ("request_", "field", "description"),
    [
        (pb.GenerateRequest(sampling=SAMPLING(temperature=-1)), "sampling.temperature", "must be 0 to 100, got -1"),
        (pb.GenerateRequest(sampling=SAMPLING(top_p=float("nan"))), "sampling.top_p", "must be above 0 and at most 1, got nan"),
        (pb.GenerateRequest(stopping=STOP(max_tokens=9999)), "stopping.max_tokens",
         "must be 1 to 1023 (a slot's 1024 tokens minus the prompt's 1), got 9999"),
        (pb.GenerateRequest(stopping=STOP(max_tokens=5, min_tokens=6)), "stopping.min_tokens", "must be 0 to max_tokens 5, got 6"),
        (pb.GenerateRequest(prompt=text("zyx" * 2000)), "prompt", "must have at most 1023 tokens to leave room for an answer, got 6001"),
        (pb.GenerateRequest(logprobs=21), "logprobs", "must be 0 to 20, got 21"),
        (pb.GenerateRequest(request_id="ä"), "request_id", "must be up to 128 printable ASCII characters, got 'ä'"),
        (pb.GenerateRequest(model=model(bundles.GENERATOR, "one")), "model.version", "must be a positive integer in decimal, got 'one'"),
        (pb.ClassifyRequest(), "inputs", "must be 1 to 512, got 0"),
        (pb.ClassifyRequest(inputs=[text("a")], top_k=0), "top_k", "must be at least 1, got 0"),
        (pb.EmbedRequest(inputs=[text("a"), text("")]), "inputs[1]", "must not be empty"),
        (pb.TokenizeRequest(texts=["a"]), "model.name",
         "must be given, as more than one model serves: tiny-classifier, tiny-embedder, tiny-gpt"),
        (model_pb2.GetModelRequest(), "name", "must not be empty"),
    ],
)  # fmt: skip
async def test_input_that_makes_no_sense_is_invalid_argument_with_field_limit_and_what_was_given(
    running: Running, request_: Message, field: str, description: str
) -> None:
    method = type(request_).__name__.removesuffix("Request")
    error = await failure(getattr(running.models if method == "GetModel" else running.inference, method)(request_))
    assert error.code() == StatusCode.INVALID_ARGUMENT
    assert error.details() == f"{field}: {description}"
    (violation,) = detail(error, BadRequest).field_violations
    assert (violation.field, violation.description) == (field, description)


async def test_a_request_id_in_the_metadata_is_checked_too(running: Running) -> None:
    error = await failure(
        running.models.ListModels(model_pb2.ListModelsRequest(), metadata=[("x-request-id", "x" * 129)])
    )
    assert error.code() == StatusCode.INVALID_ARGUMENT
    assert (error.details() or "").startswith("x-request-id: must be up to 128 printable ASCII characters")


@pytest.mark.parametrize(
    ("method", "kind"), [("Embed", "unary_unary"), ("Generate", "unary_stream"), ("StreamEmbed", "stream_stream")]
)
async def test_bytes_that_are_no_message_are_invalid_argument(running: Running, method: str, kind: str) -> None:
    call = getattr(running.channel, kind)(f"/polyhead.v1.InferenceService/{method}")
    garbage = b"\xff\xff\xff"
    error = await failure(call(iter([garbage]) if kind == "stream_stream" else garbage))
    assert error.code() == StatusCode.INVALID_ARGUMENT
    assert error.details() == "message: is not of the type that this method takes"
    labels = {"model": "", "version": "", "method": method}
    assert running.metric("requests_total", **labels, code="INVALID_ARGUMENT") == 1


async def test_an_unknown_model_or_version_is_not_found_and_those_there_are_are_listed(running: Running) -> None:
    error = await failure(running.inference.Embed(pb.EmbedRequest(model=model("nobody"), inputs=[text("a")])))
    assert error.code() == StatusCode.NOT_FOUND
    assert error.details() == "no model 'nobody'; there are: tiny-classifier, tiny-embedder, tiny-gpt"
    error = await failure(running.inference.Generate(pb.GenerateRequest(model=model(bundles.GENERATOR, "7"))))
    assert error.code() == StatusCode.NOT_FOUND
    assert error.details() == "model 'tiny-gpt' has no version 7; it has: 1"


async def test_a_task_that_a_model_does_not_do_is_failed_precondition_and_says_what_it_does(running: Running) -> None:
    error = await failure(running.inference.Embed(pb.EmbedRequest(model=model(bundles.GENERATOR), inputs=[text("a")])))
    assert error.code() == StatusCode.FAILED_PRECONDITION
    assert error.details() == "model 'tiny-gpt' version 1 does generate, not embed"


async def test_a_full_queue_is_resource_exhausted_with_the_limit_and_when_to_retry(start: Start) -> None:
    running = await start(slots=1, max_queue_requests=1)
    busy = running.inference.Generate(endless())
    await anext(aiter(busy))
    waiting = running.inference.Generate(endless())
    await until(lambda: running.metric("queue_size", model=bundles.GENERATOR, version="1") == 1)
    error = await failure(running.inference.Generate(endless()))
    busy.cancel()
    waiting.cancel()
    assert error.code() == StatusCode.RESOURCE_EXHAUSTED
    assert "1" in (error.details() or "")
    assert 0 < detail(error, RetryInfo).retry_delay.ToTimedelta().total_seconds() <= 60
    labels = {"model": bundles.GENERATOR, "version": "1", "method": "Generate"}
    assert running.metric("rejected_total", **labels, reason="overloaded") == 1
    await until(lambda: running.metric("cancelled_total", **labels, reason="cancelled") == 2)


async def test_a_model_that_still_loads_is_unavailable(start: Start, models_folder: Path) -> None:
    gate, settings = asyncio.Event(), Settings(models=models_folder)
    real = Loader(settings, Metrics())

    async def load(*folder: Any) -> LiveModel:
        await gate.wait()
        return await real(*folder)

    running = await start(load, wait=False)
    named = await failure(running.inference.Embed(pb.EmbedRequest(model=model(bundles.EMBEDDER), inputs=[text("a")])))
    nameless = await failure(running.inference.Embed(pb.EmbedRequest(inputs=[text("a")])))
    gate.set()
    await running.app.loaded
    assert named.code() == nameless.code() == StatusCode.UNAVAILABLE
    assert named.details() == "model 'tiny-embedder' version 1 is still loading"
    assert nameless.details() == "models are still loading: tiny-classifier, tiny-embedder, tiny-gpt"
    assert (await running.inference.Embed(pb.EmbedRequest(inputs=[text("a")]))).header.model == bundles.EMBEDDER


async def test_a_draining_server_is_unavailable_to_new_calls_and_finishes_the_running_ones(running: Running) -> None:
    stream = running.inference.Generate(endless(400))
    tokens = len((await anext(aiter(stream))).token_ids)
    draining = asyncio.create_task(running.app.drain())
    await asyncio.sleep(0)
    error = await failure(running.models.ListModels(model_pb2.ListModelsRequest()))
    async for response in stream:
        tokens += len(response.token_ids)
    await draining
    assert (error.code(), error.details()) == (StatusCode.UNAVAILABLE, "the server is draining")
    assert tokens == 400


async def test_a_deadline_that_passes_is_deadline_exceeded_and_log_and_metric_tell_how_far_it_came(
    running: Running,
) -> None:
    labels = {"model": bundles.GENERATOR, "version": "1", "method": "Generate"}
    with capture_logs() as logs:
        error = await failure(running.inference.Generate(endless(), timeout=0.2))
        assert error.code() == StatusCode.DEADLINE_EXCEEDED
        await until(lambda: running.metric("requests_total", **labels, code="DEADLINE_EXCEEDED") == 1)
    (line,) = [line for line in logs if line["event"] == "call"]
    assert line["code"] == "DEADLINE_EXCEEDED"
    assert 0 < line["generated_tokens"] < 900
    assert running.metric("generated_tokens_total", **labels) == line["generated_tokens"]
    assert running.metric("cancelled_total", **labels, reason="deadline") == 1
    await until(lambda: running.metric("slots_used", model=bundles.GENERATOR, version="1") == 0)


async def test_a_deadline_that_passes_in_the_queue_leaves_the_queue(start: Start) -> None:
    running = await start(slots=1)
    busy = running.inference.Generate(endless())
    await anext(aiter(busy))
    error = await failure(running.inference.Generate(endless(), timeout=0.1))
    assert error.code() == StatusCode.DEADLINE_EXCEEDED
    await until(lambda: running.metric("queue_size", model=bundles.GENERATOR, version="1") == 0)
    busy.cancel()


async def test_what_nobody_foresaw_is_internal_and_shows_only_the_request_id(start: Start, tmp_path: Path) -> None:
    models = bundles.copy_models(tmp_path / "models", bundles.EMBEDDER)
    manifest = models / bundles.EMBEDDER / "1/bundle.json"  # a lie about the graph that no check can see
    fields = json.loads(manifest.read_text())
    fields["limits"]["vocabulary_size"] = 10_000
    manifest.write_text(json.dumps(fields))
    running = await start(models=models)
    request = pb.EmbedRequest(request_id="id-7", inputs=[pb.Input(token_ids=pb.TokenIds(ids=[9999]))])
    with capture_logs() as logs:
        error = await failure(running.inference.Embed(request))
    assert (error.code(), error.details()) == (StatusCode.INTERNAL, "internal error; request id id-7")
    assert rpc_status.from_call(error).details == []
    (line,) = [line for line in logs if line["event"] == "call"]
    assert (line["request_id"], line["log_level"], line["code"]) == ("id-7", "error", "INTERNAL")
    assert "9999" in str(line["exc_info"])


async def test_a_message_over_the_limit_is_refused(start: Start) -> None:
    running = await start(max_message_bytes=2000)
    error = await failure(running.inference.Embed(pb.EmbedRequest(inputs=[text("a" * 3000)])))
    assert error.code() == StatusCode.RESOURCE_EXHAUSTED
