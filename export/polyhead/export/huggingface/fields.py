"""Values of a checkpoint's JSON files, checked: an error is one line with the file, the field, its limit and what was given."""

from pathlib import Path

from polyhead.models.checkpoint import CheckpointError

SHOWN = 60
"""Characters of what was given that an error repeats."""


def malformed(path: Path, field: str, limit: str, given: object) -> CheckpointError:
    """To be raised. `limit` ends a sentence that begins with "must be"; None is given where nothing is."""
    text = "missing" if given is None else repr(given)
    return CheckpointError(f"{path}: {field}: must be {limit}, is {text if len(text) <= SHOWN else text[:SHOWN] + '…'}")


def number(path: Path, field: str, value: object) -> float:
    """Any number, also one that is not finite, which JSON as Python writes it can have. Raises CheckpointError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise malformed(path, field, "a number", value)
    return value


def integer(path: Path, field: str, value: object, least: int) -> int:
    """Raises CheckpointError for what is none or less than `least`."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or int(value) < least:  # type: ignore[call-overload]
        raise malformed(path, field, f"an integer of at least {least}", value)
    return int(value)  # type: ignore[call-overload, no-any-return]
