"""From outcomes with known times to exact figures."""

import json
import statistics
from array import array
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead.client import Model, Overloaded, PolyheadError, ServerError, Unavailable
from polyhead.client.bench.distribution import Distribution, percentile
from polyhead.client.bench.measure import Measurement
from polyhead.client.bench.outcome import Outcome
from polyhead.client.bench.plot import save_png
from polyhead.client.bench.report import Report, make_report, timeline
from polyhead.client.bench.table import table_lines
from polyhead.v1 import inference_pb2

MODEL = Model(
    name="gpt",
    version="3",
    state="ready",
    reason="",
    task="generate",
    architecture="gpt",
    max_tokens=64,
    load_seconds=1,
)
VALUES = st.lists(st.floats(0, 1e6), min_size=2, max_size=60)


def answer(
    sent: float, *arrivals: float, tokens: tuple[int, ...] = (), prompt: int = 10, queue: float = 0.0
) -> Outcome:
    """Completed 0.5 s after its last token."""
    counts = tokens or (1,) * len(arrivals)
    timing = inference_pb2.Timing(queue_seconds=queue, time_to_first_token_seconds=queue)
    usage = inference_pb2.Usage(prompt_tokens=prompt, generated_tokens=sum(counts))
    ended = arrivals[-1] + 0.5
    return Outcome(sent, None, ended, None, array("d", arrivals), array("L", counts), usage=usage, timing=timing)


def failure(sent: float, ended: float, error: PolyheadError) -> Outcome:
    return Outcome(sent, ended=ended, error=error)


def rejection(sent: float, ended: float) -> Outcome:
    return failure(sent, ended, Overloaded("full", code=grpc.StatusCode.RESOURCE_EXHAUSTED))


def about(value: float) -> Any:
    return pytest.approx(value)


def internal(message: str) -> ServerError:
    return ServerError(message, code=grpc.StatusCode.INTERNAL)


OUTCOMES = [
    answer(100.0, 101.0, 102.0, 104.0, queue=0.25),
    answer(100.5, 102.5, 103.0, 103.5, tokens=(1, 1, 3), prompt=30, queue=0.75),
    rejection(101.0, 101.25),
    failure(102.0, 108.0, internal("first")),
    failure(102.0, 103.0, internal("second")),
    failure(102.0, 109.0, Unavailable("gone", code=grpc.StatusCode.UNAVAILABLE)),
]


def report_of(outcomes: list[Outcome], **limits: float) -> Report:
    return make_report(Measurement(MODEL, outcomes, seconds=10.0, cpu_seconds=2.0), **limits)


def test_throughput_counts_completed_requests_from_the_first_sending_to_the_last_token() -> None:
    report = report_of(OUTCOMES)
    assert report.duration_seconds == 4.0
    assert (report.prompt_tokens, report.generated_tokens, report.inputs) == (40, 8, 2)
    per_second = {"requests": 0.5, "inputs": 0.5, "prompt_tokens": 10.0, "generated_tokens": 2.0}
    assert asdict(report.per_second) == per_second


def test_latencies_are_those_of_completed_requests_and_rejections_have_their_own() -> None:
    latency = report_of(OUTCOMES).latency
    assert latency["time_to_first_token_seconds"] == Distribution(2, 1.5, 1.5, about(1.9), 1.99, 2.0)
    assert latency["inter_token_latency_seconds"] == Distribution(4, 1.0, 0.75, about(1.7), about(1.97), 2.0)
    assert latency["time_per_output_token_seconds"].mean == (1.5 + 0.25) / 2
    assert latency["latency_seconds"] == Distribution(2, 4.0, 4.0, 4.4, 4.49, 4.5)
    assert latency["rejection_seconds"] == Distribution(1, *[0.25] * 5)


def test_the_servers_own_times_come_from_the_last_messages() -> None:
    assert report_of(OUTCOMES).server["queue_seconds"] == Distribution(2, 0.5, 0.5, about(0.7), 0.745, 0.75)


def test_every_request_is_completed_rejected_or_failed_and_failures_are_counted_by_code() -> None:
    requests = report_of(OUTCOMES).requests
    assert (requests.sent, requests.completed, requests.rejected, requests.failed) == (6, 2, 1, 3)
    errors = [(error.code, error.requests, error.message) for error in requests.errors]
    assert errors == [("INTERNAL", 2, "first"), ("UNAVAILABLE", 1, "gone")]


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        ({"slo_ttft": 2.0}, 2),
        ({"slo_ttft": 1.9}, 1),
        ({"slo_itl": 1.0}, 1),
        ({"slo_ttft": 1.5, "slo_itl": 1.0}, 0),
        ({"slo_ttft": 9.0, "slo_itl": 9.0}, 2),
    ],
)
def test_goodput_counts_what_keeps_all_limits_among_all_that_was_sent(limits: dict[str, float], good: int) -> None:
    goodput = report_of(OUTCOMES, **limits).goodput
    assert goodput is not None
    assert (goodput.requests, goodput.requests_per_second, goodput.share) == (good, good / 4.0, good / 6)


def test_there_is_no_goodput_without_limits() -> None:
    assert report_of(OUTCOMES).goodput is None


def test_an_answer_of_one_token_has_no_time_between_tokens_to_break_a_limit() -> None:
    report = report_of([answer(0.0, 1.0)], slo_itl=1e-9)
    assert report.goodput is not None
    assert report.goodput.requests == 1
    assert "time_per_output_token_seconds" not in report.latency


def test_the_timeline_has_every_completed_token_in_its_bucket() -> None:
    assert asdict(report_of(OUTCOMES))["timeline"]["bucket_seconds"] == 0.05
    short = timeline([answer(0.0, 0.005, 0.012, 0.25, tokens=(1, 2, 4)), rejection(0.0, 5.0)])
    assert short is not None
    assert short.bucket_seconds == 0.01
    assert short.tokens == (1, 2, *[0] * 23, 4)


@given(st.lists(st.floats(0.001, 5000), min_size=1, max_size=20))
def test_the_timeline_loses_no_token_and_stays_short(times: list[float]) -> None:
    found = timeline([answer(0.0, time) for time in times])
    assert found is not None
    assert sum(found.tokens) == len(times)
    assert len(found.tokens) <= 101


def test_a_run_in_which_nothing_was_completed_has_counts_and_no_rates() -> None:
    report = report_of([rejection(0.0, 1.0)], slo_ttft=1.0)
    assert (report.duration_seconds, report.per_second.requests, report.timeline) == (0.0, 0.0, None)
    assert report.goodput is not None
    assert report.goodput.share == 0
    lines = table_lines(report)
    assert lines[0] == "no request was completed"
    assert "rejected              1" in lines


def test_the_table_is_aligned_and_in_milliseconds() -> None:
    assert table_lines(report_of(OUTCOMES, slo_ttft=1.9, slo_itl=2.0)) == [
        "milliseconds                     mean       p50       p90       p99       max",
        "time to first token          1,500.00  1,500.00  1,900.00  1,990.00  2,000.00",
        "inter-token latency          1,000.00    750.00  1,700.00  1,970.00  2,000.00",
        "time per output token          875.00    875.00  1,375.00  1,487.50  1,500.00",
        "end-to-end latency           4,000.00  4,000.00  4,400.00  4,490.00  4,500.00",
        "until a rejection              250.00    250.00    250.00    250.00    250.00",
        "server: queue                  500.00    500.00    700.00    745.00    750.00",
        "server: time to first token    500.00    500.00    700.00    745.00    750.00",
        "server: inference                0.00      0.00      0.00      0.00      0.00",
        "",
        "duration         4.00 s",
        "output tokens         8  2.0/s",
        "prompt tokens        40  10.0/s",
        "requests              2  0.50/s, of 6 sent",
        "goodput               1  0.25/s, 16.7% of those sent; first token ≤ 1900 ms, mean time between tokens ≤ 2000 ms",
        "rejected              1",
        "failed                3",
        "  INTERNAL            2  first",
        "  UNAVAILABLE         1  gone",
        "load generator   2.00 s  CPU, 20% of a core",
    ]


def test_a_busy_load_generator_says_so_and_an_open_loop_how_late_it_was() -> None:
    late = answer(0.0, 1.0)
    late.late = 0.0125
    report = make_report(Measurement(MODEL, [late], seconds=1.0, cpu_seconds=0.9))
    lines = table_lines(report)
    assert "load generator   0.90 s  CPU, 90% of a core; requests sent 12.50 ms late (p99)" in lines
    assert lines[-1].startswith("The load generator was nearly as busy as one core lets it be")


def test_a_report_is_json() -> None:
    report = json.loads(json.dumps(asdict(report_of(OUTCOMES, slo_ttft=1.0))))
    assert report["latency"]["latency_seconds"]["p90"] == 4.4
    assert report["requests"]["errors"][0] == {"code": "INTERNAL", "requests": 2, "message": "first"}


def test_the_picture_is_drawn_of_many_answers_and_of_none(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra [plot] is not installed")
    many = [answer(0.0, 0.01 * n, 0.01 * n + 3.0) for n in range(1, 50)]
    for name, outcomes in {"many": many, "none": [rejection(0.0, 1.0)]}.items():
        path = tmp_path / name
        measurement = Measurement(MODEL, outcomes, seconds=4.0, cpu_seconds=0.1)
        save_png(path, "title", measurement, make_report(measurement, slo_ttft=0.2))
        assert path.read_bytes().startswith(b"\x89PNG")


@given(VALUES)
def test_percentiles_are_the_inclusive_quantiles_of_the_standard_library(values: list[float]) -> None:
    ascending = sorted(values)
    wanted = statistics.quantiles(ascending, n=100, method="inclusive")
    assert [percentile(ascending, share / 100) for share in range(1, 100)] == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    assert (percentile(ascending, 0), percentile(ascending, 1)) == (ascending[0], ascending[-1])


@given(VALUES)
def test_a_distribution_rises_and_does_not_depend_on_the_order(values: list[float]) -> None:
    found = Distribution.of(values)
    assert found is not None
    assert found == Distribution.of(reversed(values))
    assert found.p50 <= found.p90 * (1 + 1e-12) <= found.p99 * (1 + 1e-11) <= found.max * (1 + 1e-10)


def test_there_is_nothing_to_say_about_no_values() -> None:
    assert Distribution.of([]) is None
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
