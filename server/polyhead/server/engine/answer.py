"""The asyncio end of an answer: pieces come from the engine's thread and are awaited in the caller's event loop."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from polyhead.server.engine.sequence import Piece


class Answer:
    """Iterate over it with `async for`. Ends after the piece with a finish reason; raises what the engine met instead of one."""

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._on_cancel = on_cancel
        self._arrived: deque[Piece | BaseException] = deque()
        self._changed = asyncio.Event()
        self._over = False

    def cancel(self) -> None:
        """Nobody waits any more: the engine frees the slot before its next step. Does nothing to an answer that is over."""
        if not self._over:
            self._over = True
            self._on_cancel()

    def deliver(self, item: Piece | BaseException) -> None:
        """Called in the event loop of the caller."""
        self._arrived.append(item)
        self._changed.set()

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> Piece:
        if self._over:
            raise StopAsyncIteration
        while not self._arrived:
            self._changed.clear()
            await self._changed.wait()
        return self._take()

    def _take(self) -> Piece:
        """All that has arrived, as one piece: a slow reader gets fewer and larger ones."""
        pieces: list[Piece] = []
        while self._arrived:
            item = self._arrived.popleft()
            if isinstance(item, BaseException):
                if pieces:  # first what came before it
                    self._arrived.appendleft(item)
                    break
                self._over = True
                raise item
            pieces.append(item)
        self._over = pieces[-1].finish_reason is not None
        return pieces[0] if len(pieces) == 1 else _merge(pieces)


def _merge(pieces: list[Piece]) -> Piece:
    return replace(
        pieces[-1],
        text="".join(p.text for p in pieces),
        token_ids=tuple(i for p in pieces for i in p.token_ids),
        logprobs=tuple(t for p in pieces for t in p.logprobs),
    )


Delivery = tuple[Answer, Piece | BaseException]


def deliver_all(deliveries: Iterable[Delivery]) -> None:
    """Called in the event loop that all these answers belong to."""
    for answer, item in deliveries:
        answer.deliver(item)
