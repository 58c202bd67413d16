"""Copying a plain array to where workers can see it."""

from __future__ import annotations

from benchmarks.peers.job import Job
from benchmarks.peers.workloads.workload import Point, Workload, pattern

SIDE = {"smoke": 50, "quick": 3_000, "full": 10_000}


def points(size: str) -> list[Point]:
    """One."""
    return [{"side": SIDE[size], "chunks": 1, "gigabytes": SIDE[size] ** 2 * 8 / 1e9}]


def job(point: Point) -> Job:
    """Nothing is computed."""
    side = point["side"]
    return Job("copy_in", "copy", (), (side, side), (side, side))


THIS = Workload(
    "copying in 800 MB",
    points,
    job,
    pattern,
    systems=(
        "ours",
        "private",
        "whole",
        "pool",
        "joblib",
        "mpire",
        "dask_distributed",
        "ray",
    ),
    others="read the array where it is, or from the segment that mp.Pool's idiom makes",
    rounds=15,
    seconds=6,
)
