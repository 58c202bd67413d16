"""mpire with shared objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import RawArray
from typing import Any

import numpy as np

from benchmarks.systems import Call, HandMade, compute_value, set_arrays, write_span


def _value(_shared: tuple[np.ndarray, ...], number: int) -> Any:
    return compute_value(number)


def _span(_shared: tuple[np.ndarray, ...], way: str, stage: int, numbers: range) -> None:
    write_span((way, stage, numbers))


class Implementation(HandMade):
    """A pool with `keep_alive`, whose workers are forked with the arrays."""

    title = "mpire"
    about = "WorkerPool(shared_objects=, keep_alive=True).map, forked, its own task splits"
    needs = ("mpire",)
    fewer = 4
    cold = (
        "from mpire import WorkerPool",
        """
with WorkerPool({workers}) as pool:
    result = pool.map(np.sum, [(row,) for row in rows])
    done(result)
""",
    )

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Allocate a `multiprocessing.RawArray`, as the documentation of mpire does."""
        size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        array = np.frombuffer(RawArray("b", size), np.uint8)[:size]
        return array.view(dtype)[: int(np.prod(shape))].reshape(shape)

    def start(self) -> None:
        """Create the pool; the first map forks the workers."""
        from mpire import WorkerPool

        set_arrays(self.job, self.workers, self.arrays)
        self.pool = WorkerPool(self.workers, shared_objects=tuple(self.arrays), keep_alive=True)

    def stop(self) -> None:
        """Shut down the workers."""
        if self.job.kind != "copy":
            self.pool.stop_and_join()
            self.pool.terminate()

    def map(self, func: Callable[..., Any], tasks: Sequence[Any]) -> list[Any]:
        """Split as mpire does by itself: 64 batches a worker."""
        ours = _value if func is compute_value else _span
        return self.pool.map(ours, tasks)

    def copy(self, _: str) -> Call:
        """Copy a plain array into a fresh `RawArray`."""
        source = np.array(self.input)

        def run() -> np.ndarray:
            view = np.frombuffer(RawArray("b", source.nbytes), np.uint8).view(source.dtype)
            view.reshape(source.shape)[:] = source
            return view

        return run
