"""What a sequence's newly chosen token means for its answer: text, log-probabilities, and whether it ends."""

from polyhead.server.engine.adjustments import Adjustments
from polyhead.server.engine.sequence import FinishReason, Piece, Sequence, TokenLogprob
from polyhead.server.engine.text import StopStrings, TextStream
from polyhead.server.runtime.decoder import StepOutput
from polyhead.server.sampling import Row
from polyhead.server.tokenizer import Tokenizer


class Progress:
    """Turns one sequence's tokens into pieces. Owned by the engine's thread."""

    def __init__(self, sequence: Sequence, tokenizer: Tokenizer) -> None:
        self.sequence = sequence
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer)
        self._stops = StopStrings(sequence.request.stopping.stop)
        self._adjustments = Adjustments(sequence, tokenizer.eos_token_ids)

    def row(self) -> Row:
        """The choice of the next token."""
        sequence = self.sequence
        return Row(sequence.request.sampling, sequence.position, adjustment=self._adjustments.current())

    def advance(self, token: int, logprob: TokenLogprob | None) -> Piece:
        """Append a token; the piece says whether the answer ends with it."""
        sequence, stopping = self.sequence, self.sequence.request.stopping
        sequence.tokens.append(token)
        self._adjustments.append(token)
        count = len(sequence.tokens)
        if token in self._tokenizer.eos_token_ids and not stopping.ignore_eos:
            text, reason = self._flush("")
            reason = reason or FinishReason.EOS
        else:
            text, reason = self._filter(self._text.push(token))
            if reason is None and count >= stopping.max_tokens:
                text, reason = self._flush(text)
                reason = reason or FinishReason.LENGTH
        logprobs = () if logprob is None else (logprob,)
        return Piece(text, (token,), logprobs, reason, count, sequence.times() if reason else None)

    def logprob(self, token: int, logit: float, out: StepOutput, row: int) -> TokenLogprob | None:
        """Of a chosen token and its likeliest alternatives, from a step's output; None if the request asks for none."""
        wanted = self.sequence.request.logprobs
        if wanted is None:
            return None
        normalizer = float(out.logsumexp[row])
        top = zip(out.topk_ids[row, :wanted].tolist(), out.topk_values[row, :wanted].tolist(), strict=True)
        alternatives = tuple(TokenLogprob(i, self._tokenizer.token(i), v - normalizer) for i, v in top)
        return TokenLogprob(token, self._tokenizer.token(token), logit - normalizer, alternatives)

    def _filter(self, text: str) -> tuple[str, FinishReason | None]:
        """Text that may be sent, and STOP if a stop string was found and counts already."""
        if len(self.sequence.tokens) < self.sequence.request.stopping.min_tokens:
            return text, None
        text, stopped = self._stops.push(text)
        return text, FinishReason.STOP if stopped else None

    def _flush(self, text: str) -> tuple[str, FinishReason | None]:
        """`text` and all that waits still; a stop string may yet complete in it."""
        last, reason = self._filter(self._text.flush())
        return (text + last, reason) if reason else (text + last + self._stops.flush(), None)
