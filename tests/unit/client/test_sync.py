import time
from dataclasses import dataclass, field
from threading import Event, Thread

import grpc
import pytest
from grpc_health.v1 import health_pb2

from polyhead.client import (
    Alignment,
    Cancelled,
    Client,
    DeadlineExceeded,
    InvalidInput,
    MessageTooLarge,
    ModelNotFound,
    NotAllowed,
    Overloaded,
    Piece,
    PolyheadError,
    RetryPolicy,
    ServerError,
    Unauthenticated,
    Unavailable,
    WrongTask,
)
from tests.unit.client.scripted_server import Failure, ScriptedServer, bad_request, retry_info

FULL = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue of 4 requests is full", (retry_info(0.02),))


def test_pieces_come_one_by_one_and_the_last_says_why_it_ended(client: Client) -> None:
    stream = client.generate("one two", model="m", version="3", request_id="r", seed=5)
    assert (stream.model, stream.version, stream.seed) == (None, None, None)
    pieces = list(stream)
    assert [(p.text, p.token_ids, p.finish_reason) for p in pieces] == [
        ("one", (0,), None),
        (" two", (1,), None),
        ("", (), "length"),
    ]
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.generated_tokens == 2
    assert (stream.request_id, stream.model, stream.version, stream.seed) == ("r", "m", "3", 5)


def test_the_whole_answer_has_everything(client: Client) -> None:
    answer = client.generate([10, 11], logprobs=1).result()
    assert (answer.text, answer.token_ids, answer.finish_reason, answer.seed) == ("10 11", (0, 1), "length", 7)
    assert (answer.model, answer.version, len(answer.request_id)) == ("generate", "1", 32)
    assert (answer.usage.prompt_tokens, answer.timing.total_seconds) == (2, 0.6)
    assert answer.timing.time_to_first_token_seconds == 0.4
    assert [(p.token, p.logprob, p.top[0].token) for p in answer.logprobs] == [("10", -0.5, "10"), ("11", -0.5, "11")]


def test_messages_stand_for_a_prompt(client: Client, server: ScriptedServer) -> None:
    assert client.generate(messages=[{"role": "user", "content": "one two"}]).text == "one two"
    (request,) = server.script.requests
    assert [(message.role, message.content) for message in request.messages] == [("user", "one two")]
    with pytest.raises(InvalidInput, match="together with prompt"):
        client.generate("one", messages=[{"role": "user", "content": "two"}])


def test_samples_come_in_turn_and_each_is_a_whole_answer(client: Client) -> None:
    stream = client.generate("one two", samples=2, prompt_logprobs=0, prompt_lookup=True)
    first = next(stream)
    assert (first.sample_index, [logprob.token for logprob in first.prompt_logprobs]) == (0, ["two"])
    samples = stream.results()
    assert [(s.sample_index, s.text, s.token_ids) for s in samples] == [
        (0, "one two", (0, 1)),
        (1, "one two (1)", (0, 1, 2)),
    ]
    assert [[logprob.token for logprob in sample.prompt_logprobs] for sample in samples] == [["two"], []]
    usage = samples[1].usage
    assert (usage.generated_tokens, usage.cached_prompt_tokens) == (3, 1)
    assert (usage.drafted_tokens, usage.accepted_tokens) == (2, 1)


def test_one_of_several_samples_is_not_the_result(client: Client) -> None:
    stream = client.generate("one", samples=2)
    with pytest.raises(ValueError, match=r"2 samples: take them with results\(\)"):
        stream.result()
    with pytest.raises(ValueError, match=r"results\(\)"):
        _ = stream.text
    assert len(stream.results()) == 2


def test_results_of_one_sample_are_its_result(client: Client) -> None:
    stream = client.generate("one", samples=1)
    assert stream.results() == (stream.result(),)


def test_samples_without_an_end_are_no_answer(client: Client) -> None:
    with client.generate("one two", samples=2) as stream:
        while next(stream).finish_reason is None:
            pass  # until the end of sample 0
    with pytest.raises(Cancelled):
        stream.results()


def test_a_beam_search_gives_the_answers_it_found_best_first(client: Client) -> None:
    found = client.generate("one two", beam_width=4, samples=3).results()
    assert [(answer.sample_index, answer.text, answer.score) for answer in found] == [
        (0, "one two", -0.25),
        (1, "one two (1)", -0.5),
    ]
    best = client.generate("one two", beam_width=4).result()
    assert (best.text, best.score) == ("one two", -0.25)
    assert client.generate("one two").result().score is None


def test_a_search_that_is_cut_short_is_no_answer(server: ScriptedServer, client: Client) -> None:
    with client.generate("one", beam_width=4, samples=3) as stream:
        next(stream)
    with pytest.raises(Cancelled):
        stream.results()
    server.script.failures.append(Failure(grpc.StatusCode.UNAVAILABLE, "gone", after=1))
    with pytest.raises(Unavailable, match="gone"):
        client.generate("one", beam_width=4, samples=3).results()
    with pytest.raises(ServerError, match="without a finish reason"):
        client.generate("cut short", beam_width=4, samples=3).results()


def test_a_search_read_to_its_end_is_whole_although_it_was_closed(client: Client) -> None:
    with client.generate("one", beam_width=4, samples=3) as stream:
        assert [piece.score for piece in stream] == [-0.25, -0.5]
    assert len(stream.results()) == 2


def test_an_alignment_has_a_row_of_weights_for_each_token_of_the_answer(client: Client) -> None:
    *others, last = client.generate("one two", return_alignment=True)
    assert all(piece.alignment is None for piece in others)
    assert last.alignment == Alignment(("one", "two", "</s>"), ("one", "two"), ((1, 0, 0), (0, 1, 0)))
    answer = client.generate("one two", return_alignment=True).result()
    assert answer.alignment == last.alignment
    assert hash(answer.alignment) == hash(last.alignment)
    assert client.generate("one two").result().alignment is None


def test_text_waits_for_the_rest_of_a_stream_that_was_begun(client: Client) -> None:
    with client.generate("one two three") as stream:
        next(stream)
        assert stream.text == "one two three"
    assert stream.result().text == "one two three"  # also after it was closed: the answer is whole


def test_classify_embed_and_tokenize_answer_each_text(client: Client) -> None:
    classified = client.classify(["a", "a" * 20, [1, 2]], top_k=1)
    assert [result.best.label for result in classified.results] == ["short", "long", "short"]
    assert [len(result.labels) for result in classified.results] == [1, 1, 1]
    assert classified.timing.time_to_first_token_seconds is None
    assert client.embed("ab").embeddings == [[97.0, 98.0]]
    tokens = client.tokenize("ab").results[0]
    assert [(t.id, t.token, t.start, t.end) for t in tokens] == [(0, "<s>", 0, 0), (97, "a", 0, 1), (98, "b", 1, 2)]
    assert len(client.tokenize("ab", add_special_tokens=False).results[0]) == 2


def test_models_are_listed_with_state_and_reason(client: Client) -> None:
    ready, failed = client.models()
    assert (ready.name, ready.version, ready.state, ready.task, ready.max_tokens) == (
        "names",
        "1",
        "ready",
        "classify",
        128,
    )
    assert (failed.state, failed.reason, failed.task, failed.bundle) == ("failed", "bundle.json: not JSON", None, None)


def test_one_model_comes_with_its_manifest(client: Client) -> None:
    model = client.model("names", version="1")
    assert model.bundle is not None
    assert model.bundle.parameters == 2**40


def test_health_tells_whether_server_and_models_serve(server: ScriptedServer, client: Client) -> None:
    assert client.health()
    server.health.set("names", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not client.health("names")
    with pytest.raises(ModelNotFound):
        client.health("nobody")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInput),
        (grpc.StatusCode.NOT_FOUND, ModelNotFound),
        (grpc.StatusCode.FAILED_PRECONDITION, WrongTask),
        (grpc.StatusCode.PERMISSION_DENIED, NotAllowed),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.CANCELLED, Cancelled),
        (grpc.StatusCode.INTERNAL, ServerError),
        (grpc.StatusCode.UNIMPLEMENTED, ServerError),
    ],
)
def test_each_status_has_its_exception(
    server: ScriptedServer, code: grpc.StatusCode, error: type[PolyheadError]
) -> None:
    server.script.failures.append(Failure(code, "what happened"))
    with Client(server.target, retry=RetryPolicy(attempts=1)) as client, pytest.raises(error) as caught:
        client.embed("a", request_id="r-7")
    assert type(caught.value) is error
    assert (caught.value.code, caught.value.message, caught.value.request_id) == (code, "what happened", "r-7")
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_a_refused_field_is_named(server: ScriptedServer, client: Client) -> None:
    details = (bad_request("sampling.top_p", "must be above 0 to 1, given 7"),)
    server.script.failures.append(Failure(grpc.StatusCode.INVALID_ARGUMENT, "sampling.top_p: 7", details))
    with pytest.raises(InvalidInput) as caught:
        client.generate("a", top_p=7).result()
    assert caught.value.field == "sampling.top_p"
    assert caught.value.violations[0].description == "must be above 0 to 1, given 7"
    assert len(server.script.requests) == 1


def test_details_that_are_not_googles_leave_code_and_text(server: ScriptedServer, client: Client) -> None:
    failure = Failure(grpc.StatusCode.INVALID_ARGUMENT, "no", raw_details=b"\xff\xff")
    server.script.failures.append(failure)
    with pytest.raises(InvalidInput, match="no") as caught:
        client.embed("a")
    assert caught.value.field is None


def test_a_full_server_is_asked_again_when_it_says(server: ScriptedServer, client: Client) -> None:
    server.script.failures.extend([FULL, FULL])
    begin = time.monotonic()
    assert client.embed("a", request_id="same").embeddings == [[97.0]]
    assert time.monotonic() - begin >= 2 * 0.02
    assert [request.request_id for request in server.script.requests] == ["same"] * 3


def test_a_stream_is_asked_for_again_before_its_first_message(server: ScriptedServer, client: Client) -> None:
    server.script.failures.extend([FULL, Failure(grpc.StatusCode.UNAVAILABLE, "loading")])
    assert client.generate("a b").text == "a b"
    assert len(server.script.requests) == 3


@pytest.mark.parametrize("message", ["full", "Received message larger than max"])
def test_a_limit_without_a_time_to_come_back_is_not_tried_again(
    server: ScriptedServer, client: Client, message: str
) -> None:
    server.script.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, message))
    with pytest.raises(PolyheadError, match=message):
        client.embed("a")
    assert len(server.script.requests) == 1


def test_a_request_larger_than_the_server_takes_says_so_and_what_to_do(server: ScriptedServer, client: Client) -> None:
    with pytest.raises(
        MessageTooLarge, match=r"larger than max \(50000\d\d vs. 4194304\); send fewer or shorter"
    ) as caught:
        client.embed("a" * 5_000_000, request_id="large")
    assert (caught.value.code, caught.value.request_id) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "large")
    assert server.script.requests == []


def test_a_stream_is_never_asked_for_again_after_its_first_message(server: ScriptedServer, client: Client) -> None:
    server.script.failures.append(Failure(grpc.StatusCode.UNAVAILABLE, "gone", after=1))
    stream = client.generate("a b")
    assert next(stream).text == "a"
    with pytest.raises(Unavailable, match="gone"):
        next(stream)
    with pytest.raises(Unavailable, match="gone"):
        stream.result()
    assert len(server.script.requests) == 1


def test_attempts_are_bounded_and_the_last_refusal_is_raised(server: ScriptedServer, client: Client) -> None:
    server.script.failures.extend([FULL] * 9)
    with pytest.raises(Overloaded, match="queue of 4 requests is full") as caught:
        client.classify("a")
    assert caught.value.retry_after == pytest.approx(0.02)
    assert len(server.script.requests) == client.retry.attempts


def test_no_retry_outlives_the_deadline(server: ScriptedServer) -> None:
    server.script.failures.extend([FULL] * 1000)
    begin = time.monotonic()
    with Client(server.target, timeout=0.4, retry=RetryPolicy(attempts=1000)) as client, pytest.raises(Overloaded):
        client.embed("a")
    assert time.monotonic() - begin < 3
    assert 1 < len(server.script.requests) < 21


def test_a_wait_longer_than_the_deadline_is_not_begun(server: ScriptedServer, client: Client) -> None:
    server.script.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (retry_info(3600),)))
    begin = time.monotonic()
    with pytest.raises(Overloaded) as caught:
        client.generate("a").result()
    assert caught.value.retry_after == 3600
    assert time.monotonic() - begin < 10


def test_nobody_at_the_target_is_unavailable() -> None:
    retry = RetryPolicy(attempts=2, initial_backoff=0.01)
    with Client("127.0.0.1:1", retry=retry) as client, pytest.raises(Unavailable, match="onnect"):
        client.embed("a")


def test_a_call_ends_at_its_timeout(client: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        client.generate("endless", timeout=0.2).result()


def test_leaving_the_with_block_frees_the_server(server: ScriptedServer, client: Client) -> None:
    with client.generate("endless") as stream:
        next(stream)
    assert server.script.streams_ended.acquire(timeout=10)
    assert list(stream) == []
    with pytest.raises(Cancelled):
        stream.result()


def test_a_dropped_stream_frees_the_server(server: ScriptedServer, client: Client) -> None:
    stream = client.generate("endless")
    next(stream)
    del stream
    assert server.script.streams_ended.acquire(timeout=10)


def test_a_stream_may_be_closed_by_another_thread(server: ScriptedServer, client: Client) -> None:
    stream = client.generate("endless")
    next(stream)
    closer = Thread(target=stream.close)
    closer.start()
    assert list(stream) == []
    closer.join()


@dataclass(frozen=True)
class ToldPolicy(RetryPolicy):
    """Says when a wait begins."""

    waits: Event = field(default_factory=Event)

    def delay(self, error: PolyheadError, attempt: int) -> float | None:
        self.waits.set()
        return super().delay(error, attempt)


def test_a_stream_closed_while_it_waits_ends_at_once_and_is_not_asked_for_again(server: ScriptedServer) -> None:
    server.script.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (retry_info(60),)))
    policy = ToldPolicy()
    with Client(server.target, timeout=300, retry=policy) as client:
        stream = client.generate("endless")
        pieces: list[Piece] = []
        reader = Thread(target=lambda: pieces.extend(stream), daemon=True)
        reader.start()
        assert policy.waits.wait(10)
        stream.close()
        reader.join(10)
        assert not reader.is_alive()
        assert pieces == []
        assert client.embed("a", request_id="after").embeddings
    assert [request.request_id for request in server.script.requests] == [stream.request_id, "after"]


def test_closing_the_client_ends_its_streams(server: ScriptedServer, client: Client) -> None:
    stream = client.generate("endless")
    next(stream)
    client.close()
    with pytest.raises(Cancelled):
        next(stream)


def test_a_stream_without_an_end_is_the_servers_error(server: ScriptedServer, client: Client) -> None:
    with pytest.raises(ServerError, match="without a finish reason"):
        client.generate("cut short").result()


def test_the_target_comes_from_the_environment(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_TARGET", server.target)
    with Client() as client:
        assert client.health()
    monkeypatch.delenv("POLYHEAD_TARGET")
    with Client() as client:
        assert client.target == "localhost:50051"
