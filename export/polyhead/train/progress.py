"""What a person sees of a training: a bar on a terminal, plain lines elsewhere. Both go to standard error."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class Status:
    """How far a training is; the loss is the mean since the last status."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}  {self.tokens_per_second:,.0f} tokens/s  {clock_time(self.seconds_left)} left"


class ProgressReport(Protocol):
    """A context that is told how a training goes."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, status: Status) -> None: ...

    def evaluated(self, step: int, figures: Mapping[str, float], best: bool) -> None: ...

    def note(self, text: str) -> None: ...


class LineReport:
    """Plain lines: every evaluation, and in between one status every few seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._next_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def update(self, status: Status) -> None:
        if (now := time.monotonic()) >= self._next_line or status.step == status.steps:
            self._next_line = now + SECONDS_BETWEEN_LINES
            self.note(f"step {status.step}/{status.steps}  {status}")

    def evaluated(self, step: int, figures: Mapping[str, float], best: bool) -> None:
        self.note(evaluation_text(step, figures, best))

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class BarReport:
    """A bar that moves, with evaluations scrolling above it."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("train", total=None, text="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, status: Status) -> None:
        self._progress.update(self._task, completed=status.step, total=status.steps, text=str(status))

    def evaluated(self, step: int, figures: Mapping[str, float], best: bool) -> None:
        self.note(evaluation_text(step, figures, best))

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)


def make_report() -> ProgressReport:
    """A bar if standard error is a terminal, lines otherwise."""
    console = Console(stderr=True)
    return BarReport(console) if console.is_terminal else LineReport()


def evaluation_text(step: int, figures: Mapping[str, float], best: bool) -> str:
    shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
    return f"step {step}: {shown}{'  (best)' if best else ''}"


def clock_time(seconds: float) -> str:
    """61.2 -> 1:01."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
