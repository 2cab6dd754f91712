"""What a checkpoint says of its licence."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load

MODEL_CARD = "README.md"


def read_license(folder: Path, config: Mapping[str, Any]) -> str:
    """Of the front matter of its README, else of config.json, in one line; empty where neither says anything that can be read."""
    for said in (front_matter(folder / MODEL_CARD), config):
        given = said.get("license")
        name = said.get("license_name", given) if given == "other" else given
        names = name if isinstance(name, list) else [name]
        if texts := [" ".join(text.split()) for text in names if isinstance(text, str) and text.strip()]:
            return ", ".join(texts)
    return ""


def front_matter(card: Path) -> Mapping[str, Any]:
    """What stands between the first two lines of dashes; empty if it is missing or no YAML: nothing else of a bundle depends on it."""
    if not card.is_file():
        return {}
    try:
        return metadata_load(card) or {}
    except Exception:  # YAML's errors, text that is no UTF-8, and what YAML makes of strange values
        return {}
