"""What the client returns: frozen, plain values that know nothing of gRPC."""

from dataclasses import dataclass, field

from polyhead.v1 import bundle_pb2


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request, without padding."""

    prompt_tokens: int
    generated_tokens: int
    cached_prompt_tokens: int = 0
    """Of the prompt's tokens, those that an earlier prompt with the same beginning had computed. Generate only."""
    drafted_tokens: int = 0
    """Guessed by prompt lookup. Generate only."""
    accepted_tokens: int = 0
    """Of these, the ones that the model confirmed. Generate only."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the server's time went; each field as in `polyhead.v1.Timing`."""

    queue_seconds: float
    tokenize_seconds: float
    inference_seconds: float
    total_seconds: float
    time_to_first_token_seconds: float | None = None
    """Of generate only."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability under the model, before temperature, penalties and filters."""

    token_id: int
    token: str
    logprob: float
    top: tuple["TokenLogprob", ...] = ()
    """The likeliest tokens at this position, best first."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """How much each token of an answer attended to each token of its source: the mean over the heads of the decoder's last
    layer. `polyhead.client.alignment` draws it."""

    source_tokens: tuple[str, ...]
    """As the vocabulary writes them; so are target_tokens."""
    target_tokens: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    """A row for each target token with a number for each source token, 0 to 1 and together 1."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one message added to an answer. Each sample's last piece has finish_reason, usage and timing."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    sample_index: int = 0
    finish_reason: str | None = None
    """`eos`, `stop` or `length`."""
    usage: Usage | None = None
    timing: Timing | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """In the first piece of sample 0 if asked for: of the prompt's second token and those after it."""
    score: float | None = None
    """In each sample's last piece if beam search was asked for: what answers are sorted by, highest first."""
    alignment: Alignment | None = None
    """In each sample's last piece if asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What every answer carries."""

    request_id: str
    model: str
    version: str
    usage: Usage
    timing: Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation(Answer):
    """A whole generated answer."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    """One a token if asked for, else empty."""
    finish_reason: str
    """`eos`, `stop` or `length`."""
    seed: int
    """The seed in use, drawn by the server if the request had none."""
    sample_index: int = 0
    """Which of the request's samples this is."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Of the prompt's second token and those after it, if asked for; only sample 0 has them."""
    score: float | None = None
    """If beam search was asked for: what answers are sorted by, highest first."""
    alignment: Alignment | None = None
    """If asked for."""


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label and its probability, 0 to 1; of a model made for regression, and of some cross-encoders, any number."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a text, where it stands there in code points, `[start, end)`; both 0 for an added token."""

    id: int
    token: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TokenLabels:
    """The labels of one token, best first."""

    token: Token
    labels: tuple[LabelScore, ...]

    @property
    def best(self) -> LabelScore:
        return self.labels[0]


@dataclass(frozen=True, slots=True)
class Classification:
    """The labels of one input, best first, or of each of its tokens."""

    labels: tuple[LabelScore, ...]
    """Empty of a model that labels tokens."""
    tokens: tuple[TokenLabels, ...] = ()
    """Of a model that labels tokens: each token of the input but those that were added around it."""

    @property
    def best(self) -> LabelScore:
        """Of the input. Raises IndexError of a model that labels tokens, where each of `tokens` has its own."""
        return self.labels[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyResult(Answer):
    """One classification for each input, in order."""

    results: tuple[Classification, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedResult(Answer):
    """One vector for each input, in order; each as long as the model's embedding size."""

    embeddings: list[list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeResult(Answer):
    """The tokens of each text, in order."""

    results: tuple[tuple[Token, ...], ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the server has, ready or not."""

    name: str
    version: str
    state: str
    """`loading`, `ready`, `failed`, `unloaded` or `unloading`."""
    reason: str
    """Why it failed, what its folder lacks, or why it could not be loaded again; empty otherwise."""
    task: str | None
    """`generate`, `classify` or `embed`; None while its manifest could not be read."""
    architecture: str
    max_tokens: int
    """Longest input that the server takes, and for a decoder with its answer; in tokens."""
    load_seconds: float
    bundle: bundle_pb2.Bundle | None = field(default=None, hash=False, repr=False)
    """The whole manifest; only from `model(name)`."""
    aliases: dict[str, float] = field(default_factory=dict, hash=False)
    """Names by which requests reach this version, each with the share of its requests, above 0 to 1."""
    on_demand: bool = False
    """Loaded at its first request, and unloaded when others need its memory."""
    memory_bytes: int = 0
    """What it takes in memory, estimated; 0 while it is not there."""
    max_answer_tokens: int = 0
    """Longest answer of a sequence-to-sequence model, whose max_tokens is the longest source; 0 of others."""
