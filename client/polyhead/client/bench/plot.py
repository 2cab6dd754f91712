"""A report as a picture: how the latencies are distributed, and the throughput over time. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyhead.client.bench.distribution import percentile
from polyhead.client.bench.measure import Measurement
from polyhead.client.bench.report import Report, client_times

_GENERATE_PANELS = {
    "time_to_first_token_seconds": ("Time to first token", "requests"),
    "inter_token_latency_seconds": ("Inter-token latency", "tokens"),
}
_ENCODE_PANELS = {"latency_seconds": ("Latency", "requests")}
_MOST_POINTS = 1000
_WIDE = 20  # times as long as the shortest
_LABEL = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
_COLOUR, _LIMIT_COLOUR = "#1f5fa8", "#c0392b"


def require_matplotlib() -> None:
    """Raises ModuleNotFoundError before hours are spent on figures that nobody can draw."""
    import matplotlib.figure  # noqa: F401


def save_png(path: Path, title: str, measurement: Measurement, report: Report) -> None:
    """Raises OSError."""
    from matplotlib.figure import Figure

    times = client_times(measurement.outcomes)
    panels = {name: text for name, text in _GENERATE_PANELS.items() if times[name]} or _ENCODE_PANELS
    figure = Figure(figsize=(5.5 * len(panels), 7.5), layout="constrained", dpi=120)
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(2, len(panels))
    limits = _limits(report)
    for column, (name, (heading, what)) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[0, column])
        axes.set_title(heading)
        axes.set_ylabel(f"share of {what}")
        _draw_distribution(axes, sorted(times[name]), limits.get(name))
    _draw_throughput(figure.add_subplot(grid[1, :]), report)
    figure.savefig(path, format="png")


def _limits(report: Report) -> dict[str, float | None]:
    if report.goodput is None:
        return {}
    return {
        "time_to_first_token_seconds": report.goodput.slo_ttft_seconds,
        "inter_token_latency_seconds": report.goodput.slo_itl_seconds,
    }


def _draw_distribution(axes: Any, ascending: Sequence[float], limit: float | None) -> None:
    """The share of values up to each value, with the percentiles of the table; the axis of time is logarithmic."""
    if not ascending:
        axes.text(0.5, 0.5, "no request was completed", ha="center", transform=axes.transAxes)
        return
    shares = [index / _MOST_POINTS for index in range(_MOST_POINTS + 1)]
    axes.plot([percentile(ascending, share) * 1000 for share in shares], shares, color=_COLOUR)
    for share in (0.5, 0.9, 0.99):
        value = percentile(ascending, share) * 1000
        axes.plot(value, share, "o", color=_COLOUR)
        label = f"p{share * 100:.0f}  {value:,.4g} ms"
        axes.annotate(label, (value, share), (-8, 2), textcoords="offset points", ha="right", fontsize=9, bbox=_LABEL)
    if limit is not None:
        axes.axvline(limit * 1000, color=_LIMIT_COLOUR, linestyle="--", label=f"limit {limit * 1000:g} ms")
        axes.legend(loc="lower right")
    _scale_time(axes, ascending)
    axes.set_ylim(0, 1.06)
    axes.grid(alpha=0.3)


def _scale_time(axes: Any, ascending: Sequence[float]) -> None:
    """Logarithmic where a few values are much longer than the others, as they often are."""
    axes.set_xlabel("milliseconds")
    low, high = percentile(ascending, 0.001) * 1000, ascending[-1] * 1000
    if low > 0 and high / low > _WIDE:
        axes.set_xscale("log", subs=(2, 5))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.set_xlim(low * 0.8, high * 1.25)
    else:
        axes.set_xlim(0, high * 1.05)


def _draw_throughput(axes: Any, report: Report) -> None:
    generates = report.generated_tokens > 0
    axes.set_title("Throughput")
    axes.set_xlabel("seconds since the first request")
    axes.set_ylabel("output tokens/s" if generates else "input tokens/s")
    axes.grid(alpha=0.3)
    timeline = report.timeline
    if timeline is None:
        return
    edges = [index * timeline.bucket_seconds for index in range(len(timeline.tokens) + 1)]
    rates = [count / timeline.bucket_seconds for count in timeline.tokens]
    mean = report.per_second.generated_tokens if generates else report.per_second.prompt_tokens
    axes.stairs(rates, edges, fill=True, color=_COLOUR, alpha=0.4)
    axes.axhline(mean, color=_COLOUR, linestyle=":", label=f"mean {mean:,.1f}/s")
    axes.legend(loc="lower right")
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(bottom=0)
