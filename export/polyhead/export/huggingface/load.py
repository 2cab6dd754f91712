"""Weights into transformers' own modules, with low memory and nothing left to chance."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from polyhead.export.errors import ExportError
from polyhead.models.checkpoint import CheckpointError

EAGER = "eager"
"""transformers' plain attention, the reference."""


def load_model(folder: Path, auto_class: str, may_miss: Sequence[str] = ()) -> Any:
    """A module in fp32 and evaluation mode, its weights mapped from the files where they are fp32 already.

    `auto_class` of transformers; `may_miss`: beginnings of names of weights that nobody uses. Code of the checkpoint is never
    run. Raises CheckpointError for weights that are damaged, missing or of other shapes.
    """
    transformers = import_transformers()
    with _quiet(transformers):
        try:
            model, report = getattr(transformers, auto_class).from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation=EAGER,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are reported, and refused below
                output_loading_info=True,
            )
        except Exception as error:  # transformers and safetensors raise many types
            raise CheckpointError(f"{folder}: {_one_line(error)}") from error
    missing = [name for name in report["missing_keys"] if not name.startswith(tuple(may_miss))]
    if missing:
        raise CheckpointError(f"{folder}: {len(missing)} weights are missing, such as {sorted(missing)[0]}")
    if mismatched := sorted(report["mismatched_keys"]):
        name, given, wanted = mismatched[0]
        raise CheckpointError(f"{folder}: {name} has shape {list(given)}, config.json makes it {list(wanted)}")
    return model.eval()


def import_transformers() -> Any:
    """Only who imports such a checkpoint pays for it, seconds. Raises ExportError if it isn't installed."""
    try:
        import transformers
    except ImportError as error:
        raise ExportError("this checkpoint needs transformers: pip install 'polyhead[export]'") from error
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without its progress bars and its report on weights, which we make ourselves."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
