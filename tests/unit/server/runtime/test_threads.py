"""How many threads a graph gets."""

import os
from pathlib import Path

import pytest

from polyhead.server.runtime import threads


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root folder with /proc/self/cgroup and files under /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        pytest.param("", {}, 16, id="no control groups"),
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, 16, id="v2 without a limit"),
        pytest.param("0::/\n", {"cpu.max": "350000 100000\n"}, 3, id="v2, whole processors only"),
        pytest.param("0::/\n", {"cpu.max": "50000 100000\n"}, 1, id="v2, never less than one"),
        pytest.param(
            "0::/pod/app\n", {"pod/cpu.max": "200000 100000", "pod/app/cpu.max": "max 100000"}, 2, id="v2, limit of a parent"
        ),
        pytest.param("0::/host/path\n", {"cpu.max": "400000 100000"}, 4, id="v2, the host's path in a container"),
        pytest.param(
            "4:cpu,cpuacct:/app\n3:cpuset:/app\n",
            {"cpu,cpuacct/app/cpu.cfs_quota_us": "500000", "cpu,cpuacct/app/cpu.cfs_period_us": "100000"},
            5,
            id="v1, controllers mounted together",
        ),
        pytest.param(
            "1:cpu:/app\n",
            {"cpu/app/cpu.cfs_quota_us": "-1", "cpu/app/cpu.cfs_period_us": "100000"},
            16,
            id="v1 without a limit",
        ),
    ],
)  # fmt: skip
def test_a_container_gets_what_its_quota_pays_for(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    assert threads.available_cpus(system(tmp_path, groups, files)) == expected


@pytest.mark.usefixtures("many_cpus")
def test_without_proc_the_affinity_counts(tmp_path: Path) -> None:
    assert threads.available_cpus(tmp_path) == 16


@pytest.mark.parametrize(("machine", "expected"), [(6, 6), (None, 1)])
def test_without_affinity_the_machine_counts(
    machine: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: machine)
    assert threads.available_cpus(tmp_path) == expected


def test_affinity_bounds_what_this_machine_offers() -> None:
    assert 1 <= threads.available_cpus() <= len(os.sched_getaffinity(0))


def test_configuring_is_idempotent_and_never_contradicts_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_configured", None)
    assert threads.in_force() == threads.available_cpus()
    assert threads.configure(3) == 3
    assert threads.configure(3) == threads.configure(None) == threads.in_force() == 3
    with pytest.raises(ValueError, match="threads: already set to 3 in this process, can't become 2"):
        threads.configure(2)


def test_less_than_one_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="threads: must be at least 1, got 0"):
        threads.configure(0)
