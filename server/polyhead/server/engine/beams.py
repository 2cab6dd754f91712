"""Beam search (Sutskever et al. 2014, section 3.2): of one request, the likeliest beginnings of answers, extended together.

Each beginning has a row of the batch, so a search of width W holds W slots and decodes among everyone else. The greedy beginning
is always kept, whatever its rank: so without `early_stopping` no answer comes first that scores worse than the greedy one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from polyhead.server.constraints import DeadEnd
from polyhead.server.engine.progress import Progress
from polyhead.server.engine.sequence import Counts, FinishReason, Piece, TokenLogprob
from polyhead.server.runtime.decoder import StepOutput
from polyhead.server.sampling import adjusted

Floats = NDArray[np.float32]

Move = Callable[[int, int, int], None]
"""(source, target, length): copy what a slot holds to another."""


@dataclass(slots=True)
class Beam:
    """A beginning of an answer, in the row of the batch that `progress` belongs to."""

    progress: Progress
    logprob: float = 0.0
    """Sum over its tokens."""
    entries: list[TokenLogprob] = field(default_factory=list)
    alignment: list[Floats] = field(default_factory=list)
    is_greedy: bool = False
    """Every token of it was the likeliest."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A beginning and one token more."""

    beam: Beam
    place: int
    """Its row in the step's output."""
    token: int
    logit: float
    logprob: float
    """Sum over all tokens."""
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """An answer that is complete."""

    tokens: tuple[int, ...]
    score: float
    reason: FinishReason
    entries: tuple[TokenLogprob, ...]
    alignment: tuple[Floats, ...]


class BeamSearch:
    """One request's search over the rows it holds. Owned by the engine's thread."""

    def __init__(self, rows: Sequence[Progress], end_tokens: frozenset[int], move: Move) -> None:
        """As many rows as the search is wide; all hold the prompt, and the first one begins. `end_tokens`: the model's."""
        request = rows[0].sequence.request
        assert request.beam_search is not None
        self._request = request
        self._options = request.beam_search
        self._rows = list(rows)
        self._end_tokens = request.stopping.end_tokens(end_tokens)
        self._move = move
        self._live = [Beam(rows[0], is_greedy=True)]
        self._complete: list[Hypothesis] = []

    def advance(self, out: StepOutput, places: dict[Progress, int]) -> list[Hypothesis] | None:
        """Extend every beginning by what a step gave its row; the best answers, best first, once the search is over. Raises DeadEnd if
        no beginning can go on as the grammar demands, and no answer is complete."""
        candidates = self._all_candidates(out, places)
        candidates.sort(key=lambda c: -c.logprob)  # stable: equals by beam, then by token id
        survivors = self._keep(candidates, out)
        length = len(self._live[0].progress.sequence.tokens) + 1
        if length >= self._request.stopping.max_tokens:
            for candidate in survivors:
                self._add(candidate, FinishReason.LENGTH, out)
            survivors = []
        if not survivors or self._is_over(survivors, length):
            return self._complete[: self._request.samples]
        self._live = self._place(survivors, out)
        return None

    def _all_candidates(self, out: StepOutput, places: dict[Progress, int]) -> list[Candidate]:
        """Of all beginnings but those that have come to a dead end."""
        candidates: list[Candidate] = []
        dead: list[DeadEnd] = []
        for beam in self._live:
            try:
                candidates += self._candidates(beam, out, places[beam.progress])
            except DeadEnd as error:
                dead.append(error)
        if len(dead) == len(self._live) and not self._complete:
            raise dead[0]
        return candidates

    def _candidates(self, beam: Beam, out: StepOutput, place: int) -> list[Candidate]:
        """The likeliest tokens after a beginning: enough for all beams though each end token be among them."""
        adjustment = beam.progress.adjustment()
        most = self._options.width + len(self._end_tokens)
        if adjustment is None:
            values, ids = out.topk_values[place, :most], out.topk_ids[place, :most]
        else:
            scores = adjusted(adjustment, 1.0, out.logits[place])
            ids = np.argsort(-scores, kind="stable")[:most]
            values = scores[ids]
        if not isfinite(out.logsumexp[place]):
            raise ArithmeticError("the model gave logits that are no numbers")
        logprobs = beam.logprob + (values.astype(np.float64) - float(out.logsumexp[place]))
        found = zip(ids.tolist(), values.tolist(), logprobs.tolist(), strict=True)
        return [
            Candidate(beam, place, token, logit, logprob, beam.is_greedy and rank == 0)
            for rank, (token, logit, logprob) in enumerate(found)
            if logprob > -np.inf
        ]

    def _keep(self, candidates: list[Candidate], out: StepOutput) -> list[Candidate]:
        """The best `width` that go on; those that end are complete if they are among the best, too. The greedy one always is."""
        width = self._options.width
        survivors: list[Candidate] = []
        for rank, candidate in enumerate(candidates):
            if candidate.token in self._end_tokens:
                if rank < width or candidate.is_greedy:
                    self._add(candidate, self._request.stopping.reason(candidate.token), out)
            elif len(survivors) < width:
                survivors.append(candidate)
            elif candidate.is_greedy:
                survivors[-1] = candidate
        return survivors

    def _add(self, candidate: Candidate, reason: FinishReason, out: StepOutput) -> None:
        """An answer is complete; only the best `width` are kept."""
        beam = candidate.beam
        tokens = (*beam.progress.sequence.tokens, candidate.token)
        entries, alignment = self._extended(candidate, out)
        score = candidate.logprob / len(tokens) ** self._options.length_penalty
        said = tokens[:-1]
        if reason is not FinishReason.LENGTH:  # of several end tokens after the same answer the likeliest counts
            twins = [h for h in self._complete if h.reason is not FinishReason.LENGTH and h.tokens[:-1] == said]
            if any(twin.score >= score for twin in twins):
                return
            self._complete = [h for h in self._complete if h not in twins]
        self._complete.append(Hypothesis(tokens, score, reason, tuple(entries), tuple(alignment)))
        self._complete.sort(key=lambda h: -h.score)
        del self._complete[self._options.width :]

    def _is_over(self, survivors: list[Candidate], length: int) -> bool:
        """Whether none of the beginnings, `length` tokens long, can still come before the answers that will be told."""
        options, told = self._options, self._request.samples
        if options.early_stopping or options.width == 1:
            return len(self._complete) >= options.width
        if len(self._complete) < told:
            return False
        # A sum of log-probabilities only falls; it is divided by a power of a length between the next and the longest.
        at = self._request.stopping.max_tokens if options.length_penalty > 0 else length + 1
        attainable = max(c.logprob for c in survivors) / float(at) ** options.length_penalty
        return bool(attainable <= self._complete[told - 1].score)

    def _place(self, survivors: list[Candidate], out: StepOutput) -> list[Beam]:
        """Give each survivor a row: its beginning's own to the first of each, to others one whose beginning died, with a copy of
        the cache. No beginning's row is written before all copies of it are made."""
        stays = {id(candidate.beam.progress): candidate for candidate in reversed(survivors)}
        free = [row for row in self._rows if id(row) not in stays]
        beams = []
        for candidate in survivors:
            source = candidate.beam.progress
            row = source if stays[id(source)] is candidate else free.pop()
            if row is not source:
                self._move(source.sequence.slot, row.sequence.slot, source.sequence.cached)
                row.become(source)
            entries, alignment = self._extended(candidate, out)
            beams.append((Beam(row, candidate.logprob, entries, alignment, candidate.is_greedy), candidate.token))
        for beam, token in beams:
            beam.progress.append(token)
        for row in free:  # it decodes on, for a later survivor's sake, and nobody looks
            row.sequence.tokens.append(survivors[0].token)
        return [beam for beam, _ in beams]

    def _extended(self, candidate: Candidate, out: StepOutput) -> tuple[list[TokenLogprob], list[Floats]]:
        """The beginning's log-probabilities and alignment with those of the candidate's token, as far as they are wanted."""
        beam = candidate.beam
        entry = beam.progress.logprob(candidate.token, candidate.logit, out, candidate.place)
        weights = beam.progress.alignment(out, candidate.place)
        return (
            beam.entries if entry is None else [*beam.entries, entry],
            beam.alignment if weights is None else [*beam.alignment, weights],
        )


def piece_of(answer: Hypothesis, rank: int, first: Progress) -> Piece:
    """An answer as a whole; `first` is that of the row that read the prompt."""
    sequence = first.sequence
    text = first.text_of(answer.tokens if answer.reason is FinishReason.LENGTH else answer.tokens[:-1])
    return Piece(
        text,
        answer.tokens,
        answer.entries,
        answer.reason,
        times=sequence.times(),
        counts=Counts(len(answer.tokens), sequence.cached_prompt),
        sample_index=rank,
        prompt_logprobs=first.prompt_logprobs if rank == 0 else (),
        score=answer.score,
        alignment=answer.alignment,
    )
