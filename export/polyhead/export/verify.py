"""torch against the exported graph, run by the very code that will serve it.

Compared are logits and the caches behind them over prompts of many lengths, prefilled in chunks and decoded together;
greedy tokens; probabilities and embeddings over padded batches. And every row is run again alone: whether it gets the
same bits is what a bundle may promise as `traffic_independent`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from polyhead.export.exportable import ExportableDecoder, ExportableEncoder
from polyhead.export.parity import Difference, Floats, require_parity, worst_error
from polyhead.server.runtime.decoder import Decoder, StepOutput
from polyhead.server.runtime.encoder import Encoder
from polyhead.v1.bundle_pb2 import ParityCheck

STEPS = 16
"""Greedy tokens each row decodes."""

TOP_K = 8

LONGEST_INPUT = 512
"""Tokens of an encoder's input; attention over more costs their square."""


@dataclass(frozen=True)
class Verification:
    """What was found of a graph that agrees with torch."""

    parity: tuple[ParityCheck, ...]
    traffic_independent: bool
    """Whether each row got the same bits alone as among others."""


@dataclass(frozen=True)
class Answer:
    """What a graph made of one prompt: its last position and `steps` greedy tokens after it, N = 1 + steps positions."""

    tokens: list[int]
    """The prompt and all greedy tokens but the last."""
    cache: Floats
    """(2, layers, kv_heads, len(tokens), head_size)."""
    topk_values: Floats  # (N, K)
    topk_ids: NDArray[np.int64]  # (N, K)
    logsumexp: Floats  # (N,)
    logits: Floats  # (N, V)

    def same_bits(self, other: "Answer") -> bool:
        names = ("cache", "topk_values", "topk_ids", "logsumexp", "logits")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)


class Positions(Protocol):
    """What a graph said of N positions."""

    @property
    def topk_values(self) -> Floats: ...
    @property
    def topk_ids(self) -> NDArray[np.int64]: ...
    @property
    def logits(self) -> Floats: ...


@dataclass(frozen=True)
class DecoderRun:
    """The same prompts together and each alone."""

    together: list[Answer]
    alone: list[Answer]
    steps: int
    shape: str
    """For people."""

    @property
    def independent(self) -> bool:
        return all(a.same_bits(b) for a, b in zip(self.alone, self.together, strict=True))


def run_decoder(decoder: Decoder, adapter: str = "") -> DecoderRun:
    """Random prompts in a decoder with as many slots as `prompt_lengths` has lengths, with one of its adapters perhaps."""
    lengths = prompt_lengths(decoder)
    steps = min(STEPS, decoder.capacity - max(lengths))
    random = np.random.default_rng(0)
    prompts = [random.integers(0, decoder.vocabulary_size, length).tolist() for length in lengths]
    together = answer(decoder, prompts, steps, adapter)
    alone = [answer(decoder, [prompt], steps, adapter)[0] for prompt in prompts]
    shape = f"{len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens, {steps} steps"
    return DecoderRun(together, alone, steps, shape)


def verify_decoder(source: ExportableDecoder, decoder: Decoder, tolerance: float, adapter: str = "") -> Verification:
    """Compare a decoder with as many slots as `prompt_lengths` has prompts; `tolerance` is that of parity.TOLERANCES.

    Raises ParityError.
    """
    return compare_run(source, run_decoder(decoder, adapter), tolerance)


def compare_run(source: ExportableDecoder, run: DecoderRun, tolerance: float) -> Verification:
    """The same of a decoder that has run already, and may be closed. Raises ParityError."""
    expected = [source.reference(row.tokens, 1 + run.steps) for row in run.together]
    return Verification(compare_decoder(expected, run.together, run.shape, tolerance), run.independent)


def prompt_lengths(decoder: Decoder) -> list[int]:
    """As many as fit the decoder's slots, around the borders of chunks; each leaves room for an answer."""
    chunk, longest = decoder.prefill_chunk, max(decoder.capacity - STEPS, decoder.capacity // 2)
    wanted = (1, 2, 3, 7, chunk - 1, chunk, chunk + 1, 2 * chunk + 3)
    return sorted({max(1, min(length, longest)) for length in wanted})[: decoder.slots]


def answer(decoder: Decoder, prompts: Sequence[list[int]], steps: int, adapter: str = "") -> list[Answer]:
    """Prefill prompts in chunks, as many together as there are lanes, then decode all of them together."""
    rows = [list(prompt) for prompt in prompts]
    top_k = min(TOP_K, decoder.vocabulary_size)
    groups = [range(i, min(i + decoder.lanes, len(rows))) for i in range(0, len(rows), decoder.lanes)]
    last = [output for group in groups for output in _prefill(decoder, group, prompts, top_k, adapter)]
    outputs = [_join(last, np.concatenate)]
    for _ in range(steps):
        for row, token in zip(rows, outputs[-1].topk_ids[:, 0], strict=True):
            row.append(int(token))
        past = np.array([len(row) - 1 for row in rows])
        outputs.append(_copy(decoder.decode(np.array([row[-1] for row in rows]), past, top_k, adapter=adapter)))
    steps_of_rows = _join(outputs, partial(np.stack, axis=1))  # (rows, 1 + steps, …)
    return [
        Answer(row, decoder.memory.read(i, len(row)), *(array[i] for array in _arrays(steps_of_rows)))
        for i, row in enumerate(rows)
    ]


def _prefill(
    decoder: Decoder, slots: range, prompts: Sequence[list[int]], top_k: int, adapter: str
) -> list[StepOutput]:
    """Read the prompts of some slots in lanes 0, 1, …, chunk by chunk; what came out of each one's last position."""
    chunk = decoder.prefill_chunk
    last: dict[int, StepOutput] = {}
    for start in range(0, max(len(prompts[slot]) for slot in slots), chunk):
        for run in _neighbours([lane for lane, slot in enumerate(slots) if len(prompts[slot]) > start]):
            parts = [np.array(prompts[slots[lane]][start : start + chunk]) for lane in run]
            output = decoder.prefill(run[0], parts, [start] * len(run), top_k, adapter=adapter)
            last |= {lane: output.rows([row]) for row, lane in enumerate(run)}
    for lane, slot in enumerate(slots):
        decoder.memory.commit(lane, slot, len(prompts[slot]))
    return [last[lane] for lane in range(len(slots))]


def _neighbours(lanes: Sequence[int]) -> list[list[int]]:
    """Ascending numbers as runs without a gap."""
    return [[lane for _, lane in run] for _, run in groupby(enumerate(lanes), lambda place: place[1] - place[0])]


def _arrays(output: StepOutput) -> tuple[NDArray[Any], ...]:
    return output.topk_values, output.topk_ids, output.logsumexp, output.logits


def _copy(output: StepOutput) -> StepOutput:
    """The decoder's next call writes into the memory of this one's output."""
    return StepOutput(*(array.copy() for array in _arrays(output)))


def _join(outputs: Sequence[StepOutput], how: Callable[[Sequence[NDArray[Any]]], NDArray[Any]]) -> StepOutput:
    return StepOutput(*(how(arrays) for arrays in zip(*map(_arrays, outputs), strict=True)))


def compare_decoder(
    expected: Sequence[tuple[Floats, Floats]], actual: Sequence[Answer], shape: str, tolerance: float
) -> tuple[ParityCheck, ...]:
    """Rows as a source's `reference` and as `answer` give them. Returns what the manifest says of it. Raises ParityError."""
    pairs = list(zip(expected, actual, strict=True))
    caches = _compare_caches([(cache, row.cache) for (_, cache), row in pairs], tolerance)
    logits = Difference("logits", worst_error((ours, row.logits) for (ours, _), row in pairs), tolerance)
    sums = worst_error((logsumexp(ours), row.logsumexp) for (ours, _), row in pairs)
    totals = Difference("logsumexp", sums, tolerance)
    wrong = float(np.mean([wrong_tokens(ours, row, tolerance) for (ours, _), row in pairs]))
    greedy = Difference("greedy tokens", wrong, 0.0)
    top_k = Difference("topk_values, topk_ids", float(np.mean([wrong_top_k(row) for row in actual])), 0.0)
    require_parity([*caches, logits, totals], shape)
    require_parity([greedy, top_k], shape)
    cache = Difference("present.key, present.value", max(difference.error for difference in caches), tolerance)
    return tuple(difference.check(shape) for difference in (logits, totals, cache, greedy, top_k))


def _compare_caches(pairs: Sequence[tuple[Floats, Floats]], tolerance: float) -> list[Difference]:
    """One for each tensor, in the order in which the model computes them."""
    layers = len(pairs[0][0][0])
    return [
        Difference(
            f"present.{kind}.{layer}",
            worst_error((ours[i, layer], theirs[i, layer]) for ours, theirs in pairs),
            tolerance,
        )
        for layer in range(layers)
        for i, kind in enumerate(("key", "value"))
    ]


def logsumexp(logits: Floats) -> Floats:
    return torch.logsumexp(torch.from_numpy(logits), -1).numpy()


def wrong_tokens(expected: Floats, row: Positions, tolerance: float) -> float:
    """Share of the positions whose chosen token is less likely to torch than another by more than the tolerance explains."""
    chosen = np.take_along_axis(expected, row.topk_ids[:, :1], -1)[:, 0]
    return float(np.mean(expected.max(-1) - chosen > tolerance * np.abs(expected).max(-1)))


def wrong_top_k(row: Positions) -> float:
    """Share of the positions whose top-k is not that of the graph's own logits, equal ones by lower id."""
    ids = np.argsort(-row.logits, axis=-1, kind="stable")[:, : row.topk_ids.shape[1]]
    right = (ids == row.topk_ids) & (np.take_along_axis(row.logits, ids, -1) == row.topk_values)
    return float(np.mean(~right.all(-1)))


@dataclass(frozen=True)
class EncoderRun:
    """A padded batch of random rows, together and each alone."""

    rows: list[NDArray[np.int64]]
    """Without padding."""
    token_types: list[NDArray[np.int64]]
    """Of each row, 0 before some token and 1 from it on."""
    together: list[Floats]
    """What came out for each row, without what stands at padding."""
    alone: list[Floats]
    shape: str
    """For people."""

    @property
    def independent(self) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(self.alone, self.together, strict=True))


def run_encoder(encoder: Encoder, vocabulary_size: int, adapter: str = "") -> Iterator[EncoderRun]:
    """Batches padded to the shortest, a middle and the longest length."""
    random = np.random.default_rng(0)
    grid = [length for length in encoder.padded_lengths if length <= LONGEST_INPUT] or encoder.padded_lengths[:1]
    for padded in sorted({grid[0], grid[len(grid) // 2], grid[-1]}):
        shortest = max((length + 1 for length in grid if length < padded), default=1)
        lengths = np.array([shortest, padded, *random.integers(shortest, padded + 1, 5)], np.int32)
        ids = random.integers(0, vocabulary_size, (len(lengths), padded))
        ids[np.arange(padded) >= lengths[:, None]] = encoder.pad_token_id
        types = (np.arange(padded) >= random.integers(0, padded + 1, (len(lengths), 1))).astype(np.int64)
        together = encoder.run(ids, lengths, types, adapter)
        each = (slice(i, i + 1) for i in range(len(lengths)))
        alone = [encoder.run(ids[i], lengths[i], types[i], adapter)[0] for i in each]
        yield EncoderRun(
            _unpadded(ids, lengths),
            _unpadded(types, lengths),
            _unpadded(together, lengths) if together.ndim == 3 else list(together),
            _unpadded(alone, lengths) if together.ndim == 3 else alone,
            f"{len(lengths)} rows padded to {padded} tokens",
        )


def _unpadded(rows: Iterable[NDArray[Any]], lengths: NDArray[np.int32]) -> list[NDArray[Any]]:
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def verify_encoder(source: ExportableEncoder, encoder: Encoder, tolerance: float, adapter: str = "") -> Verification:
    """Compare an encoder over padded batches with torch over single rows without padding. Raises ParityError."""
    checks: list[ParityCheck] = []
    independent = True
    for run in run_encoder(encoder, source.sizes.vocabulary_size, adapter):
        expected = [source.reference(*row) for row in zip(run.rows, run.token_types, strict=True)]
        vectors = zip(_vectors(expected), _vectors(run.together), strict=True)
        difference = Difference(source.output, worst_error(vectors), tolerance)
        require_parity([difference], run.shape)
        checks.append(difference.check(run.shape))
        independent &= run.independent
    return Verification(tuple(checks), independent)


def _vectors(rows: Sequence[Floats]) -> Iterator[Floats]:
    """Each row (C,), or each of its tokens where it is (S, C)."""
    for row in rows:
        yield from np.atleast_2d(row)
