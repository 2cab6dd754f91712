"""Beam search (Sutskever et al. 2014, section 3.2): of one request, the likeliest beginnings of answers, extended together.

Each beginning has a row of the batch, so a search of width W holds W slots and decodes among everyone else. The greedy beginning
is always kept, whatever its rank: so without `early_stopping` no answer comes first that scores worse than the greedy one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.server.constraints import DeadEnd
from polyhead.server.engine.progress import Progress
from polyhead.server.engine.sequence import Counts, FinishReason, Piece, TokenLogprob
from polyhead.server.runtime.decoder import StepOutput
from polyhead.server.sampling import adjusted

Floats = NDArray[np.floating[Any]]

Move = Callable[[int, int, int], None]
"""(source, target, length): copy what a slot holds to another."""


@dataclass(slots=True)
class Beam:
    """A beginning of an answer, in the row of the batch that `progress` belongs to."""

    progress: Progress
    logprob: float = 0.0
    """Sum over its tokens, with what the request adjusts of them."""
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
    """The model's own."""
    logprob: float
    """Sum over all tokens, adjusted."""
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
        self._penalty = request.sampling.repetition_penalty
        self._gain = max([0.0, *(value for _, value in request.sampling.logit_bias)])
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
        """The likeliest tokens after a beginning: enough for all beams though each end token be among them. What the request adjusts it
        adjusts of log-probabilities, which are not made to sum to one again, as transformers' beam search does."""
        adjustment = beam.progress.adjustment()
        most = self._options.width + len(self._end_tokens)
        normalizer = float(out.logsumexp[place])
        if not isfinite(normalizer):
            raise ArithmeticError("the model gave logits that are no numbers")
        if adjustment is None:
            values, ids = out.topk_values[place, :most], out.topk_ids[place, :most]
            scores: Floats = values.astype(np.float64) - normalizer
        else:
            every = adjusted(adjustment, self._penalty, out.logits[place].astype(np.float64) - normalizer)
            ids = np.argsort(-every, kind="stable")[:most]
            values, scores = out.logits[place, ids], every[ids]
        found = zip(ids.tolist(), values.tolist(), (beam.logprob + scores).tolist(), strict=True)
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
        return self._attainable(max(c.logprob for c in survivors), length) <= self._complete[told - 1].score

    def _attainable(self, logprob: float, length: int) -> float:
        """The best score of an answer that begins with so many tokens. The sum grows by no more than the largest bias a token, and is
        divided by a power of a length between the next and the longest."""
        longest, penalty = self._request.stopping.max_tokens, self._options.length_penalty
        if self._gain:
            lengths = np.arange(length + 1, longest + 1, dtype=np.float64)
            return float(((logprob + self._gain * (lengths - length)) / lengths**penalty).max())
        return float(logprob / float(longest if penalty > 0 else length + 1) ** penalty)

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
