"""What a comparison shows: quality by the length of the source, as a table and as a picture."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polyhead.train.pairs import Pair
from polyhead.train.translation_metrics import DEFAULT_TOKENIZER, translation_figures

Unit = Literal["characters", "words"]
BINS = 8
LEAST_PAIRS = 20
"""Lengths with fewer test pairs are shown together with the next shorter ones."""
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "tab:red", "marker": "o", "markersize": 6, "linestyle": "-", "linewidth": 1.5},
    {"color": "tab:blue", "marker": "s", "markersize": 11, "linestyle": "-", "linewidth": 4, "alpha": 0.6},
    {"color": "tab:green", "marker": "D", "markersize": 7, "linestyle": "--", "linewidth": 2.2},
    {"color": "tab:purple", "marker": "x", "markersize": 6, "linestyle": ":", "linewidth": 2},
)
TITLES = {"exact_match": "exact match", "bleu": "BLEU", "chrf": "chrF"}


@dataclass(frozen=True)
class LengthFigures:
    """Of test pairs whose sources are `shortest` to `longest` units long."""

    shortest: int
    longest: int
    pairs: int
    figures: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What a contestant came to."""

    name: str
    parameters: int
    steps: int
    processor_seconds: float
    quality: dict[str, float]
    by_length: list[LengthFigures]


def read_outcome(path: Path) -> Outcome | None:
    """What was written of it as JSON; None where there is nothing whole."""
    try:
        document = json.loads(path.read_text("utf-8"))
        by_length = [LengthFigures(**figures) for figures in document.pop("by_length")]
        return Outcome(by_length=by_length, **document)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def source_length(text: str, unit: Unit) -> int:
    return len(text.split()) if unit == "words" else len(text)


def figures_by_length(
    pairs: Sequence[Pair], answers: Sequence[str], unit: Unit, tokenizer: str = DEFAULT_TOKENIZER
) -> list[LengthFigures]:
    """Figures for each of about BINS ranges of equal width, shortest first."""
    lengths = [source_length(pair.source, unit) for pair in pairs]
    found = []
    for low, high in _ranges(lengths):
        chosen = [i for i, length in enumerate(lengths) if low <= length <= high]
        figures = translation_figures([answers[i] for i in chosen], [pairs[i].target for i in chosen], tokenizer)
        found.append(LengthFigures(low, high, len(chosen), figures))
    return found


def _ranges(lengths: Sequence[int]) -> list[tuple[int, int]]:
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // BINS))
    ranges: list[tuple[int, int]] = []
    for start in range(low, high + 1, width):
        end = min(start + width - 1, high)
        if ranges and sum(start <= length <= end for length in lengths) < LEAST_PAIRS:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return ranges


def deciding_figure(outcomes: Sequence[Outcome], translations: bool) -> str:
    """What is shown by length: BLEU of translations, chrF where their targets are too short for BLEU, else exact matches."""
    if not translations:
        return "exact_match"
    return "bleu" if all("bleu" in outcome.quality for outcome in outcomes) else "chrf"


def table(outcomes: Sequence[Outcome], unit: Unit, figure: str) -> str:
    """Each model's size and figures, greedy and of beam search, then one figure for each range of lengths."""
    shown = (figure, f"beam_{figure}", "chrf")
    rows = [["", "parameters", "steps", "processor s", TITLES[figure], f"beam {TITLES[figure]}", "chrF"]]
    for o in outcomes:
        sizes = [f"{o.parameters:,}", f"{o.steps:,}", f"{o.processor_seconds:.0f}"]
        rows.append([o.name, *sizes, *(_number(o.quality.get(name), name) for name in shown)])
    ranges = [f"{b.shortest}–{b.longest}" for b in outcomes[0].by_length]
    lines = [[f"{TITLES[figure]} at {unit}", *ranges]]
    lines += [[o.name, *(_number(b.figures.get(figure), figure) for b in o.by_length)] for o in outcomes]
    lines.append(["test pairs", *(str(b.pairs) for b in outcomes[0].by_length)])
    return f"{_aligned(rows)}\n\n{_aligned(lines)}"


def _number(value: float | None, figure: str) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if figure.endswith("exact_match") else f"{value:.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    )


def caption(data: str, unit: Unit, figure: str, minutes: float) -> str:
    """What a picture shows, of which data and after how much training."""
    title, spent = TITLES[figure], f"{minutes:g} {'minute' if minutes == 1 else 'minutes'} each"
    return f"{title[0].upper()}{title[1:]} by {unit} of the source: {data}, {spent}"


def draw(outcomes: Sequence[Outcome], path: Path, unit: Unit, figure: str, title: str) -> None:
    """A line for each model over the length of the source, as in Bahdanau et al. 2014, figure 2. Lines differ in colour, dashes
    and markers, all of which are seen where they lie on each other."""
    from matplotlib.figure import Figure  # takes half a second to import; needed once, at the end

    picture = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = picture.subplots()
    for outcome, style in zip(outcomes, STYLES, strict=False):
        shown = [part for part in outcome.by_length if figure in part.figures]
        middles = [(part.shortest + part.longest) / 2 for part in shown]
        values = [part.figures[figure] for part in shown]
        axes.plot(middles, values, **style, markerfacecolor="none", label=outcome.name)
    axes.set_xlabel(f"length of the source, {unit}")
    axes.set_ylabel(TITLES[figure])
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    partial = path.with_name(f"{path.stem}.tmp{path.suffix}")
    picture.savefig(partial)
    partial.replace(path)
