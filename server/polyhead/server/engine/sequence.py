"""What goes into the generation engine, what comes out, and what it keeps of an answer in between: no gRPC, no tensors."""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # arrays stay out of what the scheduler sees
    import numpy as np
    from numpy.typing import NDArray

    from polyhead.server.constraints import Grammar


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
    stop_token_ids: tuple[int, ...] = ()

    def end_tokens(self, of_model: frozenset[int]) -> frozenset[int]:
        """Tokens that end an answer of a model with these end tokens."""
        return frozenset(self.stop_token_ids) | (frozenset() if self.ignore_eos else of_model)

    def reason(self, end_token: int) -> FinishReason:
        return FinishReason.STOP if end_token in self.stop_token_ids else FinishReason.EOS


@dataclass(frozen=True, slots=True)
class BeamOptions:
    """Search instead of choosing token by token; as in `polyhead.v1.BeamSearch`, every value decided."""

    width: int
    """At most the number of slots."""
    length_penalty: float = 1.0
    early_stopping: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt as token ids (at least one; prompt plus max_tokens within the slot's capacity) and what to do with it. For a
    sequence-to-sequence model the prompt is the source."""

    prompt: tuple[int, ...]
    sampling: Sampling
    stopping: Stopping
    logprobs: int | None = None
    """How many alternatives to report beside each token's log-probability; None reports nothing."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    samples: int = 1
    """Independent answers, at most as many as there are slots; the prompt is prefilled once for all."""
    grammar: "Grammar | None" = None
    """What every answer must match."""
    prompt_lookup: bool = False
    """Guess next tokens from what stands in prompt and answer (speculative decoding)."""
    priority: int = 0
    """Higher waits less; equals are served in the order they came."""
    adapter: str = ""
    """One of the model's; empty: none."""
    beam_search: BeamOptions | None = None
    """`samples` of the answers it finds are told, at most its width; its choices are not sampled."""
    return_alignment: bool = False
    """Tell what each token of the answer attended to; only models with a source can."""

    @property
    def rows(self) -> int:
        """Slots that it decodes in."""
        return self.beam_search.width if self.beam_search else self.samples


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
class Counts:
    """What an answer took."""

    generated_tokens: int
    cached_prompt_tokens: int = 0
    """Prompt tokens that were copied from the prefix cache instead of being computed."""
    drafted_tokens: int = 0
    """Tokens guessed by prompt lookup."""
    accepted_tokens: int = 0
    """Guesses that were right."""


@dataclass(slots=True)
class Piece:
    """What one step added to an answer. The last piece of an answer has `finish_reason`, `times` and `counts`.

    Nobody but who reads it changes it once it is told. That it can be makes it in a quarter of the time, and there is one for
    every token.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    times: GenerationTimes | None = None
    counts: Counts | None = None
    sample_index: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """In the first piece, if asked for: of the prompt's second token and those after it."""
    score: float | None = None
    """In the last piece of an answer that beam search found."""
    answers: int | None = None
    """In the same: how many it found, if fewer than asked for."""
    alignment: "tuple[NDArray[np.float32], ...]" = ()
    """In the last piece, if asked for: of each token of the answer, how much it attended to each token of the source."""


@dataclass(slots=True, eq=False)
class Sequence:
    """An answer in the making. The engine's thread owns it; only `ended` is set from elsewhere, under the engine's lock."""

    request: GenerationRequest
    arrived: float
    """Clock of the submission, in seconds; so are the other times."""
    sample_index: int = 0
    siblings: tuple["Sequence", ...] = ()
    """Of the first sample: those that continue the same prompt."""
    tokens: list[int] = field(default_factory=list)
    """Generated so far."""
    cached: int = 0
    """Tokens in its lane or slot."""
    cached_prompt: int = 0
    """Of these, tokens of the prompt that came from the prefix cache."""
    lane: int = -1
    """Where its prompt is read; -1 before and after."""
    slot: int = -1
    """Where it decodes; -1 before and after."""
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

    def times_so_far(self, now: float) -> GenerationTimes | None:
        """Of an answer that is not over; None while it waits for a slot."""
        if not self.started:
            return None
        first_token = self.first_token or now
        return GenerationTimes(self.started - self.arrived, first_token - self.arrived, now - self.started)


def sequences_of(request: GenerationRequest, arrived: float) -> Sequence:
    """The request's first sample or beam, with its siblings."""
    siblings = tuple(Sequence(request, arrived, index) for index in range(1, request.rows))
    return Sequence(request, arrived, siblings=siblings)
