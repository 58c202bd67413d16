"""Sums of rows: many tiny rows, large rows, and growth with the size of the array."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import Job, Point, Workload, near, pattern, rows, sizes, sum_rows

ROW = 125_000  # numbers of the rows of `bytes`: 1 MB
ONE_OF_A_KIND = ("ours", "ceiling", "numba", "threads", "pool", "joblib", "dask_threads")


def tiny_job(point: Point) -> Job:
    """Make each row of 16 numbers a chunk."""
    return Job("tiny_rows", "rows", (np.sum,), (point["chunks"], 16), (1, 16), whole=sum_rows)


def large_job(point: Point) -> Job:
    """Make each row, or each band of rows, a chunk."""
    side = point["chunks"]
    return Job("row_sums", "rows", (np.sum,), (side, side), (1, side), whole=sum_rows, banded=True)


def megabytes(count: int) -> Point:
    """Return the point of so many rows of a megabyte."""
    return {"chunks": count, "gigabytes": count / 1_000}


def bytes_job(point: Point) -> Job:
    """Make each row of a megabyte a chunk."""
    return Job("bytes", "rows", (np.sum,), (point["chunks"], ROW), (1, ROW), whole=sum_rows)


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare with NumPy."""
    near(answer, sum_rows(array))


def verify_ends(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare with NumPy at both ends."""
    near(answer[:2], sum_rows(array[:2]))
    near(answer[-2:], sum_rows(array[-2:]))


WORKLOADS = {
    "tiny_rows": Workload(
        "20,000 rows of 16 numbers, np.sum",
        sizes(rows, smoke=[200], quick=[20_000], full=[20_000]),
        tiny_job,
        pattern,
        verify,
        rounds=60,
        seconds=5.0,
        restarts=3,
        longest=60.0,
    ),
    "row_sums": Workload(
        "row sums of 10,000 x 10,000, np.sum",
        sizes(rows, smoke=[60], quick=[4_000], full=[10_000]),
        large_job,
        pattern,
        verify,
        rounds=60,
        seconds=4.0,
        restarts=3,
    ),
    # A size that exceeds the memory is left out later.
    "bytes": Workload(
        "1 MB to 8 GB, sums of rows of 1 MB",
        sizes(megabytes, smoke=[1], quick=[2, 200], full=[1, 10, 100, 1_000, 8_000]),
        bytes_job,
        pattern,
        verify_ends,
        systems=ONE_OF_A_KIND,
        others="one of each kind, since a turn of 8 GB takes long",
        rounds=7,
        seconds=0.6,
    ),
}
