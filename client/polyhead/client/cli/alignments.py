"""`polyhead generate --alignment`: where the picture of each answer's alignment goes."""

import shutil
import sys
from argparse import Namespace
from pathlib import Path

from polyhead.client import alignment
from polyhead.client.cli.failures import LocalFailure
from polyhead.client.results import Alignment, Generation

TERMINAL = "-"
SUFFIXES = (".png", ".html")


def check(options: Namespace) -> None:
    """Asks the server for alignments if the command line does; wrong usage ends the command before anything is sent."""
    options.return_alignment = options.alignment is not None
    if options.alignment in (None, TERMINAL):
        return
    path = Path(options.alignment)
    if path.suffix.lower() not in SUFFIXES:
        options.refuse(f"--alignment must be a file that ends in {' or '.join(SUFFIXES)}, or -, not {str(path)!r}")
    if not path.parent.is_dir():
        options.refuse(f"--alignment {path}: there is no folder {path.parent}")
    if not options.texts:
        options.refuse("--alignment FILE needs TEXT: a conversation has many answers")
    if path.suffix.lower() == ".png":
        try:
            import matplotlib.figure  # noqa: F401  # before the server works for a picture that nobody can draw
        except ModuleNotFoundError as error:
            wanted = 'pip install "polyhead[plot]", or take a file that ends in .html, or -'
            options.refuse(f"--alignment {path} needs {error.name}: {wanted}")


class Pictures:
    """Draws one answer's alignment after the other, in the order of the texts, where `--alignment` says; with several texts or
    samples their numbers, from 1, are part of the file's name: `out-2.png`, and of both `out-2-1.png`."""

    def __init__(self, options: Namespace) -> None:
        self._where: str | None = options.alignment
        self._json: bool = options.json
        self._several = (len(options.texts) > 1 or "-" in options.texts, (options.samples or 1) > 1)
        self._texts = 0

    def draw(self, answer: Generation) -> None:
        """Raises LocalFailure if there is nothing to draw or it can't be written. On standard output JSON already has it."""
        if self._where is None:
            return
        self._texts += answer.sample_index == 0
        if answer.alignment is None:
            raise LocalFailure(f"model {answer.model} {answer.version} answered without an alignment")
        if self._where == TERMINAL:
            if not self._json:
                print(*_lines(answer.alignment), sep="\n", flush=True)
            return
        path = self._path(answer.sample_index)
        try:
            _write(path, answer.alignment, f"{answer.text} ({answer.model} {answer.version})")
        except OSError as error:
            raise LocalFailure(f"--alignment {path}: {error.strerror}") from error
        if sys.stderr.isatty():
            print(f"[alignment: {path}]", file=sys.stderr)

    def _path(self, sample_index: int) -> Path:
        path = Path(self._where or "")
        numbers = zip(self._several, (self._texts, sample_index + 1), strict=True)
        return path.with_stem("-".join([path.stem, *(str(number) for several, number in numbers if several)]))


def _lines(drawn: Alignment) -> list[str]:
    """In colour and no wider than the terminal, if it is one."""
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if on_terminal else None
    return alignment.text_lines(drawn, colour=on_terminal, width=width)


def _write(path: Path, drawn: Alignment, title: str) -> None:
    """Raises OSError."""
    if path.suffix.lower() == ".png":
        alignment.figure(drawn, title).savefig(path, format="png", bbox_inches="tight")
    else:
        path.write_text(alignment.html_page(drawn, title), "utf-8")
