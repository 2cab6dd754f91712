"""What a benchmark is told: frozen, and checked where it meets the model."""

from dataclasses import dataclass
from pathlib import Path

from polyhead.client.bench.lengths import Lengths
from polyhead.client.requests import GenerateOptions

DEFAULT_STREAMS = 16
DEFAULT_SECONDS = 30.0
OPEN_LOOP_WARMUP = 4


@dataclass(frozen=True)
class Trace:
    """A recorded load to send again."""

    path: Path
    scale: float = 1.0
    """This many times the recorded rate."""
    clip: bool = False
    """Shorten what is too long for the model, in place of refusing it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Whom to send how much. At most one of streams, rate and trace; none is a closed loop of 16 streams."""

    target: str | None = None
    model: str | None = None
    model_version: str | None = None
    timeout: float = 120.0
    """Seconds that one request may take; nothing is retried."""
    streams: int | None = None
    rate: float | None = None
    """Poisson arrivals, requests a second."""
    requests: int | None = None
    seconds: float | None = None
    """Nothing is sent after that. With neither requests nor seconds: a trace to its end, else 30 seconds."""
    warmup: int | None = None
    """Requests before the measured ones; None: one a stream, or 4 in an open loop."""
    seed: int = 0

    @property
    def open_loop(self) -> bool:
        return self.rate is not None

    @property
    def seconds_limit(self) -> float | None:
        return DEFAULT_SECONDS if self.seconds is None and self.requests is None else self.seconds

    @property
    def load_seed(self) -> str:
        """What everything random is drawn from."""
        return str(self.seed)

    @property
    def concurrency(self) -> int:
        """Requests under way at once in a closed loop, and in the warm-up of an open one."""
        return self.streams or (OPEN_LOOP_WARMUP if self.open_loop else DEFAULT_STREAMS)

    @property
    def warmup_requests(self) -> int:
        return self.concurrency if self.warmup is None else self.warmup


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(Settings):
    """A load of prompts made of random token ids."""

    prompt: Lengths
    answer: Lengths
    trace: Trace | None = None
    shared_prefix: int = 0
    """So many tokens at the begin are the same in all prompts, those of the warm-up included, as of a system prompt."""
    sampling: GenerateOptions

    @property
    def open_loop(self) -> bool:
        return self.rate is not None or self.trace is not None

    @property
    def seconds_limit(self) -> float | None:
        return self.seconds if self.trace else super().seconds_limit


@dataclass(frozen=True, kw_only=True)
class EncodeSettings(Settings):
    """A load of inputs to classify or embed: given texts, made-up words, or random token ids of `tokens` each."""

    task: str
    """`classify` or `embed`."""
    inputs_per_request: int = 1
    tokens: Lengths
    words: Lengths | None = None
    texts: tuple[str, ...] = ()
    truncate: bool = False
