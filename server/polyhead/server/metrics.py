"""Everything that `/metrics` shows, in a registry of its own for each app. Units are seconds and tokens.

`Metrics` has the families; `ModelMetrics` is one model's share of them and what its engine reports to.
"""

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

from polyhead.v1 import bundle_pb2

PREFIX = "polyhead"
MODEL = ("model", "version")
CALL = ("model", "version", "method")

Family = TypeVar("Family", Counter, Gauge, Histogram)

SECONDS = tuple(0.0005 * 2**power for power in range(18))  # 0.5 ms to 65.5 s
ROWS = tuple(2**power for power in range(10))  # 1 to 512
TOKENS = tuple(2**power for power in range(14))  # 1 to 8192


class Metrics:
    """The families of one server, all registered in `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of_versions: list[Counter | Gauge | Histogram] = []
        self._gone: set[tuple[str, str]] = set()
        ProcessCollector(registry=self.registry)
        self._add_calls()
        self._add_engines()
        self._add_models()

    def _add_calls(self) -> None:
        self.requests = self._counter("requests", "Calls that ended, however they did.", (*CALL, "code"))
        self.rejected = self._counter(
            "rejected", "Calls refused, or bulk streams ended early: overloaded or unavailable.", (*CALL, "reason")
        )
        self.cancelled = self._counter(
            "cancelled",
            "Calls that the caller gave up (cancelled), whose deadline passed, or that outlasted the drain (shutdown).",
            (*CALL, "reason"),
        )
        self.request_duration = self._histogram(
            "request_duration_seconds", "From a call's arrival to its end.", CALL, SECONDS
        )
        self.queue_duration = self._histogram(
            "queue_duration_seconds", "From a request's acceptance until the model began on it.", CALL, SECONDS
        )
        self.inference_duration = self._histogram(
            "inference_duration_seconds",
            "From the begin of the first to the end of the last model run of a request.",
            CALL,
            SECONDS,
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of accepted inputs, without padding.", CALL)
        self.generated_tokens = self._counter("generated_tokens", "Tokens made by models.", CALL)

    def _add_engines(self) -> None:
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From a request's submission to its first token.", MODEL, SECONDS
        )
        self.inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of one answer.", MODEL, SECONDS
        )
        self.run_duration = self._histogram("run_duration_seconds", "Of one model run, a batch.", MODEL, SECONDS)
        self.batch_size = self._histogram("batch_size", "Rows in one model run.", MODEL, ROWS)
        self.batch_tokens = self._histogram("batch_tokens", "Tokens in one model run, no padding.", MODEL, TOKENS)
        self.padding_tokens = self._counter("padding_tokens", "Padding that models computed over.", MODEL)
        self.cached_prompt_tokens = self._counter(
            "cached_prompt_tokens", "Tokens of prompts that were copied from the prefix cache; decoders only.", MODEL
        )
        self.drafted_tokens = self._counter(
            "drafted_tokens", "Tokens that prompt lookup guessed; decoders only.", MODEL
        )
        self.accepted_tokens = self._counter("accepted_tokens", "Of these, those that were right.", MODEL)
        self.queue_size = self._gauge("queue_size", "Requests that wait now.", MODEL)
        self.running = self._gauge(
            "requests_running", "Requests being worked on now; of a decoder every sample counts.", MODEL
        )
        self.slots_used = self._gauge("slots_used", "Cache slots in use now; decoders only.", MODEL)
        self.slots = self._gauge("slots", "Cache slots there are; decoders only.", MODEL)

    def _add_models(self) -> None:
        self.load_duration = self._gauge(
            "model_load_duration_seconds", "From a folder being read to the first answer of the warm-up.", MODEL
        )
        self.memory = self._gauge(
            "model_memory_bytes", "What a model in memory takes, estimated from weights and slots.", MODEL
        )
        self.loads = self._counter("model_loads", "Attempts to load a version: ready or failed.", ("model", "result"))
        self.info = self._gauge(
            "model_info", "1 for each model that serves.", (*MODEL, "task", "architecture", "quantization")
        )

    def loaded(self, name: str, version: str, manifest: bundle_pb2.Bundle, seconds: float, memory: int = 0) -> None:
        """A model serves, `seconds` after its folder began to be read, and takes about `memory` bytes."""
        self._gone.discard((name, version))
        task = bundle_pb2.Task.Name(manifest.task).removeprefix("TASK_").lower()
        quantization = bundle_pb2.Quantization.Name(manifest.quantization).removeprefix("QUANTIZATION_").lower()
        self.load_duration.labels(name, version).set(seconds)
        self.memory.labels(name, version).set(memory)
        self.info.labels(name, version, task, manifest.architecture, quantization).set(1)

    def unloaded(self, name: str, version: str) -> None:
        """A model serves no more: all that was counted for it goes."""
        self._gone.add((name, version))
        for family in self._of_versions:
            family.remove_by_labels({"model": name, "version": version})

    def version_label(self, name: str, version: str) -> str:
        """Empty for a version that has gone, so that a stream that outlives it does not bring its series back."""
        return "" if (name, version) in self._gone else version

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return self._keep(Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry), labels)

    def _gauge(self, name: str, text: str, labels: Sequence[str]) -> Gauge:
        return self._keep(Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry), labels)

    def _histogram(self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]) -> Histogram:
        return self._keep(Histogram(f"{PREFIX}_{name}", text, labels, buckets=buckets, registry=self.registry), labels)

    def _keep(self, family: Family, labels: Sequence[str]) -> Family:
        if "version" in labels:
            self._of_versions.append(family)
        return family


class ModelMetrics:
    """What one model's engine reports (`engine.observer.EngineObserver`). Counts nothing until `begin`, so that a warm-up
    is not mistaken for traffic. `slots` is None for encoders."""

    def __init__(self, metrics: Metrics, model: str, version: str, slots: int | None) -> None:
        self._begun = False
        self._slots = slots
        labels = (model, version)
        self._queue_size = metrics.queue_size.labels(*labels)
        self._running = metrics.running.labels(*labels)
        self._run_duration = metrics.run_duration.labels(*labels)
        self._batch_size = metrics.batch_size.labels(*labels)
        self._batch_tokens = metrics.batch_tokens.labels(*labels)
        self._padding = metrics.padding_tokens.labels(*labels)
        self._slots_used: Gauge | None = None
        if slots is not None:
            self._all_slots = partial(metrics.slots.labels, *labels)
            self._slots_used = metrics.slots_used.labels(*labels)
            self._first_token = metrics.first_token.labels(*labels)
            self._inter_token = metrics.inter_token.labels(*labels)
            self._copied = metrics.cached_prompt_tokens.labels(*labels)
            self._drafted = metrics.drafted_tokens.labels(*labels)
            self._accepted = metrics.accepted_tokens.labels(*labels)

    def begin(self) -> None:
        """The model serves: from here on what its engine reports is traffic."""
        self._begun = True
        if self._slots is not None:
            self._all_slots().set(self._slots)

    def queue_size(self, requests: int) -> None:
        self._queue_size.set(requests)

    def running(self, requests: int) -> None:
        self._running.set(requests)
        if self._slots_used is not None:
            self._slots_used.set(requests)

    def ran(self, *, rows: int, tokens: int, padding: int, seconds: float) -> None:
        if self._begun:
            self._batch_size.observe(rows)
            self._batch_tokens.observe(tokens)
            self._padding.inc(padding)
            self._run_duration.observe(seconds)

    def first_token(self, seconds: float) -> None:
        if self._begun:
            self._first_token.observe(seconds)

    def inter_token(self, seconds: float) -> None:
        if self._begun:
            self._inter_token.observe(seconds)

    def copied(self, tokens: int) -> None:
        if self._begun:
            self._copied.inc(tokens)

    def guessed(self, drafted: int, accepted: int) -> None:
        if self._begun:
            self._drafted.inc(drafted)
            self._accepted.inc(accepted)
