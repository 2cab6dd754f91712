"""What a graph's answers are worth, beside those of the same model in torch."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from polyhead.export.errors import ExportError
from polyhead.export.exportable import ExportableDecoder, ExportableEncoder, Floats
from polyhead.server.runtime.decoder import Decoder
from polyhead.server.runtime.encoder import Encoder
from polyhead.server.tokenizer import takes_pairs

AGREEMENTS = ("agreement_with_fp32", "cosine_to_fp32", "rank_agreement_with_fp32")
WINDOW = 256
"""Tokens that are predicted from what stands before them in the same window, at most."""
EVALUATED_TOKENS = 16_384
DECODED_TOKENS = 4_096
"""The same where a graph is measured one token at a time."""
EVALUATED_INPUTS = 256
EVEN = 0.5
"""A label whose probability is above holds, where several may at once."""


def read_text(path: Path) -> str:
    """Raises ExportError for what is no UTF-8 text."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"{path}: must be UTF-8, has other bytes at {error.start}") from error


def evaluation_windows(decoder: Decoder, max_tokens: int, tokenizer_json: str, text: str) -> NDArray[np.int64]:
    """(N, T): what a decoder is measured on. Raises ExportError if the text is too short."""
    tokens = np.array(_tokenizer(tokenizer_json).encode(text, add_special_tokens=False).ids)
    return spread_windows(
        tokens, min(WINDOW, max_tokens), DECODED_TOKENS if decoder.memory.quantized else EVALUATED_TOKENS
    )


def perplexity(decoder: Decoder, windows: NDArray[np.int64]) -> float:
    """Of the graph. An int8 cache is measured token by token: only decoding attends over it."""
    groups = [windows[i : i + decoder.slots] for i in range(0, len(windows), decoder.slots)]
    quantized = decoder.memory.quantized
    losses = [_losses_of_steps(decoder, g) for g in groups] if quantized else [_losses(decoder, w) for w in windows]
    return float(np.exp(np.concatenate(losses).mean()))


def torch_perplexity(source: ExportableDecoder, windows: NDArray[np.int64]) -> float:
    return float(np.exp(np.concatenate([_torch_losses(source, window) for window in windows]).mean()))


def spread_windows(tokens: NDArray[np.int64], length: int, most: int = EVALUATED_TOKENS) -> NDArray[np.int64]:
    """(N, length): windows that don't overlap, spread evenly, `most` tokens in all; of a short text one."""
    if len(tokens) < 2:
        raise ExportError(f"the text for evaluation (--eval-data) must have at least 2 tokens, has {len(tokens)}")
    length = min(length, len(tokens))
    available = len(tokens) // length
    count = min(available, max(1, most // length))
    starts = np.arange(count) * available // count * length
    windows: NDArray[np.int64] = tokens[starts[:, None] + np.arange(length)]
    return windows


def _torch_losses(source: ExportableDecoder, window: NDArray[np.int64]) -> NDArray[np.float32]:
    """(T,) -> (T - 1,): negative log-probability of each token but the first."""
    logits, _ = source.reference(window[:-1].tolist(), len(window) - 1)
    targets = torch.from_numpy(window[1:])
    losses: NDArray[np.float32] = F.cross_entropy(torch.from_numpy(logits), targets, reduction="none").numpy()
    return losses


def _losses_of_steps(decoder: Decoder, windows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(B, T) -> (B · (T - 1),): the same of the graph, decoded token by token as the server does."""
    rows = np.arange(len(windows))
    losses = []
    for position, (tokens, targets) in enumerate(pairwise(windows.T)):
        output = decoder.decode(tokens, np.full(len(rows), position), 1)
        losses.append(output.logsumexp - output.logits[rows, targets])
    return np.concatenate(losses)


def _losses(decoder: Decoder, window: NDArray[np.int64]) -> NDArray[np.float32]:
    """The same of the graph, prefilled in chunks as the server does."""
    losses = []
    for start in range(0, len(window) - 1, decoder.prefill_chunk):
        chunk, targets = (window[start + offset : start + offset + decoder.prefill_chunk] for offset in (0, 1))
        output = decoder.prefill(0, [chunk[: len(targets)]], [start], 1, every_position=True)
        losses.append(output.logsumexp - output.logits[np.arange(len(targets)), targets])
    return np.concatenate(losses)


def encoder_quality(source: ExportableEncoder, encoder: Encoder, tokenizer_json: str, text: str) -> dict[str, float]:
    """On the lines of a text, which may be pairs with a tab between: `agreement_with_fp32`, the share of lines (or tokens) that
    get the label that torch gives them, and where several labels may hold at once of all labels that do or don't hold as torch
    says; `cosine_to_fp32`, the mean cosine between embeddings; `rank_agreement_with_fp32` of
    their cosines, or of the scores of a model with one label or of regression. Raises ExportError if no line has text."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ExportError("the text for evaluation (--eval-data) must have a line that is not empty")
    tokenizer = _tokenizer(tokenizer_json)
    tokenizer.enable_truncation(source.sizes.max_tokens)
    spread = np.linspace(0, len(lines) - 1, min(len(lines), EVALUATED_INPUTS)).astype(int)
    pairs = source.output == "probabilities" and not source.labels_tokens and takes_pairs(tokenizer)
    encoded = tokenizer.encode_batch([_text_or_pair(lines[i], pairs) for i in spread])
    inputs = [(np.array(found.ids), np.array(found.type_ids)) for found in encoded if found.ids]
    ours = np.concatenate([np.atleast_2d(source.reference(*row)) for row in inputs])
    theirs = np.concatenate([np.atleast_2d(_graph_output(encoder, *row)) for row in inputs])
    if source.output == "probabilities":
        return label_agreement(ours, theirs)
    ours, theirs = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (ours, theirs))
    quality = {"cosine_to_fp32": float(np.mean(np.sum(ours * theirs, axis=-1)))}
    if len(inputs) > 2:
        quality["rank_agreement_with_fp32"] = rank_agreement(ours, theirs)
    return quality


def rank_agreement(ours: Floats, theirs: Floats) -> float:
    """Spearman's correlation between the cosines of all pairs of rows (N, C) and those of the other's."""
    pairs = np.triu_indices(len(ours), 1)
    return _spearman(*((x @ x.T)[pairs] for x in (ours, theirs)))


def label_agreement(ours: Floats, theirs: Floats) -> dict[str, float]:
    """Of rows (N, labels): distributions, probabilities of labels that hold each by itself, or scores, of which the column that
    agrees least counts."""
    if ours.shape[-1] > 1 and np.allclose(ours.sum(-1), 1, atol=1e-3):
        return {"agreement_with_fp32": float(np.mean(ours.argmax(-1) == theirs.argmax(-1)))}
    if ours.shape[-1] > 1 and ours.min() >= 0 and ours.max() <= 1:
        return {"agreement_with_fp32": float(np.mean((ours > EVEN) == (theirs > EVEN)))}
    if len(ours) < 3:
        raise ExportError(f"the text for evaluation (--eval-data) must have at least 3 lines to rank, has {len(ours)}")
    return {"rank_agreement_with_fp32": min(_spearman(*columns) for columns in zip(ours.T, theirs.T, strict=True))}


def _spearman(ours: Floats, theirs: Floats) -> float:
    """Correlation of ranks; 1 for the same order."""
    return float(np.corrcoef(ours.argsort().argsort(), theirs.argsort().argsort())[0, 1])


def _text_or_pair(line: str, pairs: bool) -> str | tuple[str, str]:
    first, tab, second = line.partition("\t")
    return (first, second) if pairs and tab else line


def loss_of(quality: Mapping[str, float]) -> float:
    """What the bits cost: the share by which perplexity grew, of labels that changed, or that cosine and rank agreement are
    short of 1, whichever is more."""
    losses = [1 - quality[name] for name in AGREEMENTS if name in quality]
    if "perplexity" in quality:
        losses.append(quality["perplexity"] / quality["perplexity_fp32"] - 1)
    return max(losses)


def _graph_output(encoder: Encoder, ids: NDArray[np.int64], token_types: NDArray[np.int64]) -> NDArray[np.float32]:
    """Of one input, padded as the server pads it; without what stands at padding."""
    padded = next(length for length in encoder.padded_lengths if length >= len(ids))
    row, types = np.full((1, padded), encoder.pad_token_id), np.zeros((1, padded), np.int64)
    row[0, : len(ids)], types[0, : len(ids)] = ids, token_types
    output: Floats = encoder.run(row, np.array([len(ids)], np.int32), types)[0]
    return output if output.ndim == 1 else output[: len(ids)]


def _tokenizer(text: str) -> tokenizers.Tokenizer:
    """Without the padding that a checkpoint's tokenizer may ask for."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.no_padding()
    return tokenizer
