"""Flags and environment become settings."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from polyhead.server.config import Settings, UsageError, flag, parse


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"POLYHEAD_{name.upper()}", raising=False)


def test_defaults_listen_on_this_machine_only() -> None:
    settings = parse(["--models", "m"])
    assert (settings.host, settings.port) == ("127.0.0.1", 50051)
    assert (settings.metrics_host, settings.metrics_port) == ("127.0.0.1", 9464)
    assert settings.models == Path("m")
    assert settings.threads is None


def test_a_flag_wins_over_the_environment_and_that_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_SLOTS", "8")
    monkeypatch.setenv("POLYHEAD_MODELS", "from-environment")
    assert parse([]).slots == 8
    assert parse([]).models == Path("from-environment")
    assert parse(["--slots=3"]).slots == 3


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_THREADS", "")
    assert parse(["--models=m"]).threads is None


def test_metrics_can_be_turned_off() -> None:
    assert parse(["--models=m", "--metrics-port=off"]).metrics_port is None
    assert parse(["--models=m", "--metrics-port=0"]).metrics_port == 0


def test_what_to_load_and_when_is_read_from_short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    given = parse(
        ["--models=m", "--versions=2", "--on-demand=a, b", "--max-model-memory=512M", "--allow-model-control"]
    )
    assert (given.versions, given.on_demand, given.max_model_memory) == (2, ("a", "b"), 512 * 2**20)
    assert given.allow_model_control
    assert (parse(["--models=m"]).versions, parse(["--models=m", "--versions=all"]).versions) == (1, None)
    assert not parse(["--models=m"]).allow_model_control
    monkeypatch.setenv("POLYHEAD_ON_DEMAND", "c")
    monkeypatch.setenv("POLYHEAD_MAX_MODEL_MEMORY", "8G")
    assert (parse(["--models=m"]).on_demand, parse(["--models=m"]).max_model_memory) == (("c",), 8 * 2**30)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--models=m", "--versions=0"], "--versions (POLYHEAD_VERSIONS): Input should be greater than or equal to 1"),
        (["--models=m", "--versions=newest"], "--versions (POLYHEAD_VERSIONS): "),
        (
            ["--models=m", "--max-model-memory=1.5G"],
            "--max-model-memory (POLYHEAD_MAX_MODEL_MEMORY): Value error, should be a number of bytes, or of units "
            "with the suffix K, M or G, got '1.5G'",
        ),
        (["--models=m", "--reload-seconds=-1"], "--reload-seconds (POLYHEAD_RELOAD_SECONDS): "),
        ([], "--models (POLYHEAD_MODELS) is required"),
        (["--models=m", "--port=x"], "--port (POLYHEAD_PORT): Input should be a valid integer"),
        (["--models=m", "--port=65536"], "less than or equal to 65535, got '65536'"),
        (["--models=m", "--metrics-port=on"], "--metrics-port (POLYHEAD_METRICS_PORT): "),
        (["--models=m", "--slots=0"], "--slots (POLYHEAD_SLOTS): Input should be greater than or equal to 1, got '0'"),
        (["--models=m", "--drain-seconds=nan"], "--drain-seconds (POLYHEAD_DRAIN_SECONDS): "),
        (["--models=m", "--log-format=xml"], "--log-format (POLYHEAD_LOG_FORMAT): Input should be 'console' or 'json'"),
        (["--models=m", "--bogus"], "unrecognized arguments: --bogus"),
        (["--models=m", "--slot=3"], "unrecognized arguments: --slot=3"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_flag(arguments: list[str], complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(arguments)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_variable_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYHEAD_SLOT_TOKENS", "1")
    with pytest.raises(UsageError, match=r"POLYHEAD_SLOT_TOKENS.*greater than or equal to 2"):
        parse(["--models=m"])


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(parse(["--models=m"]), "port", 1)  # noqa: B010 - what a type checker forbids, the settings refuse too


def test_help_tells_each_flag_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(["--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert flag(name) in text
        assert str(field.description) in text
