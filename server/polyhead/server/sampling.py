"""Choosing next tokens from a step's output: pure functions over arrays, many rows at once.

Every row's choice depends on nothing but its own logits, options, seed and position, so it is the same in any batch. Two ways
lead to a choice, and the row alone decides which: where the candidates lie within the graph's own best tokens (greedy, top-k
sampling, and top-p or min-p if the best suffice to tell) the vocabulary is never looked at; the others read their row of logits.
Both draw from the best token down, so a row's token does not depend on the way.
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

_COARSE = 16
"""Bits that weights lose when they are counted by size: 128 sizes are left from one power of two to the next."""

_ROUNDING = 1e-5
"""How far the graph's sum over a vocabulary may be off, as a share of it."""

_MANY = 8192
"""Weights from which on counting them by size takes less time than sorting them."""

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
    def tries_top_k(self) -> bool:
        """Whether a token is drawn that the graph's best may suffice for; `candidates` says how many of them."""
        return self.adjustment is None and (_lives_on_top_k(self.options) or _may_live_on_top_k(self.options))

    @property
    def reads_logits(self) -> bool:
        """Whether the choice needs the whole row of logits in any case."""
        return not self.tries_top_k and (self.adjustment is not None or self.options.temperature > 0)


def candidates(request: GenerationRequest, end_tokens: int = 0) -> int:
    """How many candidates a request needs: enough to be sampled from, for beams and all end tokens that their answers may have,
    and for the alternatives reported."""
    own = request.sampling.top_k if _lives_on_top_k(request.sampling) else 1
    own = MAX_GRAPH_TOP_K if _may_live_on_top_k(request.sampling) else own
    own = request.beam_search.width + end_tokens if request.beam_search else own
    return max(own, request.logprobs or 0, request.prompt_logprobs or 0)


def graph_top_k(needed: Iterable[int]) -> int:
    """How many candidates to ask of the graph for rows that need so many each."""
    most = max(needed, default=1)
    return next(size for size in TOP_K_SIZES if size >= most)


def _lives_on_top_k(options: Sampling) -> bool:
    return options.temperature > 0 and 0 < options.top_k <= MAX_GRAPH_TOP_K and options.typical_p == 1.0


def _may_live_on_top_k(options: Sampling) -> bool:
    """Whether what is drawn after top-p or min-p may be among the graph's best, and they may tell. How much top-p leaves of a
    larger top-k they can't tell."""
    if options.temperature == 0 or options.typical_p < 1.0 or 0 < options.top_k <= MAX_GRAPH_TOP_K:
        return False
    return options.top_k == 0 if options.top_p < 1.0 else options.min_p > 0


def choose(
    rows: Sequence[Row | None], topk_values: Floats, topk_ids: Ids, logsumexp: Floats, logits: Floats
) -> tuple[list[int], list[float]]:
    """One token for each row, the likeliest for None, and its logit (the model's own, before temperature, penalties and filters).

    topk_values and topk_ids (N, K) best first, logsumexp (N,), logits (N, V); row i of each belongs to rows[i].
    """
    tokens: list[int] = topk_ids[:, 0].tolist()
    values: list[float] = topk_values[:, 0].tolist()
    if not any(rows):
        return tokens, values
    reading = [(i, row) for i, row in enumerate(rows) if row and row.reads_logits]
    within = [(i, row) for i, row in enumerate(rows) if row and row.tries_top_k]
    if within:
        at = [i for i, _ in within]
        columns = _sample_candidates([row for _, row in within], topk_values[at], logsumexp[at], logits.shape[1])
        for (i, row), column in zip(within, columns, strict=True):
            if column is None:
                reading.append((i, row))
            else:
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


def _sample_candidates(
    rows: Sequence[Row], values: Floats, logsumexp: Floats, vocabulary_size: int
) -> list[int | None]:
    """The column drawn in each row of values (N, K), which are sorted best first; None where they don't tell which token is drawn.
    K suffices for top-k and, of rows that top-p or min-p limits, is MAX_GRAPH_TOP_K or the vocabulary."""
    options = [row.options for row in rows]
    temperature = np.array([o.temperature for o in options])[:, None]
    top_k = np.array([o.top_k if _lives_on_top_k(o) else MAX_GRAPH_TOP_K for o in options])[:, None]
    top_p, min_p = (np.array([[getattr(o, name)] for o in options]) for name in ("top_p", "min_p"))
    weights = np.exp((values.astype(np.float64) - values[:, :1]) / temperature)  # (N, K), the best is 1
    weights[np.arange(values.shape[1]) >= top_k] = 0.0
    running = np.cumsum(weights, axis=1)
    least = most = running[:, -1:]  # what all weigh that top-k leaves over
    unlimited = np.array([[not _lives_on_top_k(o)] for o in options])
    if unlimited.any() and vocabulary_size > values.shape[1]:
        others = _others(values, logsumexp, temperature, vocabulary_size - values.shape[1])
        least, most = (np.where(unlimited, least + rest, least) for rest in others)
    low, high = _kept_weight(weights, running, top_p, min_p, least, most)
    chances = zip(running, low[:, 0].tolist(), high[:, 0].tolist(), uniform(rows).tolist(), strict=True)
    return [_pick_between(*chance) for chance in chances]


def _others(values: Floats, logsumexp: Floats, temperature: Floats, count: int) -> tuple[Floats, Floats]:
    """What the `count` tokens behind the best K weigh together at least and at most, (N, 1) each; the best token weighs 1.

    At temperature 1 logsumexp says it, but for rounding. At others each weight is to the power of 1 / temperature and at most the
    K-th's; given their sum, the sum of their powers is between that of equal weights and that of as few as may be, each as heavy
    as the K-th (convexity).
    """
    power = 1.0 / temperature
    best = values[:, :1].astype(np.float64)
    plain = np.exp(values - best)
    everyone = np.exp(logsumexp[:, None] - best)
    together = everyone - np.cumsum(plain, axis=1)[:, -1:]
    slack = everyone * (_ROUNDING + 4 * np.spacing(np.abs(logsumexp[:, None])))

    def powers(total: Floats) -> tuple[Floats, Floats]:
        with np.errstate(all="ignore"):
            return count * (total / count) ** power, total * plain[:, -1:] ** (power - 1.0)

    least = np.minimum(*powers(np.maximum(together - slack, 0.0)))
    most = np.maximum(*powers(np.maximum(together, 0.0) + slack))
    most = np.fmin(most, count * plain[:, -1:] ** power)
    return np.fmin(np.nan_to_num(least, nan=0.0), most), most


def _kept_weight(
    weights: Floats, running: Floats, top_p: Floats, min_p: Floats, least: Floats, most: Floats
) -> tuple[Floats, Floats]:
    """What all tokens weigh together at least and at most that top-p (Holtzman et al. 2020, section 3.1) and min-p (Nguyen et al.
    2024) leave over, (N, 1) each. Both keep the best ones up to some place, which may be behind the K that are known."""
    above = (weights >= min_p).sum(axis=1, keepdims=True)
    known = np.take_along_axis(running, above - 1, axis=1)
    cut = above < weights.shape[1]

    def share(total: Floats, beyond: Floats) -> Floats:
        """Of the best ones that reach top_p of a total; one token may go `beyond` it."""
        part = top_p * total
        reached = running[:, -1:] >= part
        count = np.minimum((running < part).sum(axis=1, keepdims=True), weights.shape[1] - 1)
        return np.where(reached, np.take_along_axis(running, count, axis=1), np.minimum(part + beyond, total))

    low = np.minimum(share(least, np.zeros_like(least)), known)
    if least is most:  # no token is behind the K
        return low, low
    return low, np.minimum(share(most, weights[:, -1:]), np.where(cut, known, most))


def _pick_between(running: NDArray[np.float64], low: float, high: float, u: float) -> int | None:
    """As `_pick` of beginnings of a running sum (K,), perhaps longer than is known, that weigh between `low` and `high` together;
    None if they don't agree."""
    first, last = (int(running.searchsorted(min(u * w, nextafter(w, 0.0)), side="right")) for w in (low, high))
    return first if first == last < len(running) else None


def _choose_from_logits(row: Row, logits: Floats, u: float) -> int:
    """The token chosen from one row of logits (V,): adjustments, temperature, top-k, top-p, min-p, typical, draw."""
    options = row.options
    scores = logits if row.adjustment is None else adjusted(row.adjustment, options.repetition_penalty, logits)
    if options.temperature == 0:
        return int(scores.argmax())
    weights = np.exp((scores - scores.max()) / np.float32(options.temperature))  # (V,), the best is 1
    may_be_many = options.top_k == 0 and _may_live_on_top_k(options)
    if may_be_many and np.count_nonzero(weights >= _least_weight(weights, options)) > _MANY:
        return _pick_from_best(weights, options, u)
    best = _best(weights, options)
    if options.typical_p < 1.0:
        ids = _typical(weights, np.flatnonzero(weights) if best is None else _ids(weights, best), options.typical_p)
        return int(ids[_pick(np.cumsum(weights[ids], dtype=np.float64), u)])
    if best is None:
        return _pick_from_all(weights, u)
    place = _pick(np.cumsum(best, dtype=np.float64), u)
    return _id_at(place, best, weights)


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


def _best(weights: Floats, options: Sampling) -> Floats | None:
    """What those tokens weigh that top-k, top-p and min-p leave over, the best first; None if none of them is set.

    Weights are sorted, not ids, which takes a tenth of the time where many weigh about the same.
    """
    if not (options.top_k or options.top_p < 1.0 or options.min_p):
        return None
    best = np.sort(weights[weights >= _least_weight(weights, options)])[::-1]
    best = best[: options.top_k or None]
    if options.top_p == 1.0:
        return best[: np.count_nonzero(best >= options.min_p)]
    running = np.cumsum(best, dtype=np.float64)
    total = running[-1] if options.top_k else weights.sum(dtype=np.float64)
    count = int(running.searchsorted(options.top_p * total)) + 1
    return best[: min(count, np.count_nonzero(best >= options.min_p))]


def _ids(weights: Floats, best: Floats) -> Ids:
    """Of the best weights, as many as there are; ascending."""
    ids = np.flatnonzero(weights >= best[-1])
    if len(ids) > len(best):  # of equal weights the lower ids
        equal = np.flatnonzero(weights[ids] == best[-1])
        ids = np.delete(ids, equal[len(best) - len(ids) :])
    return np.asarray(ids)


def _least_weight(weights: Floats, options: Sampling) -> float:
    """A bound that no token inside top-k, top-p and min-p lies below, so that only few are sorted.

    Tokens below (1 - top_p) / V of the total weigh less than 1 - top_p of it together, so the others reach top_p.
    """
    if options.top_k:
        rank = len(weights) - min(options.top_k, len(weights))
        return float(np.partition(weights, rank)[rank])
    if options.top_p == 1.0:
        return options.min_p
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


def _pick_from_best(weights: Floats, options: Sampling, u: float) -> int:
    """As `_pick` of the running sum of those weights (V,) that top-p and min-p leave over, the best first, without sorting all: they
    are counted by their first bits, and sorted where a border lies."""
    keys = (weights.view(np.uint32) >> _COARSE).astype(np.intp)  # ascending like the weights, which are not negative
    sums = np.bincount(keys, weights)[::-1]
    running = np.cumsum(sums)

    def near(bucket: int) -> tuple[Floats, Floats]:
        """What is in a bucket, the best first, and the running sum at each."""
        inside = np.sort(weights[keys == len(sums) - 1 - bucket])[::-1]
        return inside, (running[bucket - 1] if bucket else 0.0) + np.cumsum(inside, dtype=np.float64)

    kept = float(running[-1])
    if options.top_p < 1.0:
        _, reached = near(int(running.searchsorted(options.top_p * kept)))
        kept = float(reached[min(int(reached.searchsorted(options.top_p * kept)), len(reached) - 1)])
    if options.min_p:
        kept = min(kept, float(weights[weights >= options.min_p].sum(dtype=np.float64)))
    target = min(u * kept, nextafter(kept, 0.0))
    inside, reached = near(int(running.searchsorted(target, side="right")))
    return _id_at(min(int(reached.searchsorted(target, side="right")), len(inside) - 1), inside, weights)


def _id_at(place: int, best: Floats, weights: Floats) -> int:
    """The id of best[place], where best are some of the weights (V,), sorted; of equal ones the lower ids come first."""
    equal = np.flatnonzero(weights == best[place])
    return int(equal[place - np.count_nonzero(best > best[place])])


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
