"""How many CPUs this process may use.

Imports the segment package's room.
"""

from __future__ import annotations

import contextlib
import math
import os

from shmpar.segment import room

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
    """CPUs that the scheduler's bandwidth control gives, 1.5 perhaps; None without one.

    The narrowest of this process' control group and those above it.
    """
    found = [_quota(version, folder) for version, folder in room.folders("cpu")]
    return min((quota for quota in found if quota > 0), default=None)


def _quota(version: int, folder: str) -> float:
    if version == 1:
        pair = [_read(f"{folder}/cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    else:
        pair = _read(f"{folder}/cpu.max").split()
    try:
        quota, period = map(int, pair)
        return quota / period
    except (ValueError, ZeroDivisionError):  # no such group, or "max"
        return 0.0


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return file.read()
    return ""
