"""A report for people: an aligned table, in milliseconds."""

from collections.abc import Iterator

from polyhead.client.bench.distribution import Distribution
from polyhead.client.bench.report import Goodput, Report

_COLUMNS = ("mean", "p50", "p90", "p99", "max")
_CLIENT_ROWS = {
    "time_to_first_token_seconds": "time to first token",
    "inter_token_latency_seconds": "inter-token latency",
    "time_per_output_token_seconds": "time per output token",
    "latency_seconds": "end-to-end latency",
    "rejection_seconds": "until a rejection",
}
_SERVER_ROWS = {
    "queue_seconds": "server: queue",
    "time_to_first_token_seconds": "server: time to first token",
    "inference_seconds": "server: inference",
}
_BUSY = 0.8


def table_lines(report: Report) -> list[str]:
    return [*_latency_lines(report), "", *_total_lines(report), *_remarks(report)]


def _latency_lines(report: Report) -> list[str]:
    rows = [(name, report.latency[key]) for key, name in _CLIENT_ROWS.items() if key in report.latency]
    rows += [(name, report.server[key]) for key, name in _SERVER_ROWS.items() if key in report.server]
    remark = [] if report.requests.completed else ["no request was completed"]
    if not rows:
        return remark
    cells = [("milliseconds", *_COLUMNS), *((name, *_milliseconds(distribution)) for name, distribution in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return remark + ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]


def _milliseconds(distribution: Distribution) -> list[str]:
    return [f"{getattr(distribution, column) * 1000:,.2f}" for column in _COLUMNS]


def _total_lines(report: Report) -> list[str]:
    rows = list(_totals(report))
    width = max(len(total) for _, total, _ in rows)
    return [f"{name:<15}  {total:>{width}}  {more}".rstrip() for name, total, more in rows]


def _totals(report: Report) -> Iterator[tuple[str, str, str]]:
    """Name, total, and what is to say about it."""
    requests, rates = report.requests, report.per_second
    yield "duration", f"{report.duration_seconds:,.2f} s", ""
    if report.generated_tokens:
        yield "output tokens", f"{report.generated_tokens:,}", f"{rates.generated_tokens:,.1f}/s"
    yield "prompt tokens", f"{report.prompt_tokens:,}", f"{rates.prompt_tokens:,.1f}/s"
    if report.inputs != requests.completed:
        yield "inputs", f"{report.inputs:,}", f"{rates.inputs:,.1f}/s"
    yield "requests", f"{requests.completed:,}", f"{rates.requests:,.2f}/s, of {requests.sent:,} sent"
    if report.goodput:
        yield "goodput", f"{report.goodput.requests:,}", _goodput(report.goodput)
    yield "rejected", f"{requests.rejected:,}", ""
    yield "failed", f"{requests.failed:,}", ""
    for error in requests.errors:
        yield f"  {error.code}", f"{error.requests:,}", " ".join(error.message.split())
    late = report.generator.sent_late_seconds
    more = f"; requests sent {late.p99 * 1000:.2f} ms late (p99)" if late else ""
    yield (
        "load generator",
        f"{report.generator.cpu_seconds:.2f} s",
        f"CPU, {report.generator.cpu_share:.0%} of a core{more}",
    )


def _goodput(goodput: Goodput) -> str:
    limits = {"first token": goodput.slo_ttft_seconds, "mean time between tokens": goodput.slo_itl_seconds}
    kept = ", ".join(f"{name} ≤ {limit * 1000:g} ms" for name, limit in limits.items() if limit is not None)
    return f"{goodput.requests_per_second:,.2f}/s, {goodput.share:.1%} of those sent; {kept}"


def _remarks(report: Report) -> list[str]:
    if report.generator.cpu_share < _BUSY:
        return []
    return ["", "The load generator was nearly as busy as one core lets it be: the latencies are partly its own."]
