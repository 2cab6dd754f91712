"""What a sequence's newly chosen token means for its answer: text, log-probabilities, and whether it ends."""

from collections.abc import Sequence as Tokens
from concurrent.futures import Executor, Future

import numpy as np
from numpy.typing import NDArray

from polyhead.server.engine.adjustments import Adjustments
from polyhead.server.engine.sequence import Counts, FinishReason, Piece, Sequence, TokenLogprob
from polyhead.server.engine.speculation import PromptLookup
from polyhead.server.engine.text import StopStrings, TextStream
from polyhead.server.runtime.decoder import StepOutput
from polyhead.server.sampling import Adjustment, Row, candidates
from polyhead.server.tokenizer import Tokenizer


class Progress:
    """Turns one sequence's tokens into pieces. Owned by the engine's thread."""

    def __init__(self, sequence: Sequence, tokenizer: Tokenizer, continues_prompt: bool) -> None:
        """`continues_prompt`: the answer goes on from the prompt, instead of being about it."""
        request = sequence.request
        self.sequence = sequence
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer)
        self._stops = StopStrings(request.stopping.stop)
        self._end_tokens = request.stopping.end_tokens(tokenizer.eos_token_ids)
        self._adjustments = Adjustments(sequence, tokenizer.eos_token_ids, continues_prompt)
        self._matcher = request.grammar.matcher() if request.grammar else None
        self._mask: Future[NDArray[np.bool_]] | None = None
        self._lookup = PromptLookup(request.prompt) if request.prompt_lookup else None
        self._guesses: list[int] = []
        self._right = 0  # of these
        self._drafted = self._accepted = 0
        self.chooses_likeliest = not request.sampling.temperature and self._adjustments.are_none and not self._matcher
        """Whatever the model says, with nothing to adjust: there is no need of a `row`."""
        self._only_text = self._adjustments.are_none and not (
            self._matcher
            or self._lookup
            or request.stopping.stop
            or request.return_alignment
            or request.logprobs is not None
            or request.prompt_logprobs is not None
        )
        self.candidates = candidates(request, len(self._end_tokens))
        """Of the graph's likeliest tokens, so many are needed."""
        self._prompt_logprobs: list[TokenLogprob] = []
        self._alignment: list[NDArray[np.float32]] = []

    def prepare(self, executor: Executor) -> None:
        """Before a step: begin to compute what the grammar allows after it, while the model runs."""
        if self._matcher is not None:
            self._mask = executor.submit(self._matcher.allowed)

    def row(self) -> Row:
        """The choice of the next token, unless it is the likeliest one."""
        sequence = self.sequence
        return Row(sequence.request.sampling, sequence.position, sequence.sample_index, self.adjustment())

    def adjustment(self) -> Adjustment | None:
        """What penalties, bans and the grammar change of the next token's logits."""
        if self._matcher is None:
            return self._adjustments.current()
        return self._adjustments.within(self._mask.result() if self._mask else self._matcher.allowed())

    def append(self, token: int) -> None:
        """A token was chosen: the sequence, penalties, grammar and guesses go on to the next."""
        self.sequence.tokens.append(token)
        self._adjustments.append(token)
        self._mask = None
        if self._right < len(self._guesses) and self._guesses[self._right] == token:
            self._right += 1
            self._accepted += 1
        if self._matcher is not None:
            self._matcher.consume(token)
        if self._lookup is not None:
            self._lookup.append(token)

    def become(self, other: "Progress") -> None:
        """Go on from where another row of the same request is."""
        self.sequence.tokens[:] = other.sequence.tokens
        self._adjustments.become(other._adjustments)
        self._matcher = other._matcher and other._matcher.copy()
        self._mask = None

    def advance(self, token: int, logit: float, out: StepOutput, row: int) -> Piece:
        """Append a token that was chosen from a row of a step's output; the piece says whether the answer ends with it."""
        sequence, stopping = self.sequence, self.sequence.request.stopping
        if self._only_text and token not in self._end_tokens and len(sequence.tokens) + 1 < stopping.max_tokens:
            sequence.tokens.append(token)
            return Piece(self._text.push(token), (token,), sample_index=sequence.sample_index)
        logprob, weights = self.logprob(token, logit, out, row), self.alignment(out, row)
        self.append(token)
        if weights is not None:
            self._alignment.append(weights)
        if token in self._end_tokens:
            text, reason = self._flush("")
            reason = reason or stopping.reason(token)
        else:
            text, reason = self._filter(self._text.push(token))
            if reason is None and len(sequence.tokens) >= stopping.max_tokens:
                text, reason = self._flush(text)
                reason = reason or FinishReason.LENGTH
        piece = Piece(text, (token,), () if logprob is None else (logprob,), reason, sample_index=sequence.sample_index)
        if self._prompt_logprobs and len(sequence.tokens) == 1:
            piece.prompt_logprobs = self.prompt_logprobs
        if reason:
            piece.times, piece.counts, piece.alignment = sequence.times(), self._counts(), tuple(self._alignment)
        return piece

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprob, ...]:
        """What `add_prompt_logprobs` has added."""
        return tuple(self._prompt_logprobs)

    def text_of(self, tokens: Tokens[int]) -> str:
        return self._tokenizer.decode(tokens)

    def draft(self, room: int) -> list[int]:
        """Guesses of the next tokens, at most `room`; empty for who did not ask for them."""
        self._guesses = self._lookup.draft(room) if self._lookup else []
        self._right = 0
        self._drafted += len(self._guesses)
        return self._guesses

    def verified(self) -> int:
        """The guesses were checked, and so many were right: what follows the first wrong one no longer counts."""
        if self._lookup:
            self._lookup.learn(len(self._guesses), self._right)
        self._guesses = []
        return self._right

    def logprob(self, token: int, logit: float, out: StepOutput, row: int) -> TokenLogprob | None:
        """Of a chosen token and its likeliest alternatives, from a step's output; None if the request asks for none."""
        wanted = self.sequence.request.logprobs
        return None if wanted is None else self._token_logprob(token, logit, out, row, wanted)

    def alignment(self, out: StepOutput, row: int) -> NDArray[np.float32] | None:
        """What a step's next token attended to, one number for each token of the source; None if nobody asks."""
        if not self.sequence.request.return_alignment or out.alignment is None:
            return None
        return out.alignment[row, : len(self.sequence.request.prompt)].copy()

    def add_prompt_logprobs(self, tokens: tuple[int, ...], out: StepOutput) -> None:
        """Of the prompt's next tokens: row i of the output belongs to the position before tokens[i]."""
        wanted = self.sequence.request.prompt_logprobs or 0
        for i, token in enumerate(tokens):
            entry = self._token_logprob(token, float(out.logits[i, token]), out, i, wanted)
            self._prompt_logprobs.append(entry)

    def _token_logprob(self, token: int, logit: float, out: StepOutput, row: int, wanted: int) -> TokenLogprob:
        normalizer = float(out.logsumexp[row])
        top = zip(out.topk_ids[row, :wanted].tolist(), out.topk_values[row, :wanted].tolist(), strict=True)
        alternatives = tuple(TokenLogprob(i, self._tokenizer.token(i), v - normalizer) for i, v in top)
        return TokenLogprob(token, self._tokenizer.token(token), logit - normalizer, alternatives)

    def _counts(self) -> Counts:
        sequence = self.sequence
        return Counts(len(sequence.tokens), sequence.cached_prompt, self._drafted, self._accepted)

    def _filter(self, text: str) -> tuple[str, FinishReason | None]:
        """Text that may be sent, and STOP if a stop string was found and counts already."""
        counts = len(self.sequence.tokens) >= self.sequence.request.stopping.min_tokens
        text, stopped = self._stops.push(text, counts)
        return text, FinishReason.STOP if stopped else None

    def _flush(self, text: str) -> tuple[str, FinishReason | None]:
        """`text` and all that waits still; a stop string may yet complete in it."""
        last, reason = self._filter(self._text.flush())
        return (text + last, reason) if reason else (text + last + self._stops.flush(), None)
