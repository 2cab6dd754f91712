"""The four models of `polyhead compare-attention`, of equal size."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from polyhead.train.errors import UsageError
from polyhead.train.seq2seq_settings import Seq2SeqSettings, preset

STEP = 8
WIDTHS = range(16, 1024, STEP)
"""Of recurrent models, whose encoder has half a width in each direction."""
KEYS = ("rnn", "rnn-attention", "deep", "transformer")
HIDDEN = range(STEP, 8192, STEP)


@dataclass(frozen=True)
class Contestant:
    key: str
    name: str
    settings: Seq2SeqSettings
    parameters: int


def contestants(
    base: str, changes: Callable[[Seq2SeqSettings], Seq2SeqSettings], vocabularies: tuple[int, int], deep_layers: int
) -> list[Contestant]:
    """The recurrent model with a fixed context, with attention, the same but deep, and the Transformer.

    The model with attention is that of the preset with `changes`; the others get as many parameters, as nearly as widths
    of whole steps allow. Raises UsageError where that can't be done.
    """
    attentive = changes(preset(base, "rnn-attention"))
    size = parameters(attentive, vocabularies)
    deep = replace(attentive, layers=deep_layers, residual=True)
    fixed = replace(attentive, arch="rnn")
    found = {
        "rnn": ("RNN, fixed context", _fit_width(fixed, vocabularies, size)),
        "rnn-attention": ("RNN with attention", attentive),
        "deep": (f"RNN with attention, {deep_layers} layers", _fit_width(deep, vocabularies, size)),
        "transformer": ("Transformer", _fit_transformer(changes(preset(base, "transformer")), vocabularies, size)),
    }
    return [Contestant(key, name, made, parameters(made, vocabularies)) for key, (name, made) in found.items()]


def parameters(settings: Seq2SeqSettings, vocabularies: tuple[int, int]) -> int:
    with torch.device("meta"):  # no memory, no numbers
        return sum(parameter.numel() for parameter in settings.build(*vocabularies).parameters())


def _fit_width(settings: Seq2SeqSettings, vocabularies: tuple[int, int], size: int) -> Seq2SeqSettings:
    """By the widest layers that are not too much, and what is left by larger embeddings."""
    too_much = bisect_right(WIDTHS, size, key=lambda width: parameters(replace(settings, width=width), vocabularies))
    wide = replace(settings, width=WIDTHS[max(0, too_much - 1)])
    sizes = range(settings.embedding_size, 8 * settings.embedding_size, STEP)
    return _nearest(sizes, lambda units: replace(wide, embedding_size=units), vocabularies, size)


def _fit_transformer(settings: Seq2SeqSettings, vocabularies: tuple[int, int], size: int) -> Seq2SeqSettings:
    """By its hidden layers, which may be of any size; narrower where the preset's width alone is too much."""
    step = STEP * settings.heads
    while settings.width > step and parameters(replace(settings, hidden=settings.width), vocabularies) > size:
        settings = replace(settings, width=settings.width - step)
    return _nearest(HIDDEN, lambda units: replace(settings, hidden=units), vocabularies, size)


def _nearest(
    values: range, make: Callable[[int], Seq2SeqSettings], vocabularies: tuple[int, int], size: int
) -> Seq2SeqSettings:
    """The settings with the number of parameters nearest to `size`; the more of the value, the more parameters."""
    enough = bisect_left(values, size, key=lambda value: parameters(make(value), vocabularies))
    near = [make(value) for value in values[max(0, enough - 1) : enough + 1]]
    best = min(near, key=lambda made: abs(parameters(made, vocabularies) - size))
    if abs(parameters(best, vocabularies) - size) > 0.05 * size:
        raise UsageError(f"no {best.arch} of {best.layers} layers has about {size:,} parameters; give another --width")
    return best
