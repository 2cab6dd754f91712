"""How many threads a graph runs on: one number for the whole process, from what the machine and the container allow.

onnxruntime's own default counts the machine's cores and ignores a container's quota; threads beyond the quota only get
everybody throttled.

onnxruntime also has a pool for the whole process (`set_global_thread_pool_sizes`). It is not used: from Python nothing can
limit how long its idle threads spin (60 ms of a core after each run, measured), and once it is set, no session of the
process may have threads of its own. See `session.py` for what is done instead.
"""

import os
import threading
from pathlib import Path

_lock = threading.Lock()
_configured: int | None = None


def configure(threads: int | None) -> int:
    """Set how many threads each session works with, once a process; returns the number in force.

    None takes what was configured before, else `available_cpus()`. Raises ValueError for less than 1 and for a number
    other than the one already in force, because sessions keep the threads they were opened with.
    """
    global _configured
    if threads is not None and threads < 1:
        raise ValueError(f"threads: must be at least 1, got {threads}")
    with _lock:
        wanted = threads or _configured or available_cpus()
        if _configured not in (None, wanted):
            raise ValueError(f"threads: already set to {_configured} in this process, can't become {wanted}")
        _configured = wanted
        return wanted


def in_force() -> int:
    """The configured number, or what `configure(None)` would choose."""
    return _configured or available_cpus()


def available_cpus(root: Path = Path("/")) -> int:
    """Whole processors that this process may use: its CPU affinity under the quota of its control groups, at least 1.

    `root` is where /proc and /sys are found.
    """
    quota = min((_quota(group) for group in _control_groups(root)), default=float("inf"))
    return max(1, int(min(_processors(), quota)))


def _processors() -> int:
    """Those of this process's CPU affinity; on systems without one, such as macOS, all of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1  # the first is new in Python 3.13


def _control_groups(root: Path) -> list[Path]:
    """Folders of the groups that limit this process's CPU time, of cgroup v1 and v2, each with all its parents.

    A container may show the host's group path but mount only its own group; the walk up to the mount point covers it.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    mount = root / "sys/fs/cgroup"
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mount / controllers if (mount / controllers).is_dir() else mount / "cpu"
        group = top / path.lstrip("/")
        folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(top)]
    return folders


def _quota(group: Path) -> float:
    """Processors that a group may use; infinite where it has no limit or doesn't exist."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return float("inf")
    return float("inf") if quota in ("max", "-1") else int(quota) / int(period)
