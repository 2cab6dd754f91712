"""Continuous batching (Yu et al. 2022, Orca, section 3): one thread a model that admits, prefills, decodes and samples.

An iteration prefills chunks of prompts under a token budget and then gives every decoding row its next token in one call. Requests
come from event loops under a lock; pieces go back with one call a loop, those of several quick steps together.
"""

import asyncio
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future

import structlog

from polyhead.server.engine.answer import Answer, Delivery, News, deliver_all
from polyhead.server.engine.observer import EngineObserver
from polyhead.server.engine.prefixes import PrefixCache
from polyhead.server.engine.scheduler import Chunk, GeneratorLimits, Scheduler
from polyhead.server.engine.sequence import GenerationRequest, Sequence, sequences_of
from polyhead.server.engine.slots import Slots
from polyhead.server.engine.stepper import Pieces, Stepper
from polyhead.server.errors import Unavailable
from polyhead.server.runtime.decoder import Decoder, StepOutput
from polyhead.server.runtime.seq2seq import Seq2SeqDecoder
from polyhead.server.tokenizer import Tokenizer

log = structlog.get_logger(__name__)

TOLD_TOGETHER_SECONDS = 0.002
"""First tokens that come in so short a time wake their event loop once, and tokens in the middle of answers reach their readers
together if several rows decode. Waking a loop takes about 0.1 ms, as long as a small model takes to read a prompt; a reader, as long as
its row's share of a step."""

LEAST_READ = 8
"""Tokens of a prompt that take about as long to read as one does."""


class Generator:
    """The engine of one decoder. `start` it once; `submit` from any event loop; `drain` or `close` it at the end."""

    def __init__(
        self,
        decoder: Decoder | Seq2SeqDecoder,
        tokenizer: Tokenizer,
        limits: GeneratorLimits,
        observer: EngineObserver,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """The engine owns the decoder from here on and closes it."""
        self.capacity = decoder.capacity
        self.slots = decoder.slots
        self.longest_prompt = decoder.longest_prompt
        self.room = decoder.room
        self.continues_prompt = decoder.continues_prompt
        self.has_alignment = decoder.has_alignment
        self._observer = observer
        self._clock = clock
        self._slots = Slots(decoder.slots, decoder.lanes, decoder.memory)
        chunk_tokens = decoder.prefill_chunk
        prefixes = None  # of sources there are none: each is read as a whole
        if isinstance(decoder, Decoder):
            prefixes = PrefixCache(decoder.lanes, decoder.prefix_slots, decoder.memory, chunk_tokens)
        self._scheduler = Scheduler(
            self._slots,
            prefixes,
            limits,
            chunk_tokens=chunk_tokens,
            capacity=decoder.capacity,
            pads=decoder.continues_prompt,
        )
        self._stepper = Stepper(decoder, tokenizer, observer, clock)
        self._answers: dict[Sequence, Answer] = {}
        self._deliveries: dict[Answer, list[News]] = {}  # not yet told
        self._urgent: set[Answer] = set()  # of these, to be told at once
        self._told_everything_at = -math.inf
        self._seconds_per_token_read = math.inf  # in the last call
        self._wake = threading.Condition()
        self._draining = self._closing = False
        self._some_left = False  # callers: their rows have to be freed before the next step
        self._dead = self._ended = False
        self._idle_waiters: list[Future[None]] = []
        self._seconds_per_request = 0.0  # exponential moving average, for telling when to come back
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)

    @property
    def alive(self) -> bool:
        """False once the engine has met an error of its own that it could not go on from."""
        return not self._dead

    def start(self) -> None:
        self._thread.start()

    def check_room(self) -> None:
        """Raises what `submit` surely would, so that nobody prepares a request in vain. `submit` decides."""
        with self._wake:
            self._check_open()
            self._scheduler.check_room(self._retry_after())

    def _check_open(self) -> None:
        if self._dead:
            raise Unavailable("the model's engine failed")
        if self._draining:
            raise Unavailable("the model is draining")

    def submit(self, request: GenerationRequest) -> Answer:
        """Queue a request. Raises Overloaded if the queue is full and Unavailable if the engine drains or has failed.

        Raises ValueError for what the service must have refused: an empty prompt, or one that with `max_tokens` passes the capacity.
        """
        prompt, answer_tokens = len(request.prompt), request.stopping.max_tokens
        fits = 0 < prompt <= self.longest_prompt and answer_tokens <= self.room(prompt)
        if not fits or not 0 < request.samples <= request.rows <= self.slots:
            given = f"{prompt} prompt tokens, {answer_tokens} of the answer, {request.samples} samples in {request.rows} rows"
            raise ValueError(f"{given}; there are {self.slots} slots of {self.capacity} tokens")
        if not self.continues_prompt and (request.prompt_lookup or request.prompt_logprobs is not None):
            raise ValueError("a source has no log-probabilities, and no guesses come from it")
        sequence = sequences_of(request, self._clock())
        answer = Answer(lambda: self._cancel(sequence), lambda: sequence.times_so_far(self._clock()), request.samples)
        with self._wake:
            self._check_open()
            self._scheduler.add(sequence, self._retry_after())
            for sample in (sequence, *sequence.siblings):
                self._answers[sample] = answer
            self._observer.queue_size(self._scheduler.waiting)
            self._wake.notify()
        return answer

    async def drain(self) -> None:
        """Take no more requests and wait until those there are answered."""
        idle: Future[None] = Future()
        idle.set_running_or_notify_cancel()  # who stops waiting must not take it away from the engine
        with self._wake:
            self._draining = True
            if self._ended or self._thread.ident is None:
                return
            self._idle_waiters.append(idle)
            self._wake.notify()
        await asyncio.wrap_future(idle)

    def close(self) -> None:
        """End everything after the current step; answers that are not over raise Unavailable."""
        with self._wake:
            self._draining = self._closing = True
            self._wake.notify()
        if self._thread.ident is None:
            self._stepper.close()
        else:
            self._thread.join()

    def check_integrity(self) -> None:
        """Raises AssertionError if slots or queue contradict each other, or hold anything while idle."""
        with self._wake:
            self._scheduler.check_integrity()
            if not self._scheduler.has_work:
                assert not self._answers, "an idle engine remembers answers"

    def _cancel(self, sequence: Sequence) -> None:
        with self._wake:
            waiting = self._scheduler.remove(sequence)
            for sample in (sequence, *sequence.siblings):
                sample.ended = True
                if waiting:
                    del self._answers[sample]
            self._some_left = True
            self._observer.queue_size(self._scheduler.waiting)
            self._wake.notify()

    def _retry_after(self) -> float:
        """Seconds until a place in the queue is likely free."""
        return min(max(self._seconds_per_request / self.slots, 0.05), 30.0)

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._iterate()
                self._publish()
        except BaseException:
            log.exception("the generation engine died")
            self._dead = True
        finally:
            self._end()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False: the engine closes."""
        with self._wake:
            while not (self._scheduler.has_work or self._closing):
                self._check_idle()
                self._release_idle_waiters()
                self._wake.wait()
            return not self._closing

    def _check_idle(self) -> None:
        """What an idle engine still holds is a fault to hear of; it goes on."""
        try:
            self.check_integrity()
        except AssertionError:
            log.exception("an idle engine contradicts itself")

    def _end(self) -> None:
        """Tell everyone who still waits, and leave nothing behind."""
        with self._wake:
            self._draining = self._ended = True
            reason = "the model's engine failed" if self._dead else "the server stops"
            for answer in set(self._answers.values()):
                self._tell(answer, Unavailable(reason), urgent=True)
            self._scheduler.drop_waiting()
            self._answers.clear()
            self._release_idle_waiters()
        self._publish()
        try:
            for sequence in self._scheduler.admitted:
                self._release(sequence)
            self._observer.queue_size(0)
        finally:
            self._stepper.close()

    def _release_idle_waiters(self) -> None:
        for waiter in self._idle_waiters:
            waiter.set_result(None)
        self._idle_waiters.clear()

    def _iterate(self) -> None:
        """One iteration: prefill under the budget, then one token for every row that decodes."""
        with self._wake:
            self._scheduler.begin_iteration()
        told = self._clock()
        while calls := self._next_calls():
            for chunks in calls:
                if self._seconds_per_token_read * tokens_to_read(chunks) > TOLD_TOGETHER_SECONDS:
                    self._publish(everything=True)  # nobody's token waits for somebody else's long prompt
                self._prefill(chunks)
                if self._clock() - told > TOLD_TOGETHER_SECONDS:
                    self._publish()
                    told = self._clock()
        self._publish()
        if rows := list(self._slots.decoding):
            self._hand_out(self._stepper.decode(rows))

    def _next_calls(self) -> list[list[Chunk]]:
        ended: list[Sequence] = []
        with self._wake:
            if self._some_left:  # a caller's rows are ended together
                ended = [sequence for sequence in reversed(self._scheduler.admitted) if sequence.ended]
                self._some_left = False
            waiting = self._scheduler.waiting
        for sequence in ended:
            self._release(sequence)
        while waiting and self._admit():
            pass
        return self._scheduler.next_calls()

    def _admit(self) -> bool:
        with self._wake:
            sequence = self._scheduler.admit()
            self._observer.queue_size(self._scheduler.waiting)
        self._observer.running(self._slots.used)
        if sequence is None:
            return False
        try:
            self._scheduler.restore_prefix(sequence)
            self._stepper.begin(sequence)
        except Exception as error:
            log.exception("a request could not begin")
            self._fail(sequence, error)
        return True

    def _prefill(self, chunks: list[Chunk]) -> None:
        """One call; if it fails, one for each chunk, so that a failure is only told to whose it is."""
        began = self._clock()
        try:
            out = self._stepper.prefill(chunks)
        except Exception as error:
            log.exception("a prefill failed", rows=len(chunks))
            if len(chunks) == 1:
                self._fail(chunks[0].sequence, error)
                return
            for chunk in chunks:
                self._prefill([chunk])
            return
        self._seconds_per_token_read = (self._clock() - began) / tokens_to_read(chunks)
        begun: list[tuple[int, Chunk]] = []
        for row, chunk in enumerate(chunks):
            try:
                self._scheduler.prefilled(chunk)
                if chunk.is_last:
                    begun.append((row, chunk))
            except Exception as error:
                log.exception("a request could not go on after its prompt")
                self._fail(chunk.sequence, error)
        if begun and out is not None:
            self._hand_out(self._first_tokens(begun, out))

    def _first_tokens(self, begun: list[tuple[int, Chunk]], out: StepOutput) -> Pieces:
        try:
            return self._stepper.first_tokens(begun, out)
        except Exception as error:
            log.exception("requests could not go on after their prompts", rows=len(begun))
            return [(chunk.sequence, error) for _, chunk in begun]

    def _hand_out(self, pieces: Pieces) -> None:
        over: list[tuple[Sequence, Exception | None]] = []
        for sequence, piece in pieces:
            if piece is None or isinstance(piece, Exception):
                over.append((sequence, piece))
                continue
            begins_or_ends = len(sequence.tokens) == 1 or piece.finish_reason is not None
            self._tell(self._answers[sequence], piece, urgent=begins_or_ends)
            if piece.finish_reason:
                over.append((sequence, None))
        # The last slots first: else those who go would still be moved into the gaps of others.
        for sequence, error in sorted(over, key=lambda one: one[0].slot, reverse=True):
            if error is not None:
                self._fail(sequence, error)
            else:
                self._release(sequence)
                self._learn_duration(sequence)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """An answer can't go on: tell it, free its slot, and let the other samples of its request go before their next step."""
        answer = self._answers.get(sequence)
        if answer is None:
            return  # gone already, with another sample
        self._tell(answer, error, urgent=True)
        with self._wake:
            for other, its in self._answers.items():
                other.ended |= its is answer
            self._some_left = True
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Forget an admitted sequence and free its slot or lane."""
        for gone in self._scheduler.finish(sequence):
            self._answers.pop(gone, None)
            self._stepper.forget(gone)
        self._observer.running(self._slots.used)

    def _learn_duration(self, sequence: Sequence) -> None:
        elapsed, known = sequence.last_token - sequence.started, self._seconds_per_request
        self._seconds_per_request = known + 0.1 * (elapsed - known) if known else elapsed

    def _tell(self, answer: Answer, item: News, *, urgent: bool) -> None:
        """Remember for `_publish`."""
        self._deliveries.setdefault(answer, []).append(item)
        if urgent:
            self._urgent.add(answer)

    def _publish(self, everything: bool = False) -> None:
        """Send what has gathered, one call for each event loop: what is urgent; all of it if that is asked for, if a single row decodes or
        if it is a while since that was done."""
        if not self._deliveries:
            return
        now, due = self._clock(), self._deliveries
        a_while = now - self._told_everything_at >= TOLD_TOGETHER_SECONDS
        if everything or a_while or len(self._slots.decoding) < 2:
            self._deliveries, self._told_everything_at = {}, now
        else:
            due = {answer: self._deliveries.pop(answer) for answer in self._urgent}
        self._urgent.clear()
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[Delivery]] = defaultdict(list)
        for answer, items in due.items():
            by_loop[answer.loop].append((answer, items))
        for loop, deliveries in by_loop.items():
            try:
                loop.call_soon_threadsafe(deliver_all, deliveries)
            except RuntimeError:  # that loop is closed: nobody waits there any more
                for answer, _ in deliveries:
                    answer.cancel()


def tokens_to_read(chunks: list[Chunk]) -> int:
    """In one call; what reading takes grows with them."""
    return max(LEAST_READ, sum(chunk.tokens for chunk in chunks))
