"""What each method answers, over a real channel."""

import asyncio
import math
from collections.abc import AsyncIterator

import grpc
import pytest
from structlog.testing import capture_logs

from polyhead.v1 import bundle_pb2, model_pb2
from polyhead.v1 import inference_pb2 as pb
from tests import bundles
from tests.integration.conftest import Running, Start, endless, until

TEXTS = ["the cat", "the dog sat", "a"]


def inputs(texts: list[str]) -> list[pb.Input]:
    return [pb.Input(text=text) for text in texts]


async def generate(running: Running, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    return [response async for response in running.inference.Generate(request)]


async def test_a_stream_has_its_header_first_and_its_end_last(running: Running) -> None:
    request = pb.GenerateRequest(request_id="id-1", prompt=pb.Input(text="the cat"), stopping=endless(30).stopping)
    responses = await generate(running, request)
    assert responses[0].header == pb.ResponseHeader(request_id="id-1", model=bundles.GENERATOR, version="1")
    assert responses[0].HasField("seed")
    for response in responses[1:]:
        assert not response.HasField("header")
        assert not response.HasField("seed")
    for response in responses[:-1]:
        assert response.finish_reason == pb.FINISH_REASON_UNSPECIFIED
        assert not response.HasField("usage")
    last = responses[-1]
    assert last.finish_reason == pb.FINISH_REASON_LENGTH
    assert last.usage == pb.Usage(prompt_tokens=3, generated_tokens=30)
    assert sum(len(response.token_ids) for response in responses) == 30


async def test_the_times_of_an_answer_fit_into_each_other(running: Running) -> None:
    timing = (await generate(running, endless(30)))[-1].timing
    assert 0 < timing.queue_seconds + timing.inference_seconds <= timing.total_seconds
    assert 0 < timing.tokenize_seconds < timing.time_to_first_token_seconds < timing.total_seconds


async def test_the_seed_that_the_server_drew_gives_the_same_answer_again(running: Running) -> None:
    first = await generate(running, endless(20))
    request = endless(20)
    request.sampling.seed = first[0].seed
    again = await generate(running, request)
    assert [id_ for r in again for id_ in r.token_ids] == [id_ for r in first for id_ in r.token_ids]
    assert again[0].seed == first[0].seed


async def test_log_probabilities_come_with_every_token_if_asked_for(running: Running) -> None:
    request = endless(8)
    request.logprobs = 2
    responses = await generate(running, request)
    for response in responses:
        assert [item.token_id for item in response.logprobs] == list(response.token_ids)
        for item in response.logprobs:
            assert item.logprob <= item.top[0].logprob <= 0
            assert len(item.top) == 2


async def test_an_unset_max_tokens_is_the_servers_default(start: Start) -> None:
    running = await start(default_max_tokens=7)
    responses = await generate(running, pb.GenerateRequest(stopping=pb.StoppingCriteria(ignore_eos=True)))
    assert responses[-1].usage == pb.Usage(prompt_tokens=1, generated_tokens=7)


async def test_a_slot_holds_as_many_tokens_as_the_server_is_told(start: Start) -> None:
    running = await start(slot_tokens=50)
    responses = await generate(running, pb.GenerateRequest(stopping=pb.StoppingCriteria(ignore_eos=True)))
    assert responses[-1].usage.generated_tokens == 49
    (model,) = [
        m
        for m in (await running.models.ListModels(model_pb2.ListModelsRequest())).models
        if m.name == bundles.GENERATOR
    ]
    assert model.max_tokens == 50


async def test_cancelling_frees_the_slot_and_is_counted_once(start: Start) -> None:
    running = await start(slots=1)
    stream = running.inference.Generate(endless())
    await anext(aiter(stream))
    stream.cancel()
    responses = await generate(running, endless(3))  # needs the only slot
    assert responses[-1].usage.generated_tokens == 3
    labels = {"model": bundles.GENERATOR, "version": "1", "method": "Generate"}
    await until(lambda: running.metric("requests_total", **labels, code="CANCELLED") == 1)
    assert running.metric("cancelled_total", **labels, reason="cancelled") == 1
    assert running.metric("requests_total", **labels, code="OK") == 1


async def test_each_input_gets_all_labels_best_first(running: Running) -> None:
    response = await running.inference.Classify(pb.ClassifyRequest(inputs=inputs(TEXTS)))
    assert response.header.model == bundles.CLASSIFIER
    assert len(response.results) == 3
    for result in response.results:
        scores = [label.score for label in result.labels]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)
        assert {label.label for label in result.labels} == set(bundles.LABELS)


async def test_top_k_leaves_the_best_labels(running: Running) -> None:
    everything = await running.inference.Classify(pb.ClassifyRequest(inputs=inputs(TEXTS)))
    best = await running.inference.Classify(pb.ClassifyRequest(inputs=inputs(TEXTS), top_k=2))
    more = await running.inference.Classify(pb.ClassifyRequest(inputs=inputs(TEXTS), top_k=9))
    assert [list(result.labels) for result in best.results] == [
        list(result.labels)[:2] for result in everything.results
    ]
    assert more.results == everything.results


async def test_an_embedding_has_length_one_and_is_the_same_bits_in_any_company(running: Running) -> None:
    together = await running.inference.Embed(pb.EmbedRequest(inputs=inputs(TEXTS)))
    for text, embedding in zip(TEXTS, together.embeddings, strict=True):
        assert len(embedding.values) == bundles.EMBEDDING_SIZE
        assert math.hypot(*embedding.values) == pytest.approx(1, abs=1e-5)
        alone = await running.inference.Embed(pb.EmbedRequest(inputs=inputs([text])))
        assert list(alone.embeddings) == [embedding]
    assert together.usage.generated_tokens == 0
    assert together.usage.prompt_tokens == 3 + 4 + 2
    assert 0 < together.timing.inference_seconds < together.timing.total_seconds


async def test_truncate_takes_what_is_too_long(running: Running) -> None:
    request = pb.EmbedRequest(inputs=inputs(["zyx" * 100]), truncate=True)
    assert (await running.inference.Embed(request)).usage.prompt_tokens == bundles.ENCODER_TOKENS


async def test_bulk_answers_are_those_of_single_requests_in_order_under_their_own_ids(running: Running) -> None:
    requests = [
        pb.EmbedRequest(request_id=f"id-{n}", inputs=inputs([TEXTS[n % 3] + " x" * (n % 7)])) for n in range(40)
    ]

    async def stream() -> AsyncIterator[pb.StreamEmbedRequest]:
        for request in requests:
            yield pb.StreamEmbedRequest(request=request)

    answers = [answer.response async for answer in running.inference.StreamEmbed(stream())]
    singles = await asyncio.gather(*(running.inference.Embed(request) for request in requests))
    assert [answer.header.request_id for answer in answers] == [request.request_id for request in requests]
    assert [answer.embeddings for answer in answers] == [single.embeddings for single in singles]
    labels = {"model": bundles.EMBEDDER, "version": "1", "method": "StreamEmbed"}
    assert running.metric("requests_total", **labels, code="OK") == 1
    assert running.metric("queue_duration_seconds_count", **labels) == 40


async def test_a_bulk_stream_answers_while_the_caller_keeps_it_open(running: Running) -> None:
    stream = running.inference.StreamClassify()
    for text in TEXTS:
        await stream.write(pb.StreamClassifyRequest(request=pb.ClassifyRequest(inputs=inputs([text]))))
        answer = await stream.read()
        assert isinstance(answer, pb.StreamClassifyResponse)
        assert len(answer.response.results) == 1
    await stream.done_writing()
    assert await stream.read() == grpc.aio.EOF


async def test_tokens_are_shown_with_their_place_in_the_text(running: Running) -> None:
    reference = pb.ModelReference(name=bundles.GENERATOR)
    request = pb.TokenizeRequest(model=reference, texts=["the cat", "é", ""])
    response = await running.inference.Tokenize(request)
    the_cat, accented, empty = response.results
    assert [(t.token, t.start, t.end) for t in the_cat.tokens] == [("<s>", 0, 0), ("the", 0, 3), ("Ġcat", 3, 7)]
    assert [(t.start, t.end) for t in accented.tokens] == [(0, 0), (0, 1), (0, 1)]
    assert [t.token for t in empty.tokens] == ["<s>"]
    request.add_special_tokens = False
    assert [t.token for t in (await running.inference.Tokenize(request)).results[0].tokens] == ["the", "Ġcat"]


async def test_the_request_id_is_the_messages_else_the_metadatas_else_made(running: Running) -> None:
    request, metadata = pb.EmbedRequest(inputs=inputs(["a"])), [("x-request-id", "from metadata")]
    made = {(await running.inference.Embed(request)).header.request_id for _ in range(3)}
    assert len(made) == 3
    assert (await running.inference.Embed(request, metadata=metadata)).header.request_id == "from metadata"
    request.request_id = "own"
    assert (await running.inference.Embed(request, metadata=metadata)).header.request_id == "own"


async def test_a_call_is_one_log_line_without_the_text(running: Running) -> None:
    request = pb.EmbedRequest(request_id="id-3", inputs=inputs(["the secret cat"]))
    with capture_logs() as logs:
        await running.inference.Embed(request)
        await until(lambda: logs)
    (line,) = logs
    assert (line["request_id"], line["method"], line["model"], line["code"]) == (
        "id-3",
        "Embed",
        bundles.EMBEDDER,
        "OK",
    )
    assert line["prompt_tokens"] > 0
    assert line["seconds"] >= line["inference_seconds"] > 0
    assert "secret" not in str(line)


async def test_models_are_listed_in_order_and_one_can_be_seen_whole(running: Running) -> None:
    models = (await running.models.ListModels(model_pb2.ListModelsRequest())).models
    assert [(m.name, m.version, m.state) for m in models] == [
        (name, "1", model_pb2.MODEL_STATE_READY)
        for name in sorted([bundles.GENERATOR, bundles.CLASSIFIER, bundles.EMBEDDER])
    ]
    assert not any(m.HasField("bundle") for m in models)
    model = (await running.models.GetModel(model_pb2.GetModelRequest(name=bundles.CLASSIFIER))).model
    assert model.task == model.bundle.task == bundle_pb2.TASK_CLASSIFY
    assert list(model.bundle.labels) == list(bundles.LABELS)
    assert model.max_tokens == bundles.ENCODER_TOKENS
    assert model.load_seconds > 0
