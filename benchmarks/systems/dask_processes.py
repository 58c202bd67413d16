"""dask.array on its process pool, each task reading its chunk from a mapped file."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from benchmarks.systems import dask_threads
from benchmarks.workloads import Job


def read(path: str, block_info: dict[Any, Any] | None = None) -> np.ndarray:
    """Read a chunk of a mapped file, as Dask's documentation on memory mapping shows."""
    region = tuple(slice(*pair) for pair in block_info[None]["array-location"])
    return np.load(path, mmap_mode="r")[region]


class Implementation(dask_threads.Implementation):
    """A warm pool; Dask by itself would start a new pool in each call."""

    title = "dask processes"
    about = "dask.array on a warm process pool, chunks read from a mapped .npy file"
    fewer = 20
    cold = (
        "import dask.array as da",
        """
if __name__ == "__main__":
    blocks = da.from_array(rows, chunks=(4, -1))
    result = blocks.sum(axis=1).compute(scheduler="processes", num_workers={workers})
    done(result)
""",
    )

    def open(self) -> None:
        """Start the pool with the start method "spawn", as Dask does."""
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(self.workers, mp_context=context)

    def close(self) -> None:
        """Shut down the pool."""
        self.pool.shutdown()

    def load(self, job: Job, fill: Callable[[np.ndarray], None]) -> None:
        """Write the input to a file."""
        self.job = job
        self.path = os.path.join(self.directory, f"{type(self).__module__}.npy")
        self.input = np.lib.format.open_memmap(self.path, "w+", job.dtype, job.shape)
        fill(self.input)

    def drop(self) -> None:
        """Remove the file."""
        super().drop()
        os.unlink(self.path)

    def array(self, chunks: Any) -> Any:
        """Return a dask array whose chunks are read by the tasks that need them."""
        import dask.array as da
        from dask.array.core import normalize_chunks

        dtype = np.dtype(self.job.dtype)
        sizes = normalize_chunks(chunks, self.job.shape, dtype=dtype)
        return da.map_blocks(
            read, self.path, chunks=sizes, dtype=dtype, meta=np.empty((0, 0), dtype)
        )

    def compute(self, lazy: Any) -> np.ndarray:
        """Run the graph on the pool."""
        return lazy.compute(scheduler="processes", pool=self.pool, num_workers=self.workers)
