"""The number of CPUs, and the description of an exit status."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shmpar.engines.engine import Exit
from shmpar.memory import limits, system


@dataclass
class Machine:
    """The files of a machine that describe its control groups."""

    root: Path

    def __setitem__(self, name: str, text: str) -> None:
        file = self.root / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Return a machine with 16 usable CPUs."""
    monkeypatch.delenv(limits.NUM_WORKERS_VARIABLE, raising=False)
    monkeypatch.setattr(system, "_absent", set())  # else one test would teach the next
    monkeypatch.setattr(limits, "CGROUP_ROOT", str(tmp_path / "groups"))
    monkeypatch.setattr(limits, "CGROUP_MEMBERSHIP", str(tmp_path / "membership"))
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(limits.os, "cpu_count", lambda: 64)
    return Machine(tmp_path)


def test_without_a_quota_the_affinity_decides(machine: Machine) -> None:
    """The affinity counts, not the number of CPUs of the machine."""
    assert limits.available_cpus() == 16


def test_without_affinity_it_is_the_number_of_cpus(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without affinity, as on macOS, all CPUs count; an unknown number of CPUs counts as one."""
    monkeypatch.delattr(limits.os, "sched_getaffinity")
    assert limits.available_cpus() == 64
    monkeypatch.setattr(limits.os, "cpu_count", lambda: None)
    assert limits.available_cpus() == 1


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        pytest.param({"": "max 100000"}, 16, id="none"),
        pytest.param({"/a/b": "400000 100000"}, 4, id="own-group"),
        pytest.param({"/a": "300000 100000", "/a/b": "max 100000"}, 3, id="group-above"),
        pytest.param({"/a": "200000 100000", "/a/b": "800000 100000"}, 2, id="narrowest"),
        pytest.param({"/a/b": "150000 100000"}, 2, id="rounded-up"),
        pytest.param({"/a/b": "1000 100000"}, 1, id="at-least-one"),
        pytest.param({"/a/b": "9900000 100000"}, 16, id="more-than-affinity"),
        pytest.param({"/a/b": "nonsense"}, 16, id="nonsense"),
        pytest.param({"/a/b": "100000 0"}, 16, id="no-period"),
    ],
)
def test_the_quota_of_a_group_or_an_ancestor_limits(
    quotas: dict[str, str], expected: int, machine: Machine
) -> None:
    """Containers have control groups of version 2."""
    machine["membership"] = "1:name=systemd:/x\n0::/a/b\n"
    for group, quota in quotas.items():
        machine[f"groups{group}/cpu.max"] = quota
    assert limits.available_cpus() == expected


@pytest.mark.parametrize(
    ("quotas", "expected"),
    [
        pytest.param({"": "250000\n"}, 3, id="root"),
        pytest.param({"": "-1\n"}, 16, id="none"),
        pytest.param({"": "-1\n", "/a/b": "150000\n"}, 2, id="own-group"),
        pytest.param({"": "-1\n", "/a": "200000\n", "/a/b": "800000\n"}, 2, id="group-above"),
        pytest.param({"/c": "100000\n"}, 16, id="another's"),
    ],
)
def test_quotas_of_version_1_limit_too(
    quotas: dict[str, str], expected: int, machine: Machine
) -> None:
    """A quota of -1 is no quota; only groups of the controller count."""
    machine["membership"] = "5:cpu,cpuacct:/a/b\n4:cpuset:/c\n0::/c\n"
    for group, quota in quotas.items():
        machine[f"groups/cpu{group}/cpu.cfs_quota_us"] = quota
        machine[f"groups/cpu{group}/cpu.cfs_period_us"] = "100000\n"
    assert limits.available_cpus() == expected


def test_the_variable_overrides_both(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable may exceed the number of CPUs; if empty, it is ignored."""
    monkeypatch.setenv(limits.NUM_WORKERS_VARIABLE, "40")
    assert limits.available_cpus() == 40
    monkeypatch.setenv(limits.NUM_WORKERS_VARIABLE, "")
    assert limits.available_cpus() == 16


@pytest.mark.parametrize("value", ["0", "-2", "2.5", "many", " 3"])
def test_a_variable_that_is_no_number_is_an_error(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool never gets another size than the requested one."""
    monkeypatch.setenv(limits.NUM_WORKERS_VARIABLE, value)
    with pytest.raises(
        ValueError, match=f"{limits.NUM_WORKERS_VARIABLE} is a number of workers, 1 or more"
    ):
        limits.available_cpus()


def test_this_machine_has_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of CPUs is plausible on the machine of the test."""
    monkeypatch.delenv(limits.NUM_WORKERS_VARIABLE, raising=False)
    assert 1 <= limits.available_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        pytest.param(None, "ended", id="unknown"),
        pytest.param(0, "exited with status 0", id="normally"),
        pytest.param(7, "exited with status 7", id="status"),
        pytest.param(
            -signal.SIGKILL, "SIGKILL (sent by another process, or by the kernel", id="killed"
        ),
        pytest.param(-signal.SIGSEGV, "SIGSEGV (a fault in compiled code", id="fault"),
        pytest.param(-signal.SIGBUS, "SIGBUS (a mapped file was truncated", id="bus"),
        pytest.param(-signal.SIGTERM, "was killed by signal SIGTERM", id="terminated"),
        pytest.param(-99, "was killed by signal 99", id="no-such-signal"),
    ],
)
def test_an_exit_is_described(code: Any, says: str) -> None:
    """The description of a signal names its usual cause."""
    assert says in Exit(code).describe()
