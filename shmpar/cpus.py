"""How many CPUs this process may use.

Imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import math
import os

__all__ = ["VARIABLE", "affinity_cpus", "available_cpus", "quota_cpus"]

VARIABLE = "SHMPAR_NUM_WORKERS"


def available_cpus() -> int:
    """CPUs by affinity and by the quota of the control group, at least 1.

    The environment variable ``SHMPAR_NUM_WORKERS`` overrides both.

    Raises
    ------
    ValueError
        If the variable is set to what is no number above 0.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        if not chosen.isdecimal() or int(chosen) < 1:
            raise ValueError(f"{VARIABLE} is a number of workers, 1 or more, not {chosen!r}")
        return int(chosen)
    affinity, quota = affinity_cpus(), quota_cpus()
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def affinity_cpus() -> int:
    """CPUs that the scheduler may put this process on; all of them where it has no affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota_cpus() -> float | None:
    """CPUs that the scheduler's bandwidth control gives, 1.5 perhaps; None without one."""
    found = [_quota(*pair) for pair in (*_version_2(), *_version_1())]
    return min((quota for quota in found if quota > 0), default=None)


def _quota(quota: str, period: str) -> float:
    try:
        return int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return 0.0


def _version_2() -> list[tuple[str, str]]:
    """Limits of this process' group and of each group above it."""
    limits = []
    group = _read("/proc/self/cgroup").rpartition("0::")[2].strip()
    while True:
        parts = _read(f"/sys/fs/cgroup{group.rstrip('/')}/cpu.max").split()
        if len(parts) == 2:  # noqa: PLR2004 - quota and period
            limits.append((parts[0], parts[1]))
        if group in {"", "/"}:
            return limits
        group = os.path.dirname(group)


def _version_1() -> list[tuple[str, str]]:
    where = "/sys/fs/cgroup/cpu/cpu.cfs_"
    return [(_read(f"{where}quota_us").strip(), _read(f"{where}period_us").strip())]


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return file.read()
    return ""
