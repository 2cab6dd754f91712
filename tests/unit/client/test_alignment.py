"""Pictures of alignments: text, HTML and matplotlib's."""

import re
import warnings
from html.parser import HTMLParser
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.client import Alignment
from polyhead.client.alignment import figure, html_page, label, text_lines

WORDS = Alignment(("▁le", " ", "é</s>"), ("the", "."), ((0.0, 0.3, 0.7), (0.06, 0.94, 0.0)))


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("chat", "chat"),
        (" ", "␣"),
        ("\u202f", "␣"),
        ("▁le", "␣le"),
        ("\n", "⏎"),
        ("\u200f", r"\u200f"),
        ("\x07", r"\x07"),
        ("日", "日"),
        ("ु", "◌ु"),
        ("", ""),
    ],
)
def test_a_label_shows_what_can_not_be_seen(token: str, shown: str) -> None:
    assert label(token) == shown


def test_text_has_the_source_downwards_along_the_top_and_the_answer_down_the_side() -> None:
    assert text_lines(WORDS) == [
        "        é",
        "        <",
        "    ␣   /",
        "    l   s",
        "    e ␣ >",
        "the ··▒▒▓▓",
        ".   ░░██··",
        "    · 0  ░ 0.05  ▒ 0.25  ▓ 0.5  █ 0.75",
    ]


def test_wide_characters_take_two_columns_and_marks_none() -> None:
    lines = text_lines(Alignment(("日", "e\u0301"), ("月", "x", "e\u0301"), ((1.0, 0.0),) * 3))
    assert lines[:-1] == ["   日e\u0301", "月 ██··", "x  ██··", "e\u0301  ██··"]


def test_a_source_wider_than_the_terminal_is_continued_below() -> None:
    weights = tuple(tuple(float(column == row) for column in range(5)) for row in range(2))
    lines = text_lines(Alignment(tuple("abcde"), tuple("xy"), weights), width=7)
    assert lines[:-1] == ["  a b", "x ██··", "y ··██", "", "  c d", "x ····", "y ····", "", "  e", "x ··", "y ··"]


def test_colours_are_the_grays_of_256_from_black_to_white() -> None:
    rows = text_lines(Alignment(("a", "b", "c"), ("x",), ((0.0, 0.5, 1.0000001),)), colour=True)
    assert rows[1] == "x \x1b[48;5;232m  \x1b[48;5;244m  \x1b[48;5;255m  \x1b[0m"
    assert "\x1b" not in "".join(text_lines(WORDS))


class Cells(HTMLParser):
    """What a page has in its cells; and its names, its scripts and what it refers to elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[dict[str, str | None]] = []
        self.names: list[str] = []
        self.references: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [name for name, _ in attrs if name in ("src", "href")]
        if tag == "td":
            self.cells.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["bdi"]:
            self.names += [data] if data.strip() else []


def test_html_tells_each_weight_and_needs_nothing_from_elsewhere() -> None:
    page = Cells(html_page(WORDS, "le é"))
    titles = [cell["title"] for cell in page.cells]
    assert titles[:3] == ["the ← ␣le: 0.000", "the ← ␣: 0.300", "the ← é</s>: 0.700"]
    assert page.cells[4]["style"] == "background:rgb(240,240,240)"
    assert page.names == ["␣le", "␣", "é</s>", "the", "."]
    assert not page.references
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "url(" not in html_page(WORDS)


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=20))
def test_html_escapes_whatever_tokens_and_titles_say(source: str, target: str, title: str) -> None:
    hostile = '"><script>alert(1)</script>'
    alignment = Alignment((source + hostile,), (target + hostile,), ((0.5,),))
    page = Cells(html_page(alignment, title + hostile))
    assert "script" not in page.tags
    assert [cell["title"] for cell in page.cells] == [f"{label(target + hostile)} ← {label(source + hostile)}: 0.500"]


def png(alignment: Alignment, title: str = "") -> bytes:
    pytest.importorskip("matplotlib")
    written = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of characters that it can't show
        figure(alignment, title).savefig(written, format="png")
    return written.getvalue()


def test_a_figure_is_saved_as_png_whatever_its_tokens_are() -> None:
    tokens = ("$x$", "日", " ", r"\frac", "ु", "\x07", "")
    weights = tuple(tuple(1.0 if row == column else 0.0 for column in range(7)) for row in range(7))
    assert png(Alignment(tokens, tokens, weights), "$日$").startswith(b"\x89PNG\r\n")


def test_a_figure_has_the_source_along_the_top_and_light_cells_for_large_weights() -> None:
    pytest.importorskip("matplotlib")
    axes = figure(WORDS).axes[0]
    assert [name.get_text() for name in axes.get_xticklabels()] == ["␣le", "␣", "é</s>"]
    assert [name.get_text() for name in axes.get_yticklabels()] == ["the", "."]
    (image,) = axes.get_images()
    assert (image.get_cmap().name, image.get_clim()) == ("gray", (0, 1))
    drawn = image.get_array()
    assert drawn is not None
    assert drawn.tolist() == [list(row) for row in WORDS.weights]
    top = axes.xaxis.get_tick_params()
    assert (top["labeltop"], top["labelbottom"]) == (True, False)


def test_a_character_that_no_font_has_is_written_as_its_escape() -> None:
    pytest.importorskip("matplotlib")
    nobodys = "\U000e0101"  # a variation selector: has no picture of its own
    unassigned = "\U0002ffff"
    (name, _) = figure(Alignment((unassigned, nobodys), ("x",), ((0.5, 0.5),))).axes[0].get_xticklabels()
    assert re.fullmatch(r"\\U0002ffff", name.get_text())


def test_a_long_source_makes_no_picture_that_fills_the_memory() -> None:
    pytest.importorskip("matplotlib")
    width, height = figure(Alignment(("a",) * 400, ("x",), ((0.0,) * 400,))).get_size_inches()
    assert (width, height < 3) == (80, True)
