"""The ceiling: bare forked processes that each run an interleaved share of the same loop."""

from __future__ import annotations

import mmap
from contextlib import ExitStack

import numpy as np

from benchmarks.harness import forked_loop
from benchmarks.systems import Call, HandMade


class Implementation(HandMade):
    """A loop without scheduler and without return values, in shared memory as shmpar's is."""

    title = "ceiling"
    about = "as many bare forked processes as workers, each its share of the loop: a limit"

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Allocate memory that forked processes share."""
        array = np.frombuffer(
            mmap.mmap(-1, max(1, np.dtype(dtype).itemsize * int(np.prod(shape)))), dtype
        )[: int(np.prod(shape))].reshape(shape)
        array.fill(0)
        return array

    def ways(self) -> tuple[str, ...]:
        """Return both ways only for bands: a loop has no batches to choose."""
        return ("same", "own") if self.job.banded else ("same",)

    def start(self) -> None:
        """Fork nothing yet: the loop must be known first."""
        self.forked = ExitStack()

    def stop(self) -> None:
        """Kill the processes."""
        self.forked.close()

    def rows(self, way: str) -> Call:
        """Run all stages over a worker's share of chunks or bands."""
        job, arrays = self.job, self.arrays
        stages = [job.spanner(arrays[n], arrays[n + 1], n, way) for n in range(len(job.funcs))]

        def loop(worker: int, workers: int) -> None:
            for spanner in stages:
                if way == "own":
                    for span in job.spans(workers)[worker::workers]:
                        spanner(span)
                else:
                    spanner(range(worker, len(job), workers))

        go = self.forked.enter_context(forked_loop(loop, self.workers))

        def run() -> np.ndarray:
            go()
            return self.arrays[-1]

        return run

    tiles = blocks = halo = rows
