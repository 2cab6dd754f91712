"""What tests of a changing models folder share."""

import asyncio

from polyhead.v1 import inference_pb2 as pb
from polyhead.v1 import model_pb2
from tests.bundles import EMBEDDER
from tests.integration.conftest import Running

POLL = 0.02
"""Seconds between two looks at the folder."""


async def listing(running: Running) -> dict[str, model_pb2.Model]:
    """By `NAME:VERSION`."""
    response = await running.models.ListModels(model_pb2.ListModelsRequest())
    return {f"{model.name}:{model.version}": model for model in response.models}


async def becomes(running: Running, name: str = EMBEDDER, **states: str) -> dict[str, model_pb2.Model]:
    """Wait until a model has exactly these versions in these states, as `v1="READY"`; gives what is listed then."""
    wanted = {f"{name}:{version[1:]}": f"MODEL_STATE_{state}" for version, state in states.items()}
    found: dict[str, model_pb2.Model] = {}
    async with asyncio.timeout(20):
        while states_of(found, name) != wanted:
            found = await listing(running)
    return found


def states_of(found: dict[str, model_pb2.Model], name: str) -> dict[str, str]:
    return {key: model_pb2.ModelState.Name(m.state) for key, m in found.items() if m.name == name}


async def embed(
    running: Running, version: str = "", name: str = EMBEDDER, request_id: str = "", seconds: float | None = None
) -> pb.EmbedResponse:
    model = pb.ModelReference(name=name, version=version)
    request = pb.EmbedRequest(model=model, request_id=request_id, inputs=[pb.Input(text="the cat")])
    return await running.inference.Embed(request, timeout=seconds)


async def answered_by(running: Running, version: str = "", name: str = EMBEDDER, request_id: str = "") -> str:
    return (await embed(running, version, name, request_id)).header.version
