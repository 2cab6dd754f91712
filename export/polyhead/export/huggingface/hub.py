"""Checkpoints by their name on the Hugging Face hub."""

import re
from pathlib import Path

from polyhead.models.checkpoint import CheckpointError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ["*.safetensors", "*.json", "*.jinja"]
"""Never pickle, never code."""


def local_folder(checkpoint: str) -> Path:
    """The folder of that name, or, where there is none and it could be OWNER/NAME on the hub, a copy of what lies there,
    kept in the hub's own cache. Raises CheckpointError in one line."""
    path = Path(checkpoint)
    if path.exists() or not HUB_NAME.fullmatch(checkpoint):
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint, allow_patterns=FILES))
    except Exception as error:  # of the library, of its HTTP client, of the disk
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(f"{checkpoint}: no such file or folder here, and the hub gave none: {reason}") from error
