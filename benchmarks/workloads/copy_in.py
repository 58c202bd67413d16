"""Copy a plain array into memory that workers can see."""

from __future__ import annotations

from benchmarks.workloads import Job, Point, Workload, pattern

SIDE = {"smoke": 50, "quick": 3_000, "full": 10_000}


def points(size: str) -> list[Point]:
    """Return the only point."""
    return [{"side": SIDE[size], "chunks": 1, "gigabytes": SIDE[size] ** 2 * 8 / 1e9}]


def job(point: Point) -> Job:
    """Copy the whole array; nothing is computed."""
    side = point["side"]
    return Job("copy_in", "copy", (), (side, side), (side, side))


WORKLOAD = Workload(
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
