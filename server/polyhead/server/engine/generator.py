"""Continuous batching (Yu et al. 2022, Orca, section 3): one thread a model that admits, prefills, decodes and samples.

An iteration prefills chunks under a token budget, each in a call of its own, and then gives every decoding row its next token
in one call. Requests come from event loops under a lock; pieces go back with one call a loop and step.
"""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import structlog

from polyhead.server.engine.answer import Answer, Delivery, deliver_all
from polyhead.server.engine.observer import EngineObserver
from polyhead.server.engine.progress import Progress
from polyhead.server.engine.scheduler import Chunk, GeneratorLimits, Scheduler
from polyhead.server.engine.sequence import GenerationRequest, Sequence
from polyhead.server.engine.slots import Slots
from polyhead.server.errors import Unavailable
from polyhead.server.runtime.decoder import Decoder, StepOutput
from polyhead.server.sampling import Row, choose, graph_top_k
from polyhead.server.tokenizer import Tokenizer

log = structlog.get_logger(__name__)


class Generator:
    """The engine of one decoder. `start` it once; `submit` from any event loop; `drain` or `close` it at the end."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        limits: GeneratorLimits,
        observer: EngineObserver,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """The engine owns the decoder from here on and closes it."""
        self.capacity = decoder.capacity
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._observer = observer
        self._clock = clock
        self._slots = Slots(decoder.slots, decoder)
        self._scheduler = Scheduler(self._slots, limits, decoder.prefill_chunk)
        self._progress: dict[Sequence, Progress] = {}
        self._answers: dict[Sequence, Answer] = {}
        self._deliveries: list[Delivery] = []
        self._wake = threading.Condition()
        self._draining = self._closing = False
        self._idle_waiters: list[Future[None]] = []
        self._seconds_per_request = 0.0  # exponential moving average, for telling when to come back
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, request: GenerationRequest) -> Answer:
        """Queue a request. Raises Overloaded if the queue is full and Unavailable if the engine drains.

        Raises ValueError for what the service must have refused: an empty prompt, or one that with `max_tokens` passes the capacity.
        """
        if not request.prompt or len(request.prompt) + request.stopping.max_tokens > self.capacity:
            raise ValueError(
                f"a prompt of {len(request.prompt)} and {request.stopping.max_tokens} more tokens; a slot holds {self.capacity}"
            )
        sequence = Sequence(request, self._clock())
        answer = Answer(lambda: self._cancel(sequence))
        with self._wake:
            if self._draining:
                raise Unavailable("the model is draining")
            self._scheduler.add(sequence, self._retry_after())
            self._answers[sequence] = answer
            self._observer.queue_size(self._scheduler.waiting)
            self._wake.notify()
        return answer

    async def drain(self) -> None:
        """Take no more requests and wait until those there are answered."""
        idle: Future[None] = Future()
        with self._wake:
            self._draining = True
            self._idle_waiters.append(idle)
            self._wake.notify()
        await asyncio.wrap_future(idle)

    def close(self) -> None:
        """End everything after the current step; answers that are not over raise Unavailable."""
        with self._wake:
            self._draining = self._closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def check_integrity(self) -> None:
        """Raises AssertionError if slots or queue contradict each other, or hold anything while idle."""
        with self._wake:
            self._scheduler.check_integrity()
            if not self._scheduler.has_work:
                assert not self._answers, "an idle engine remembers answers"
                assert not self._progress, "an idle engine remembers progress"

    def _cancel(self, sequence: Sequence) -> None:
        with self._wake:
            sequence.ended = True
            if self._scheduler.remove(sequence):
                del self._answers[sequence]
                self._observer.queue_size(self._scheduler.waiting)
            self._wake.notify()

    def _retry_after(self) -> float:
        """Seconds until a place in the queue is likely free."""
        return min(max(self._seconds_per_request / self._decoder.slots, 0.05), 30.0)

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._iterate()
            except Exception as error:
                log.exception("generation step failed")
                self._fail_admitted(error)
            self._publish()
        self._decoder.close()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False: the engine closes, and every answer has been told."""
        with self._wake:
            while not (self._scheduler.has_work or self._closing):
                for waiter in self._idle_waiters:
                    waiter.set_result(None)
                self._idle_waiters.clear()
                self._wake.wait()
            if not self._closing:
                return True
            self._deliveries += [(answer, Unavailable("the server stops")) for answer in self._answers.values()]
        self._publish()
        for waiter in self._idle_waiters:
            waiter.set_result(None)
        return False

    def _iterate(self) -> None:
        """One iteration: prefill under the budget, then one token for every row that decodes."""
        spent = 0
        while chunk := self._next_chunk(spent):
            self._prefill(chunk)
            self._publish()
            spent += chunk.end - chunk.start
        rows = list(self._slots.decoding)
        if rows:
            self._decode(rows)

    def _next_chunk(self, spent: int) -> Chunk | None:
        with self._wake:
            admitted = [self._scheduler.prefilling, *self._slots.decoding]
            for sequence in admitted:
                if sequence is not None and sequence.ended:
                    self._release(sequence)
            chunk = self._scheduler.next_chunk(spent)
            self._observer.queue_size(self._scheduler.waiting)
            self._observer.running(self._slots.used)
        if chunk and chunk.sequence not in self._progress:
            chunk.sequence.started = self._clock()
            self._progress[chunk.sequence] = Progress(chunk.sequence, self._tokenizer)
        return chunk

    def _prefill(self, chunk: Chunk) -> None:
        sequence, progress = chunk.sequence, self._progress[chunk.sequence]
        tokens = np.array(sequence.request.prompt[chunk.start : chunk.end], np.int64)
        choices = [progress.row()]
        top_k = graph_top_k(choices, sequence.request.logprobs or 0) if chunk.is_last else 1
        began = self._clock()
        out = self._decoder.prefill(sequence.slot, tokens, chunk.start, top_k)
        padding = max(0, 2 - len(tokens))
        self._observer.ran(rows=1, tokens=len(tokens), padding=padding, seconds=self._clock() - began)
        self._scheduler.prefilled(chunk)
        if chunk.is_last:
            self._advance([sequence], choices, out)

    def _decode(self, rows: list[Sequence]) -> None:
        choices = [self._progress[s].row() for s in rows]
        top_k = graph_top_k(choices, max(s.request.logprobs or 0 for s in rows))
        tokens = np.array([s.tokens[-1] for s in rows], np.int64)
        past = np.array([s.cached for s in rows], np.int32)
        began = self._clock()
        out = self._decoder.decode(tokens, past, top_k)
        self._observer.ran(rows=len(rows), tokens=len(rows), padding=0, seconds=self._clock() - began)
        for sequence in rows:
            sequence.cached += 1
        self._advance(rows, choices, out)

    def _advance(self, rows: list[Sequence], choices: list[Row], out: StepOutput) -> None:
        """Make each row's choice and hand it out; row i of the output belongs to rows[i]."""
        tokens, logits = choose(choices, out.topk_values, out.topk_ids, out.logits)
        now = self._clock()
        for i, sequence in enumerate(rows):
            p = self._progress[sequence]
            self._observe(sequence, now)
            piece = p.advance(tokens[i], p.logprob(tokens[i], logits[i], out, i))
            self._deliveries.append((self._answers[sequence], piece))
            if piece.finish_reason:
                self._finish(sequence, now)

    def _observe(self, sequence: Sequence, now: float) -> None:
        if sequence.tokens:
            self._observer.inter_token(now - sequence.last_token)
        else:
            sequence.first_token = now
            self._observer.first_token(now - sequence.arrived)
        sequence.last_token = now

    def _finish(self, sequence: Sequence, now: float) -> None:
        with self._wake:
            self._release(sequence)
        elapsed = now - sequence.started
        self._seconds_per_request += (
            0.1 * (elapsed - self._seconds_per_request) if self._seconds_per_request else elapsed
        )

    def _release(self, sequence: Sequence) -> None:
        """Forget an admitted sequence and free its slot; the lock is held."""
        self._scheduler.finish(sequence)
        self._answers.pop(sequence, None)
        self._progress.pop(sequence, None)
        self._observer.running(self._slots.used)

    def _fail_admitted(self, error: Exception) -> None:
        """A step failed: whoever was in it hears so, whoever waits does not."""
        with self._wake:
            for sequence in [s for s in (self._scheduler.prefilling, *self._slots.decoding) if s is not None]:
                self._deliveries.append((self._answers[sequence], error))
                self._release(sequence)

    def _publish(self) -> None:
        """Send what has gathered: one call for each event loop."""
        if not self._deliveries:
            return
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[Delivery]] = defaultdict(list)
        for answer, item in self._deliveries:
            by_loop[answer.loop].append((answer, item))
        self._deliveries = []
        for loop, deliveries in by_loop.items():
            try:
                loop.call_soon_threadsafe(deliver_all, deliveries)
            except RuntimeError:  # that loop is closed: nobody waits there any more
                for answer, _ in deliveries:
                    answer.cancel()
