"""What came of one request, in times of this machine's `perf_counter`."""

from array import array
from dataclasses import dataclass, field
from itertools import pairwise

from polyhead.client.errors import Overloaded, PolyheadError
from polyhead.v1 import inference_pb2


def _times() -> "array[float]":
    return array("d")


def _counts() -> "array[int]":
    return array("L")


@dataclass(slots=True)
class Outcome:
    """Filled in while the answer comes. The properties with times are of completed requests."""

    sent: float
    late: float | None = None
    """Seconds between when an open loop wanted to send it and when it did; None in a closed loop."""
    ended: float = 0.0
    error: PolyheadError | None = None
    arrivals: "array[float]" = field(default_factory=_times)
    """When each message that brought tokens came. Generate only."""
    tokens: "array[int]" = field(default_factory=_counts)
    """How many tokens each of them brought."""
    inputs: int = 1
    usage: inference_pb2.Usage | None = None
    timing: inference_pb2.Timing | None = None

    @property
    def completed(self) -> bool:
        return self.error is None

    @property
    def rejected(self) -> bool:
        """The server had no room for it (RESOURCE_EXHAUSTED)."""
        return isinstance(self.error, Overloaded)

    @property
    def generated_tokens(self) -> int:
        return sum(self.tokens)

    @property
    def latency(self) -> float:
        return self.ended - self.sent

    @property
    def time_to_first_token(self) -> float | None:
        return self.arrivals[0] - self.sent if self.arrivals else None

    @property
    def gaps(self) -> list[float]:
        """The times between one message with tokens and the next."""
        return [later - earlier for earlier, later in pairwise(self.arrivals)]

    @property
    def time_per_output_token(self) -> float | None:
        """The mean over the tokens after the first; None if there are none."""
        after_first = self.generated_tokens - 1
        return (self.arrivals[-1] - self.arrivals[0]) / after_first if after_first > 0 else None
