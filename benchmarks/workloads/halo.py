"""Chunks that overlap: the time of SciPy's Gaussian filter, and the peak memory of maps."""

from __future__ import annotations

import math

import numpy as np

from benchmarks import systems
from benchmarks.workloads import Job, Point, Workload, near, pattern, sizes

MAP: Point = {"verb": "map", "rows": 4_000, "chunks": 400}
DEPTH = 12  # rows and columns that the filter reaches


def blur(window: np.ndarray) -> np.ndarray:
    """Apply SciPy's Gaussian filter, which reaches 12 pixels."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(window, 3, truncate=4)


def halo_job(point: Point) -> Job:
    """Cut the image into square chunks with a halo."""
    side, dtype = point["side"], point.get("dtype", "f4")
    cut = (-(-side // math.isqrt(point["chunks"])),) * 2
    shape, out = (side, side), {"out_dtype": dtype, "depth": DEPTH, "whole": blur}
    return Job("gaussian", "halo", (blur,), shape, cut, dtype, **out)


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare with SciPy at a corner and where chunks meet."""
    near(answer[:30, :30], blur(array[:42, :42])[:30, :30])
    low = len(array) // 6 - 10
    window = array[low - DEPTH : low + 32, low - DEPTH : low + 32]
    # Why: in a small image the window reaches the border of the array.
    if low > DEPTH:
        near(answer[low : low + 20, low : low + 20], blur(window)[DEPTH:-DEPTH, DEPTH:-DEPTH])


# Peak memory: the proportional set size of all processes of a system during a call ------------


def add_one(block: np.ndarray) -> np.ndarray:
    """Return an output as large as the input."""
    return block + 1


def with_verb(point: Point) -> Point:
    """Return a point with its verb: a map with a halo, unless it says otherwise."""
    return {"verb": "halo", **point}


def memory_job(point: Point) -> Job:
    """Make the output as large as the input."""
    if point["verb"] == "halo":
        return halo_job(point)
    rows = point["rows"]
    return Job("memory", "blocks", (add_one,), (rows, 10_000), (-(-rows // 400), 10_000))


def verify_without_scipy(answer: np.ndarray, array: np.ndarray, point: Point) -> None:
    """Compare with the weighted mean of neighbours.

    SciPy would add its memory to systems that do not import it.
    """
    if point["verb"] != "halo":
        near(answer[::37], array[::37] + 1)
        return
    weights = np.exp(-(np.arange(-DEPTH, DEPTH + 1) ** 2) / (2 * 3.0**2))
    weights /= weights.sum()
    edge = point["side"] // math.isqrt(point["chunks"])
    for row, column in ((20, 20), (edge, edge), (edge - 1, 3 * edge + 5)):
        window = array[row - DEPTH : row + DEPTH + 1, column - DEPTH : column + DEPTH + 1]
        near(answer[row, column], weights @ window.astype("f8") @ weights)


SMALL, QUICK, FULL = ({"side": side, "chunks": 36} for side in (120, 2_000, 6_000))
LARGE: Point = {"side": 10_000, "chunks": 100, "dtype": "f8"}

WORKLOADS = {
    "gaussian": Workload(
        "Gaussian filter with halo, 6,000 x 6,000 float32",
        sizes(dict, smoke=[SMALL], quick=[QUICK], full=[FULL]),
        halo_job,
        pattern,
        verify,
        rounds=30,
        seconds=9.0,
        restarts=3,
    ),
    "memory": Workload(
        "peak memory of a map and of a filter with halo",
        sizes(with_verb, smoke=[SMALL], quick=[QUICK], full=[MAP, FULL, LARGE]),
        memory_job,
        pattern,
        verify_without_scipy,
        systems=tuple(one for one in systems.NAMES if one not in {"ceiling", "numba"}),
        others="are limits of time",
        how="memory",
        rounds=1,
    ),
}
