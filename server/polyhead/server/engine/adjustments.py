"""What a request's penalties, biases and bans mean for its next logits, kept up to date token by token."""

import numpy as np
from numpy.typing import NDArray

from polyhead.server.engine.sequence import Sequence
from polyhead.server.sampling import Adjustment, Ids


class Adjustments:
    """Of one sequence. Gives None while nothing is to be adjusted, so that plain requests never read a row of logits."""

    def __init__(self, sequence: Sequence, end_tokens: frozenset[int], continues_prompt: bool = True) -> None:
        """`end_tokens`: the model's; `continues_prompt`: the prompt's tokens count as said."""
        request = sequence.request
        self._tokens = sequence.tokens
        self._sampling = request.sampling
        self._stopping = request.stopping
        self._end_tokens = request.stopping.end_tokens(end_tokens)
        said = request.prompt if continues_prompt else ()
        self._seen = set(said) if request.sampling.repetition_penalty != 1.0 else None
        self._counts: dict[int, int] = {}
        self._bias = dict(request.sampling.logit_bias)
        sampling = request.sampling
        penalized = sampling.repetition_penalty != 1.0 or sampling.presence_penalty or sampling.frequency_penalty
        self.are_none = not (penalized or self._bias or sampling.bad_words or request.stopping.min_tokens)

    def append(self, token: int) -> None:
        """A token was chosen and stands in the sequence already."""
        if self.are_none:
            return
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._seen is not None:
            self._seen.add(token)

    def become(self, other: "Adjustments") -> None:
        """Go on from another row's of the same request; the tokens in the sequence are those of the other already."""
        self._seen = None if other._seen is None else set(other._seen)
        self._counts = dict(other._counts)

    def current(self) -> Adjustment | None:
        """For the next token."""
        if self.are_none:
            return None
        seen, added, banned = self._penalized(), self._added(), self._banned()
        if seen is None and added is None and banned is None:
            return None
        return Adjustment(seen, added, banned)

    def within(self, allowed: NDArray[np.bool_]) -> Adjustment:
        """For the next token, of which a grammar allows only some: a ban on all of these does not count."""
        current = self.current() or Adjustment()
        if current.banned is not None:
            left = allowed.copy()
            left[current.banned[current.banned < len(left)]] = False
            allowed = left if left.any() else allowed
        return Adjustment(current.seen, current.added, None, allowed)

    def _penalized(self) -> Ids | None:
        return None if self._seen is None else np.fromiter(self._seen, np.int64, len(self._seen))

    def _added(self) -> tuple[Ids, NDArray[np.float32]] | None:
        """Bias, less presence penalty once and frequency penalty each time for what the answer has already."""
        presence, frequency = self._sampling.presence_penalty, self._sampling.frequency_penalty
        added = dict(self._bias)
        if presence or frequency:
            for token, count in self._counts.items():
                added[token] = added.get(token, 0.0) - presence - frequency * count
        if not added:
            return None
        return np.fromiter(added, np.int64, len(added)), np.fromiter(added.values(), np.float32, len(added))

    def _banned(self) -> Ids | None:
        """End tokens before `min_tokens`, and what would complete a bad word."""
        early = len(self._tokens) < self._stopping.min_tokens
        banned = set(self._end_tokens) if early else set()
        for *start, last in self._sampling.bad_words:
            if not start or self._tokens[-len(start) :] == start:
                banned.add(last)
        return np.array(sorted(banned), np.int64) if banned else None
