"""Text of a flag → its value. What a flag can't take is an ArgumentTypeError that says what it can."""

import argparse
import json
from pathlib import Path
from typing import Any


def count(text: str) -> int:
    return _whole_number(text, least=0)


def at_least_one(text: str) -> int:
    return _whole_number(text, least=1)


def _whole_number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, not {text!r}")
    return int(text)


def positive_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return seconds


def model_version(text: str) -> tuple[str, str | None]:
    """`NAME` or `NAME:VERSION`."""
    name, colon, version = text.partition(":")
    if not name or (colon and not version):
        raise argparse.ArgumentTypeError(f"must be NAME or NAME:VERSION, not {text!r}")
    return name, version or None


def token_bias(text: str) -> tuple[int, float]:
    """`ID=VALUE`."""
    token, _, value = text.partition("=")
    try:
        return count(token), float(value)
    except (argparse.ArgumentTypeError, ValueError):
        raise argparse.ArgumentTypeError(f"must be ID=VALUE, such as 42=-100, not {text!r}") from None


def template_option(text: str) -> tuple[str, Any]:
    """`NAME=JSON`."""
    name, _, value = text.partition("=")
    try:
        if not name.isidentifier():
            raise ValueError
        return name, json.loads(value)
    except (ValueError, RecursionError):
        example = """enable_thinking=false or name='"Ada"'"""
        raise argparse.ArgumentTypeError(f"must be NAME=JSON, such as {example}, not {text!r}") from None


def file_text(path: str) -> str:
    """What stands in a UTF-8 file."""
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"can't read {path!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"{path!r} is not UTF-8 (byte 0x{error.object[error.start]:02x})") from None


def json_or_file(text: str) -> str:
    """JSON of an object as it stands, anything else is the path of a file."""
    return text if text.lstrip().startswith("{") else file_text(text)
