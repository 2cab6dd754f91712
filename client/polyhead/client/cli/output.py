"""How answers look: on a terminal for people, and as JSON for programs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from polyhead.client.results import (
    Answer,
    Classification,
    ClassifyResult,
    EmbedResult,
    Generation,
    LabelScore,
    Token,
    TokenizeResult,
    TokenLogprob,
    Usage,
)

_BAR_WIDTH = 24
_SHOWN_VALUES = 8
_TITLE_WIDTH = 76


def print_json(value: dict[str, Any]) -> None:
    # Flushed line by line: who reads a pipe wants an answer when it is there.
    print(json.dumps(value, ensure_ascii=False), flush=True)


def title(text: str) -> str:
    """Tells the answers of several inputs apart."""
    line = " ".join(text.split())
    return f"==> {line if len(line) <= _TITLE_WIDTH else line[: _TITLE_WIDTH - 1] + '…'} <=="


def sample_title(answer: Generation) -> str:
    """Tells the samples of one input apart."""
    return f"--- sample {answer.sample_index}{_score(answer)} ---"


def _score(answer: Generation) -> str:
    """Of beam search."""
    return "" if answer.score is None else f", score {answer.score:.4f}"


def generation_json(answer: Generation) -> dict[str, Any]:
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "logprobs": [_logprob_json(logprob) for logprob in answer.logprobs],
        "prompt_logprobs": [_logprob_json(logprob) for logprob in answer.prompt_logprobs],
        "sample_index": answer.sample_index,
        "finish_reason": answer.finish_reason,
        "seed": answer.seed,
        "score": answer.score,
        "alignment": asdict(answer.alignment) if answer.alignment else None,
        **_envelope_json(answer),
    }


def classification_json(answer: ClassifyResult) -> dict[str, Any]:
    """Of an answer to one input."""
    (result,) = answer.results
    tokens = [{**asdict(token.token), "labels": [asdict(label) for label in token.labels]} for token in result.tokens]
    labels = {"labels": [asdict(label) for label in result.labels]}
    return {**labels, **({"tokens": tokens} if tokens else {}), **_envelope_json(answer)}


def embedding_json(answer: EmbedResult) -> dict[str, Any]:
    """Of an answer to one input."""
    return {"embedding": answer.embeddings[0], **_envelope_json(answer)}


def tokens_json(answer: TokenizeResult) -> dict[str, Any]:
    """Of an answer to one input."""
    return {"tokens": [asdict(token) for token in answer.results[0]], **_envelope_json(answer)}


def generation_lines(answer: Generation) -> list[str]:
    """Log-probabilities of the answer's tokens, and of the prompt's under a heading of their own."""
    heading = ["of the prompt:"] if answer.prompt_logprobs else []
    return [*_logprob_lines(answer.logprobs), *heading, *_logprob_lines(answer.prompt_logprobs)]


def _logprob_lines(logprobs: Sequence[TokenLogprob]) -> list[str]:
    """One a token: its log-probability, the token, and the likeliest tokens in its place."""
    return [
        f"{logprob.logprob:9.4f}  {logprob.token!r:<16}"
        + "".join(f"  {other.token!r} {other.logprob:.4f}" for other in logprob.top)
        for logprob in logprobs
    ]


def summary(answer: Generation) -> str:
    """How an answer ended and how fast it was, for people."""
    seconds, tokens = answer.timing.total_seconds, answer.usage.generated_tokens
    speed = f", {tokens / seconds:.1f} tokens/s" if seconds > 0 else ""
    first = answer.timing.time_to_first_token_seconds
    wait = "" if first is None else f", the first after {first:.3f} s"
    end = f"end: {answer.finish_reason}; seed {answer.seed}{_score(answer)}"
    return f"[{answer.model} {answer.version}: {tokens} tokens{speed}{wait}{_saved(answer.usage)}; {end}]"


def _saved(usage: Usage) -> str:
    """What the prefix cache and prompt lookup spared, if they did."""
    cached, drafted = usage.cached_prompt_tokens, usage.drafted_tokens
    prompt = f"; {cached} of {usage.prompt_tokens} prompt tokens cached" if cached else ""
    return prompt + (f"; {usage.accepted_tokens} of {drafted} guesses right" if drafted else "")


def classification_lines(result: Classification) -> list[str]:
    """Labels below each other; of labelled tokens one a line, each with its labels behind it."""
    if not result.tokens:
        return _label_lines(result.labels)
    cells = [[f"{label.label} {label.score:.4f}" for label in token.labels] for token in result.tokens]
    return table([[_place(t.token), t.token.token, *row] for t, row in zip(result.tokens, cells, strict=True)])


def _label_lines(labels: Sequence[LabelScore]) -> list[str]:
    width = max((len(label.label) for label in labels), default=0)
    return [f"{label.label:<{width}}  {label.score:.4f}  {_bar(label.score)}".rstrip() for label in labels]


def embedding_line(values: Sequence[float]) -> str:
    shown = " ".join(f"{value:8.4f}" for value in values[:_SHOWN_VALUES])
    return f"{len(values)} dimensions: {shown}{' …' if len(values) > _SHOWN_VALUES else ''}"


def token_lines(tokens: Sequence[Token]) -> list[str]:
    return [f"{token.id:>8}  {_place(token)}  {token.token}" for token in tokens]


def _place(token: Token) -> str:
    return f"{f'{token.start}:{token.end}':>9}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with their columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _bar(share: float) -> str:
    """Only on a terminal, and only where it can show it."""
    if not sys.stdout.isatty() or "utf" not in (sys.stdout.encoding or "").lower():
        return ""
    return "█" * round(share * _BAR_WIDTH)


def _logprob_json(logprob: TokenLogprob) -> dict[str, Any]:
    shown: dict[str, Any] = {"token_id": logprob.token_id, "token": logprob.token, "logprob": logprob.logprob}
    return {**shown, "top": [{k: v for k, v in asdict(other).items() if k != "top"} for other in logprob.top]}


def _envelope_json(answer: Answer) -> dict[str, Any]:
    return {
        "usage": asdict(answer.usage),
        "timing": {name: seconds for name, seconds in asdict(answer.timing).items() if seconds is not None},
        "model": answer.model,
        "version": answer.version,
        "request_id": answer.request_id,
    }
