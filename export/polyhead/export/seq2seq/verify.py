"""torch against the two exported graphs, run by the code that will serve them: several sources together, and each alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.export.parity import Difference, Floats, require_parity, worst_error
from polyhead.export.seq2seq.exportable import ExportableSeq2Seq
from polyhead.export.verify import STEPS, TOP_K, Verification, logsumexp, wrong_tokens, wrong_top_k
from polyhead.server.runtime.decoder import StepOutput
from polyhead.server.runtime.seq2seq import Seq2SeqDecoder
from polyhead.v1.bundle_pb2 import ParityCheck

SOURCE_LENGTHS = (1, 2, 3, 7, 20, 64, 200)
"""Tokens of the sources, as far as the model takes them."""


@dataclass(frozen=True)
class Seq2SeqAnswer:
    """What the graphs made of one source: N = `steps` greedy tokens."""

    source: list[int]
    inputs: list[int]
    """Of the decoder: the start token, and all greedy tokens but the last."""
    topk_values: Floats  # (N, K)
    topk_ids: NDArray[np.int64]  # (N, K)
    logsumexp: Floats  # (N,)
    logits: Floats  # (N, V)
    alignment: Floats | None
    """(N, S)"""

    def same_bits(self, other: "Seq2SeqAnswer") -> bool:
        names = ("topk_values", "topk_ids", "logsumexp", "logits", "alignment")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)


@dataclass(frozen=True)
class Seq2SeqRun:
    """The same sources together and each alone."""

    together: list[Seq2SeqAnswer]
    alone: list[Seq2SeqAnswer]
    shape: str
    """For people."""

    @property
    def independent(self) -> bool:
        return all(a.same_bits(b) for a, b in zip(self.alone, self.together, strict=True))


def run_seq2seq(decoder: Seq2SeqDecoder, source_vocabulary_size: int) -> Seq2SeqRun:
    """Random sources in a decoder with at least as many slots as there are lengths."""
    lengths = sorted({min(length, decoder.longest_prompt) for length in SOURCE_LENGTHS})
    random = np.random.default_rng(0)
    sources = [random.integers(0, source_vocabulary_size, length).tolist() for length in lengths]
    steps = min(STEPS, decoder.capacity)
    alone = [answers(decoder, [source], steps)[0] for source in sources]
    shape = f"{len(lengths)} sources of {lengths[0]} to {lengths[-1]} tokens, {steps} steps"
    return Seq2SeqRun(answers(decoder, sources, steps), alone, shape)


def answers(decoder: Seq2SeqDecoder, sources: Sequence[list[int]], steps: int) -> list[Seq2SeqAnswer]:
    """Read sources, then decode the answers to all of them together."""
    top_k = min(TOP_K, decoder.vocabulary_size)
    longest = decoder.longest_prompt
    begin = decoder.start_token_id
    held = read_sources(decoder, sources)
    tokens, outputs = np.full(len(sources), begin), []
    for step in range(steps):
        output = decoder.decode(tokens, held + step, top_k).rows(list(range(len(sources))))
        outputs.append(_arrays(output, longest))
        tokens = output.topk_ids[:, 0]
    stacked = [np.stack(arrays, axis=1) for arrays in zip(*outputs, strict=True)]  # (rows, N, …)
    return [_answer(source, begin, [array[row] for array in stacked]) for row, source in enumerate(sources)]


def read_sources(decoder: Seq2SeqDecoder, sources: Sequence[Sequence[int]]) -> NDArray[Any]:
    """Put sources into slots 0, 1, 2, …, in the place of what was there. Returns how many tokens each holds."""
    decoder.memory.keep_first(0)
    for slot, source in enumerate(sources):
        decoder.read(0, [np.array(source)])
        decoder.memory.commit(0, slot, len(source))
    return np.array([len(source) for source in sources])


def _answer(source: list[int], start: int, arrays: list[NDArray[Any]]) -> Seq2SeqAnswer:
    alignment = arrays[4][:, : len(source)] if len(arrays) > 4 else None
    values, ids, sums, logits = arrays[:4]
    return Seq2SeqAnswer(source, [start, *ids[:-1, 0].tolist()], values, ids, sums, logits, alignment)


def _arrays(output: StepOutput, longest: int) -> list[NDArray[Any]]:
    """With alignments as wide as the longest source."""
    arrays: list[NDArray[Any]] = [output.topk_values, output.topk_ids, output.logsumexp, output.logits]
    if output.alignment is None:
        return arrays
    return [*arrays, np.pad(output.alignment, ((0, 0), (0, longest - output.alignment.shape[1])))]


def verify_seq2seq(source: ExportableSeq2Seq, decoder: Seq2SeqDecoder, tolerance: float) -> Verification:
    """Compare the graphs with torch; `tolerance` is that of parity.TOLERANCES. Raises ParityError."""
    run = run_seq2seq(decoder, source.sizes.source_vocabulary_size)
    expected = [source.reference(row.source, row.inputs) for row in run.together]
    return Verification(compare_seq2seq(expected, run.together, run.shape, tolerance), run.independent)


def compare_seq2seq(
    expected: Sequence[tuple[Floats, Floats | None]], actual: Sequence[Seq2SeqAnswer], shape: str, tolerance: float
) -> tuple[ParityCheck, ...]:
    """Rows as a model's `reference` and as `answers` give them. Returns what the manifest says of it. Raises ParityError."""
    pairs = [(logits, row) for (logits, _), row in zip(expected, actual, strict=True)]
    differences = [
        Difference("logits", worst_error((logits, row.logits) for logits, row in pairs), tolerance),
        Difference("logsumexp", worst_error((logsumexp(logits), row.logsumexp) for logits, row in pairs), tolerance),
    ]
    seen = [(ours, row.alignment) for (_, ours), row in zip(expected, actual, strict=True) if ours is not None]
    if seen:
        differences.append(Difference("alignment", worst_error((a, b) for a, b in seen if b is not None), tolerance))
    require_parity(differences, shape)
    wrong = float(np.mean([wrong_tokens(logits, row, tolerance) for logits, row in pairs]))
    choices = [
        Difference("greedy tokens", wrong, 0.0),
        Difference("topk_values, topk_ids", float(np.mean([wrong_top_k(row) for row in actual])), 0.0),
    ]
    require_parity(choices, shape)
    return tuple(difference.check(shape) for difference in (*differences, *choices))
