"""Bandwidth: independent processes, each on a private array of its own."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from benchmarks.bare import bare
from benchmarks.peers.job import Job
from benchmarks.peers.systems.system import Run, System


class This(System):
    """What the memory gives where nothing is shared; no result that anybody could use."""

    title = "private arrays"
    about = "as many processes as workers, each on an array of its own: the bandwidth, a limit"

    def open(self) -> None:
        """Nothing is forked yet."""
        self.forked = ExitStack()

    def refuses(self, job: Job) -> str | None:
        """All but what is bound by memory."""
        bound = job.name in {"row_sums", "bytes", "ufunc", "chain", "copy_in"}
        return None if bound else "not bound by memory"

    def ways(self) -> tuple[str, ...]:
        """One, or rows in bands."""
        return ("same", "own") if self.job.banded else ("same",)

    def drop(self) -> None:
        """End the processes and their arrays."""
        self.forked.close()
        super().drop()

    def _fork(self, loop) -> Run:
        go = self.forked.enter_context(bare(loop, self.workers))
        go()  # each makes its array

        def run() -> np.ndarray:
            go()
            return None

        return run

    def _share(self, worker: int, workers: int) -> np.ndarray:
        bounds = [len(self.input) * n // workers for n in (worker, worker + 1)]
        return np.array(self.input[bounds[0] : bounds[1]])

    def rows(self, way: str) -> Run:
        """Each loops over its rows, or takes them in bands."""
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

    def blocks(self, _: str) -> Run:
        """Each runs all stages over bands that stay in the cache no better than ours do."""
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

    def copy(self, _: str) -> Run:
        """Each copies its share into memory that is there."""
        mine = []

        def loop(worker: int, workers: int) -> None:
            if not mine:
                mine.append(self._share(worker, workers))
                mine.append(np.zeros_like(mine[0]))
            np.copyto(mine[1], mine[0])

        return self._fork(loop)
