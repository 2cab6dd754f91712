"""What goes into the generation engine, what comes out, and what it keeps of an answer in between: no gRPC, no tensors."""

from dataclasses import dataclass, field
from enum import Enum


class FinishReason(Enum):
    """Why an answer ended."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; ranges as in `polyhead.v1.SamplingParameters`, every value decided."""

    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit); distinct ids."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that must not appear in the answer."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """When an answer ends; ranges as in `polyhead.v1.StoppingCriteria`, every value decided."""

    max_tokens: int
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt as token ids (at least one; prompt plus max_tokens within the slot's capacity) and what to do with it."""

    prompt: tuple[int, ...]
    sampling: Sampling
    stopping: Stopping
    logprobs: int | None = None
    """How many alternatives to report beside each token's log-probability; None reports nothing."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability under the model, before temperature, penalties and filters."""

    token_id: int
    token: str
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationTimes:
    """Seconds, from the moment the request was submitted."""

    queue: float
    """Until its prefill began."""
    first_token: float
    """Until its first token."""
    inference: float
    """From the begin of its prefill to its last token."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to an answer. The last piece of an answer has `finish_reason` and `times`."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    generated_tokens: int = 0
    """So far, this piece included."""
    times: GenerationTimes | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """An answer in the making. The engine's thread owns it; only `ended` is set from elsewhere, under the engine's lock."""

    request: GenerationRequest
    arrived: float
    """Clock of the submission, in seconds; so are the other times."""
    tokens: list[int] = field(default_factory=list)
    """Generated so far."""
    cached: int = 0
    """Tokens in its slot."""
    slot: int = -1
    ended: bool = False
    """The caller left: the slot is freed before the next step."""
    started: float = 0.0
    """Prefill began."""
    first_token: float = 0.0
    last_token: float = 0.0

    @property
    def position(self) -> int:
        """Of the next token to be chosen."""
        return len(self.request.prompt) + len(self.tokens)

    def times(self) -> GenerationTimes:
        return GenerationTimes(
            queue=self.started - self.arrived,
            first_token=self.first_token - self.arrived,
            inference=self.last_token - self.started,
        )
