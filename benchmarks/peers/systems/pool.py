"""multiprocessing.Pool over hand-made shared memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from benchmarks.peers import hand
from benchmarks.peers.job import Job
from benchmarks.peers.systems.system import HandMade, Held, Run

_memories: list[SharedMemory] = []


def attach(job: Job, workers: int, names: Sequence[str]) -> None:
    """In each worker: open the segments by name, once."""
    _memories[:] = [SharedMemory(name) for name in names]
    shapes = [(job.shape, job.dtype), *((job.out_shape, job.out_dtype) for _ in job.funcs)]
    arrays = [
        np.ndarray(shape, dtype, buffer=memory.buf)
        for (shape, dtype), memory in zip(shapes, _memories, strict=True)
    ]
    hand.attach(job, workers, arrays)


class This(HandMade):
    """The default start method, chunk size and idiom: view[:] = x, an initializer that attaches."""

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
        """Start one segment first, and so the tracker of segments: workers are to inherit it."""
        self.memories: list[SharedMemory] = []
        memory = SharedMemory(create=True, size=1)
        memory.close()
        memory.unlink()

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An array in a named segment."""
        size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self.memories.append(SharedMemory(create=True, size=size))
        array = np.ndarray(shape, dtype, buffer=self.memories[-1].buf)
        array.fill(0)
        return array

    def initializer(self) -> dict[str, Any]:
        """What a pool of the standard library is told."""
        names = [memory.name for memory in self.memories]
        return {"initializer": attach, "initargs": (self.job, self.workers, names)}

    def start(self) -> None:
        """Start workers that attach the segments."""
        self.pool = multiprocessing.Pool(self.workers, **self.initializer())

    def stop(self) -> None:
        """End them."""
        if self.job.kind != "copy":
            self.pool.close()
            self.pool.join()

    def drop(self) -> None:
        """Remove the segments by hand, too."""
        super().drop()
        for memory in self.memories:
            memory.unlink()
            try:
                memory.close()
            except BufferError:  # a view of it is held; it goes with that
                memory._buf = memory._mmap = None  # noqa: SLF001
        self.memories.clear()

    def map(self, func: Callable[..., Any], tasks: Sequence[Any]) -> list[Any]:
        """Batches by its own default: a quarter of a worker's share."""
        return self.pool.map(func, tasks)

    def copy(self, _: str) -> Run:
        """Copy a plain array into a fresh segment, as everyone does."""
        source = np.array(self.input)

        def run() -> Held:
            memory = SharedMemory(create=True, size=source.nbytes)
            view = np.ndarray(source.shape, source.dtype, buffer=memory.buf)
            view[:] = source
            return Held(memory.close, memory.unlink)

        return run
