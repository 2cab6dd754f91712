"""What `bundle.json` says of how a bundle was made, and nothing of the machine that made it."""

from dataclasses import dataclass
from pathlib import Path

from polyhead.export.quantize import QuantizationOptions
from polyhead.v1 import bundle_pb2

SNAPSHOTS, OF_MODEL = "snapshots", "models--"
"""Of the hub's cache: `models--OWNER--NAME/snapshots/REVISION`."""


@dataclass(frozen=True)
class Checkpoint:
    """What people call a checkpoint."""

    name: str
    revision: str = ""
    """Commit on the hub."""

    @classmethod
    def from_folder(cls, folder: Path) -> "Checkpoint":
        """The folder's name, or, of a copy in the hub's cache, that on the hub."""
        path = folder.resolve()
        owner_and_name = path.parents[1].name if len(path.parents) > 1 else ""
        if path.parent.name == SNAPSHOTS and owner_and_name.startswith(OF_MODEL):
            return cls(owner_and_name.removeprefix(OF_MODEL).replace("--", "/", 1), path.name)
        return cls(path.name)


def make_origin(
    checkpoint: Checkpoint | None, quantization: QuantizationOptions, max_loss: float | None
) -> bundle_pb2.Origin:
    origin = bundle_pb2.Origin(keep_fp32=quantization.keep_fp32)
    if checkpoint:
        origin.checkpoint, origin.revision = checkpoint.name, checkpoint.revision
    if quantization.kind == "int4":
        origin.block_size = quantization.block_size
    if max_loss is not None:
        origin.max_loss = max_loss
    return origin
