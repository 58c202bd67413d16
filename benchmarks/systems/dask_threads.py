"""dask.array on its threads, the default for arrays; the base of its other schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.systems import Call, System
from benchmarks.workloads import Job


def rows_of(block: np.ndarray, func: Callable[..., Any], dtype: str) -> np.ndarray:
    """Return a value per row of a block."""
    return np.fromiter((func(row) for row in block), dtype, len(block))


def tiles_of(block: np.ndarray, job: Job) -> np.ndarray:
    """Return all values of a block's tiles, on an axis of outputs before the grid's axes."""
    (func,), (high, wide) = job.funcs, job.chunks
    down, across = -(-block.shape[0] // high), -(-block.shape[1] // wide)
    out = np.empty((job.outputs, down, across), job.out_dtype)
    for i in range(down):
        for j in range(across):
            tile = block[i * high : (i + 1) * high, j * wide : (j + 1) * wide]
            out[:, i, j] = func(tile)
    return out


class Implementation(System):
    """The time to build the graph counts, since a user writes it for each call."""

    title = "dask threads"
    about = "dask.array on the threaded scheduler over a plain array; the graph's making counts"
    needs = ("dask",)
    fewer = 20
    cold = (
        "import dask.array as da",
        """
blocks = da.from_array(rows, chunks=(4, -1))
result = blocks.sum(axis=1).compute(scheduler="threads", num_workers={workers})
done(result)
""",
    )

    def array(self, chunks: Any) -> Any:
        """Return the input as a dask array."""
        import dask.array as da

        return da.from_array(self.input, chunks=chunks)

    def compute(self, lazy: Any) -> np.ndarray:
        """Run the graph on this scheduler."""
        return lazy.compute(scheduler="threads", num_workers=self.workers)

    def _auto(self, multiple: tuple[int, int], axes: tuple[int, ...] = (0, 1)) -> tuple[int, ...]:
        """Return Dask's automatic chunks in multiples of the job's, at least two per worker."""
        from dask.array.core import normalize_chunks

        wanted = tuple("auto" if axis in axes else -1 for axis in (0, 1))
        auto = normalize_chunks(wanted, self.job.shape, dtype=np.dtype(self.job.dtype))
        sizes = [one[0] for one in auto]
        sizes[0] = min(sizes[0], -(-self.job.shape[0] // (2 * self.workers)))
        return tuple(max(m, size // m * m) for m, size in zip(multiple, sizes, strict=True))

    def rows(self, way: str) -> Call:
        """Make each row a chunk, or loop over the rows of automatic chunks."""
        (func,), dtype = self.job.funcs, self.job.out_dtype
        chunks = (1, -1) if way == "same" else self._auto((1, self.job.shape[1]), (0,))

        banded = self.job.banded and way == "own"
        block = (self.job.whole,) if banded else (rows_of, func, dtype)

        def run() -> np.ndarray:
            lazy = self.array(chunks).map_blocks(
                *block, drop_axis=1, dtype=dtype, meta=np.empty(0, dtype)
            )
            return self.compute(lazy)

        return run

    def tiles(self, way: str) -> Call:
        """Make each tile a chunk, or loop over the tiles of automatic chunks."""
        job = self.job
        chunks = job.chunks if way == "same" else self._auto(job.chunks)
        meta = np.empty((0, 0, 0), job.out_dtype)

        def run() -> np.ndarray:
            array = self.array(chunks)
            sizes = [
                tuple(-(-size // c) for size in one)
                for one, c in zip(array.chunks, job.chunks, strict=True)
            ]
            lazy = array.map_blocks(
                tiles_of,
                job,
                new_axis=0,
                chunks=((job.outputs,), *sizes),
                dtype=job.out_dtype,
                meta=meta,
            )
            return self.compute(lazy)

        return run

    def blocks(self, way: str) -> Call:
        """Compute all maps in a single lazy expression."""
        job = self.job
        chunks = job.chunks if way == "same" else self._auto((1, 1))

        def run() -> np.ndarray:
            lazy = self.array(chunks)
            for func in job.funcs:
                lazy = lazy.map_blocks(func, dtype=job.out_dtype, meta=lazy._meta)  # noqa: SLF001
            return self.compute(lazy)

        return run

    def halo(self, way: str) -> Call:
        """Call `map_overlap` without padding at the border."""
        job = self.job
        chunks = job.chunks if way == "same" else self._auto((1, 1))

        def run() -> np.ndarray:
            array = self.array(chunks)
            lazy = array.map_overlap(
                job.funcs[0],
                depth=job.depth,
                boundary="none",
                dtype=job.out_dtype,
                meta=array._meta,  # noqa: SLF001
            )
            return self.compute(lazy)

        return run

    def answer(self, result: np.ndarray) -> np.ndarray:
        """Return the result, whose first axis is the outputs already."""
        return np.asarray(result).reshape(self.job.out_shape)
