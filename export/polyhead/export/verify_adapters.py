"""What verification finds of a model by itself, and with each adapter merged into its weights."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import nn

from polyhead.export.adapters import Adapter, merged
from polyhead.export.errors import ParityError
from polyhead.export.verify import Verification
from polyhead.v1.bundle_pb2 import ParityCheck

TOLD = ("logits", "probabilities", "embeddings")
"""What the manifest says of each adapter; compared is everything."""


def verify_with_adapters(
    model: nn.Module, adapters: Iterable[Adapter], verify: Callable[[str], Verification]
) -> Verification:
    """`verify` holds the graph with an adapter, of that name or "" for none, against the model, which has its weights meanwhile. Raises
    ParityError, naming the adapter."""
    found = verify("")
    for adapter in adapters:
        try:
            with merged(model, adapter):
                one = verify(adapter.name)
        except ParityError as error:
            raise ParityError(f"adapter {adapter.name}: {error}") from error
        checks = [check for check in one.parity if check.name in TOLD]
        found = replace(
            found,
            parity=(*found.parity, *(_named(check, adapter.name) for check in checks)),
            traffic_independent=found.traffic_independent and one.traffic_independent,
        )
    return found


def _named(check: ParityCheck, adapter: str) -> ParityCheck:
    return ParityCheck(
        name=f"{check.name} (adapter {adapter})", shape=check.shape, error=check.error, tolerance=check.tolerance
    )
