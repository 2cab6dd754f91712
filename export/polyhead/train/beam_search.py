"""Beam search in PyTorch: the likeliest beginnings of answers are kept and extended together (Sutskever et al. 2014, 3.2).

An answer's score is the sum of its tokens' log-probabilities over its length to the power of the penalty, the end token
counted in both, as in the server. One of the beams is always the greedy answer, so that no search ends below it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from polyhead.models.seq2seq import Decoder


@dataclass(frozen=True)
class BeamSettings:
    width: int = 4
    length_penalty: float = 1.0
    max_tokens: int = 64


@dataclass(frozen=True)
class Hypothesis:
    """An answer without its end token."""

    tokens: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class _Beam:
    """The beginning of an answer."""

    tokens: tuple[int, ...]
    total: float
    greedy: bool


@dataclass(frozen=True)
class _Candidate:
    """A beam and one more token."""

    row: int
    token: int
    total: float


@dataclass
class _Search:
    """That of one source. Beams and answers are sorted, the likeliest first."""

    settings: BeamSettings
    eos: int
    beams: list[_Beam] = field(default_factory=lambda: [_Beam((), 0.0, True)])
    ended: list[Hypothesis] = field(default_factory=list)

    @property
    def greedy_row(self) -> int | None:
        return next((row for row, beam in enumerate(self.beams) if beam.greedy), None)

    def extend(self, candidates: Sequence[_Candidate], greedy: _Candidate | None) -> list[int]:
        """Go on with the best of twice as many candidates as beams, best first; returns the row of each new beam's old one."""
        width = self.settings.width
        chosen: list[_Candidate] = []
        for rank, candidate in enumerate(candidates):
            if candidate.token == self.eos:
                if rank < width or candidate == greedy:
                    self._end(candidate)
            elif len(chosen) < width:
                chosen.append(candidate)
        if greedy is not None and greedy not in candidates and greedy.token == self.eos:
            self._end(greedy)
        elif greedy is not None and greedy not in chosen and greedy.token != self.eos:
            chosen = [*chosen[: width - 1], greedy]
        old = self.beams
        self.beams = [_Beam((*old[c.row].tokens, c.token), c.total, c == greedy) for c in chosen]
        return [candidate.row for candidate in chosen]

    def _end(self, last: _Candidate) -> None:
        self._keep(self.beams[last.row].tokens, last.total, length=len(self.beams[last.row].tokens) + 1)

    def _keep(self, tokens: tuple[int, ...], total: float, length: int) -> None:
        self.ended.append(Hypothesis(tokens, total / length**self.settings.length_penalty))
        self.ended.sort(key=lambda answer: -answer.score)

    def done(self) -> bool:
        """Whether no beam can still come among the best `width` answers. Of one beam the greedy answer is all there is."""
        width, penalty, length = self.settings.width, self.settings.length_penalty, len(self.beams[0].tokens) + 1
        if len(self.ended) < width:
            return False
        # A total only falls. What it is divided by helps most at the longest if it grows with the length.
        best = self.beams[0].total / (self.settings.max_tokens if penalty > 0 else length) ** penalty
        return width == 1 or self.ended[width - 1].score >= best

    def over(self) -> bool:
        return len(self.beams[0].tokens) >= self.settings.max_tokens or self.done()

    def answers(self) -> list[Hypothesis]:
        """The best first; beginnings that the limit cut are answers, too."""
        if not self.done():
            for beam in self.beams:
                self._keep(beam.tokens, beam.total, length=len(beam.tokens))
        return self.ended[: self.settings.width]


@torch.inference_mode()
def beam_search(
    decoder: Decoder, begin: Tensor, eos: int, settings: BeamSettings, limits: Sequence[int] | None = None
) -> list[list[Hypothesis]]:
    """At most `width` different answers for each source, best first. begin (B,): the first inputs. limits (B,): of each
    source's answers, in the place of `max_tokens`."""
    width, device = settings.width, begin.device
    decoder.select(torch.arange(len(begin), device=device).repeat_interleave(width))
    limits = limits or [settings.max_tokens] * len(begin)
    searches = [_Search(replace(settings, max_tokens=limit), eos) for limit in limits]
    tokens = begin.repeat_interleave(width)
    for _ in range(max(limits)):
        logprobs = decoder.step(tokens).float().log_softmax(-1).view(len(begin), width, -1)  # (B, width, V)
        rows: list[int] = []
        for number, (search, candidates) in enumerate(zip(searches, _candidates(searches, logprobs), strict=True)):
            going = [] if search.over() else search.extend(candidates, _greedy(search, logprobs[number]))
            rows += [number * width + row for row in (*going, *[0] * (width - len(going)))]
        if all(search.over() for search in searches):
            break
        decoder.select(torch.tensor(rows, device=device))
        tokens = torch.tensor([token for search in searches for token in _last_tokens(search, eos)], device=device)
    return [search.answers() for search in searches]


def _candidates(searches: Sequence[_Search], logprobs: Tensor) -> Iterator[list[_Candidate]]:
    """For each search twice as many as beams, best first, so that enough are left where all beams end."""
    width, V = logprobs.shape[1:]
    totals = [[beam.total for beam in s.beams] + [-torch.inf] * (width - len(s.beams)) for s in searches]
    scores = (torch.tensor(totals, device=logprobs.device)[..., None] + logprobs).flatten(1)
    best, places = scores.topk(min(2 * width, scores.shape[1]))
    for row_scores, row_places in zip(best.tolist(), places.tolist(), strict=True):
        found = zip(row_scores, row_places, strict=True)
        yield [_Candidate(place // V, place % V, score) for score, place in found if score > -torch.inf]


def _greedy(search: _Search, logprobs: Tensor) -> _Candidate | None:
    """What the greedy answer goes on with, unless it has ended. logprobs (width, V)."""
    if (row := search.greedy_row) is None:
        return None
    token = int(logprobs[row].argmax())
    total = torch.tensor(search.beams[row].total, device=logprobs.device) + logprobs[row, token]  # as in _candidates
    return _Candidate(row, token, float(total))


def _last_tokens(search: _Search, eos: int) -> list[int]:
    """Of each beam; rows without one read anything."""
    tokens = [beam.tokens[-1] if beam.tokens else eos for beam in search.beams]
    return tokens + [eos] * (search.settings.width - len(tokens))
