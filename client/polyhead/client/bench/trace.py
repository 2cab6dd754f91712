"""A recorded load: arrival times with prompt and answer lengths, as CSV.

The columns are those of Azure's public traces of LLM inference: TIMESTAMP (a date and time, or seconds), ContextTokens,
GeneratedTokens; others are ignored.
"""

import csv
import itertools
import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from polyhead.client.bench.errors import BenchError
from polyhead.client.bench.workload import GenerateJob, fitted, refusal

TIME, PROMPT, ANSWER = "TIMESTAMP", "ContextTokens", "GeneratedTokens"


def read_trace(
    path: Path,
    limit: int,
    requests: int | None = None,
    seconds: float | None = None,
    *,
    answer_limit: int = 0,
    scale: float = 1.0,
    clip: bool = False,
) -> list[GenerateJob]:
    """The trace's first `requests` rows of the first `seconds` of the run, at `scale` times the recorded rate.

    A row whose tokens exceed the model's limits, as `workload.refusal` has them, is shortened if `clip`. Raises BenchError,
    naming line and column, for that otherwise and for what is no trace.
    """
    jobs: list[GenerateJob] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for place, job in itertools.islice(_rows(path, file, scale), requests):
                if seconds is not None and job.due >= seconds:
                    break
                jobs.append(_limited(place, job, (limit, answer_limit), clip))
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BenchError(f"{path}: is not CSV in UTF-8 ({error})") from error
    if not jobs:
        raise BenchError(f"{path}: has no request to send")
    return jobs


def _rows(path: Path, file: Iterable[str], scale: float) -> Iterator[tuple[str, GenerateJob]]:
    """Each row as a job, with the place of the row for errors."""
    reader = csv.DictReader(file)
    if missing := [name for name in (TIME, PROMPT, ANSWER) if name not in (reader.fieldnames or ())]:
        raise BenchError(f"{path}, line 1: there is no column {', '.join(missing)}")
    first = last = -math.inf
    for index, row in enumerate(reader):
        place = f"{path}, line {reader.line_num}"
        time = _time(place, row[TIME])
        first = time if index == 0 else first
        if time < last:
            raise BenchError(f"{place}, column {TIME}: must not be before the row above it, given {row[TIME]!r}")
        last = time
        lengths = (_length(place, PROMPT, row[PROMPT]), _length(place, ANSWER, row[ANSWER]))
        yield place, GenerateJob(index, (time - first) / scale, *lengths)


def _limited(place: str, job: GenerateJob, limits: tuple[int, int], clip: bool) -> GenerateJob:
    if not clip and (why := refusal(job, *limits)):
        raise BenchError(f"{place}, columns {PROMPT} and {ANSWER}: {why}; --trace-clip shortens such rows")
    return fitted(job, *limits)


def _time(place: str, text: str | None) -> float:
    """Seconds since some moment, the same for all rows."""
    try:
        seconds = float(text or "")
    except ValueError:
        try:
            moment = datetime.fromisoformat((text or "").strip())
        except ValueError:
            wanted = "must be a date and time or seconds"
            raise BenchError(f"{place}, column {TIME}: {wanted}, given {text!r}") from None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise BenchError(f"{place}, column {TIME}: must be finite, given {text!r}")
    return seconds


def _length(place: str, column: str, text: str | None) -> int:
    stripped = (text or "").strip()
    if not (stripped.isascii() and stripped.isdecimal() and int(stripped) >= 1):
        raise BenchError(f"{place}, column {column}: must be a whole number, 1 or more, given {text!r}")
    return int(stripped)
