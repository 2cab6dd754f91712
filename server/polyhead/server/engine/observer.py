"""What engines tell whoever counts. Called from the engine's own thread; must return at once and never raise."""

from typing import Protocol


class EngineObserver(Protocol):
    """Implemented by metrics; engines know only this."""

    def queue_size(self, requests: int) -> None:
        """So many requests wait now."""

    def running(self, requests: int) -> None:
        """So many requests are being worked on now (a decoder: slots in use)."""

    def ran(self, *, rows: int, tokens: int, padding: int, seconds: float) -> None:
        """One call of the model ended: its rows, real tokens, padding tokens and duration."""

    def first_token(self, seconds: float) -> None:
        """A request got its first token so long after its arrival."""

    def copied(self, tokens: int) -> None:
        """So many of a prompt's tokens came from the prefix cache."""

    def guessed(self, drafted: int, accepted: int) -> None:
        """Prompt lookup guessed so many tokens, of which so many were right."""

    def inter_token(self, seconds: float) -> None:
        """A request got its next token so long after the one before."""
