"""The asyncio end of a request: pieces come from the engine's thread and are awaited in the caller's event loop."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from polyhead.server.engine.sequence import GenerationTimes, Piece

News = Piece | BaseException
"""Of an answer: what a step added, or what the engine met instead."""


class Answer:
    """Iterate over it with `async for`, one reader only. Ends when every sample had its last piece; raises what the engine met
    instead."""

    def __init__(
        self, on_cancel: Callable[[], None], times_so_far: Callable[[], GenerationTimes | None], samples: int = 1
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.times_so_far = times_so_far
        """Of the first sample; None while it waits for a slot."""
        self._on_cancel = on_cancel
        self._arrived: deque[News] = deque()
        self._arrival: asyncio.Future[None] | None = None  # what the reader waits for
        self._samples = samples
        self._finished = 0
        self._over = False

    def cancel(self) -> None:
        """Nobody waits any more: the engine frees the slot before its next step. Does nothing to an answer that is over."""
        if not self._over:
            self._over = True
            self._on_cancel()

    def deliver(self, items: Iterable[News]) -> None:
        """Called in the event loop of the caller."""
        self._arrived.extend(items)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> Piece:
        if self._over:
            raise StopAsyncIteration
        while not self._arrived:
            self._arrival = self.loop.create_future()
            await self._arrival
        return self._take()

    def _take(self) -> Piece:
        """What has arrived of one sample, as one piece: a slow reader gets fewer and larger ones."""
        item = self._arrived.popleft()
        if isinstance(item, BaseException):
            self._over = True
            raise item
        pieces = [item]
        while self._arrived and isinstance(more := self._arrived[0], Piece) and more.sample_index == item.sample_index:
            pieces.append(more)
            self._arrived.popleft()
        self._finished += pieces[-1].finish_reason is not None
        self._over = self._finished == (pieces[-1].answers or self._samples)
        return item if len(pieces) == 1 else _merge(pieces)


def _merge(pieces: list[Piece]) -> Piece:
    """The last one, which nobody else has any more, with what those before it say."""
    merged = pieces[-1]
    merged.text = "".join([p.text for p in pieces])
    merged.token_ids = tuple([i for p in pieces for i in p.token_ids])
    merged.logprobs = tuple([t for p in pieces for t in p.logprobs])
    merged.prompt_logprobs = pieces[0].prompt_logprobs
    return merged


Delivery = tuple[Answer, list[News]]


def deliver_all(deliveries: Iterable[Delivery]) -> None:
    """Called in the event loop that all these answers belong to."""
    for answer, items in deliveries:
        answer.deliver(items)
