"""What log lines look like."""

import json
import logging as standard

import pytest
import structlog

from polyhead.server import logging


def test_json_is_one_object_a_line_on_standard_error_also_from_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    logging.configure("info", "json")
    structlog.get_logger().info("ours", tokens=3)
    standard.getLogger("grpc").error("theirs %d", 4)
    output = capsys.readouterr()
    ours, theirs = map(json.loads, output.err.splitlines())
    assert (ours["event"], ours["level"], ours["tokens"]) == ("ours", "info", 3)
    assert (theirs["event"], theirs["level"]) == ("theirs 4", "error")
    assert ours["timestamp"].endswith("Z")
    assert output.out == ""


def test_less_severe_lines_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logging.configure("warning", "console")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    error = capsys.readouterr().err
    assert "loud" in error
    assert "quiet" not in error


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_traceback_does_not_show_variables(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    logging.configure("info", "json" if style == "json" else "console")
    secret = "what a caller sent"

    def fail(text: str) -> int:
        return 1 // (len(text) - len(secret))

    try:
        fail(secret)
    except ZeroDivisionError as error:
        structlog.get_logger().error("failed", exc_info=error)
    text = capsys.readouterr().err
    assert "ZeroDivisionError" in text
    assert secret not in text.replace('secret = "what a caller sent"', "")
