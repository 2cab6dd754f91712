"""Choosing next tokens from a step's output: pure functions over arrays, many rows at once.

Every row's choice depends on nothing but its own logits, options, seed and position, so it is the same in any batch. Two ways
lead to a choice, and the request's options alone decide which: rows whose candidates lie within the graph's own top-k
(greedy, top-k sampling) never look at the vocabulary; the others read their row of logits.
Shapes: N rows, K candidates, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.server.engine.sequence import Sampling

Floats = NDArray[np.floating[Any]]

MAX_GRAPH_TOP_K = 128
"""Most candidates asked of the graph; a larger top_k reads the row of logits."""

TOP_K_SIZES = (1, 8, 32, MAX_GRAPH_TOP_K)
"""Sizes asked of the graph, so that few shapes occur."""


@dataclass(slots=True)
class Row:
    """One choice to make."""

    options: Sampling
    position: int
    """Of the token to be chosen, from the prompt's first token on."""
    sample_index: int = 0
    seen: NDArray[np.int64] | None = None
    """Distinct tokens of prompt and answer so far; only if there is a repetition penalty."""
    banned: NDArray[np.int64] | None = None
    """Tokens that must not be chosen now."""

    @property
    def reads_logits(self) -> bool:
        """Whether the choice needs the whole row of logits."""
        o = self.options
        free = o.temperature > 0 and not 0 < o.top_k <= MAX_GRAPH_TOP_K
        return free or o.repetition_penalty != 1.0 or self.banned is not None


def graph_top_k(rows: Sequence[Row], logprobs: int) -> int:
    """How many candidates to ask of the graph: enough for every row that lives on them and for the alternatives reported."""
    needed = max(
        [logprobs, 1, *(row.options.top_k for row in rows if row.options.temperature > 0 and not row.reads_logits)]
    )
    return next(size for size in TOP_K_SIZES if size >= needed)


def choose(
    rows: Sequence[Row], topk_values: Floats, topk_ids: NDArray[np.int64], logits: Floats
) -> tuple[list[int], list[float]]:
    """One token for each row, and its logit (the model's own, before temperature, penalties and filters).

    topk_values and topk_ids (N, K) best first, logits (N, V); row i of each belongs to rows[i].
    """
    tokens: list[int] = topk_ids[:, 0].tolist()
    values: list[float] = topk_values[:, 0].tolist()
    within = [i for i, row in enumerate(rows) if row.options.temperature > 0 and not row.reads_logits]
    if within:
        at = _sample_candidates([rows[i] for i in within], topk_values[within])
        for i, column in zip(within, at.tolist(), strict=True):
            tokens[i], values[i] = int(topk_ids[i, column]), float(topk_values[i, column])
    for i, row in enumerate(rows):
        if row.reads_logits:
            tokens[i] = _choose_from_logits(row, logits[i])
            values[i] = float(logits[i, tokens[i]])
    return tokens, values


def uniform(rows: Sequence[Row]) -> NDArray[np.float64]:
    """(N,) numbers in [0, 1), each a function of (seed, sample index, position) alone.

    Counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), with the finalizer of SplitMix64
    (Steele et al. 2014) as the mixing function.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.array([row.options.seed for row in rows], np.uint64))
        state = _mix(state ^ np.array([row.sample_index for row in rows], np.uint64))
        state = _mix(state ^ np.array([row.position for row in rows], np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _sample_candidates(rows: Sequence[Row], values: Floats) -> NDArray[np.int64]:
    """The column chosen in each row of values (N, K), which are sorted best first; all rows have 0 < top_k <= K."""
    options = [row.options for row in rows]
    temperature = np.array([o.temperature for o in options])[:, None]
    top_k = np.array([o.top_k for o in options])[:, None]
    weights = np.exp((values.astype(np.float64) - values[:, :1]) / temperature)  # (N, K), the best is 1
    weights[np.arange(values.shape[1]) >= top_k] = 0.0
    running = np.cumsum(weights, axis=1)
    before, total = running - weights, running[:, -1:]  # what the better ones weigh; what all do
    top_p = np.array([o.top_p for o in options])[:, None]
    min_p = np.array([o.min_p for o in options])[:, None]
    weights[((before >= top_p * total) & (before > 0)) | (weights < min_p)] = 0.0
    return _pick(np.cumsum(weights, axis=1), uniform(rows))


def _choose_from_logits(row: Row, logits: Floats) -> int:
    """The token chosen from one row of logits (V,), in the order: penalty, ban, temperature, top-k, top-p, min-p."""
    options = row.options
    scores = _adjusted(row, logits)
    if options.temperature == 0:
        return int(scores.argmax())
    weights = np.exp((scores - scores.max()) / options.temperature, dtype=np.float64)  # (V,), the best is 1
    ids = _candidates(weights, options)
    weights = weights if ids is None else weights[ids]
    at = int(_pick(np.cumsum(weights)[None], uniform([row]))[0])
    return at if ids is None else int(ids[at])


def _adjusted(row: Row, logits: Floats) -> Floats:
    """Logits after the repetition penalty (Keskar et al. 2019, CTRL, section 4.1) and without banned tokens."""
    penalty = row.options.repetition_penalty
    if penalty == 1.0 and row.banned is None:
        return logits
    scores = logits.copy()
    if penalty != 1.0 and row.seen is not None:
        seen = scores[row.seen]
        scores[row.seen] = np.where(seen > 0, seen / penalty, seen * penalty)
    if row.banned is not None:
        scores[row.banned] = -np.inf
    return scores


def _candidates(weights: NDArray[np.float64], options: Sampling) -> NDArray[np.int64] | None:
    """Ids that top-k, top-p and min-p leave over, best first; None if none of them is set."""
    if options.top_k == 0 and options.top_p >= 1.0:
        return np.flatnonzero(weights >= options.min_p) if options.min_p > 0 else None
    ids = np.flatnonzero(weights >= _least_weight(weights, options))
    ids = ids[np.argsort(-weights[ids], kind="stable")]
    if options.top_k:
        ids = ids[: options.top_k]
    kept = weights[ids]
    before = np.cumsum(kept) - kept
    total = kept.sum() if options.top_k else weights.sum()
    inside: NDArray[np.bool_] = (before < options.top_p * total) & (kept >= options.min_p)
    inside[0] = True
    return np.asarray(ids[inside])


def _least_weight(weights: NDArray[np.float64], options: Sampling) -> float:
    """A bound that no token inside top-k or top-p lies below, so that only few are sorted.

    Tokens below (1 - top_p) / V of the total weigh less than 1 - top_p of it together, so the others reach top_p.
    """
    if options.top_k:
        rank = len(weights) - min(options.top_k, len(weights))
        return float(np.partition(weights, rank)[rank])
    return float((1.0 - options.top_p) * weights.sum() / len(weights))


def _pick(cumulative: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N, K) cumulative weights and (N,) numbers in [0, 1) -> the columns they fall into, never one of weight 0."""
    total = cumulative[:, -1]
    targets = np.minimum(u * total, np.nextafter(total, 0.0))  # rounding must not reach past the last
    return np.array(
        [np.searchsorted(row, t, side="right") for row, t in zip(cumulative, targets, strict=True)], np.int64
    )
