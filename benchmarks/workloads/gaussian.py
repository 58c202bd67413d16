"""SciPy's Gaussian filter, in chunks that overlap."""

from __future__ import annotations

import numpy as np

from benchmarks.workloads import Job, Point, Workload, near, pattern

SIDE = {"smoke": 120, "quick": 2_000, "full": 6_000}


def blur(window: np.ndarray) -> np.ndarray:
    """Apply SciPy's Gaussian filter, which reaches 12 pixels."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(window, 3, truncate=4)


def points(size: str) -> list[Point]:
    """Return the only point."""
    return [{"side": SIDE[size], "chunks": 36}]


def job(point: Point) -> Job:
    """Cut the image into 36 chunks with a halo of 12."""
    side = point["side"]
    return Job(
        "gaussian",
        "halo",
        (blur,),
        (side, side),
        (-(-side // 6), -(-side // 6)),
        "f4",
        out_dtype="f4",
        depth=12,
        whole=blur,
    )


def verify(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare with SciPy at a corner and where chunks meet."""
    near(answer[:30, :30], blur(array[:42, :42])[:30, :30])
    low = len(array) // 6 - 10
    window = array[low - 12 : low + 32, low - 12 : low + 32]
    # Why: in a small image the window reaches the border of the array.
    if low > 12:
        near(answer[low : low + 20, low : low + 20], blur(window)[12:-12, 12:-12])


WORKLOAD = Workload(
    "Gaussian filter with halo, 6,000 x 6,000 float32",
    points,
    job,
    pattern,
    verify,
    rounds=30,
    seconds=9.0,
    restarts=3,
)
