"""What stands between sums of rows and numba: the memory, and the order of additions."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np

import shmpar
from benchmarks.peers import workloads
from benchmarks.peers.systems import numba
from benchmarks.timing import alternate, ratio, table

WORKERS = 2


def by_numpy(block: np.ndarray) -> np.ndarray:
    """In NumPy's order: pairwise."""
    return block.sum(axis=1)


def by_blas(block: np.ndarray) -> np.ndarray:
    """In any order, as the library of linear algebra likes it best."""
    return block @ np.ones(block.shape[1])


def row_limits(*, quick: bool) -> None:
    """Row sums of 800 MB in bands, and numba's on private and on shared memory."""
    workload = workloads.load("row_sums")
    (point,) = workload.points("quick" if quick else "full")
    job = workload.job(point)
    bands = job.in_bands(WORKERS).chunks
    with shmpar.Pool(WORKERS) as pool:
        shared = pool.empty(job.shape, job.dtype)
        workload.fill(shared, point)

        def ours(func: Callable[[np.ndarray], np.ndarray]) -> Callable[[], np.ndarray]:
            return lambda: pool.map_blocks(func, shared, chunks=bands, drop_axis=1)

        systems = {"shmpar, sum": ours(by_numpy), "shmpar, @ ones": ours(by_blas)}
        if importlib.util.find_spec("numba") is not None:
            private, sharing = numba.This(WORKERS, ""), numba.This(WORKERS, "")
            private.open()
            private.load(job, lambda array: workload.fill(array, point))
            sharing.job, sharing.input = job, shared.view(np.ndarray)
            systems["numba, in order"] = private.call("same")
            systems["numba"] = private.call("own")
            systems["numba, shared"] = sharing.call("own")
        for system in systems.values():
            workload.verify(system(), shared, point)
        times = alternate(systems, 5 if quick else 45)
    print(table(times))
    if "numba" in times:
        for name in times:
            print(f"  numba's time / {name}'s: {ratio(times, 'numba', name):.3f}")


ALL = {"row_limits": row_limits}
