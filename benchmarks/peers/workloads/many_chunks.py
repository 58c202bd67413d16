"""Growth with the number of chunks, whose function does nothing."""

from __future__ import annotations

import numpy as np

from benchmarks.peers.functions import corner, first
from benchmarks.peers.job import Job
from benchmarks.peers.workloads.workload import Point, Workload, near, pattern

COUNTS = {
    "smoke": (100,),
    "quick": (1_000, 100_000),
    "full": (100, 1_000, 10_000, 100_000, 1_000_000),
}


def points(size: str) -> list[Point]:
    """As rows, and as blocks."""
    return [
        {"verb": verb, "chunks": count} for verb in ("rows", "blocks") for count in COUNTS[size]
    ]


def job(point: Point) -> Job:
    """Rows of four numbers."""
    kind, func = ("rows", first) if point["verb"] == "rows" else ("tiles", corner)
    return Job("many_chunks", kind, (func,), (point["chunks"], 4), (1, 4))


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """The first column."""
    near(answer, array[:, 0])


THIS = Workload(
    "100 to 1,000,000 chunks that cost nothing",
    points,
    job,
    pattern,
    verify,
    ways=("same",),
    rounds=9,
    seconds=0.6,
)
