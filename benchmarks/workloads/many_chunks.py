"""Growth with the number of chunks, with a function that does nothing."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import Job, Point, Workload, corner, near, pattern

COUNTS = {
    "smoke": (100,),
    "quick": (1_000, 100_000),
    "full": (100, 1_000, 10_000, 100_000, 1_000_000),
}


def first(row: np.ndarray) -> float:
    """Return the first element of a row, as a function that costs next to nothing."""
    return row[0]


def points(size: str) -> list[Point]:
    """Return a point per number of chunks, for rows and for blocks."""
    return [
        {"verb": verb, "chunks": count} for verb in ("rows", "blocks") for count in COUNTS[size]
    ]


def job(point: Point) -> Job:
    """Make each row of four numbers a chunk."""
    kind, func = ("rows", first) if point["verb"] == "rows" else ("tiles", corner)
    return Job("many_chunks", kind, (func,), (point["chunks"], 4), (1, 4))


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare with the first column."""
    near(answer, array[:, 0])


WORKLOAD = Workload(
    "100 to 1,000,000 chunks that cost nothing",
    points,
    job,
    pattern,
    verify,
    ways=("same",),
    rounds=9,
    seconds=0.6,
)
