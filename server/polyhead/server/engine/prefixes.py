"""The prefix cache: beginnings of prompts kept in lanes of their own, so that what many prompts share is prefilled once.

Only whole chunks are kept. What a lane holds after a chunk depends on nothing but the tokens up to there (chunks start at fixed
multiples and rows do not influence each other) and the adapter, so an answer from a copy is the same to the bit.
"""

from collections import OrderedDict
from collections.abc import Sequence as Tokens
from hashlib import blake2b
from typing import Protocol


class LaneMemory(Protocol):
    """What the runtime does with the cache itself."""

    def copy_lane(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of one lane to another."""


class PrefixCache:
    """Owns the lanes `first` to `first + count - 1`; forgets the prefix that was not used for longest."""

    def __init__(self, first: int, count: int, memory: LaneMemory, chunk_tokens: int) -> None:
        self._memory = memory
        self._chunk_tokens = chunk_tokens
        self._unused = list(range(first, first + count))
        self._chains: OrderedDict[int, list[bytes]] = OrderedDict()  # by lane; the last one was used last

    def restore(self, prompt: Tokens[int], lane: int, adapter: str = "") -> int:
        """Copy the longest known beginning of the prompt to a lane; its length, less than the whole prompt, in tokens."""
        chain = self._chain(prompt, (len(prompt) - 1) // self._chunk_tokens, adapter)
        best = max(self._chains, key=lambda held: _common(self._chains[held], chain), default=None)
        chunks = 0 if best is None else _common(self._chains[best], chain)
        if best is None or not chunks:
            return 0
        self._chains.move_to_end(best)
        self._memory.copy_lane(best, lane, chunks * self._chunk_tokens)
        return chunks * self._chunk_tokens

    def keep(self, prompt: Tokens[int], lane: int, adapter: str = "") -> None:
        """Remember the whole chunks of a prompt that a lane holds."""
        chain = self._chain(prompt, len(prompt) // self._chunk_tokens, adapter)
        if not chain or not (self._unused or self._chains):
            return
        for held, known in self._chains.items():
            if _common(known, chain) == len(chain):  # there already
                self._chains.move_to_end(held)
                return
        target = self._replaced_by(chain)
        self._chains.pop(target, None)
        try:
            self._memory.copy_lane(lane, target, len(chain) * self._chunk_tokens)
        except BaseException:
            self._unused.append(target)
            raise
        self._chains[target] = chain

    def _replaced_by(self, chain: list[bytes]) -> int:
        """A lane for a new chain: that of a beginning of it, else an empty one, else the one not used for longest."""
        for held, known in self._chains.items():
            if _common(known, chain) == len(known):
                self._chains.move_to_end(held)
                return held
        return self._unused.pop() if self._unused else self._chains.popitem(last=False)[0]

    def _chain(self, prompt: Tokens[int], chunks: int, adapter: str) -> list[bytes]:
        """One digest for each of the first chunks, of the adapter and everything up to the chunk's end."""
        state, chain = blake2b(digest_size=16, key=adapter.encode()), []
        for start in range(0, chunks * self._chunk_tokens, self._chunk_tokens):
            state.update(b"".join(t.to_bytes(4, "little") for t in prompt[start : start + self._chunk_tokens]))
            chain.append(state.digest())
        return chain


def _common(one: list[bytes], other: list[bytes]) -> int:
    """How many chunks two chains share. A digest covers all before it, so the last equal one decides."""
    count = min(len(one), len(other))
    while count and one[count - 1] != other[count - 1]:
        count -= 1
    return count
