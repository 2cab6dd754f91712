"""Runs what the scheduler decided: chunks of prompts, steps of the rows that decode, and the choice of their next tokens."""

import time
from collections.abc import Callable, Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby

import numpy as np
import structlog

from polyhead.server.engine.beams import BeamSearch, piece_of
from polyhead.server.engine.observer import EngineObserver
from polyhead.server.engine.progress import Progress
from polyhead.server.engine.scheduler import Chunk
from polyhead.server.engine.sequence import Piece, Sequence
from polyhead.server.runtime.decoder import Decoder, StepOutput
from polyhead.server.runtime.seq2seq import Seq2SeqDecoder
from polyhead.server.sampling import Row, choose, graph_top_k
from polyhead.server.tokenizer import Tokenizer

log = structlog.get_logger(__name__)

Pieces = list[tuple[Sequence, Piece | Exception | None]]
"""What a step gave each sequence; an exception if its own choice could not be made, None if it is over without an answer: a beam
that was not among the best."""

MOST_SPECULATING_ROWS = 2
"""With more rows a step costs little more for each, and guesses, which take calls of their own, no longer pay."""


class Stepper:
    """Owns the decoder and each admitted sequence's progress. Lives on the engine's thread."""

    def __init__(
        self,
        decoder: Decoder | Seq2SeqDecoder,
        tokenizer: Tokenizer,
        observer: EngineObserver,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._observer = observer
        self._clock = clock
        self._start = decoder.start_token_id if isinstance(decoder, Seq2SeqDecoder) else None
        """What stands before the answer to a source; whatever continues its prompt has a token when it comes to a step."""
        self._progress: dict[Sequence, Progress] = {}
        self._searches: dict[Sequence, BeamSearch] = {}  # by the first of its rows
        self._masks = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammar")

    def begin(self, sequence: Sequence) -> None:
        """A sequence and its siblings were admitted."""
        now = self._clock()
        self._observer.copied(sequence.cached_prompt)
        for sample in (sequence, *sequence.siblings):
            sample.started = now
            sample.cached_prompt = sequence.cached_prompt
            self._progress[sample] = Progress(sample, self._tokenizer, self._decoder.continues_prompt)
        if sequence.request.beam_search:
            rows = [self._progress[row] for row in (sequence, *sequence.siblings)]
            self._searches[sequence] = BeamSearch(rows, self._tokenizer.eos_token_ids, self._decoder.memory.move)

    def forget(self, sequence: Sequence) -> None:
        self._progress.pop(sequence, None)
        self._searches.pop(sequence, None)

    def close(self) -> None:
        self._masks.shutdown()
        self._decoder.close()

    def prefill(self, chunks: list[Chunk]) -> StepOutput | None:
        """Put chunks of neighbouring lanes into the cache. The output has a row for the last position of each; for a single one that
        wants every position it has all, the last one last. None after sources: their answers begin with the next step."""
        first, tokens = chunks[0], sum(c.tokens for c in chunks)
        prompts = [np.array(c.sequence.request.prompt[c.start : c.end], np.int64) for c in chunks]
        if isinstance(self._decoder, Seq2SeqDecoder):
            began = self._clock()
            self._decoder.read(first.sequence.lane, prompts)
            self._ran(began, rows=len(chunks), tokens=tokens, padding=0)
            return None
        for chunk in chunks:
            if chunk.is_last:
                self._prepare([chunk.sequence, *chunk.sequence.siblings])
        every = first.wants_every_position
        top_k = self._top_k([c.sequence for c in chunks if c.is_last or every])
        began = self._clock()
        out = self._decoder.prefill(
            first.sequence.lane,
            prompts,
            [c.start for c in chunks],
            top_k,
            every_position=every,
            adapter=first.sequence.request.adapter,
        )
        padded = max(2, *(c.tokens for c in chunks)) * len(chunks)
        self._ran(began, rows=len(chunks), tokens=tokens, padding=padded - tokens)
        if every:
            following = first.sequence.request.prompt[first.start + 1 : first.end + 1]
            self._progress[first.sequence].add_prompt_logprobs(following, out)
        return out

    def first_tokens(self, last_chunks: Iterable[tuple[int, Chunk]], out: StepOutput) -> Pieces:
        """After the last chunks of prompts, each with its row of a call's output: the first token of each sample."""
        rows: list[Sequence] = []
        places: list[int] = []
        for row, chunk in last_chunks:
            samples = (chunk.sequence, *chunk.sequence.siblings)
            rows += samples
            places += [len(out.logits) - 1 if chunk.wants_every_position else row] * len(samples)
        return self._choose(rows, out, places)

    def decode(self, rows: list[Sequence]) -> Pieces:
        """The next token of every row; rows[i] sits in slot i. Rows with guesses may get several, each in a call of its own. Other
        neighbours with the same adapter share a call."""
        drafts = self._drafts(rows)
        self._prepare(sequence for sequence in rows if sequence.request.grammar and sequence not in drafts)
        pieces: Pieces = []
        for run in self._calls(rows, drafts):
            draft = drafts.get(run[0])
            try:
                pieces += self._check(run[0], draft) if draft else self._choose(run, self._run(run), range(len(run)))
            except Exception as error:  # told to the rows of the call; not to who waits, nor to other calls' rows
                log.exception("a step of generation failed", rows=len(run))
                pieces += [(sequence, error) for sequence in run]
        return pieces

    def _calls(self, rows: list[Sequence], alone: Container[Sequence]) -> list[list[Sequence]]:
        """Neighbours that share a step."""
        if not alone and rows[0].request.adapter == rows[-1].request.adapter:  # rows with the same one are neighbours
            return [rows]
        calls = groupby(rows, key=lambda s: (s.request.adapter, s if s in alone else None))
        return [list(call) for _, call in calls]

    def _drafts(self, rows: list[Sequence]) -> dict[Sequence, list[int]]:
        """Guesses of what comes next in some rows, where they may pay."""
        if len(rows) > MOST_SPECULATING_ROWS:
            return {}
        asking = [sequence for sequence in rows if sequence.request.prompt_lookup]
        drafts = {s: self._progress[s].draft(s.request.stopping.max_tokens - len(s.tokens) - 1) for s in asking}
        return {sequence: draft for sequence, draft in drafts.items() if draft}

    def _check(self, sequence: Sequence, draft: list[int]) -> Pieces:
        """Check guesses in one call; each position's choice is made as ever, and the first that differs ends the run."""
        progress = self._progress[sequence]
        tokens = np.array([sequence.tokens[-1], *draft], np.int64)
        past = sequence.cached
        began = self._clock()
        top_k = self._top_k([sequence])
        assert isinstance(self._decoder, Decoder), "only a prompt that is continued has guesses"
        out = self._decoder.extend(sequence.slot, tokens, past, top_k, adapter=sequence.request.adapter)
        self._ran(began, rows=1, tokens=len(tokens), padding=0)
        pieces: Pieces = []
        for i in range(len(tokens)):
            sequence.cached = past + i + 1
            pieces += self._choose([sequence], out, [i])
            piece = pieces[-1][1]
            over = not isinstance(piece, Piece) or piece.finish_reason
            if over or i == len(draft) or sequence.tokens[-1] != draft[i]:
                break
        self._observer.guessed(len(draft), progress.verified())
        return pieces

    def _prepare(self, rows: Iterable[Sequence]) -> None:
        for sequence in rows:
            self._progress[sequence].prepare(self._masks)

    def _run(self, rows: list[Sequence]) -> StepOutput:
        """One token a row, in neighbouring slots, all with the same adapter."""
        tokens = np.array([s.tokens[-1] if s.tokens else self._start for s in rows], np.int64)
        past = np.array([s.cached for s in rows], np.int32)
        began = self._clock()
        top_k, adapter = self._top_k(rows), rows[0].request.adapter
        out = self._decoder.decode(tokens, past, top_k, first=rows[0].slot, adapter=adapter)
        self._ran(began, rows=len(rows), tokens=len(rows), padding=0)
        for sequence in rows:
            sequence.cached += 1
        return out

    def _top_k(self, rows: Iterable[Sequence]) -> int:
        needed = graph_top_k([self._progress[sequence].candidates for sequence in rows])
        return min(needed, self._decoder.vocabulary_size)

    def _choose(self, rows: list[Sequence], out: StepOutput, at: Iterable[int]) -> Pieces:
        """Make each row's choice from the output's row `at` that belongs to it; a row that fails leaves the others alone."""
        if not self._searches:
            return self._sample(zip(rows, at, strict=True), out)
        places = dict(zip(rows, at, strict=True))
        searching = [sequence for sequence in rows if sequence in self._searches]
        pieces = [piece for first in searching for piece in self._search(first, out, places)]
        return pieces + self._sample([(s, at) for s, at in places.items() if s.request.beam_search is None], out)

    def _search(self, first: Sequence, out: StepOutput, places: dict[Sequence, int]) -> Pieces:
        """Extend the beams of a request by a token each; its answers, if these are all."""
        rows = [first, *first.siblings]
        try:
            answers = self._searches[first].advance(out, {self._progress[row]: places[row] for row in rows})
            if answers is None:
                return []
            if not answers:
                raise ArithmeticError("no token may come next, and no answer is complete")
            now = self._clock()
            for row in rows:  # nothing was told before
                row.first_token = row.last_token = now
            self._observer.first_token(now - first.arrived)
            pieces = [
                replace(piece_of(answer, rank, self._progress[first]), answers=len(answers))
                for rank, answer in enumerate(answers)
            ]
        except Exception as error:
            return [(first, error)]
        return [(row, pieces[i] if i < len(pieces) else None) for i, row in enumerate(rows)]

    def _sample(self, places: Iterable[tuple[Sequence, int]], out: StepOutput) -> Pieces:
        """The choices of rows that go on token by token, each with its row of the output."""
        pieces: Pieces = []
        chosen: list[Progress] = []
        choices: list[Row | None] = []
        where: list[int] = []
        are_numbers = np.isfinite(out.logsumexp).tolist()
        for sequence, place in places:
            progress = self._progress[sequence]
            try:
                if not are_numbers[place]:
                    raise ArithmeticError("the model gave logits that are no numbers")
                choices.append(None if progress.chooses_likeliest else progress.row())
                chosen.append(progress)
                where.append(place)
            except Exception as error:
                pieces.append((sequence, error))
        if not choices:
            return pieces
        out = out if where == list(range(len(out.logits))) else out.rows(where)
        tokens, logits = choose(choices, out.topk_values, out.topk_ids, out.logsumexp, out.logits)
        now = self._clock()
        for i, progress in enumerate(chosen):
            sequence = progress.sequence
            if sequence.tokens:
                self._observer.inter_token(now - sequence.last_token)
            else:
                self._begins(sequence, now)
            sequence.last_token = now
            try:
                pieces.append((sequence, progress.advance(tokens[i], logits[i], out, i)))
            except Exception as error:
                pieces.append((sequence, error))
        return pieces

    def _begins(self, sequence: Sequence, now: float) -> None:
        """Its first token is there."""
        sequence.first_token = now
        if not sequence.sample_index:  # all samples of a request have theirs in the same step
            self._observer.first_token(now - sequence.arrived)

    def _ran(self, began: float, *, rows: int, tokens: int, padding: int) -> None:
        self._observer.ran(rows=rows, tokens=tokens, padding=padding, seconds=self._clock() - began)
