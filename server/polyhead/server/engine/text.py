"""From a growing list of tokens to text that may be sent: whole characters only, and nothing that may become a stop string."""

from collections.abc import Sequence

from polyhead.server.tokenizer import INCOMPLETE, Tokenizer

_CHARACTER_TOKENS = 4
"""Tokens that a character may be spread over: it has four bytes at most."""

_MOST_WAITING = 2 * _CHARACTER_TOKENS
"""Tokens that may wait: with more, all but the last few are no characters, whatever follows."""


class TextStream:
    """Decodes token by token so that the pieces add up to the text of the whole.

    A token's text can depend on the tokens before it (spaces, characters spread over tokens), so each decoding starts at the
    tokens of the piece before and what they gave is cut off again. While the end looks like part of a character, it waits.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # tokens of the last piece, then those that still wait
        self._sent_tokens = 0  # how many of the window's tokens are the last piece's
        self._sent_text = ""  # their text within the window

    def push(self, token_id: int) -> str:
        """The text that this token completes; may be empty. Takes the same time however many came before."""
        if self._sent_tokens == len(self._window) == 1:  # as nearly always
            piece = self._tokenizer.continuation(self._window[0], token_id)
            if piece:
                self._window[0], self._sent_text = token_id, self._tokenizer.text_of(token_id)
                return piece
        if self._tokenizer.is_silent(token_id):
            return ""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        if len(text) <= len(self._sent_text):
            return ""
        if text.endswith(INCOMPLETE):
            return self._settle(text) if len(self._window) - self._sent_tokens > _MOST_WAITING else ""
        return self._advance(text)

    def flush(self) -> str:
        """What still waits, now that no token will follow; parts of characters become U+FFFD."""
        text = self._tokenizer.decode(self._window)
        return self._advance(text) if len(text) > len(self._sent_text) else ""

    def _settle(self, text: str) -> str:
        """Of the window's text, what no token can change any more."""
        waits = self._window[-_CHARACTER_TOKENS:]
        settled = self._tokenizer.decode(self._window[:-_CHARACTER_TOKENS])
        if not (len(self._sent_text) < len(settled) < len(text) and text.startswith(settled)):
            return ""
        del self._window[-_CHARACTER_TOKENS:]
        piece = self._advance(settled)
        self._window += waits
        return piece

    def _advance(self, text: str) -> str:
        piece = text[len(self._sent_text) :]
        del self._window[: self._sent_tokens]
        self._sent_tokens = len(self._window)
        alone = self._sent_tokens == 1  # as nearly always
        self._sent_text = self._tokenizer.text_of(self._window[0]) if alone else self._tokenizer.decode(self._window)
        return piece


class StopStrings:
    """Finds the first of several strings in text that comes in pieces, and keeps back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, piece: str, counts: bool = True) -> tuple[str, bool]:
        """Text that may be sent, and whether a stop string was found: then nothing from its first character on is sent. Those that
        end within a piece that does not count are text like any other."""
        if not self._stop:
            return piece, False
        held, text = len(self._held), self._held + piece
        found = [at for s in self._stop if (at := text.find(s, max(0, held - len(s) + 1))) >= 0] if counts else []
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was kept back, now that no text will follow."""
        text, self._held = self._held, ""
        return text

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        longest = min(len(text), max(map(len, self._stop)) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stop)), 0)
