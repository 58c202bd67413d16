"""Functions that cost nothing: the floor of a call, and its growth with the number of chunks."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import Job, Point, Workload, corner, near, pattern

COUNTS = {"smoke": [100], "quick": [10**3, 10**5], "full": [10**n for n in range(2, 7)]}


def first(row: np.ndarray) -> float:
    """Return the first element of a row, as a function that costs next to nothing."""
    return row[0]


def floor_job(_: Point) -> Job:
    """Cut ten numbers into two chunks."""
    return Job("floor", "tiles", (corner,), (2, 5), (1, 5))


def many_job(point: Point) -> Job:
    """Make each row of four numbers a chunk."""
    kind, func = ("rows", first) if point["verb"] == "rows" else ("tiles", corner)
    return Job("many_chunks", kind, (func,), (point["chunks"], 4), (1, 4))


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare with the first column."""
    near(answer, array[:, 0])


WORKLOADS = {
    "floor": Workload(
        "a warm call, two chunks that cost nothing",
        lambda _: [{"chunks": 2}],
        floor_job,
        pattern,
        verify,
        ways=("same",),
        rounds=50,
    ),
    "many_chunks": Workload(
        "100 to 1,000,000 chunks that cost nothing",
        lambda size: [{"verb": v, "chunks": n} for v in ("rows", "blocks") for n in COUNTS[size]],
        many_job,
        pattern,
        verify,
        ways=("same",),
        rounds=9,
        seconds=0.6,
    ),
}
