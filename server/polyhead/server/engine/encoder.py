"""The engine of models that classify or embed: a thread that runs batches, fed and awaited by asyncio."""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import structlog
from numpy.typing import NDArray

from polyhead.server.engine.batcher import Batch, Batcher, EncoderLimits, Request
from polyhead.server.engine.observer import EngineObserver
from polyhead.server.errors import Overloaded, Unavailable
from polyhead.server.runtime.encoder import Encoder

__all__ = ["EncoderAnswer", "EncoderEngine", "EncoderLimits", "EncoderResult"]

log = structlog.get_logger(__name__)

NO_ROW = np.empty(0, np.float32)
"""In place of an answer that has not come yet."""

FIRST_RETRY_SECONDS = 1.0
"""What a rejected caller is told to wait before any batch has been measured."""


@dataclass(frozen=True, slots=True)
class EncoderResult:
    """Answers to all inputs of a request, in their order."""

    rows: Sequence[NDArray[np.float32]]
    """Each (labels,), (embedding,), or (tokens, labels) of a model that labels tokens."""
    queue_seconds: float
    """From acceptance until the first batch with one of the inputs began."""
    inference_seconds: float
    """From then until the last batch with one of the inputs ended."""


@dataclass(slots=True, eq=False)
class _Job(Request):
    """A request and the task that waits for it. After admission all but `cancelled` belongs to the engine's thread."""

    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[EncoderResult]"
    accepted: float = field(default_factory=time.perf_counter)
    began: float | None = None
    ended: float | None = None
    token_types: Sequence[Sequence[int]] = ()
    """One for each input, empty where all are 0; or none at all."""
    rows: list[NDArray[np.float32]] = field(init=False)
    unanswered: int = field(init=False)

    def __post_init__(self) -> None:
        self.unanswered = len(self.inputs)
        self.rows = [NO_ROW] * self.unanswered


class EncoderAnswer:
    """The asyncio end of a request, whose `result` is awaited once."""

    def __init__(self, job: _Job, on_leave: Callable[[_Job], None]) -> None:
        self._job = job
        self._on_leave = on_leave

    async def result(self) -> EncoderResult:
        """Raises Unavailable when the engine ends before, and RuntimeError when the model run failed. If the awaiting
        task is cancelled, what has not run never will."""
        try:
            return await self._job.future
        finally:
            self._on_leave(self._job)

    def seconds(self) -> tuple[float, float]:
        """Spent in the queue and in inference, so far if it is not over."""
        job, end = self._job, self._job.ended or time.perf_counter()
        began = job.began or end
        return began - job.accepted, end - began


_Outcome = tuple[_Job, EncoderResult | Exception]


class EncoderEngine:
    """Takes requests from any number of event loops and runs their inputs in batches on a thread of its own.

    Owns the encoder: `close` closes it. One condition guards the queue; the thread holds it only to take a batch.
    """

    def __init__(self, encoder: Encoder, limits: EncoderLimits, observer: EngineObserver) -> None:
        self._encoder = encoder
        self._observer = observer
        self._batcher: Batcher[_Job] = Batcher(encoder.padded_lengths, limits)
        self._condition = threading.Condition()
        self._draining = self._dead = False
        self._tokens_per_second: float | None = None
        self._thread = threading.Thread(target=self._work, name="polyhead-encoder", daemon=True)

    @property
    def alive(self) -> bool:
        """False once the engine has met an error of its own that it could not go on from."""
        return not self._dead

    def start(self) -> None:
        """Begin to work; what was submitted before has waited."""
        self._thread.start()

    def check_room(self) -> None:
        """Raises what `submit` surely would, so that nobody prepares a request in vain. `submit` decides."""
        with self._condition:
            self._check_room(tokens=1)

    def submit(
        self, inputs: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] = (), adapter: str = ""
    ) -> EncoderAnswer:
        """Queue all inputs, each a sequence of token ids. `token_types`, for graphs that take them: of each input none, or one for
        each token; without them all are 0. `adapter`: one of the model's; empty: none.

        Raises InvalidInput for what could never run, Overloaded when the queue is full, and Unavailable when draining.
        """
        job = self._job(inputs, token_types, adapter)
        with self._condition:
            self._check_room(job.waiting_tokens)
            self._batcher.add(job)
            self._observer.queue_size(self._batcher.waiting_requests)
            self._condition.notify()
        return EncoderAnswer(job, self._leave)

    async def run(self, inputs: Sequence[Sequence[int]], adapter: str = "") -> EncoderResult:
        """`submit` and wait for the result."""
        return await self.submit(inputs, adapter=adapter).result()

    async def drain(self) -> None:
        """Refuse new requests and return when all that were accepted are answered."""
        self._refuse_new()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    def close(self) -> None:
        """Stop after the batch that runs; what waits fails with Unavailable. Blocks until then. Idempotent."""
        self._refuse_new()
        with self._condition:
            dropped = list(self._batcher.drop_all())
        _deliver([(job, Unavailable("the model was unloaded before the request ran")) for job in dropped])
        if self._thread.ident is not None:
            self._thread.join()
        self._encoder.close()

    def check_integrity(self) -> None:
        """Assert that the queue's counts are right, and that nothing is reserved when nothing waits."""
        with self._condition:
            self._batcher.check_integrity()

    def _job(self, inputs: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]], adapter: str) -> _Job:
        padded = self._batcher.pad(inputs)
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        return _Job(
            inputs, padded, len(padded), sum(padded), False, loop, future, adapter=adapter, token_types=token_types
        )

    def _leave(self, job: _Job) -> None:
        """Nobody waits for it any more: what has not run never will."""
        if job.unanswered:
            with self._condition:
                self._batcher.cancel(job)
                self._observer.queue_size(self._batcher.waiting_requests)

    def _check_room(self, tokens: int) -> None:
        if self._dead:
            raise Unavailable("the model's engine failed")
        if self._draining:
            raise Unavailable("the model is draining and takes no new requests")
        if refusal := self._batcher.refusal(tokens):
            raise Overloaded(refusal, self._retry_after())

    def _retry_after(self) -> float:
        """Seconds until what waits now has run, at the speed measured so far."""
        if self._tokens_per_second is None:
            return FIRST_RETRY_SECONDS
        return self._batcher.waiting_tokens / self._tokens_per_second

    def _refuse_new(self) -> None:
        with self._condition:
            self._draining = True
            self._condition.notify()

    # What follows runs on the engine's thread.

    def _work(self) -> None:
        batch: Batch[_Job] | None = None
        try:
            while batch := self._next_batch():
                self._observer.running(len(_jobs(batch)))
                _deliver(self._run(batch))
                self._observer.running(0)
        except BaseException:
            log.exception("the encoder engine died")
            self._die(batch)

    def _die(self, batch: Batch[_Job] | None) -> None:
        """Everyone who waits hears so, and nobody can come any more."""
        with self._condition:
            self._dead = self._draining = True
            jobs = {*(_jobs(batch) if batch else ()), *self._batcher.drop_all()}
        _deliver([(job, Unavailable("the model's engine failed")) for job in jobs])
        self._observer.queue_size(0)
        self._observer.running(0)

    def _next_batch(self) -> Batch[_Job] | None:
        """Wait for a batch; None when drained."""
        with self._condition:
            while (batch := self._batcher.take()) is None and not self._draining:
                self._observer.queue_size(0)
                self._condition.wait()
            self._observer.queue_size(self._batcher.waiting_requests)
        return batch

    def _run(self, batch: Batch[_Job]) -> list[_Outcome]:
        """Run a batch; outcomes of the requests that are complete by it, or of all in it if it failed."""
        began = time.perf_counter()
        for job in _jobs(batch):
            job.began = job.began or began
        try:
            ids, lengths = self._tensors(batch)
            rows = self._encoder.run(ids, lengths, self._token_types(batch), batch.adapter)
        except Exception as error:
            return self._fail(batch, error)
        ended = time.perf_counter()
        self._measure(batch, int(lengths.sum()), ended - began)
        return _scatter(batch, rows, lengths, ended)

    def _tensors(self, batch: Batch[_Job]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Right-padded ids (batch, sequence) and lengths (batch,)."""
        ids = np.full((len(batch.items), batch.length), self._encoder.pad_token_id, np.int64)
        lengths = np.ones(len(batch.items), np.int32)
        for row, (_, job, position) in enumerate(batch.items):
            inputs = job.inputs
            if inputs:  # else it was cancelled since the batch was taken, and nobody will read this row
                lengths[row] = len(inputs[position])
                ids[row, : lengths[row]] = inputs[position]
        return ids, lengths

    def _token_types(self, batch: Batch[_Job]) -> NDArray[np.int64] | None:
        """(batch, sequence), right-padded with 0; None where the graph takes none."""
        if not self._encoder.takes_token_types:
            return None
        types = np.zeros((len(batch.items), batch.length), np.int64)
        for row, (_, job, position) in enumerate(batch.items):
            if job.token_types:
                given = job.token_types[position]
                types[row, : len(given)] = given
        return types

    def _measure(self, batch: Batch[_Job], tokens: int, seconds: float) -> None:
        padding = batch.padded_tokens - tokens
        self._observer.ran(rows=len(batch.items), tokens=tokens, padding=padding, seconds=seconds)
        speed = batch.padded_tokens / seconds
        known = self._tokens_per_second
        self._tokens_per_second = speed if known is None else 0.8 * known + 0.2 * speed

    def _fail(self, batch: Batch[_Job], error: Exception) -> list[_Outcome]:
        """Every request of the batch fails, with what it still has in the queue."""
        outcomes: list[_Outcome] = []
        for job in _jobs(batch):
            with self._condition:
                self._batcher.cancel(job)
            job.ended = time.perf_counter()
            failure = RuntimeError(f"the model run failed: {error}")
            failure.__cause__ = error
            outcomes.append((job, failure))
        return outcomes


def _jobs(batch: Batch[_Job]) -> list[_Job]:
    """Each once, in order."""
    return list({item.request: None for item in batch.items})


def _scatter(batch: Batch[_Job], rows: NDArray[np.float32], lengths: NDArray[np.int32], ended: float) -> list[_Outcome]:
    """Give each request its rows, of (batch, width) or, without what stands at padding, of (batch, sequence, width); outcomes of
    the requests that now have all."""
    outcomes: list[_Outcome] = []
    for (_, job, position), row, length in zip(batch.items, rows, lengths, strict=True):
        job.rows[position] = row if row.ndim == 1 else row[:length]
        job.unanswered -= 1
        if job.unanswered == 0:
            began = job.began or ended
            job.ended = ended
            result = EncoderResult(job.rows, began - job.accepted, ended - began)
            outcomes.append((job, result))
    return outcomes


def _deliver(outcomes: Sequence[_Outcome]) -> None:
    """Hand outcomes over to the event loops that wait for them, in one call a loop."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[_Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_loop[outcome[0].loop].append(outcome)
    for loop, those in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, those)
        except RuntimeError:
            continue  # the loop is closed: nobody waits any more


def _settle(outcomes: Sequence[_Outcome]) -> None:
    for job, outcome in outcomes:
        if job.future.done():
            continue
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
