"""Names and versions → live models: what the models folder holds (`scan`), which versions shall be in memory (`policy`),
what there is room for (`memory`), where a request goes (`aliases`, `catalogue`), the life of a version (`lifecycle`), and all
of it together (`repository`)."""

from polyhead.server.repository.entry import Entry, Load, State
from polyhead.server.repository.lifecycle import Lifecycle, OnChange
from polyhead.server.repository.policy import Policy
from polyhead.server.repository.repository import Repository
from polyhead.server.repository.scan import scan

__all__ = ["Entry", "Lifecycle", "Load", "OnChange", "Policy", "Repository", "State", "scan"]
