"""Draws an alignment as Bahdanau et al. (2014) do in figure 3: the source along the top, the answer down the side, and a cell
the lighter the more its token of the answer attended to its token of the source.

Three pictures of the same thing, none of which writes anywhere: lines of text, an HTML page, and a figure of matplotlib
(`pip install "polyhead[plot]"`), whose `savefig` knows PNG and more.
"""

from __future__ import annotations  # matplotlib is only there when it is asked for

import unicodedata
from bisect import bisect
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from polyhead.client.results import Alignment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL = 2
"""Columns of a terminal, so that cells are about as wide as high."""
_SHADES = "·░▒▓█"
_FROM = (0.05, 0.25, 0.5, 0.75)
"""Weights at which the next shade begins."""
_DARKEST, _GRAYS = 232, 24
"""Of the 256 colours of terminals."""

_INCHES = 0.24
"""Of a cell's side."""
_MOST_INCHES = 80.0
"""Of a figure's side; with more tokens the cells get smaller."""
_NO_TEXT = ("Last Resort", "STIX", "cm")
"""How the names of matplotlib's fonts begin that have signs of their own where characters should be."""
_SIGNS = {"\n": "⏎", "\t": "⇥", "▁": "␣"}
"""What stands for what can't be seen; `▁` is how SentencePiece writes a space."""


def label(token: str) -> str:
    """A token as a person can read it: spaces as ␣, marks that combine on a ◌, other invisible characters as their escapes."""
    shown = "".join(map(_sign, token))
    return f"◌{shown}" if unicodedata.category(shown[:1] or " ").startswith("M") else shown


def _sign(character: str) -> str:
    if unicodedata.category(character) == "Zs":
        return "␣"
    return _SIGNS.get(character) or (character if character.isprintable() else _escaped(character))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def text_lines(alignment: Alignment, *, colour: bool = False, width: int | None = None) -> list[str]:
    """For a terminal: in its grays with `colour`, else in shades of ink, which are the fuller the larger the weight. A source
    that `width` columns can't hold is continued below; None: there is no limit."""
    source, target = (
        [label(token) for token in tokens] for tokens in (alignment.source_tokens, alignment.target_tokens)
    )
    margin = 1 + max(map(_columns, target), default=0)
    at_once = len(source) if width is None else max(1, (width - margin) // _CELL)
    lines: list[str] = []
    for begin in range(0, len(source), max(1, at_once)):
        part = slice(begin, begin + at_once)
        lines += [*([""] if lines else []), *_heading(source[part], margin)]
        for name, row in zip(target, alignment.weights, strict=True):
            lines.append(_filled(name, margin) + _cells(row[part], colour))
    return [*lines, " " * margin + _legend(colour)]


def _heading(source: Sequence[str], margin: int) -> list[str]:
    """The source's tokens, written downwards."""
    stacks = [_characters(token) for token in source]
    height = max(map(len, stacks))
    padded = ([" "] * (height - len(stack)) + stack for stack in stacks)
    return [
        (" " * margin + "".join(_filled(sign, _CELL) for sign in line)).rstrip() for line in zip(*padded, strict=True)
    ]


def _cells(weights: Iterable[float], colour: bool) -> str:
    if not colour:
        return "".join(_SHADES[bisect(_FROM, weight)] * _CELL for weight in weights)
    grays = (_DARKEST + round((_GRAYS - 1) * _share(weight)) for weight in weights)
    return "".join(f"\x1b[48;5;{gray}m{' ' * _CELL}" for gray in grays) + "\x1b[0m"


def _legend(colour: bool) -> str:
    if colour:
        return f"0 {_cells([step / 10 for step in range(11)], colour)} 1"
    return f"{_SHADES[0]} 0  " + "  ".join(
        f"{shade} {least:g}" for shade, least in zip(_SHADES[1:], _FROM, strict=True)
    )


def _characters(text: str) -> list[str]:
    """Each with the marks that combine with it."""
    found: list[str] = []
    for character in text:
        if found and unicodedata.category(character).startswith("M"):
            found[-1] += character
        else:
            found.append(character)
    return found


def _columns(text: str) -> int:
    """How wide a terminal shows it."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.category(character) in ("Mn", "Me") for character in text)


def _filled(text: str, columns: int) -> str:
    return text + " " * (columns - _columns(text))


def _share(weight: float) -> float:
    """Sums of rounded numbers may be a little over 1."""
    return min(max(weight, 0.0), 1.0)


_STYLE = """
body { font: 14px/1.2 sans-serif; margin: 2em; color: #222; background: #fff; }
h1 { font-size: 1.1em; }
table { border-collapse: collapse; }
th { font-weight: normal; padding: 2px 5px; white-space: nowrap; }
thead th { vertical-align: bottom; padding: 5px 2px; }
thead .long { writing-mode: vertical-rl; }
tbody th { text-align: right; }
td { width: 1.5em; min-width: 1.5em; height: 1.5em; padding: 0; border: 1px solid #555; print-color-adjust: exact; }
td:hover { outline: 2px solid #d33; }
"""


def html_page(alignment: Alignment, title: str = "Alignment") -> str:
    """A page that needs nothing else, no script either: a table whose cells tell their weight under the pointer."""
    heading = "".join(_column_name(label(token)) for token in alignment.source_tokens)
    rows = "\n".join(
        _row(target, alignment.source_tokens, weights)
        for target, weights in zip(alignment.target_tokens, alignment.weights, strict=True)
    )
    return (
        f'<!DOCTYPE html>\n<html>\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<table dir="ltr">\n<thead><tr><th></th>{heading}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n'
        "<p>Along the top the source, down the side the answer; black is 0, white is 1.</p>\n</body>\n</html>\n"
    )


def _column_name(name: str) -> str:
    """Longer ones are written downwards."""
    kind = ' class="long"' if len(_characters(name)) > 1 else ""
    return f'<th scope="col"><bdi{kind}>{escape(name)}</bdi></th>'


def _row(target: str, source: Sequence[str], weights: Sequence[float]) -> str:
    cells = "".join(
        _cell(f"{label(target)} ← {label(token)}", weight) for token, weight in zip(source, weights, strict=True)
    )
    return f'<tr><th scope="row"><bdi>{escape(label(target))}</bdi></th>{cells}</tr>'


def _cell(what: str, weight: float) -> str:
    gray = round(255 * _share(weight))
    return f'<td style="background:rgb({gray},{gray},{gray})" title="{escape(f"{what}: {weight:.3f}")}"></td>'


def figure(alignment: Alignment, title: str = "") -> Figure:
    """A figure of matplotlib. Characters that no font of this machine has are written as their escapes. Raises
    ModuleNotFoundError where there is no matplotlib."""
    from matplotlib.figure import Figure

    names = [[label(token) for token in tokens] for tokens in (alignment.source_tokens, alignment.target_tokens)]
    families, missing = _fonts({character for tokens in (*names, [title]) for token in tokens for character in token})
    source, target = ([_with_escapes(name, missing) for name in tokens] for tokens in names)
    sides = (min(_INCHES * len(tokens) + 2, _MOST_INCHES) for tokens in (source, target))
    drawn = Figure(figsize=tuple(sides), layout="constrained", dpi=120)  # type: ignore[arg-type]
    axes = drawn.add_subplot()
    image = axes.imshow(alignment.weights, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _name_cells(axes, source, target, families)
    if title:
        drawn.suptitle(_with_escapes(title, missing), fontsize=9, fontfamily=families, parse_math=False)
    drawn.colorbar(image, ax=axes, fraction=0.05, aspect=15, shrink=0.6, ticks=[0, 0.5, 1])
    return drawn


def _name_cells(axes: Any, source: Sequence[str], target: Sequence[str], families: list[str]) -> None:
    text = {"fontfamily": families, "fontsize": 9, "parse_math": False}  # a dollar is a dollar
    axes.tick_params(labeltop=True, labelbottom=False, length=0)
    axes.set_xticks(range(len(source)), source, **text)
    axes.set_yticks(range(len(target)), target, **text)
    for name in axes.get_xticklabels():
        name.set_rotation(90 if len(name.get_text()) > 1 else 0)


def _fonts(characters: set[str]) -> tuple[list[str], set[str]]:
    """matplotlib's own font and, of those of this machine, what it takes to show the characters; and those that none has."""
    from matplotlib import font_manager

    families, missing = ["DejaVu Sans"], characters - _covered(font_manager.findfont("DejaVu Sans"))
    for font in font_manager.fontManager.ttflist:
        upright = font.style == "normal" and font.weight == 400 and not font.name.startswith(_NO_TEXT)
        if missing and upright and (found := missing & _covered(font.fname)):
            families.append(font.name)
            missing -= found
    return families, missing


def _covered(path: str) -> set[str]:
    from matplotlib.font_manager import get_font

    return {chr(code) for code in get_font(path).get_charmap()}


def _with_escapes(text: str, missing: set[str]) -> str:
    return "".join(_escaped(character) if character in missing else character for character in text)
