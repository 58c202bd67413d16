"""Blocks and tiles: statistics of tiles, a ufunc, a chain of maps, and a copy of an array."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.workloads import Job, Point, Workload, near, pattern, sizes


def mean_std(tile: np.ndarray) -> tuple[float, float]:
    """Return two values of a tile."""
    return tile.mean(), tile.std()


def all_tiles(array: np.ndarray) -> np.ndarray:
    """Compute all tiles in two expressions over an array of four axes."""
    high, wide = (length // 100 for length in array.shape)
    grid = array.reshape(high, 100, wide, 100)
    return np.stack([grid.mean(axis=(1, 3)), grid.std(axis=(1, 3))])


def tiles(side: int) -> Point:
    """Return the point of a square array of tiles."""
    return {"side": side, "chunks": (side // 100) ** 2}


def tiles_job(point: Point) -> Job:
    """Compute two values per tile of 100 x 100."""
    side = point["side"]
    return Job("tiles", "tiles", (mean_std,), (side, side), (100, 100), outputs=2, whole=all_tiles)


def verify_tiles(answer: np.ndarray, array: np.ndarray, _: Point) -> None:
    """Compare the first and the last band of tiles with NumPy."""
    across = array.shape[1] // 100
    for band, part in ((array[:100], answer[:, :across]), (array[-100:], answer[:, -across:])):
        near(part, all_tiles(band).reshape(2, across))


def bands(shape: tuple[int, int]) -> Point:
    """Return the point of an array in 32 bands of rows."""
    return {"shape": shape, "chunks": 32}


def maps_job(name: str, funcs: tuple[Callable[..., Any], ...], point: Point) -> Job:
    """Cut the array into bands of rows, and map each function over the previous one's result."""
    rows, columns = point["shape"]
    whole = all_maps if len(funcs) > 1 else None
    return Job(name, "blocks", funcs, (rows, columns), (-(-rows // 32), columns), whole=whole)


def halve(block: np.ndarray) -> np.ndarray:
    """Return the first map's result."""
    return block * 0.5 + 1


def root(block: np.ndarray) -> np.ndarray:
    """Return the second map's result."""
    return np.sqrt(block)


def wave(block: np.ndarray) -> np.ndarray:
    """Return the third map's result."""
    return block * block - 0.25 * block


def all_maps(array: np.ndarray) -> np.ndarray:
    """Compute all three maps in one expression."""
    return wave(root(halve(array)))


def verify_maps(
    expression: Callable[[np.ndarray], np.ndarray], answer: np.ndarray, array: np.ndarray, _: Point
) -> None:
    """Compare some rows with an expression for the whole array."""
    near(answer[::37], expression(array[::37]))


def one_chunk(side: int) -> Point:
    """Return the point of a square array that is a single chunk."""
    return {"side": side, "chunks": 1}


def copy_job(point: Point) -> Job:
    """Copy the whole array; nothing is computed."""
    side = point["side"]
    return Job("copy_in", "copy", (), (side, side), (side, side))


WORKLOADS = {
    "tiles": Workload(
        "mean and std of 10,000 tiles",
        sizes(tiles, smoke=[300], quick=[4_000], full=[10_000]),
        tiles_job,
        pattern,
        verify_tiles,
        rounds=30,
        seconds=9,
        restarts=3,
    ),
    "ufunc": Workload(
        "np.sqrt of 400 MB, in and out",
        sizes(bands, smoke=[(64, 50)], quick=[(2_000, 5_000)], full=[(5_000, 10_000)]),
        partial(maps_job, "ufunc", (np.sqrt,)),
        pattern,
        partial(verify_maps, np.sqrt),
        rounds=9,
    ),
    "chain": Workload(
        "a chain of three maps over 160 MB",
        sizes(bands, smoke=[(64, 50)], quick=[(2_000, 2_500)], full=[(4_000, 5_000)]),
        partial(maps_job, "chain", (halve, root, wave)),
        pattern,
        partial(verify_maps, all_maps),
        rounds=9,
    ),
    "copy_in": Workload(
        "copying in 800 MB",
        sizes(one_chunk, smoke=[50], quick=[3_000], full=[10_000]),
        copy_job,
        pattern,
        systems=("ours", "whole", "pool", "joblib", "mpire", "dask_distributed", "ray"),
        others="read the array where it is, or from the segment that mp.Pool's idiom makes",
        rounds=15,
        seconds=6,
    ),
}
