"""What the graphs' answers are worth, beside those of the same model in torch."""

from collections.abc import Sequence

import numpy as np
import tokenizers
import torch
from torch.nn import functional as F

from polyhead.export.errors import ExportError
from polyhead.export.parity import Floats
from polyhead.export.seq2seq.exportable import ExportableSeq2Seq
from polyhead.export.seq2seq.verify import read_sources
from polyhead.server.runtime.seq2seq import Seq2SeqDecoder

EVALUATED_PAIRS = 256

Pair = tuple[list[int], list[int]]
"""Token ids of a source, and of its answer with its end token."""


def seq2seq_quality(
    model: ExportableSeq2Seq, decoder: Seq2SeqDecoder, readers: tuple[str, str], end_token: int | None, text: str
) -> dict[str, float]:
    """`perplexity` of the graphs and `perplexity_fp32` of torch on lines of a source, a tab and its answer. `readers`: tokenizers
    of sources and of answers, as JSON. Raises ExportError if no line is so and fits the model."""
    pairs = list(_pairs(decoder, readers, end_token, text))
    if not pairs:
        raise ExportError("the text for evaluation (--eval-data) must have lines of a source, a tab and its answer")
    spread = np.linspace(0, len(pairs) - 1, min(len(pairs), EVALUATED_PAIRS)).astype(int)
    chosen = [pairs[i] for i in spread]
    ours = np.concatenate([_torch_losses(model, decoder.start_token_id, pair) for pair in chosen])
    theirs = np.concatenate([_losses(decoder, group) for group in _groups(chosen, decoder.slots)])
    return {"perplexity": float(np.exp(theirs.mean())), "perplexity_fp32": float(np.exp(ours.mean()))}


def _pairs(decoder: Seq2SeqDecoder, readers: tuple[str, str], end_token: int | None, text: str) -> list[Pair]:
    read, write = (tokenizers.Tokenizer.from_str(reader) for reader in readers)
    end = [] if end_token is None else [end_token]
    found = []
    for line in text.splitlines():
        source, tab, answer = line.partition("\t")
        ids = read.encode(source).ids, [*write.encode(answer, add_special_tokens=False).ids, *end]
        if tab and source and answer and len(ids[0]) <= decoder.longest_prompt and len(ids[1]) <= decoder.capacity:
            found.append(ids)
    return found


def _groups(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """Answers of about the same length decode together."""
    ordered = sorted(pairs, key=lambda pair: len(pair[1]))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def _torch_losses(model: ExportableSeq2Seq, start: int, pair: Pair) -> Floats:
    source, answer = pair
    logits, _ = model.reference(source, [start, *answer[:-1]])
    losses: Floats = F.cross_entropy(torch.from_numpy(logits), torch.tensor(answer), reduction="none").numpy()
    return losses


def _losses(decoder: Seq2SeqDecoder, group: list[Pair]) -> Floats:
    """Negative log-probability of each token of the answers, decoded token by token as the server does."""
    losses: list[float] = []
    rows = np.arange(len(group))
    held = read_sources(decoder, [source for source, _ in group])
    tokens = np.full(len(group), decoder.start_token_id)
    for step in range(max(len(answer) for _, answer in group)):
        output = decoder.decode(tokens, held + step, 1)
        tokens = np.array([answer[min(step, len(answer) - 1)] for _, answer in group])
        step_losses = output.logsumexp - output.logits[rows, tokens]
        losses += [loss for loss, (_, answer) in zip(step_losses, group, strict=True) if step < len(answer)]
    return np.array(losses, np.float32)
