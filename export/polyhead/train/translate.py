"""Answers of a trained model to many sources, in batches of like length."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polyhead.train.beam_search import BeamSettings, beam_search
from polyhead.train.encoder import pad
from polyhead.train.seq2seq_settings import Model, Seq2SeqSettings
from polyhead.train.vocabularies import Vocabularies

BATCH = 128
BEAM_ROWS = 256
"""Beams of all sources of a batch together."""

Ids = list[int]


def answer_greedily(model: Model, vocabularies: Vocabularies, rows: Sequence[Ids], device: torch.device) -> list[Ids]:
    """The model's answer to each source, without the end token."""

    def answer(sources: Tensor, lengths: Tensor) -> list[Ids]:
        limits = answer_limits(model, lengths)
        rows = model.greedy(sources, lengths, max(limits), vocabularies.begin, vocabularies.end)
        return [row[:limit] for row, limit in zip(rows, limits, strict=True)]

    return _in_batches(answer, rows, BATCH, device)


def answer_with_beams(
    model: Model, vocabularies: Vocabularies, settings: Seq2SeqSettings, rows: Sequence[Ids], device: torch.device
) -> list[Ids]:
    """The best answer that a beam search finds for each source, without the end token."""
    width = settings.beam_width

    def answer(sources: Tensor, lengths: Tensor) -> list[Ids]:
        limits = answer_limits(model, lengths)
        search = BeamSettings(width, settings.length_penalty, max(limits))
        begin = torch.full_like(lengths, vocabularies.begin)
        found = beam_search(model.decoder(sources, lengths, max(limits)), begin, vocabularies.end, search, limits)
        return [list(answers[0].tokens) for answers in found]

    return _in_batches(answer, rows, max(1, BEAM_ROWS // width), device)


def answer_limits(model: Model, lengths: Tensor) -> list[int]:
    """Tokens of each answer: one much longer than its own source repeats itself. What else is in the batch changes nothing."""
    return [min(model.config.max_target_tokens, 2 * length + 20) for length in lengths.tolist()]


def _in_batches(
    answer: Callable[[Tensor, Tensor], list[Ids]], rows: Sequence[Ids], size: int, device: torch.device
) -> list[Ids]:
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    answers: list[Ids] = [[]] * len(rows)
    for start in range(0, len(rows), size):
        places = order[start : start + size]
        sources, lengths = pad([rows[i] for i in places])
        for place, ids in zip(places, answer(sources.to(device), lengths.to(device)), strict=True):
            answers[place] = ids
    return answers
