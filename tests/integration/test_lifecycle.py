"""Starting, what operators look at, and stopping."""

import asyncio
import json
import os
import signal
import sys
import urllib.request
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client import generate_latest

from polyhead.server.__main__ import main
from polyhead.server.app import serve
from polyhead.server.config import Settings
from polyhead.server.errors import PolyheadError
from polyhead.v1 import inference_pb2 as pb
from polyhead.v1 import model_pb2
from polyhead.v1.inference_pb2_grpc import InferenceServiceStub
from polyhead.v1.model_pb2_grpc import ModelServiceStub
from tests import bundles
from tests.integration.conftest import Running, Start, endless, unread, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("polyhead.v1.InferenceService", "polyhead.v1.ModelService")


async def health(running: Running, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(running.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(response.status)


async def test_health_tells_of_the_server_each_service_and_each_model(running: Running) -> None:
    for service in ("", *SERVICES, bundles.GENERATOR, bundles.CLASSIFIER, bundles.EMBEDDER):
        assert await health(running, service) == SERVING
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await health(running, "nobody")


async def test_a_bad_bundle_fails_by_itself_and_the_others_serve(start: Start, tmp_path: Path) -> None:
    models = bundles.copy_models(tmp_path / "models")
    weights = next((models / bundles.EMBEDDER / "1").glob("*.data"))
    weights.write_bytes(weights.read_bytes()[:-1])
    (models / ".half-written-1" / "1").mkdir(parents=True)
    (models / bundles.GENERATOR / "latest").mkdir()
    running = await start(models=models)
    listed = {m.name: m for m in (await running.models.ListModels(model_pb2.ListModelsRequest())).models}
    assert set(listed) == {bundles.GENERATOR, bundles.CLASSIFIER, bundles.EMBEDDER}
    failed = listed[bundles.EMBEDDER]
    assert failed.state == model_pb2.MODEL_STATE_FAILED
    assert failed.reason.startswith(f"{weights.name}: has {weights.stat().st_size} bytes, bundle.json says ")
    assert failed.task == 3
    assert [await health(running, name) for name in ("", bundles.GENERATOR, bundles.EMBEDDER)] == [
        SERVING,
        SERVING,
        NOT_SERVING,
    ]
    request = pb.EmbedRequest(model=pb.ModelReference(name=bundles.EMBEDDER), inputs=[pb.Input(text="a")])
    with pytest.raises(grpc.aio.AioRpcError, match=r"FAILED_PRECONDITION[\s\S]*failed to load: encoder"):
        await running.inference.Embed(request)
    assert len((await running.inference.Classify(pb.ClassifyRequest(inputs=request.inputs))).results) == 1


def tampered(folder: Path) -> str:
    """One bit of the weights is another."""
    weights = next(folder.glob("*.data"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    return f"{weights.name}: SHA-256 is "


def newer(folder: Path) -> str:
    """Of a schema that is to come, with fields that nobody knows yet."""
    fields = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**fields, "schema_version": 2, "invented_later": {}}))
    return "bundle.json: schema_version 2 is newer than this server knows (1); "


@pytest.mark.parametrize("spoil", [tampered, newer])
async def test_a_spoilt_bundle_is_refused_with_its_reason_and_the_others_serve(
    start: Start, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    models = bundles.copy_models(tmp_path / "models")
    reason = spoil(models / bundles.GENERATOR / "1")
    running = await start(models=models)
    model = (await running.models.GetModel(model_pb2.GetModelRequest(name=bundles.GENERATOR))).model
    assert model.state == model_pb2.MODEL_STATE_FAILED
    assert model.reason.startswith(reason)
    with pytest.raises(grpc.aio.AioRpcError, match=r"FAILED_PRECONDITION[\s\S]*failed to load: "):
        await running.inference.Generate(pb.GenerateRequest(model=pb.ModelReference(name=bundles.GENERATOR))).read()
    inputs = [pb.Input(text="a")]
    assert len((await running.inference.Classify(pb.ClassifyRequest(inputs=inputs))).results) == 1
    assert len((await running.inference.Embed(pb.EmbedRequest(inputs=inputs))).embeddings) == 1
    assert f'slots{{model="{bundles.GENERATOR}"' not in generate_latest(running.app.metrics.registry).decode()


async def test_a_server_without_any_sound_model_says_that_it_does_not_serve(start: Start, tmp_path: Path) -> None:
    (tmp_path / "broken" / "1").mkdir(parents=True)
    running = await start(models=tmp_path)
    assert await health(running, "") == NOT_SERVING
    model = (await running.models.GetModel(model_pb2.GetModelRequest(name="broken"))).model
    assert model.reason == "bundle.json: is missing"


async def test_the_newest_version_that_serves_answers_unless_one_is_named(start: Start, tmp_path: Path) -> None:
    models = bundles.copy_models(tmp_path / "models", bundles.EMBEDDER)
    (models / bundles.EMBEDDER / "1").rename(models / bundles.EMBEDDER / "9")
    bundles.copy_models(tmp_path / "other", bundles.EMBEDDER)
    (tmp_path / "other" / bundles.EMBEDDER / "1").rename(models / bundles.EMBEDDER / "10")
    (models / bundles.EMBEDDER / "11").mkdir()
    running = await start(models=models, versions="all")
    listed = (await running.models.ListModels(model_pb2.ListModelsRequest())).models
    assert [m.version for m in listed] == ["9", "10", "11"]
    for version, answers in (("", "10"), ("9", "9"), ("10", "10")):
        request = pb.EmbedRequest(model=pb.ModelReference(version=version), inputs=[pb.Input(text="a")])
        assert (await running.inference.Embed(request)).header.version == answers


async def test_reflection_lists_the_services_and_describes_them(running: Running) -> None:
    def ask() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(running.target) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            file = database.FindFileContainingSymbol(SERVICES[0])
            return list(database.get_services()), [method.name for method in file.service[0].method]

    services, methods = await asyncio.to_thread(ask)
    assert set(services) == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert methods == ["Generate", "Classify", "Embed", "StreamClassify", "StreamEmbed", "Tokenize"]


METRICS = (
    "requests_total", "request_duration_seconds", "queue_duration_seconds", "inference_duration_seconds",
    "time_to_first_token_seconds", "inter_token_latency_seconds", "prompt_tokens_total", "generated_tokens_total",
    "batch_size", "batch_tokens", "padding_tokens_total", "queue_size", "requests_running", "slots_used", "slots",
    "rejected_total", "cancelled_total", "model_load_duration_seconds", "model_info",
)  # fmt: skip


async def scrape(port: int | None) -> str:
    url = f"http://127.0.0.1:{port}/metrics"
    return await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())


async def test_metrics_have_every_name_and_count_what_was_asked(start: Start) -> None:
    running = await start(metrics_port=0, slots=3)
    async for _ in running.inference.Generate(endless(10)):
        pass
    await running.inference.Embed(pb.EmbedRequest(inputs=[pb.Input(text="the cat"), pb.Input(text="a")]))
    await until(lambda: running.metric("requests_running", model=bundles.GENERATOR, version="1") == 0)
    text = await scrape(running.app.metrics_port)
    for name in METRICS:
        assert f"# TYPE polyhead_{name} " in text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    gpt, embedder = 'model="tiny-gpt",version="1"', 'model="tiny-embedder",version="1"'
    for sample, value in {
        f'polyhead_requests_total{{code="OK",method="Generate",{gpt}}}': 1,
        f'polyhead_request_duration_seconds_count{{method="Generate",{gpt}}}': 1,
        f'polyhead_prompt_tokens_total{{method="Generate",{gpt}}}': 3,
        f'polyhead_generated_tokens_total{{method="Generate",{gpt}}}': 10,
        f"polyhead_time_to_first_token_seconds_count{{{gpt}}}": 1,
        f"polyhead_inter_token_latency_seconds_count{{{gpt}}}": 9,
        f"polyhead_batch_size_count{{{gpt}}}": 10,
        f"polyhead_slots{{{gpt}}}": 3,
        f"polyhead_slots_used{{{gpt}}}": 0,
        f'polyhead_prompt_tokens_total{{method="Embed",{embedder}}}': 5,
        f"polyhead_batch_size_sum{{{embedder}}}": 2,
        f"polyhead_batch_tokens_sum{{{embedder}}}": 5,
        f"polyhead_padding_tokens_total{{{embedder}}}": 3,
        f'polyhead_queue_duration_seconds_count{{method="Embed",{embedder}}}': 1,
        f'polyhead_inference_duration_seconds_count{{method="Embed",{embedder}}}': 1,
        f'polyhead_model_info{{architecture="gpt",{gpt.split(",")[0]},quantization="none",task="generate",version="1"}}': 1,
    }.items():
        assert float(lines[sample]) == value, sample
    assert f'polyhead_request_duration_seconds_bucket{{le="0.0005",method="Embed",{embedder}}}' in lines


async def test_a_name_that_callers_make_up_becomes_no_label(running: Running) -> None:
    request = pb.EmbedRequest(model=pb.ModelReference(name="made-up"), inputs=[pb.Input(text="a")])
    with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
        await running.inference.Embed(request)
    assert running.metric("requests_total", model="", version="", method="Embed", code="NOT_FOUND") == 1


async def test_a_taken_port_is_refused_not_shared(start: Start, running: Running) -> None:
    with pytest.raises(PolyheadError, match=f"can't serve gRPC on 127.0.0.1:{running.app.port}"):
        await start(port=running.app.port)
    other = await start(metrics_port=0)
    with pytest.raises(PolyheadError, match=f"can't serve metrics on 127.0.0.1:{other.app.metrics_port}"):
        await start(metrics_port=other.app.metrics_port)


async def test_calls_that_outlast_the_drain_are_cut(models_folder: Path) -> None:
    settings = Settings(models=models_folder, port=0, metrics_port=None, drain_seconds=0.1)
    async with AsyncExitStack() as stack:
        async with serve(settings) as app:
            await app.loaded
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{app.port}"))
            stream = InferenceServiceStub(channel).Generate(unread())
            await anext(aiter(stream))
            async with asyncio.timeout(5):
                await app.drain()
        with pytest.raises(grpc.aio.AioRpcError, match=r"UNAVAILABLE|CANCELLED"):
            async for _ in stream:
                pass


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ([], 2, "polyhead serve: --models (POLYHEAD_MODELS) is required\n"),
        (["--models", "/nowhere/at/all"], 1, "polyhead serve: no models folder at /nowhere/at/all\n"),
        (
            ["--models", "tests", "--port", "0"],
            1,
            "polyhead serve: no model in tests: expected NAME/VERSION/bundle.json",
        ),
    ],
)
def test_what_can_not_start_says_why_in_one_line(
    arguments: list[str], code: int, complaint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundles.ROOT)
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith(complaint)
    assert error.count("\n") == 1


class ServerProcess:
    """`python -m polyhead.server` and its log."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []

    async def event(self, name: str) -> dict[str, Any]:
        """Read the log up to that event."""
        async with asyncio.timeout(60):
            while line := await self._read_line():
                if line["event"] == name:
                    return line
        raise AssertionError(f"no {name} in {self.log}")

    async def end(self) -> int:
        """Read the log to its end; the exit code."""
        async with asyncio.timeout(60):
            while await self._read_line():
                pass
            return await self.process.wait()

    async def _read_line(self) -> dict[str, Any] | None:
        assert self.process.stderr
        line = await self.process.stderr.readline()
        if not line:
            return None
        assert line.startswith(b"{"), (line + await self.process.stderr.read()).decode()
        self.log.append(json.loads(line))
        return self.log[-1]


@asynccontextmanager
async def run(models: Path, *flags: str) -> AsyncIterator[ServerProcess]:
    command = ["-m", "polyhead.server", "--models", str(models), "--port=0", "--metrics-port=0", "--log-format=json"]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, *flags, stderr=PIPE)
    try:
        yield ServerProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_sigterm_lets_streams_finish_refuses_new_calls_and_exits_0(models_folder: Path) -> None:
    async with run(models_folder) as server, AsyncExitStack() as stack:
        target = (await server.event("listening"))["grpc"]
        await server.event("serving")
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target))
        stream = InferenceServiceStub(channel).Generate(endless(900))
        tokens = len((await anext(aiter(stream))).token_ids)
        server.process.send_signal(signal.SIGTERM)
        await server.event("draining")
        with pytest.raises(grpc.aio.AioRpcError, match=r"UNAVAILABLE[\s\S]*the server is draining"):
            await ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest())
        status = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert status.status == NOT_SERVING
        async for response in stream:
            tokens += len(response.token_ids)
        assert tokens == 900
        assert await server.end() == 0
        assert server.log[-1]["event"] == "stopped"


async def test_a_second_signal_stops_at_once(models_folder: Path) -> None:
    async with run(models_folder, "--drain-seconds=600") as server, AsyncExitStack() as stack:
        target = (await server.event("listening"))["grpc"]
        await server.event("serving")
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target))
        await anext(aiter(InferenceServiceStub(channel).Generate(unread())))
        server.process.send_signal(signal.SIGINT)
        await server.event("draining")
        server.process.send_signal(signal.SIGINT)
        assert await server.end() == 0


async def test_a_signal_while_a_model_is_opened_ends_the_server_promptly(tmp_path: Path) -> None:
    """The weights are a hundred gigabytes of nothing, whose hash takes minutes."""
    folder = bundles.copy_models(tmp_path / "models", bundles.EMBEDDER) / bundles.EMBEDDER / "1"
    weights, fields = next(folder.glob("*.data")), json.loads((folder / "bundle.json").read_text())
    os.truncate(weights, 100 * 2**30)
    for file in fields["files"]:
        if file["path"] == weights.name:
            file["size"] = str(100 * 2**30)
    (folder / "bundle.json").write_text(json.dumps(fields))
    async with run(tmp_path / "models") as server:
        await server.event("listening")
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert await server.end() == 0
    assert [line["event"] for line in server.log][-1] == "stopped"


PROGRAM = """
import asyncio, sys
from pathlib import Path
from polyhead.server.app import serve
from polyhead.server.config import Settings

async def main():
    async with serve(Settings(models=Path(sys.argv[1]), port=0, metrics_port=0)) as app:
        await app.loaded
        assert all(app.repository.serves(name) for name in app.repository.names())
    print(*sys.modules)

asyncio.run(main())
"""


async def test_the_server_imports_nothing_of_the_training_side(models_folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, str(models_folder), stdout=PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    loaded = set(output.decode().splitlines()[-1].split())
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "transformers", "onnx", "polyhead.models", "polyhead.export", "polyhead.train"}
