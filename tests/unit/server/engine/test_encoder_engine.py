"""The engine of classify and embed, on a real session of a tiny graph."""

import asyncio
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from polyhead.server.engine.encoder import EncoderEngine, EncoderLimits, EncoderResult
from polyhead.server.errors import InvalidInput, Overloaded, Unavailable
from polyhead.server.runtime.encoder import Encoder
from tests.observers import Unwatched
from tests.turns import started
from tests.unit.server.engine.graphs import VOCABULARY, WIDTH, manifest, write_encoder

LIMITS = EncoderLimits(max_batch_tokens=64, max_queue_requests=100, max_queue_tokens=10_000)


class GatedEncoder(Encoder):
    """The real encoder, whose runs wait until the test opens the gate; remembers the shapes it ran."""

    def __init__(self, graph: Path, *, opened: bool) -> None:
        super().__init__(graph, manifest())
        self.shapes: list[tuple[int, ...]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        if opened:
            self.gate.set()

    def run(
        self,
        ids: NDArray[np.int64],
        lengths: NDArray[np.int32],
        token_types: NDArray[np.int64] | None = None,
        adapter: str = "",
    ) -> NDArray[np.float32]:
        self.entered.set()
        assert self.gate.wait(10)
        self.shapes.append(ids.shape)
        return super().run(ids, lengths, token_types, adapter)


class Recorder(Unwatched):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.queue: list[int] = []
        self.requests: list[int] = []
        self.runs: list[tuple[int, int, int]] = []

    def queue_size(self, requests: int) -> None:
        self.queue.append(requests)

    def running(self, requests: int) -> None:
        self.requests.append(requests)

    def ran(self, *, rows: int, tokens: int, padding: int, seconds: float) -> None:
        assert seconds > 0
        self.runs.append((rows, tokens, padding))

    def first_token(self, seconds: float) -> None:
        raise AssertionError("an encoder makes no tokens")

    def inter_token(self, seconds: float) -> None:
        raise AssertionError("an encoder makes no tokens")


class Bench:
    """An engine, not yet started, and what a test looks at."""

    def __init__(self, graph: Path, limits: EncoderLimits = LIMITS, *, opened: bool = True) -> None:
        self.encoder = GatedEncoder(graph, opened=opened)
        self.observer = Recorder()
        self.engine = EncoderEngine(self.encoder, limits, self.observer)

    async def submit(self, *inputs: list[int]) -> "asyncio.Task[EncoderResult]":
        """A request that is in the queue when this returns."""
        task = await started(self.engine.run(inputs))
        return task

    async def until_running(self) -> None:
        assert await asyncio.to_thread(self.encoder.entered.wait, 10)

    def close(self) -> None:
        self.encoder.gate.set()
        self.engine.close()
        self.engine.check_integrity()


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    write_encoder(path)
    return path


@pytest.fixture
def bench(graph: Path) -> Iterator[Bench]:
    made = Bench(graph)
    yield made
    made.close()


@pytest.fixture
def gated(graph: Path) -> Iterator[Bench]:
    made = Bench(graph, opened=False)
    yield made
    made.close()


def alone(encoder: Encoder, tokens: list[int]) -> NDArray[np.float32]:
    """What the graph itself answers to one input, padded to the smallest of 4, 8 and 16."""
    padded = next(length for length in (4, 8, 16) if length >= len(tokens))
    ids = np.array([tokens + [0] * (padded - len(tokens))])
    row: NDArray[np.float32] = Encoder.run(encoder, ids, np.array([len(tokens)], np.int32))[0]
    return row


async def test_results_come_in_the_order_of_the_inputs(bench: Bench) -> None:
    inputs = [[index % VOCABULARY] * (1 + index % 16) for index in range(300)]
    bench.engine.start()
    result = await bench.engine.run(inputs)
    assert np.shape(result.rows) == (300, WIDTH)
    assert np.stack(result.rows).dtype == np.float32
    assert result.queue_seconds >= 0
    assert result.inference_seconds > 0
    for row, tokens in zip(result.rows, inputs, strict=True):
        np.testing.assert_allclose(row, alone(bench.encoder, tokens), rtol=1e-5, atol=1e-6)


async def test_of_three_callers_one_cancels_and_the_others_are_still_answered(bench: Bench) -> None:
    first, second, third = [await bench.submit([number]) for number in (1, 2, 3)]
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    bench.engine.start()
    results = await asyncio.wait_for(asyncio.gather(first, third), 10)
    assert bench.encoder.shapes == [(2, 4)]
    for result, tokens in zip(results, ([1], [3]), strict=True):
        np.testing.assert_array_equal(result.rows[0], alone(bench.encoder, tokens))


async def test_what_waits_when_the_model_becomes_free_runs_together(gated: Bench) -> None:
    gated.engine.start()
    tasks = [await gated.submit([1])]
    await gated.until_running()
    tasks += [await gated.submit([number] * 5) for number in range(4)]
    tasks += [await gated.submit([number]) for number in range(3)]
    gated.encoder.gate.set()
    await asyncio.gather(*tasks)
    assert gated.encoder.shapes == [(1, 4), (4, 8), (3, 4)]


async def test_the_observer_hears_of_every_run_and_of_idleness(bench: Bench) -> None:
    task = await bench.submit([1, 2, 3], [4], [5, 6, 7, 8, 9])
    bench.engine.start()
    await task
    await bench.engine.drain()
    assert bench.observer.runs == [(2, 4, 4), (1, 5, 3)]
    assert bench.observer.requests == [1, 0, 1, 0]
    assert bench.observer.queue[0] == 1
    assert bench.observer.queue[-1] == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    inputs=st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=16), min_size=1, max_size=40),
    cuts=st.sets(st.integers(1, 39)),
)
def test_an_answer_is_the_same_bits_alone_and_in_any_batch(
    graph: Path, inputs: list[list[int]], cuts: set[int]
) -> None:
    bench = Bench(graph)
    borders = [0, *sorted(cut for cut in cuts if cut < len(inputs)), len(inputs)]

    async def all_at_once() -> list[EncoderResult]:
        tasks = [await bench.submit(*inputs[start:end]) for start, end in itertools.pairwise(borders)]
        bench.engine.start()
        return await asyncio.gather(*tasks)

    rows = np.concatenate([result.rows for result in asyncio.run(all_at_once())])
    expected = np.stack([alone(bench.encoder, tokens) for tokens in inputs])
    bench.close()
    np.testing.assert_array_equal(rows, expected)


async def test_a_failing_run_fails_its_batch_only_and_the_engine_goes_on(bench: Bench) -> None:
    bad, neighbour = await bench.submit([VOCABULARY + 7], [1] * 16), await bench.submit([2])
    other = await bench.submit([3] * 8)
    bench.engine.start()
    outcomes = await asyncio.gather(bad, neighbour, other, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [RuntimeError, RuntimeError, EncoderResult]
    assert "the model run failed" in str(outcomes[0])
    assert bench.encoder.shapes == [(2, 4), (1, 8)], "the rest of a failed request never runs"
    assert np.shape((await bench.engine.run([[4]])).rows) == (1, WIDTH)


async def test_cancelling_a_request_that_runs_drops_the_rest_of_it(gated: Bench) -> None:
    gated.engine.start()
    large = await gated.submit(*[[1] * 16] * 40)
    await gated.until_running()
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)
    small = await gated.submit([1])
    gated.encoder.gate.set()
    await small
    assert gated.encoder.shapes == [(4, 16), (1, 4)]


async def test_a_deadline_frees_the_queue_at_once(graph: Path) -> None:
    bench = Bench(graph, EncoderLimits(max_batch_tokens=16, max_queue_requests=1, max_queue_tokens=100))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bench.engine.run([[1]]), 0)
    waiting = await bench.submit([2])
    bench.engine.start()
    assert np.shape((await waiting).rows) == (1, WIDTH)
    bench.close()


async def test_a_full_queue_rejects_with_the_limit_and_when_to_retry(graph: Path) -> None:
    bench = Bench(graph, EncoderLimits(max_batch_tokens=16, max_queue_requests=2, max_queue_tokens=100), opened=False)
    with_hint = [await bench.submit([1]), await bench.submit([2])]
    with pytest.raises(Overloaded, match="2 requests wait, the limit is 2") as caught:
        await bench.engine.run([[3]])
    assert caught.value.retry_after_seconds == 1.0, "nothing is measured yet"
    bench.engine.start()
    bench.encoder.gate.set()
    await asyncio.gather(*with_hint)
    bench.encoder.gate.clear()
    bench.encoder.entered.clear()
    running = await bench.submit([1])
    await bench.until_running()
    waiting = [await bench.submit([2] * 16), await bench.submit([2])]
    with pytest.raises(Overloaded) as caught:
        await bench.engine.run([[3]])
    assert 0 < caught.value.retry_after_seconds < 60
    bench.encoder.gate.set()
    await asyncio.gather(running, *waiting)
    bench.close()


async def test_draining_answers_what_was_accepted_and_refuses_the_rest(gated: Bench) -> None:
    gated.engine.start()
    accepted = [await gated.submit([1]), await gated.submit([2] * 16)]
    draining = await started(gated.engine.drain())
    with pytest.raises(Unavailable, match="draining"):
        await gated.engine.run([[3]])
    gated.encoder.gate.set()
    await draining
    assert [np.shape((await task).rows) for task in accepted] == [(1, WIDTH)] * 2


async def test_closing_fails_what_waits_and_lets_the_running_batch_end(gated: Bench) -> None:
    gated.engine.start()
    running = await gated.submit([1])
    await gated.until_running()
    waiting = await gated.submit([2])
    closing = asyncio.create_task(asyncio.to_thread(gated.engine.close))
    with pytest.raises(Unavailable, match="unloaded"):
        await waiting
    gated.encoder.gate.set()
    await closing
    assert np.shape((await running).rows) == (1, WIDTH)
    gated.engine.close()
    with pytest.raises(Unavailable):
        await gated.engine.run([[1]])


async def test_an_engine_that_never_started_can_be_drained_and_closed(bench: Bench) -> None:
    await bench.engine.drain()
    bench.engine.close()
    with pytest.raises(Unavailable):
        await bench.engine.run([[1]])


async def test_bad_inputs_are_refused_before_they_queue(bench: Bench) -> None:
    bench.engine.start()
    with pytest.raises(InvalidInput, match=r"inputs\[1\]: must have 1 to 16 tokens, got 17"):
        await bench.engine.run([[1], [1] * 17])


def test_requests_may_come_from_several_event_loops(bench: Bench) -> None:
    bench.engine.start()
    results: dict[int, EncoderResult] = {}

    def caller(number: int) -> None:
        results[number] = asyncio.run(bench.engine.run([[number]] * 5))

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        np.testing.assert_array_equal(results[number].rows, [alone(bench.encoder, [number])] * 5)


def test_a_loop_that_closed_meanwhile_harms_nobody(gated: Bench) -> None:
    gated.engine.start()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it would tell of the task that it leaves behind
    abandoned = loop.create_task(gated.engine.run([[1]]))
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert gated.encoder.entered.wait(10)
    loop.close()
    gated.encoder.gate.set()
    assert np.shape(asyncio.run(gated.engine.run([[2]])).rows) == (1, WIDTH)
    del abandoned


async def test_the_queue_is_told_of_when_a_request_comes_and_when_it_leaves(bench: Bench) -> None:
    first, second = await bench.submit([1]), await bench.submit([2])
    assert bench.observer.queue == [1, 2]
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert bench.observer.queue == [1, 2, 1]
    bench.engine.start()
    await second


async def test_an_answer_tells_its_times_before_it_is_over(gated: Bench) -> None:
    answer = gated.engine.submit([[1]])
    queue, inference = answer.seconds()
    assert queue > 0
    assert inference == 0
    gated.engine.start()
    await gated.until_running()
    queue, inference = answer.seconds()
    assert inference > 0
    gated.encoder.gate.set()
    result = await answer.result()
    assert answer.seconds() == (result.queue_seconds, result.inference_seconds)
    assert result.queue_seconds == queue


class Broken(BaseException):
    """What no engine can go on from."""


async def test_an_engine_that_dies_tells_everyone_who_waits_and_everyone_who_comes(
    gated: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        assert gated.encoder.gate.wait(10)
        gated.encoder.entered.set()
        raise Broken

    monkeypatch.setattr(gated.encoder, "run", die)
    runs, waits = await gated.submit([1]), await gated.submit([2] * 8)
    assert gated.engine.alive
    gated.engine.start()
    gated.encoder.gate.set()
    for task in (runs, waits):
        with pytest.raises(Unavailable, match="the model's engine failed"):
            await task
    assert not gated.engine.alive
    with pytest.raises(Unavailable, match="the model's engine failed"):
        await gated.engine.run([[3]])
    await gated.engine.drain()
    assert gated.observer.queue[-1] == gated.observer.requests[-1] == 0
