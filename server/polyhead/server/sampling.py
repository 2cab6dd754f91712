"""Choosing next tokens from a step's output: pure functions over arrays, many rows at once.

Every row's choice depends on nothing but its own logits, options, seed and position, so it is the same in any batch. Two ways
lead to a choice, and the request's options alone decide which: rows whose candidates lie within the graph's own top-k
(greedy, top-k sampling) never look at the vocabulary; the others read their row of logits.
Shapes: N rows, K candidates, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nextafter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.server.engine.sequence import GenerationRequest, Sampling

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]

MAX_GRAPH_TOP_K = 128
"""Most candidates asked of the graph; a larger top_k reads the row of logits."""

TOP_K_SIZES = (1, 8, 32, MAX_GRAPH_TOP_K)
"""Sizes asked of the graph, so that few shapes occur."""

_BLOCK = 256
"""Tokens summed at once when one is drawn from the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class Adjustment:
    """Changes to a row's logits before anything is chosen; each pair is (distinct token ids, value for each)."""

    seen: Ids | None = None
    """Tokens of prompt and answer, for the repetition penalty."""
    added: tuple[Ids, Floats] | None = None
    """Added to the logits: bias, and presence and frequency penalties as negative numbers."""
    banned: Ids | None = None
    """Must not be chosen."""
    allowed: NDArray[np.bool_] | None = None
    """(V,) or shorter: only these may be chosen."""


@dataclass(frozen=True, slots=True)
class Row:
    """One choice to make."""

    options: Sampling
    position: int
    """Of the token to be chosen, from the prompt's first token on."""
    sample_index: int = 0
    adjustment: Adjustment | None = None

    @property
    def reads_logits(self) -> bool:
        """Whether the choice needs the whole row of logits."""
        return self.adjustment is not None or (self.options.temperature > 0 and not _lives_on_top_k(self.options))


def candidates(request: GenerationRequest, end_tokens: int = 0) -> int:
    """How many candidates a request needs: enough to be sampled from, for beams and all end tokens that their answers may have,
    and for the alternatives reported."""
    own = request.sampling.top_k if _lives_on_top_k(request.sampling) else 1
    own = request.beam_search.width + end_tokens if request.beam_search else own
    return max(own, request.logprobs or 0, request.prompt_logprobs or 0)


def graph_top_k(needed: Iterable[int]) -> int:
    """How many candidates to ask of the graph for rows that need so many each."""
    most = max(needed, default=1)
    return next(size for size in TOP_K_SIZES if size >= most)


def _lives_on_top_k(options: Sampling) -> bool:
    return options.temperature > 0 and 0 < options.top_k <= MAX_GRAPH_TOP_K and options.typical_p == 1.0


def choose(
    rows: Sequence[Row | None], topk_values: Floats, topk_ids: Ids, logits: Floats
) -> tuple[list[int], list[float]]:
    """One token for each row, the likeliest for None, and its logit (the model's own, before temperature, penalties and filters).

    topk_values and topk_ids (N, K) best first, logits (N, V); row i of each belongs to rows[i].
    """
    tokens: list[int] = topk_ids[:, 0].tolist()
    values: list[float] = topk_values[:, 0].tolist()
    reading = [(i, row) for i, row in enumerate(rows) if row and row.reads_logits]
    within = [(i, row) for i, row in enumerate(rows) if row and row.options.temperature > 0 and not row.reads_logits]
    if within:
        at = _sample_candidates([row for _, row in within], topk_values[[i for i, _ in within]])
        for (i, _), column in zip(within, at, strict=True):
            tokens[i], values[i] = int(topk_ids[i, column]), float(topk_values[i, column])
    if reading:
        for (i, row), u in zip(reading, uniform([row for _, row in reading]).tolist(), strict=True):
            tokens[i] = _choose_from_logits(row, logits[i], u)
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


def _sample_candidates(rows: Sequence[Row], values: Floats) -> list[int]:
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
    cumulative = np.cumsum(weights, axis=1)
    return [_pick(row, u) for row, u in zip(cumulative, uniform(rows).tolist(), strict=True)]


def _choose_from_logits(row: Row, logits: Floats, u: float) -> int:
    """The token chosen from one row of logits (V,): adjustments, temperature, top-k, top-p, min-p, typical, draw."""
    options = row.options
    scores = logits if row.adjustment is None else adjusted(row.adjustment, options.repetition_penalty, logits)
    if options.temperature == 0:
        return int(scores.argmax())
    weights = np.exp((scores - scores.max()) / np.float32(options.temperature))  # (V,), the best is 1
    ids = _candidates(weights, options)
    if ids is None:
        return _pick_from_all(weights, u)
    return int(ids[_pick(np.cumsum(weights[ids], dtype=np.float64), u)])


def adjusted(adjustment: Adjustment, penalty: float, logits: Floats) -> Floats:
    """A copy of logits (V,) with the adjustment made and the repetition penalty."""
    scores = logits.copy()
    if adjustment.seen is not None:  # Keskar et al. 2019, CTRL, section 4.1
        seen = scores[adjustment.seen]
        scores[adjustment.seen] = np.where(seen > 0, seen / penalty, seen * penalty)
    if adjustment.added is not None:
        ids, values = adjustment.added
        scores[ids] += values
    if adjustment.banned is not None:
        kept = scores[adjustment.banned]
        scores[adjustment.banned] = -np.inf
        if np.isneginf(scores.max()):  # a ban on everything is none
            scores[adjustment.banned] = kept
    if (allowed := adjustment.allowed) is not None:
        scores[: len(allowed)][~allowed] = -np.inf
        scores[len(allowed) :] = -np.inf
    return scores


def _candidates(weights: Floats, options: Sampling) -> Ids | None:
    """Ids that top-k, top-p, min-p and typical sampling leave over; None if none of them is set."""
    ids: Ids | None = None
    if options.top_k or options.top_p < 1.0:
        ids = _best(weights, options)
    elif options.min_p > 0:
        ids = np.flatnonzero(weights >= options.min_p)
    if options.typical_p < 1.0:
        ids = _typical(weights, np.flatnonzero(weights) if ids is None else ids, options.typical_p)
    return ids


def _best(weights: Floats, options: Sampling) -> Ids:
    """Ids inside top-k, top-p (Holtzman et al. 2020, section 3.1) and min-p (Nguyen et al. 2024), ascending.

    Weights are sorted, not ids, which takes a tenth of the time where many weigh about the same.
    """
    best = np.sort(weights[weights >= _least_weight(weights, options)])[::-1]
    if options.top_k:
        best = best[: options.top_k]
    kept = best.astype(np.float64)
    total = kept.sum() if options.top_k else weights.sum(dtype=np.float64)
    inside = (np.cumsum(kept) - kept < options.top_p * total) & (kept >= options.min_p)
    count = max(1, int(inside.sum()))  # the best ones: both conditions hold up to some place
    ids = np.flatnonzero(weights >= best[count - 1])
    if len(ids) > count:  # of equal weights the lower ids
        equal = np.flatnonzero(weights[ids] == best[count - 1])
        ids = np.delete(ids, equal[count - len(ids) :])
    return np.asarray(ids)


def _least_weight(weights: Floats, options: Sampling) -> float:
    """A bound that no token inside top-k or top-p lies below, so that only few are sorted.

    Tokens below (1 - top_p) / V of the total weigh less than 1 - top_p of it together, so the others reach top_p.
    """
    if options.top_k:
        rank = len(weights) - min(options.top_k, len(weights))
        return float(np.partition(weights, rank)[rank])
    return float((1.0 - options.top_p) * weights.sum(dtype=np.float64) / len(weights))


def _typical(weights: Floats, ids: Ids, typical_p: float) -> Ids:
    """Of the ids, those whose surprise is nearest to the entropy, up to the mass typical_p (Meister et al. 2023, section 3)."""
    probabilities = weights[ids].astype(np.float64)
    probabilities /= probabilities.sum()
    surprise = -np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    order = np.argsort(np.abs(surprise - (probabilities * surprise).sum()), kind="stable")
    mass = np.cumsum(probabilities[order])
    return np.asarray(ids[order[: int(np.searchsorted(mass, typical_p)) + 1]])


def _pick(cumulative: NDArray[np.float64], u: float) -> int:
    """Cumulative weights (K,) and a number in [0, 1) -> the place it falls into, never one of weight 0."""
    total = float(cumulative[-1])
    target = min(u * total, nextafter(total, 0.0))  # rounding must not reach past the last
    return int(cumulative.searchsorted(target, side="right"))


def _pick_from_all(weights: Floats, u: float) -> int:
    """As `_pick` of the running sum of weights (V,): finds a block first and then the token in it, which is faster."""
    whole = len(weights) // _BLOCK * _BLOCK
    sums = np.add.reduce(weights[:whole].reshape(-1, _BLOCK), axis=1)
    running = np.cumsum(np.append(sums, np.add.reduce(weights[whole:])), dtype=np.float64)
    block = _pick(running, u)
    start = block * _BLOCK
    already = float(running[block - 1]) if block else 0.0
    share = (u * float(running[-1]) - already) / (float(running[block]) - already)
    return start + _pick(np.cumsum(weights[start : start + _BLOCK], dtype=np.float64), min(max(share, 0.0), 1.0))
