"""shmpar, used as its documentation shows."""

from __future__ import annotations

import numpy as np

from benchmarks.systems import Call, System


class Implementation(System):
    """A warm pool with the input in shared memory; large outputs are allocated once."""

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
        """Start the workers and wait until all of them are up; the pool itself would not wait."""
        import shmpar
        from benchmarks.cases import worker_pids

        self.pool = shmpar.Pool(self.workers)
        worker_pids(self.pool, self.workers)

    def close(self) -> None:
        """Shut down the workers."""
        self.pool.shutdown()

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Allocate an array in shared memory."""
        array = self.pool.empty(shape, dtype)
        array.fill(0)
        return array

    def ways(self) -> tuple[str, ...]:
        """Return both ways if the result does not depend on the chunks."""
        free = self.job.kind in {"blocks", "halo"} or self.job.banded
        return ("same", "own") if free else ("same",)

    def rows(self, way: str) -> Call:
        """Call the function for each row, or for each band of rows."""
        if way == "own":
            chunks = self.job.in_bands(self.workers).chunks
            return lambda: self.pool.map_blocks(
                self.job.whole, self.input, chunks=chunks, drop_axis=1
            )
        return lambda: self.pool.parallel_map(self.job.funcs[0], self.input)

    def tiles(self, _: str) -> Call:
        """Call the function for each chunk."""
        (func,), chunks = self.job.funcs, self.job.chunks
        return lambda: self.pool.block_reduce(func, self.input, chunks=chunks)

    def blocks(self, way: str) -> Call:
        """Run the maps one after another, each into an existing output."""
        chunks = self.job.chunks if way == "same" else "auto"
        outputs = [self.empty(self.job.out_shape, self.job.out_dtype) for _ in self.job.funcs]

        def run() -> np.ndarray:
            array = self.input
            for func, out in zip(self.job.funcs, outputs, strict=True):
                array = self.pool.map_blocks(func, array, chunks=chunks, out=out)
            return array

        return run

    def halo(self, way: str) -> Call:
        """Map chunks with their neighbours, or bands as the hand-made pools do."""
        (func,), depth = self.job.funcs, self.job.depth
        chunks = (self.job if way == "same" else self.job.in_bands(self.workers)).chunks
        out = self.empty(self.job.out_shape, self.job.out_dtype)
        return lambda: self.pool.map_overlap(func, self.input, depth=depth, chunks=chunks, out=out)

    def copy(self, _: str) -> Call:
        """Copy a plain array into shared memory."""
        import shmpar

        source = np.array(self.input)
        return lambda: shmpar.array(source)
