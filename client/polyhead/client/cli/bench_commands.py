"""What `polyhead bench` does: measure, then show the report. Each command returns its exit code."""

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from polyhead.client.base import resolve_target
from polyhead.client.bench import measure, plot
from polyhead.client.bench.errors import BenchError
from polyhead.client.bench.lengths import parse_lengths
from polyhead.client.bench.measure import Measurement
from polyhead.client.bench.report import Report, make_report
from polyhead.client.bench.settings import DEFAULT_STREAMS, EncodeSettings, GenerateSettings, Settings, Trace
from polyhead.client.bench.table import table_lines
from polyhead.client.cli import generation, output
from polyhead.client.requests import GenerateOptions

_DEFAULT_GENERATE_TOKENS = parse_lengths("128")
_DEFAULT_ENCODE_TOKENS = parse_lengths("32")


@dataclass(frozen=True)
class _Run:
    settings: Settings
    load: str
    """In words."""
    measurement: Measurement


def generate(options: Namespace) -> int:
    def measured() -> _Run:
        settings = _generate_settings(options)
        return _Run(settings, _describe_generate(settings), measure.measure_generate(settings))

    return _run(options, "generate", measured, options.slo_ttft, options.slo_itl)


def encode(options: Namespace) -> int:
    def measured() -> _Run:
        settings = _encode_settings(options)
        return _Run(settings, _describe_encode(settings), measure.measure_encode(settings))

    return _run(options, options.task, measured)


def _run(
    options: Namespace,
    task: str,
    measured: Callable[[], _Run],
    slo_ttft: float | None = None,
    slo_itl: float | None = None,
) -> int:
    """1 if no request was completed, 2 if the flags do not go together with each other, a file or the model."""
    try:
        if options.png:
            _check_png(options.png)
        run = measured()
    except BenchError as error:
        print(f"polyhead bench {task}: {error}", file=sys.stderr)
        return 2
    report = make_report(run.measurement, slo_ttft, slo_itl)
    target = resolve_target(options.target)
    title = f"polyhead bench {task}: {report.model} {report.version} at {target}\n{run.load}"
    if options.json:
        asked = {"task": task, "target": target, "load": run.load, "settings": _settings_json(run.settings)}
        output.print_json({**asked, **asdict(report)})
    else:
        print("\n".join([title, "", *table_lines(report)]), flush=True)
    if options.png and not _saved_png(task, options.png, title, run.measurement, report):
        return 1
    return 0 if report.requests.completed else 1


def _saved_png(task: str, path: Path, title: str, measurement: Measurement, report: Report) -> bool:
    try:
        plot.save_png(path, title, measurement, report)
    except OSError as error:
        print(f"polyhead bench {task}: {path}: {error.strerror}", file=sys.stderr)
        return False
    return True


def _generate_settings(options: Namespace) -> GenerateSettings:
    _refuse_without_trace(options)
    if flag := generation.without_beams(options):
        raise BenchError(f"{flag} needs --beams N")
    trace = Trace(options.trace, options.trace_scale or 1.0, options.trace_clip) if options.trace else None
    sampling = {name: getattr(options, name) for name in GenerateOptions.__annotations__ if hasattr(options, name)}
    for ours in ("seed", "max_tokens"):  # of the load, not of a request
        sampling.pop(ours)
    return GenerateSettings(
        **_load_settings(options),
        prompt=options.prompt_tokens or _DEFAULT_GENERATE_TOKENS,
        answer=options.max_tokens or _DEFAULT_GENERATE_TOKENS,
        trace=trace,
        shared_prefix=options.shared_prefix,
        sampling=sampling,  # type: ignore[arg-type]  # the names are those of GenerateOptions
    )


def _refuse_without_trace(options: Namespace) -> None:
    if options.trace and (options.prompt_tokens or options.max_tokens):
        raise BenchError("--trace has lengths of its own; leave --prompt-tokens and --max-tokens out")
    if not options.trace and (options.trace_scale or options.trace_clip):
        raise BenchError("--trace-scale and --trace-clip say how to send a --trace FILE.csv; give one")


def _encode_settings(options: Namespace) -> EncodeSettings:
    return EncodeSettings(
        **_load_settings(options),
        task=options.task,
        inputs_per_request=options.inputs_per_request,
        tokens=options.tokens or _DEFAULT_ENCODE_TOKENS,
        words=options.words,
        texts=_read_texts(options.texts) if options.texts else (),
        truncate=options.truncate,
    )


def _load_settings(options: Namespace) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in Settings.__annotations__}
    if given["streams"] is None and given["rate"] is None and getattr(options, "trace", None) is None:
        given["streams"] = DEFAULT_STREAMS
    return given


def _read_texts(path: Path) -> tuple[str, ...]:
    """The lines that are not empty."""
    try:
        texts = tuple(line for line in path.read_text("utf-8").splitlines() if line)
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BenchError(f"{path}: is not UTF-8 (byte 0x{error.object[error.start]:02x})") from error
    if not texts:
        raise BenchError(f"{path}: has no text")
    return texts


def _check_png(path: Path) -> None:
    """Before time is spent on figures that nobody can draw."""
    try:
        plot.require_matplotlib()
    except ModuleNotFoundError as error:
        raise BenchError(f'--png needs {error.name}, which comes with pip install "polyhead[plot]"') from error
    if not path.parent.is_dir():
        raise BenchError(f"--png {path}: there is no folder {path.parent}")


def _describe_generate(settings: GenerateSettings) -> str:
    if settings.trace:
        return f"trace {settings.trace.path.name} at {settings.trace.scale:g} × its rate"
    return f"{_describe_load(settings)}, prompts of {settings.prompt} tokens, answers of {settings.answer}"


def _describe_encode(settings: EncodeSettings) -> str:
    if settings.texts:
        what = f"from {len(settings.texts):,} texts"
    elif settings.words:
        what = f"of {settings.words} words"
    else:
        what = f"of {settings.tokens} tokens"
    count = settings.inputs_per_request
    return f"{_describe_load(settings)}, {count} input{'' if count == 1 else 's'} each, {what}"


def _describe_load(settings: Settings) -> str:
    if settings.rate is not None:
        return f"open loop, {settings.rate:g} requests/s"
    return f"closed loop, {settings.concurrency} requests at once"


def _settings_json(settings: Settings) -> dict[str, Any]:
    """What was asked for, defaults included; lengths as the flags write them, and how many texts there are."""
    of_trace = ("prompt", "answer") if isinstance(settings, GenerateSettings) and settings.trace else ()
    names = [field.name for field in fields(settings) if field.name not in of_trace]
    return {name: _plain(getattr(settings, name)) for name in names}


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {name: given for name, given in value.items() if given is not None}
        case tuple():
            return len(value)
        case Trace():
            return {"file": value.path.name, "scale": value.scale, "clip": value.clip}
        case None | bool() | int() | float() | str():
            return value
        case _:
            return str(value)
