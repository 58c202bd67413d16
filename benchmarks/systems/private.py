"""Bandwidth: independent processes, each on a private array of its own."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from benchmarks.harness import forked_loop
from benchmarks.systems import Call, System
from benchmarks.workloads import Job


class Implementation(System):
    """The bandwidth of the memory where nothing is shared; the result is of no use."""

    title = "private arrays"
    about = "as many processes as workers, each on an array of its own: the bandwidth, a limit"

    def open(self) -> None:
        """Fork nothing yet."""
        self.forked = ExitStack()

    def refuses(self, job: Job) -> str | None:
        """Refuse jobs that are not bound by memory."""
        bound = job.name in {"row_sums", "bytes", "ufunc", "chain", "copy_in"}
        return None if bound else "not bound by memory"

    def ways(self) -> tuple[str, ...]:
        """Return both ways only for bands of rows."""
        return ("same", "own") if self.job.banded else ("same",)

    def drop(self) -> None:
        """Kill the processes and release their arrays."""
        self.forked.close()
        super().drop()

    def _fork(self, loop) -> Call:
        go = self.forked.enter_context(forked_loop(loop, self.workers))
        go()  # each process creates its array

        def run() -> np.ndarray:
            go()
            return None

        return run

    def _share(self, worker: int, workers: int) -> np.ndarray:
        bounds = [len(self.input) * n // workers for n in (worker, worker + 1)]
        return np.array(self.input[bounds[0] : bounds[1]])

    def rows(self, way: str) -> Call:
        """Loop over the rows or bands of each worker's own array."""
        (func,), job, mine = self.job.funcs, self.job, []

        def loop(worker: int, workers: int) -> None:
            if not mine:
                mine.append(self._share(worker, workers))
                mine.append(np.zeros(len(mine[0])))
            array, out = mine
            if way == "own":
                step = len(job.spans(workers)[0])
                for at in range(0, len(array), step):
                    out[at : at + step] = job.whole(array[at : at + step])
                return
            for number in range(len(array)):
                out[number] = func(array[number])

        return self._fork(loop)

    def blocks(self, _: str) -> Call:
        """Run all stages over bands that stay in the cache no better than shmpar's."""
        step, mine = self.job.chunks[0], []

        def loop(worker: int, workers: int) -> None:
            if not mine:
                mine.append(self._share(worker, workers))
                mine.extend(np.zeros_like(mine[0]) for _ in self.job.funcs)
            for stage, func in enumerate(self.job.funcs):
                array, out = mine[stage], mine[stage + 1]
                for at in range(0, len(array), step):
                    if isinstance(func, np.ufunc):
                        func(array[at : at + step], out=out[at : at + step])
                    else:
                        out[at : at + step] = func(array[at : at + step])

        return self._fork(loop)

    def copy(self, _: str) -> Call:
        """Copy each worker's share into existing memory."""
        mine = []

        def loop(worker: int, workers: int) -> None:
            if not mine:
                mine.append(self._share(worker, workers))
                mine.append(np.zeros_like(mine[0]))
            np.copyto(mine[1], mine[0])

        return self._fork(loop)
