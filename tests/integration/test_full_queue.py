"""A request that a full queue rejects is rejected before anything is made of it."""

import asyncio
import threading
from typing import Any

import pytest
from grpc import StatusCode

from polyhead.server.constraints import GrammarCompiler
from polyhead.server.tokenizer import Tokenizer
from polyhead.v1 import inference_pb2 as pb
from tests import bundles
from tests.integration.conftest import Start, endless, until
from tests.integration.test_statuses import failure, text


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("it should have been rejected before")


async def test_a_full_queue_rejects_before_a_grammar_is_compiled_or_a_text_read(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start(slots=1, max_queue_requests=1)
    busy = running.inference.Generate(endless())
    await anext(aiter(busy))
    waiting = running.inference.Generate(endless())
    await until(lambda: running.metric("queue_size", model=bundles.GENERATOR, version="1") == 1)
    with monkeypatch.context() as patched:
        patched.setattr(GrammarCompiler, "compile", refuse)
        patched.setattr(Tokenizer, "encode", refuse)
        costly = pb.Constraint(regex="((a{0,200}){0,200}b)")
        error = await failure(running.inference.Generate(pb.GenerateRequest(prompt=text("a"), constraint=costly)))
    busy.cancel()
    waiting.cancel()
    assert error.code() == StatusCode.RESOURCE_EXHAUSTED
    assert "1 requests are waiting, the limit is 1" in (error.details() or "")


@pytest.mark.parametrize("task", ["Embed", "Classify"])
async def test_a_full_queue_rejects_before_inputs_are_read(
    start: Start, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    running = await start(max_queue_requests=1)
    name = {"Embed": bundles.EMBEDDER, "Classify": bundles.CLASSIFIER}[task]
    encoder, go = running.app.repository.find(name, "", None).encoder, threading.Event()
    run = encoder._encoder.run

    def slowly(*args: Any) -> Any:
        go.wait(60)
        return run(*args)

    monkeypatch.setattr(encoder._encoder, "run", slowly)
    kind, call = getattr(pb, f"{task}Request"), getattr(running.inference, task)
    accepted = [asyncio.ensure_future(call(kind(inputs=[text("a")])))]
    await until(lambda: running.metric("requests_running", model=name, version="1") == 1)
    accepted.append(asyncio.ensure_future(call(kind(inputs=[text("b")]))))
    await until(lambda: running.metric("queue_size", model=name, version="1") == 1)
    with monkeypatch.context() as patched:
        patched.setattr(Tokenizer, "encoder_inputs", refuse)
        error = await failure(call(kind(inputs=[text("c")])))
    go.set()
    await asyncio.gather(*accepted)
    assert error.code() == StatusCode.RESOURCE_EXHAUSTED
    assert "1 requests wait, the limit is 1" in (error.details() or "")
