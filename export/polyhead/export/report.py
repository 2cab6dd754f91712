"""What the command line shows of a bundle."""

from collections.abc import Iterable

from rich.table import Table

from polyhead.v1.bundle_pb2 import ParityCheck


def parity_table(title: str, checks: Iterable[ParityCheck]) -> Table:
    table = Table("compared with torch", "on", "error", "accepted", title=title)
    for check in checks:
        table.add_row(check.name, check.shape, f"{check.error:.1e}", f"{check.tolerance:.0e}")
    return table


def bits_line(independent: bool) -> str:
    same = "the same" if independent else "NOT always the same"
    return f"A row's bits are {same} alone and among others."
