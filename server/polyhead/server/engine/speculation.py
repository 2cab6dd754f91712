"""Prompt lookup: guess that what followed the last few tokens before will follow them again (Saxena 2023, "Prompt lookup decoding").

The guesses are checked by the model itself, so they change its speed and not its distribution. Who quotes, edits or fills forms
gains; for everyone else the guesses soon become rare.
"""

from collections.abc import Sequence as Tokens

LONGEST_DRAFT = 16
_LONGEST_PAUSE = 64


class PromptLookup:
    """Of one sequence. Drafts grow while they are right and pause, longer each time, while they are wrong."""

    def __init__(self, prompt: Tokens[int], ngrams: tuple[int, ...] = (4, 3, 2)) -> None:
        """`ngrams`: how many last tokens to look for, the most telling first."""
        self._tokens: list[int] = []
        self._ngrams = ngrams
        self._follows: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest continuation begins
        self._length = 4
        self._pause = 0
        self._next_pause = 1
        for token in prompt:
            self.append(token)

    def append(self, token: int) -> None:
        """A token was chosen."""
        end = len(self._tokens)
        for n in self._ngrams:
            if end >= n:
                self._follows[tuple(self._tokens[end - n : end])] = end
        self._tokens.append(token)

    def draft(self, room: int) -> list[int]:
        """Up to `room` tokens that may come next; empty if nothing is known or guessing has not paid."""
        if self._pause:
            self._pause -= 1
            return []
        for n in self._ngrams:
            start = self._follows.get(tuple(self._tokens[-n:])) if len(self._tokens) >= n else None
            if start is not None:
                return self._tokens[start : start + min(room, self._length)]
        return []

    def learn(self, drafted: int, accepted: int) -> None:
        """So many tokens were guessed and so many of them, from the first on, were right."""
        if accepted == drafted:
            self._length = min(2 * self._length, LONGEST_DRAFT)
        elif accepted:
            self._length = max(accepted, 2)
        if accepted:
            self._next_pause = 1
        else:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, _LONGEST_PAUSE)
