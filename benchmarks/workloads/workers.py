"""Growth with the number of workers, past the number of cores."""

from __future__ import annotations

from benchmarks.workloads import Point, Workload, chunk_cost

WORKERS = {"smoke": (1, 3), "quick": (1, 4), "full": (1, 2, 4, 8, 16)}


def points(size: str) -> list[Point]:
    """Return a point per number of workers, with chunks of a millisecond."""
    chunks = {"smoke": 8, "quick": 100, "full": 400}[size]
    amount = round(1_000 * chunk_cost.bytes_per_microsecond())
    return [
        {"workers": workers, "chunks": chunks, "amount": amount, "cost_us": 1_000}
        for workers in WORKERS[size]
    ]


WORKLOAD = Workload(
    "1 to 16 workers, chunks of 1 ms",
    points,
    chunk_cost.job,
    chunk_cost.fill,
    chunk_cost.verify,
    systems=("ours", "ceiling", "threads", "pool", "executor", "joblib", "mpire", "dask_threads"),
    others="start a cluster per number of workers, or have no workers of their own",
    ways=("same",),
    rounds=7,
    seconds=0.6,
)
