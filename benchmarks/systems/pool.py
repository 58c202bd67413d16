"""multiprocessing.Pool over hand-made shared memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from benchmarks.systems import Call, Copy, HandMade, set_arrays
from benchmarks.workloads import Job

_memories: list[SharedMemory] = []


def attach(job: Job, workers: int, names: Sequence[str]) -> None:
    """Open the segments by name, once in each worker."""
    _memories[:] = [SharedMemory(name) for name in names]
    shapes = [(job.shape, job.dtype), *((job.out_shape, job.out_dtype) for _ in job.funcs)]
    arrays = [
        np.ndarray(shape, dtype, buffer=memory.buf)
        for (shape, dtype), memory in zip(shapes, _memories, strict=True)
    ]
    set_arrays(job, workers, arrays)


class Implementation(HandMade):
    """The defaults, the idiom `view[:] = x`, and an initializer that attaches."""

    title = "mp.Pool"
    about = "multiprocessing.Pool.map over SharedMemory that an initializer attaches"
    cold = (
        "from multiprocessing import Pool",
        """
with Pool({workers}) as pool:
    result = pool.map(np.sum, rows)
    done(result)
""",
    )

    def open(self) -> None:
        """Create a segment, which starts the resource tracker, so that workers inherit it."""
        self.memories: list[SharedMemory] = []
        memory = SharedMemory(create=True, size=1)
        memory.close()
        memory.unlink()

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Allocate an array in a named segment."""
        size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self.memories.append(SharedMemory(create=True, size=size))
        array = np.ndarray(shape, dtype, buffer=self.memories[-1].buf)
        array.fill(0)
        return array

    def initializer(self) -> dict[str, Any]:
        """Return the arguments of a pool of the standard library."""
        names = [memory.name for memory in self.memories]
        return {"initializer": attach, "initargs": (self.job, self.workers, names)}

    def start(self) -> None:
        """Start workers that attach the segments."""
        self.pool = multiprocessing.Pool(self.workers, **self.initializer())

    def stop(self) -> None:
        """Shut down the workers."""
        if self.job.kind != "copy":
            self.pool.close()
            self.pool.join()

    def drop(self) -> None:
        """Remove the segments."""
        super().drop()
        for memory in self.memories:
            memory.unlink()
            try:
                memory.close()
            except BufferError:  # a view exists: the memory goes with the view
                memory._buf = memory._mmap = None  # noqa: SLF001
        self.memories.clear()

    def map(self, func: Callable[..., Any], tasks: Sequence[Any]) -> list[Any]:
        """Call `map` with its default batches: a quarter of a worker's share."""
        return self.pool.map(func, tasks)

    def copy(self, _: str) -> Call:
        """Copy a plain array into a fresh segment, as its documentation shows."""
        source = np.array(self.input)

        def run() -> Copy:
            memory = SharedMemory(create=True, size=source.nbytes)
            view = np.ndarray(source.shape, source.dtype, buffer=memory.buf)
            view[:] = source
            return Copy(memory.close, memory.unlink)

        return run
