"""Giving memory back to the system."""

import ctypes


def trim() -> None:
    """Return what is free but kept for later; glibc alone keeps much of a model that is gone. Elsewhere nothing happens."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim:
        malloc_trim(0)
