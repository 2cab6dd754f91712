"""Checkpoints by their name on the Hugging Face hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from polyhead.export.huggingface.folder import MODULES_FILE
from polyhead.export.huggingface.licence import MODEL_CARD
from polyhead.export.huggingface.pickles import convert_hub_model, pickled_among, refusal
from polyhead.models.checkpoint import CheckpointError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
BESIDE = re.compile(rf"[^/]+\.(json|jinja)|{re.escape(MODEL_CARD)}|\d+_\w+/[^/]+\.(json|jinja)")
"""What lies beside weights, in the checkpoint's folder and in those of sentence-transformers' steps, such as `1_Pooling`."""
WHOLE = re.compile(r"(\d+_\w+/)?model\.safetensors")
PARTS = re.compile(r"(\d+_\w+/)?model-\d+-of-\d+\.safetensors")
"""As transformers names weights. Others are the same once more, such as Mistral's `consolidated.safetensors`, or another model's."""
PICKLED_WEIGHTS = re.compile(r"(\d+_\w+/)?(pytorch_)?model[\w.-]*")
CACHED = ["*.safetensors", "*.json", "*.jinja", MODEL_CARD]
"""Where the hub can't be asked what there is."""


def local_folder(checkpoint: str, revision: str | None = None) -> Path:
    """The folder of that name, or, where there is none and it could be OWNER/NAME on the hub, a copy of what lies there,
    kept in the hub's own cache. `revision`: a branch, tag or commit of the hub. Raises CheckpointError in one line."""
    path = Path(checkpoint)
    if path.exists() or not HUB_NAME.fullmatch(checkpoint):
        if revision is not None:
            raise CheckpointError(f"{checkpoint}: --revision is for names on the hub (OWNER/NAME), and this is a path")
        return path
    import huggingface_hub

    try:
        listed = huggingface_hub.model_info(checkpoint, revision=revision).siblings or []
    except Exception as error:  # of the library, of its HTTP client
        return _cached(checkpoint, revision, error)
    wanted = wanted_files(checkpoint, [file.rfilename for file in listed])
    try:
        return Path(huggingface_hub.snapshot_download(checkpoint, revision=revision, allow_patterns=wanted))
    except Exception as error:  # of the disk, too
        raise _unreachable(checkpoint, error) from error


def _cached(checkpoint: str, revision: str | None, asked: Exception) -> Path:
    """What an earlier call fetched. Raises CheckpointError that says why the hub could not be asked."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                checkpoint, revision=revision, allow_patterns=CACHED, local_files_only=True
            )
        )
    except Exception:  # the first error says more
        raise _unreachable(checkpoint, asked) from asked


def _unreachable(checkpoint: str, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split("\n\n", 1)[0].split())
    return CheckpointError(f"{checkpoint}: no such file or folder here, and the hub gave none: {reason}")


def wanted_files(checkpoint: str, names: Sequence[str]) -> list[str]:
    """Of all files of a repository: never pickle, never code, and weights once. Raises CheckpointError where weights are missing, or
    pickle."""
    whole = [name for name in names if WHOLE.fullmatch(name)]
    parts = [name for name in names if PARTS.fullmatch(name) and _whole_of(name) not in whole]
    if pickled := _only_pickled(names, [*whole, *parts]):
        folder = checkpoint.rpartition("/")[2]
        command = convert_hub_model(checkpoint, folder, sentences=MODULES_FILE in names)
        raise CheckpointError(f"{checkpoint}: {refusal(pickled, command)}, and export {folder}")
    if not any(name.startswith(("model", "0_")) for name in (*whole, *parts)):
        raise CheckpointError(f"{checkpoint}: has no weights (model.safetensors) on the hub")
    return sorted([*whole, *parts, *(name for name in names if BESIDE.fullmatch(name))])


def _whole_of(part: str) -> str:
    """The file that stands for all parts, and that transformers prefers."""
    return f"{part.rpartition('model-')[0]}model.safetensors"


def _only_pickled(names: Sequence[str], weights: Sequence[str]) -> str | None:
    """The first pickle in a folder, of the checkpoint or of a step, that has no weights besides."""
    folders = {name.rpartition("/")[0] for name in weights}
    pickled = (name for name in pickled_among(names) if PICKLED_WEIGHTS.fullmatch(name))
    return next((name for name in pickled if name.rpartition("/")[0] not in folders), None)
