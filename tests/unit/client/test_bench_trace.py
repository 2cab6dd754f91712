"""Traces: what a row becomes, and what a file that is none is told."""

from pathlib import Path

import pytest

from polyhead.client.bench.errors import BenchError
from polyhead.client.bench.trace import read_trace
from polyhead.client.bench.workload import GenerateJob

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROWS = (
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:48.6805900,396,109\n"
    "2023-11-16 18:15:48.6805900,879,55\n"
    "2023-11-16 18:16:46.6805900,91,16\n"
)
AZURE = Path(__file__).parents[4] / "shared/data/traces/AzureLLMInferenceTrace_conv.csv"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + ROWS)
    return path


def test_the_first_row_is_due_at_once_and_the_others_as_much_later_as_recorded(path: Path) -> None:
    assert read_trace(path, 4096) == [
        GenerateJob(0, 0.0, 374, 44),
        GenerateJob(1, 2.0, 396, 109),
        GenerateJob(2, 2.0, 879, 55),
        GenerateJob(3, 60.0, 91, 16),
    ]


def test_scale_multiplies_the_rate_and_bounds_count_in_requests_and_in_seconds_of_the_run(path: Path) -> None:
    assert [job.due for job in read_trace(path, 4096, scale=4)] == [0, 0.5, 0.5, 15]
    assert len(read_trace(path, 4096, requests=2)) == 2
    assert len(read_trace(path, 4096, seconds=60)) == 3
    assert len(read_trace(path, 4096, seconds=16, scale=4)) == 4


def test_seconds_other_columns_and_a_byte_order_mark_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("\ufeffuser,GeneratedTokens,ContextTokens,TIMESTAMP\na,3,2,100.5\nb, 5 ,4,101\n", "utf-8")
    assert read_trace(path, 4096) == [GenerateJob(0, 0.0, 2, 3), GenerateJob(1, 0.5, 4, 5)]


def test_clip_shortens_what_the_model_cannot_take(path: Path) -> None:
    jobs = read_trace(path, 400, clip=True)
    assert [(job.prompt_tokens, job.max_tokens) for job in jobs] == [(356, 44), (291, 109), (345, 55), (91, 16)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER, "has no request to send"),
        ("", "line 1: there is no column TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "line 1: there is no column GeneratedTokens"),
        (HEADER + "1,2,3\n2,x,3\n", "line 3, column ContextTokens: must be a whole number, 1 or more, given 'x'"),
        (HEADER + "1,2,0\n", "line 2, column GeneratedTokens: must be a whole number, 1 or more, given '0'"),
        (HEADER + "1,2\n", "line 2, column GeneratedTokens: must be a whole number, 1 or more, given None"),
        (HEADER + "noon,2,3\n", "line 2, column TIMESTAMP: must be a date and time or seconds, given 'noon'"),
        (HEADER + "inf,2,3\n", "line 2, column TIMESTAMP: must be finite, given 'inf'"),
        (HEADER + "2,2,3\n1,2,3\n", "line 3, column TIMESTAMP: must not be before the row above it, given '1'"),
        (
            HEADER + "1,60,5\n",
            "line 2, columns ContextTokens and GeneratedTokens: prompt and answer of 60 . 5 tokens are too long for the model, "
            "which takes 64; --trace-clip shortens such rows",
        ),
    ],
)
def test_what_is_wrong_is_named_with_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(BenchError, match=message) as caught:
        read_trace(path, 64)
    assert str(path) in str(caught.value)


def test_a_row_for_a_sequence_to_sequence_model_may_have_its_longest_source_and_its_longest_answer(
    tmp_path: Path,
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n1,60,30\n2,61,31\n")
    assert read_trace(path, 60, requests=1, answer_limit=30) == [GenerateJob(0, 0.0, 60, 30)]
    assert read_trace(path, 60, answer_limit=30, clip=True)[1] == GenerateJob(1, 1.0, 60, 30)
    with pytest.raises(
        BenchError, match=r"line 3, .* a prompt of 61 tokens is too long .* longest source has 60; --trace-clip"
    ):
        read_trace(path, 60, answer_limit=30)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"nowhere\.csv: No such file"):
        read_trace(tmp_path / "nowhere.csv", 64)
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff")
    with pytest.raises(BenchError, match=r"image\.csv: is not CSV in UTF-8"):
        read_trace(tmp_path / "image.csv", 64)


@pytest.mark.skipif(not AZURE.exists(), reason=f"{AZURE.name} is not on this machine")
def test_the_whole_of_azures_trace_is_read() -> None:
    jobs = read_trace(AZURE, 16_384)
    assert (len(jobs), jobs[0]) == (19_366, GenerateJob(0, 0.0, 374, 44))
    assert jobs[1].due == pytest.approx(4.314579)
    assert jobs[-1].due == pytest.approx(3501.721937)
