"""Weights into transformers' own modules, with low memory and nothing left to chance."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from polyhead.export.errors import ExportError
from polyhead.export.huggingface.fields import malformed
from polyhead.export.huggingface.finite import check_finite
from polyhead.export.huggingface.folder import CONFIG_FILE, read_json
from polyhead.models.checkpoint import CheckpointError

EAGER = "eager"
"""transformers' plain attention, the reference."""


def load_model(folder: Path, auto_class: str, may_miss: Sequence[str] = ()) -> Any:
    """A module in fp32 and evaluation mode, its weights mapped from the files where they are fp32 already.

    `auto_class` of transformers; `may_miss`: beginnings of names of weights that nobody uses. Code of the checkpoint is never
    run. Raises CheckpointError for weights that are damaged, missing, of other shapes or no finite numbers.
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
            raise _unknown_rotation(folder, error) or CheckpointError(
                f"{folder}: transformers can't load it: {_one_line(error)}"
            ) from error
    missing = [name for name in report["missing_keys"] if not name.startswith(tuple(may_miss))]
    if missing:
        raise CheckpointError(f"{folder}: {len(missing)} weights are missing, such as {sorted(missing)[0]}")
    if mismatched := sorted(report["mismatched_keys"]):
        name, given, wanted = mismatched[0]
        raise CheckpointError(f"{folder}: {name} has shape {list(given)}, config.json makes it {list(wanted)}")
    check_finite(model, str(folder))
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


def _unknown_rotation(folder: Path, error: Exception) -> CheckpointError | None:
    """What a KeyError of transformers means if its key is what config.json names as a rotation of positions."""
    config = read_json(folder / CONFIG_FILE)
    field = next((name for name in ("rope_parameters", "rope_scaling") if isinstance(config.get(name), dict)), None)
    if field is None or not isinstance(error, KeyError):
        return None
    kinds = [kind for kind in config[field].values() if isinstance(kind, dict)] or [config[field]]
    given = [kind.get("rope_type", kind.get("type")) for kind in kinds]
    if not error.args or error.args[0] not in given:
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    known = ", ".join(sorted({"default", *ROPE_INIT_FUNCTIONS}))
    return malformed(folder / CONFIG_FILE, f"{field}.rope_type", f"one of {known}", error.args[0])


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:500]
    said = text and isinstance(error, OSError | ValueError)  # others' texts are for who reads the code that raised them
    return text if said else f"{type(error).__name__}: {text}".removesuffix(": ")
