"""numba's prange: the compiled limit, for functions that can be compiled."""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import numpy as np

from benchmarks.systems import Call, System
from benchmarks.workloads import Job

prange = range  # replaced by numba's own when it is imported


def _row_sums(array, out):
    for i in prange(array.shape[0]):
        total = 0.0
        for j in range(array.shape[1]):
            total += array[i, j]
        out[i] = total


def _tiles(array, out):
    side, across = 100, array.shape[1] // 100
    for number in prange(out.shape[1]):
        top, left = number // across * side, number % across * side
        total = 0.0
        for i in range(top, top + side):
            for j in range(left, left + side):
                total += array[i, j]
        mean = total / (side * side)
        total = 0.0
        for i in range(top, top + side):
            for j in range(left, left + side):
                total += (array[i, j] - mean) ** 2
        out[0, number] = mean
        out[1, number] = math.sqrt(total / (side * side))


def _logistic(array, out):
    for i in prange(array.shape[0]):
        x = array[i, 0]
        for _ in range(int(array[i, 1])):
            x = 3.7 * x * (1.0 - x)
        out[i] = x


def _sqrt(array, out):
    for i in prange(array.shape[0]):
        for j in range(array.shape[1]):
            out[i, j] = math.sqrt(array[i, j])


def _chain(array, out):
    for i in prange(array.shape[0]):
        for j in range(array.shape[1]):
            x = math.sqrt(array[i, j] * 0.5 + 1)
            out[i, j] = x * x - 0.25 * x


SOURCES = {
    "row_sums": _row_sums,
    "tiny_rows": _row_sums,
    "bytes": _row_sums,
    "tiles": _tiles,
    "python_rows": _logistic,
    "uneven_rows": _logistic,
    "ufunc": _sqrt,
    "chain": _chain,
}


SUMS = (_row_sums, _tiles)  # these can add in order or in any order


@functools.cache
def _compiled(name: str, way: str) -> Any:
    """Compile a loop once; only sums may change the order of operations."""
    import numba

    source = SOURCES[name]
    fast = way == "own" and source is not _logistic
    source.__globals__["prange"] = numba.prange
    return numba.njit(parallel=True, fastmath=fast)(source)


class Implementation(System):
    """The function rewritten as loops, on numba's own threads."""

    title = "numba prange"
    about = "the function rewritten as loops: njit(parallel=True), also with fastmath=True: a limit"
    needs = ("numba",)
    cold = (
        "from numba import njit, prange",
        """
@njit(parallel=True)
def sums(rows):
    out = np.empty(len(rows))
    for i in prange(len(rows)):
        out[i] = rows[i].sum()
    return out

result = sums(rows)
done(result)
""",
    )

    def open(self) -> None:
        """Set the number of threads before numba is imported."""
        os.environ["NUMBA_NUM_THREADS"] = str(self.workers)

    def ways(self) -> tuple[str, ...]:
        """Return both ways for sums: in the order of the loop, or in any order."""
        return ("same", "own") if SOURCES[self.job.name] in SUMS else ("own",)

    def refuses(self, job: Job) -> str | None:
        """Refuse jobs that are not rewritten as loops."""
        return None if job.name in SOURCES else "the function is not one that can be compiled"

    def rows(self, way: str) -> Call:
        """Compute everything in a single call."""
        compiled = _compiled(self.job.name, way)
        out = self.empty(self.job.out_shape, self.job.out_dtype)
        compiled(self.input, out)  # Why: the compiler takes longer than most calls.

        def run() -> np.ndarray:
            compiled(self.input, out)
            return out

        return run

    tiles = blocks = halo = rows

    def answer(self, result: np.ndarray) -> np.ndarray:
        """Return the result, whose first axis is the outputs already."""
        return result
