"""What engines report, as samples of the registry."""

import pytest

from polyhead.server.engine.observer import EngineObserver
from polyhead.server.metrics import Metrics, ModelMetrics

LABELS = {"model": "m", "version": "1"}


def report(observer: EngineObserver) -> None:
    observer.queue_size(4)
    observer.running(2)
    observer.ran(rows=3, tokens=10, padding=2, seconds=0.25)
    observer.first_token(0.5)
    observer.inter_token(0.125)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"polyhead_{name}", LABELS | labels)


def test_a_decoder_reports_slots_tokens_and_latencies(metrics: Metrics) -> None:
    observer = ModelMetrics(metrics, "m", "1", slots=8)
    observer.begin()
    report(observer)
    assert {name: sample(metrics, name) for name in (
        "queue_size", "requests_running", "slots_used", "slots", "batch_size_sum", "batch_tokens_sum",
        "padding_tokens_total", "run_duration_seconds_sum", "time_to_first_token_seconds_sum",
        "inter_token_latency_seconds_sum",
    )} == {
        "queue_size": 4, "requests_running": 2, "slots_used": 2, "slots": 8, "batch_size_sum": 3, "batch_tokens_sum": 10,
        "padding_tokens_total": 2, "run_duration_seconds_sum": 0.25, "time_to_first_token_seconds_sum": 0.5,
        "inter_token_latency_seconds_sum": 0.125,
    }  # fmt: skip


def test_a_warm_up_is_not_traffic(metrics: Metrics) -> None:
    report(ModelMetrics(metrics, "m", "1", slots=8))
    for name in ("batch_size", "time_to_first_token_seconds", "inter_token_latency_seconds", "run_duration_seconds"):
        assert sample(metrics, f"{name}_count") == 0
    assert sample(metrics, "slots") is None, "what never serves has none"


def test_an_encoder_has_no_slots(metrics: Metrics) -> None:
    ModelMetrics(metrics, "m", "1", slots=None).running(2)
    assert sample(metrics, "requests_running") == 2
    assert sample(metrics, "slots_used") is None
    assert sample(metrics, "slots") is None


def test_durations_have_buckets_from_half_a_millisecond(metrics: Metrics) -> None:
    observer = ModelMetrics(metrics, "m", "1", slots=1)
    observer.begin()
    observer.inter_token(0.0004)
    observer.inter_token(0.0006)
    assert sample(metrics, "inter_token_latency_seconds_bucket", le="0.0005") == 1
    assert sample(metrics, "inter_token_latency_seconds_bucket", le="0.001") == 2


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.rejected.labels("m", "1", "Embed", "overloaded").inc()
    labels = {"method": "Embed", "reason": "overloaded"}
    assert sample(one, "rejected_total", **labels) == 1
    assert sample(other, "rejected_total", **labels) is None
