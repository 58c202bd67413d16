"""shmpar, as its documentation has it."""

from __future__ import annotations

import os
import time

import numpy as np

from benchmarks.peers.systems.system import Run, System


def _who(_: int) -> int:
    time.sleep(0.002)
    return os.getpid()


class This(System):
    """A warm pool; the input in shared memory, large outputs made once."""

    title = "shmpar"
    about = "warm Pool, input from pool.empty; out= where the peers have an output to write to"
    needs = ("shmpar",)
    cold = (
        "import shmpar",
        """
with shmpar.Pool({workers}) as pool:
    result = pool.parallel_map(np.sum, rows)
    done(result)
""",
    )

    def open(self) -> None:
        """Start the workers, and wait until each has taken part: the pool itself would not."""
        import shmpar

        self.pool = shmpar.Pool(self.workers)
        seen: set[int] = set()
        while len(seen) < self.workers:
            seen.update(self.pool.parallel_map(_who, range(8 * self.workers), dtype=object))

    def close(self) -> None:
        """End them."""
        self.pool.shutdown()

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An array in shared memory."""
        array = self.pool.empty(shape, dtype)
        array.fill(0)
        return array

    def ways(self) -> tuple[str, ...]:
        """Chunks are ours to choose where the result does not depend on them."""
        free = self.job.kind in {"blocks", "halo"} or self.job.banded
        return ("same", "own") if free else ("same",)

    def rows(self, way: str) -> Run:
        """One call a row, or a band of rows."""
        if way == "own":
            chunks = self.job.in_bands(self.workers).chunks
            return lambda: self.pool.map_blocks(
                self.job.whole, self.input, chunks=chunks, drop_axis=1
            )
        return lambda: self.pool.parallel_map(self.job.funcs[0], self.input)

    def tiles(self, _: str) -> Run:
        """One call a chunk."""
        (func,), chunks = self.job.funcs, self.job.chunks
        return lambda: self.pool.block_reduce(func, self.input, chunks=chunks)

    def blocks(self, way: str) -> Run:
        """One call after another, each into an output that is there."""
        chunks = self.job.chunks if way == "same" else "auto"
        outputs = [self.empty(self.job.out_shape, self.job.out_dtype) for _ in self.job.funcs]

        def run() -> np.ndarray:
            array = self.input
            for func, out in zip(self.job.funcs, outputs, strict=True):
                array = self.pool.map_blocks(func, array, chunks=chunks, out=out)
            return array

        return run

    def halo(self, way: str) -> Run:
        """Windows with their neighbours; in bands as the hand-made pools have them."""
        (func,), depth = self.job.funcs, self.job.depth
        chunks = (self.job if way == "same" else self.job.in_bands(self.workers)).chunks
        out = self.empty(self.job.out_shape, self.job.out_dtype)
        return lambda: self.pool.map_overlap(func, self.input, depth=depth, chunks=chunks, out=out)

    def copy(self, _: str) -> Run:
        """Copy a plain array into shared memory."""
        import shmpar

        source = np.array(self.input)
        return lambda: shmpar.array(source)
