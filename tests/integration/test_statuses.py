"""Each row of the table of statuses, over a real channel."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RequestInfo, RetryInfo
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from structlog.testing import capture_logs

from polyhead.server.config import Settings
from polyhead.server.loader import LiveModel, Loader
from polyhead.server.metrics import Metrics
from polyhead.v1 import inference_pb2 as pb
from polyhead.v1 import model_pb2
from tests import bundles
from tests.integration.conftest import Running, Start, endless, unread, until
from tests.turns import started

M = TypeVar("M", bound=Message)


def text(content: str) -> pb.Input:
    return pb.Input(text=content)


def model(name: str = "", version: str = "") -> pb.ModelReference:
    return pb.ModelReference(name=name, version=version)


def detail(error: grpc.aio.AioRpcError, kind: type[M]) -> M:
    """The only one of its kind in a status."""
    found = [kind() for _ in range(2)]
    assert [packed.Unpack(found[0]) for packed in rpc_status.from_call(error).details].count(True) == 1
    return found[0]


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
        (pb.GenerateRequest(model=model(bundles.GENERATOR, "1.0")), "model.version",
         "must be a version, a positive integer in decimal, or an alias, got '1.0'"),
        (pb.ClassifyRequest(), "inputs", "must be 1 to 512, got 0"),
        (pb.ClassifyRequest(inputs=[text("a")], top_k=0), "top_k", "must be at least 1, got 0"),
        (pb.EmbedRequest(inputs=[text("a"), text("")]), "inputs[1]", "must not be empty"),
        (pb.TokenizeRequest(texts=["a"]), "model.name",
         "must be given, as more than one model serves: tiny-classifier, tiny-embedder, tiny-gpt"),
        (model_pb2.GetModelRequest(), "name", "must not be empty"),
        (model_pb2.GetModelRequest(name=bundles.GENERATOR, version="1.0"), "version",
         "must be a version, a positive integer in decimal, or an alias, got '1.0'"),
        (pb.GenerateRequest(constraint=pb.Constraint(json_schema="[" * 60_000)), "constraint.json_schema", "is nested too deeply"),
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
    assert error.details() == "model 'tiny-gpt' has no version 7 loaded; it has: 1"


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
    draining = await started(running.app.drain())
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
        error = await failure(running.inference.Generate(unread(), timeout=0.2))
        assert error.code() == StatusCode.DEADLINE_EXCEEDED
        await until(lambda: running.metric("requests_total", **labels, code="DEADLINE_EXCEEDED") == 1)
    (line,) = [line for line in logs if line["event"] == "call"]
    assert line["code"] == "DEADLINE_EXCEEDED"
    assert 0 < line["generated_tokens"] < 1000
    assert 0 < line["inference_seconds"] < line["seconds"]
    assert running.metric("inference_duration_seconds_count", **labels) == 1
    assert running.metric("generated_tokens_total", **labels) == line["generated_tokens"]
    assert running.metric("cancelled_total", **labels, reason="deadline") == 1
    await until(lambda: running.metric("slots_used", model=bundles.GENERATOR, version="1") == 0)


async def test_a_deadline_that_passes_in_the_queue_leaves_the_queue(start: Start) -> None:
    running = await start(slots=1)
    which = {"model": bundles.GENERATOR, "version": "1"}
    labels = {**which, "method": "Generate"}
    busy = running.inference.Generate(unread())
    await anext(aiter(busy))
    with capture_logs() as logs:
        late = asyncio.create_task(failure(running.inference.Generate(endless(), timeout=0.5)))
        await until(lambda: running.metric("queue_size", **which) == 1)
        assert (await late).code() == StatusCode.DEADLINE_EXCEEDED
        await until(lambda: running.metric("requests_total", **labels, code="DEADLINE_EXCEEDED") == 1)
    assert running.metric("queue_size", **which) == 0
    assert running.metric("cancelled_total", **labels, reason="deadline") == 1
    (line,) = [line for line in logs if line["event"] == "call"]
    assert (line["generated_tokens"], line["inference_seconds"]) == (0, 0)
    assert 0 < line["queue_seconds"] <= line["seconds"]
    assert running.metric("queue_duration_seconds_sum", **labels) == pytest.approx(line["queue_seconds"], abs=1e-5)
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
    assert detail(error, RequestInfo).request_id == "id-7"
    (line,) = [line for line in logs if line["event"] == "call"]
    assert (line["request_id"], line["log_level"], line["code"]) == ("id-7", "error", "INTERNAL")
    assert "9999" in str(line["exc_info"])


async def test_a_message_over_the_limit_is_refused(start: Start) -> None:
    running = await start(max_message_bytes=2000)
    error = await failure(running.inference.Embed(pb.EmbedRequest(inputs=[text("a" * 3000)])))
    assert error.code() == StatusCode.RESOURCE_EXHAUSTED


async def test_every_error_carries_the_requests_id(running: Running) -> None:
    error = await failure(running.inference.Embed(pb.EmbedRequest(request_id="id-8")))
    assert detail(error, RequestInfo).request_id == "id-8"
    assert dict(error.trailing_metadata())["x-request-id"] == "id-8"
    error = await failure(running.models.GetModel(model_pb2.GetModelRequest(), metadata=[("x-request-id", "id-9")]))
    assert dict(error.trailing_metadata())["x-request-id"] == detail(error, RequestInfo).request_id == "id-9"


async def test_the_largest_text_that_quotes_a_caller_still_fits_its_trailers(running: Running) -> None:
    error = await failure(running.inference.Embed(pb.EmbedRequest(model=model("ü" * 10**6), request_id="x" * 128)))
    assert error.code() == StatusCode.NOT_FOUND
    error = await failure(running.inference.Embed(pb.EmbedRequest(model=model(bundles.EMBEDDER, "ü" * 10**6))))
    assert error.code() == StatusCode.INVALID_ARGUMENT
    assert detail(error, BadRequest).field_violations[0].field == "model.version"


async def test_too_many_calls_are_resource_exhausted_with_the_limit_and_when_to_retry(start: Start) -> None:
    running = await start(max_concurrent_calls=1)
    busy = running.inference.Generate(unread())
    await anext(aiter(busy))
    error = await failure(running.models.ListModels(model_pb2.ListModelsRequest()))
    assert error.code() == StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "the server is full: 1 calls run, which is the limit"
    assert detail(error, RetryInfo).retry_delay.ToTimedelta().total_seconds() == 1
    busy.cancel()
    await until(lambda: running.metric("requests_running", model=bundles.GENERATOR, version="1") == 0)


SECRET = "xyzzy"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.EmbedRequest(model=model(SECRET * 1000), inputs=[text(SECRET)]), "NOT_FOUND"),
        (pb.EmbedRequest(model=model(bundles.EMBEDDER, SECRET), inputs=[text(SECRET)]), "NOT_FOUND"),
        (pb.EmbedRequest(model=model(bundles.EMBEDDER, f"-{SECRET}"), inputs=[text(SECRET)]), "INVALID_ARGUMENT"),
        (pb.EmbedRequest(model=model(bundles.GENERATOR), inputs=[text(SECRET)]), "FAILED_PRECONDITION"),
        (pb.EmbedRequest(inputs=[text(SECRET * 50)]), "INVALID_ARGUMENT"),
        (pb.GenerateRequest(constraint=pb.Constraint(lark=f"start: {SECRET}")), "INVALID_ARGUMENT"),
        (pb.GenerateRequest(constraint=pb.Constraint(regex=f"({SECRET}")), "INVALID_ARGUMENT"),
        (pb.GenerateRequest(constraint=pb.Constraint(json_schema=f'{{"type": "{SECRET}"}}')), "INVALID_ARGUMENT"),
        (pb.GenerateRequest(stopping=STOP(stop=[SECRET, SECRET * 100])), "INVALID_ARGUMENT"),
        (pb.GenerateRequest(prompt=text(SECRET), request_id=f"ä{SECRET}"), "INVALID_ARGUMENT"),
        (pb.GenerateRequest(prompt=text(SECRET), stopping=STOP(stop=[SECRET], max_tokens=3)), "OK"),
    ],
)  # fmt: skip
async def test_nothing_of_a_request_gets_into_the_log(running: Running, request_: Message, code: str) -> None:
    method = type(request_).__name__.removesuffix("Request")
    with capture_logs() as logs:
        with suppress(grpc.aio.AioRpcError):
            await read(getattr(running.inference, method)(request_))
        await until(lambda: logs)
    (line,) = logs
    assert line["code"] == code
    assert SECRET not in str(line)
    assert len(str(line)) < 1000


async def test_what_a_grammar_that_grows_too_ambiguous_made_gets_into_no_log(running: Running) -> None:
    grammar = pb.Constraint(lark=f'start: x // {SECRET}\nx: "a" | x x | x x x')
    (end,) = running.app.repository.find(bundles.GENERATOR, "", None).tokenizer.eos_token_ids
    never_end = SAMPLING(logit_bias={end: -100})
    request = pb.GenerateRequest(constraint=grammar, sampling=never_end, stopping=STOP(max_tokens=500))
    with capture_logs() as logs:
        error = await failure(running.inference.Generate(request))
        await until(lambda: logs)
    assert error.details() == "constraint.lark: can't be followed any further: it has become too ambiguous"
    (line,) = logs
    assert line["field"] == "constraint.lark"
    assert line["generated_tokens"] > 0
    assert SECRET not in str(line)
    assert "aaa" not in str(line)


async def test_a_model_whose_engine_died_is_unavailable_and_health_says_so(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(BaseException):
        """What no engine can go on from."""

    def die(*_: object) -> None:
        raise Broken

    live = running.app.repository.find(bundles.EMBEDDER, "", None)
    monkeypatch.setattr(live.encoder._encoder, "run", die)
    request = pb.EmbedRequest(inputs=[text("a")])
    errors = [await failure(running.inference.Embed(request)) for _ in range(2)]
    assert {error.code() for error in errors} == {StatusCode.UNAVAILABLE}
    assert [error.details() for error in errors] == [
        "the model's engine failed",
        "model 'tiny-embedder' version 1 broke down and must be loaded again",
    ]
    health = health_pb2_grpc.HealthStub(running.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service=bundles.EMBEDDER))
    async with asyncio.timeout(10):
        async for response in watch:
            if response.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                break
    watch.cancel()
    for service in ("", bundles.CLASSIFIER):
        status = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert status.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_bulk_stream_ends_by_itself_when_the_server_drains(running: Running) -> None:
    stream = running.inference.StreamEmbed()  # open for as long as the caller likes
    await stream.write(pb.StreamEmbedRequest(request=pb.EmbedRequest(inputs=[text("a")])))
    await stream.read()
    async with asyncio.timeout(10):
        await running.app.drain()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stream.read()
    assert error.value.code() == StatusCode.UNAVAILABLE
    assert error.value.details() == "the server is draining; it answered the first 1 requests of this stream"


async def test_a_call_that_still_tokenizes_when_the_drain_begins_is_answered(running: Running) -> None:
    request = pb.EmbedRequest(inputs=[text("the cat " * 400_000)], truncate=True)
    call = asyncio.ensure_future(running.inference.Embed(request))
    await until(lambda: not running.app._calls._idle.is_set())
    assert running.metric("prompt_tokens_total", model=bundles.EMBEDDER, version="1", method="Embed") == 0
    async with asyncio.timeout(30):
        await running.app.drain()
    assert len((await call).embeddings) == 1
