"""What engines report, as samples of the registry."""

import pytest

from polyhead.server.engine.observer import EngineObserver
from polyhead.server.metrics import Metrics, ModelMetrics
from polyhead.v1 import bundle_pb2

LABELS = {"model": "m", "version": "1"}


def report(observer: EngineObserver) -> None:
    observer.queue_size(4)
    observer.running(2)
    observer.ran(rows=3, tokens=10, padding=2, seconds=0.25)
    observer.first_token(0.5)
    observer.inter_token(0.125)
    observer.copied(32)
    observer.guessed(4, 3)


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
        "inter_token_latency_seconds_sum", "cached_prompt_tokens_total", "drafted_tokens_total", "accepted_tokens_total",
    )} == {
        "queue_size": 4, "requests_running": 2, "slots_used": 2, "slots": 8, "batch_size_sum": 3, "batch_tokens_sum": 10,
        "padding_tokens_total": 2, "run_duration_seconds_sum": 0.25, "time_to_first_token_seconds_sum": 0.5,
        "inter_token_latency_seconds_sum": 0.125, "cached_prompt_tokens_total": 32, "drafted_tokens_total": 4,
        "accepted_tokens_total": 3,
    }  # fmt: skip


def test_a_warm_up_is_not_traffic(metrics: Metrics) -> None:
    report(ModelMetrics(metrics, "m", "1", slots=8))
    for name in ("batch_size", "time_to_first_token_seconds", "inter_token_latency_seconds", "run_duration_seconds"):
        assert sample(metrics, f"{name}_count") == 0
    for name in ("cached_prompt_tokens_total", "drafted_tokens_total", "accepted_tokens_total"):
        assert sample(metrics, name) == 0
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


def test_what_was_counted_for_a_version_goes_with_it_and_that_of_others_stays(metrics: Metrics) -> None:
    for version in ("1", "2"):
        report(ModelMetrics(metrics, "m", version, slots=8))
        metrics.requests.labels("m", version, "Embed", "OK").inc()
        metrics.loaded("m", version, bundle_pb2.Bundle(task=bundle_pb2.TASK_EMBED), 0.5, 1000)
    metrics.loads.labels("m", "ready").inc()
    metrics.unloaded("m", "1")
    left = {sample.labels["version"] for family in metrics.registry.collect() for sample in family.samples
            if "version" in sample.labels}  # fmt: skip
    assert left == {"2"}
    assert metrics.registry.get_sample_value("polyhead_model_loads_total", {"model": "m", "result": "ready"}) == 1


def test_a_call_that_outlives_its_version_is_counted_without_one(metrics: Metrics) -> None:
    manifest = bundle_pb2.Bundle(task=bundle_pb2.TASK_EMBED)
    metrics.loaded("m", "1", manifest, 0.5)
    assert metrics.version_label("m", "1") == "1"
    metrics.unloaded("m", "1")
    assert metrics.version_label("m", "1") == ""
    metrics.loaded("m", "1", manifest, 0.5)
    assert metrics.version_label("m", "1") == "1"
