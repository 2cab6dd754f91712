"""What came of all requests, in figures. Everything about speed counts completed requests only."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from polyhead.client.bench.distribution import Distribution
from polyhead.client.bench.measure import Measurement
from polyhead.client.bench.outcome import Outcome

BUCKET_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0, 3600.0)
MOST_BUCKETS = 100


@dataclass(frozen=True)
class ErrorCount:
    """Requests that failed with one code; a rejection is none of them."""

    code: str
    requests: int
    message: str
    """Of the first one."""


@dataclass(frozen=True)
class Requests:
    """Each that was sent is one of the others."""

    sent: int
    completed: int
    rejected: int
    """RESOURCE_EXHAUSTED: the server had no room."""
    failed: int
    errors: tuple[ErrorCount, ...]


@dataclass(frozen=True)
class Throughput:
    """Per second of the run's duration."""

    requests: float
    inputs: float
    prompt_tokens: float
    generated_tokens: float


@dataclass(frozen=True)
class Goodput:
    """Completed requests that kept the limits."""

    slo_ttft_seconds: float | None
    slo_itl_seconds: float | None
    """Limit of the mean time between a request's tokens."""
    requests: int
    requests_per_second: float
    share: float
    """Of all that were sent: rejected and failed ones kept no limit."""


@dataclass(frozen=True)
class Timeline:
    """Tokens that came in each bucket after the first request was sent: generated ones, or read ones where none are made."""

    bucket_seconds: float
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Generator:
    """What the load generator itself cost: where it is busy, the figures are its own."""

    cpu_seconds: float
    cpu_share: float
    """Of one core."""
    sent_late_seconds: Distribution | None
    """Behind the times of an open loop; None for a closed one."""


@dataclass(frozen=True)
class Report:
    """Times are in seconds, and so are the distributions."""

    model: str
    version: str
    duration_seconds: float
    """From the first request's sending to the last token's, or answer's, coming."""
    requests: Requests
    inputs: int
    prompt_tokens: int
    generated_tokens: int
    per_second: Throughput
    latency: dict[str, Distribution]
    """As seen from here; see `client_times`."""
    server: dict[str, Distribution]
    """As the server says in each answer; see `server_times`."""
    goodput: Goodput | None
    timeline: Timeline | None
    generator: Generator


def make_report(measurement: Measurement, slo_ttft: float | None = None, slo_itl: float | None = None) -> Report:
    outcomes = measurement.outcomes
    completed = [outcome for outcome in outcomes if outcome.completed]
    seconds = duration(outcomes)
    inputs = sum(outcome.inputs for outcome in completed)
    prompt_tokens = sum(outcome.usage.prompt_tokens for outcome in completed if outcome.usage)
    generated_tokens = sum(outcome.generated_tokens for outcome in completed)
    return Report(
        model=measurement.model.name,
        version=measurement.model.version,
        duration_seconds=seconds,
        requests=_requests(outcomes),
        inputs=inputs,
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        per_second=Throughput(
            *(_rate(count, seconds) for count in (len(completed), inputs, prompt_tokens, generated_tokens))
        ),
        latency=_distributions(client_times(outcomes)),
        server=_distributions(server_times(outcomes)),
        goodput=_goodput(outcomes, seconds, slo_ttft, slo_itl),
        timeline=timeline(outcomes),
        generator=_generator(measurement),
    )


def client_times(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Measurements by name: of completed requests, but for how long a rejection took."""
    completed = [outcome for outcome in outcomes if outcome.completed]
    first = (outcome.time_to_first_token for outcome in completed)
    mean_gap = (outcome.time_per_output_token for outcome in completed)
    return {
        "time_to_first_token_seconds": [seconds for seconds in first if seconds is not None],
        "inter_token_latency_seconds": [gap for outcome in completed for gap in outcome.gaps],
        "time_per_output_token_seconds": [seconds for seconds in mean_gap if seconds is not None],
        "latency_seconds": [outcome.latency for outcome in completed],
        "rejection_seconds": [outcome.latency for outcome in outcomes if outcome.rejected],
    }


def server_times(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """The `Timing` of completed requests, by name of the field."""
    timings = [outcome.timing for outcome in outcomes if outcome.completed and outcome.timing]
    first = [timing for timing in timings if timing.HasField("time_to_first_token_seconds")]
    return {
        "queue_seconds": [timing.queue_seconds for timing in timings],
        "tokenize_seconds": [timing.tokenize_seconds for timing in timings],
        "inference_seconds": [timing.inference_seconds for timing in timings],
        "time_to_first_token_seconds": [timing.time_to_first_token_seconds for timing in first],
        "total_seconds": [timing.total_seconds for timing in timings],
    }


def duration(outcomes: Sequence[Outcome]) -> float:
    """Seconds from the first sending to the last completed request's last token, or answer; 0 if none completed."""
    ends = [outcome.arrivals[-1] if outcome.arrivals else outcome.ended for outcome in outcomes if outcome.completed]
    return max(ends) - min(outcome.sent for outcome in outcomes) if ends else 0.0


def timeline(outcomes: Sequence[Outcome]) -> Timeline | None:
    """Of completed requests; the buckets are the shortest of which 100 cover the run. None if there was no run."""
    seconds = duration(outcomes)
    if not seconds:
        return None
    bucket = next((b for b in BUCKET_SECONDS if seconds / b <= MOST_BUCKETS), BUCKET_SECONDS[-1])
    begin = min(outcome.sent for outcome in outcomes)
    tokens: Counter[int] = Counter()
    for outcome in outcomes:
        if outcome.completed:
            for time, count in _token_arrivals(outcome):
                tokens[int((time - begin) / bucket)] += count
    return Timeline(bucket, tuple(tokens[index] for index in range(int(seconds / bucket) + 1)))


def _token_arrivals(outcome: Outcome) -> list[tuple[float, int]]:
    if outcome.arrivals:
        return list(zip(outcome.arrivals, outcome.tokens, strict=True))
    return [(outcome.ended, outcome.usage.prompt_tokens)] if outcome.usage else []


def _requests(outcomes: Sequence[Outcome]) -> Requests:
    rejected = sum(outcome.rejected for outcome in outcomes)
    failures = [outcome.error for outcome in outcomes if outcome.error and not outcome.rejected]
    codes = Counter(error.code.name for error in failures)
    first = {error.code.name: error.message for error in reversed(failures)}
    errors = tuple(ErrorCount(code, count, first[code]) for code, count in codes.most_common())
    completed = len(outcomes) - rejected - len(failures)
    return Requests(len(outcomes), completed, rejected, len(failures), errors)


def _goodput(
    outcomes: Sequence[Outcome], seconds: float, slo_ttft: float | None, slo_itl: float | None
) -> Goodput | None:
    if slo_ttft is None and slo_itl is None:
        return None
    good = sum(
        outcome.completed
        and _within(outcome.time_to_first_token, slo_ttft)
        and _within(outcome.time_per_output_token, slo_itl)
        for outcome in outcomes
    )
    return Goodput(slo_ttft, slo_itl, good, _rate(good, seconds), good / len(outcomes) if outcomes else 0.0)


def _within(measured: float | None, limit: float | None) -> bool:
    """An answer of one token has no time between tokens, so it keeps that limit."""
    return limit is None or measured is None or measured <= limit


def _generator(measurement: Measurement) -> Generator:
    late = [outcome.late for outcome in measurement.outcomes if outcome.late is not None]
    cpu = measurement.cpu_seconds
    return Generator(cpu, _rate(cpu, measurement.seconds), Distribution.of(late))


def _distributions(times: dict[str, list[float]]) -> dict[str, Distribution]:
    described = {name: Distribution.of(values) for name, values in times.items()}
    return {name: distribution for name, distribution in described.items() if distribution}


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
