"""What every system has, and what those that are made by hand share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers import hand
from benchmarks.peers.job import Job, columns

Run = Callable[[], Any]


class Held:
    """Memory that a copy lies in; let go of with this, after the clock has stopped."""

    def __init__(self, *let_go: Callable[[], object]) -> None:
        self._let_go = let_go

    def __del__(self) -> None:
        for one in self._let_go:
            one()


class System:
    """One way to compute jobs, in a process of its own.

    A kind of job that a system can do is a method of that name: it takes the way ("same": the
    function is called with the same chunks as ours; "own": what its documentation recommends)
    and returns what is then timed.
    """

    title: ClassVar[str]
    about: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    fewer: ClassVar[int] = 1  # where cost a chunk is measured: so many times fewer chunks
    cold: ClassVar[tuple[str, str] | None] = None  # a script: its imports, and the rest

    def __init__(self, workers: int, directory: str) -> None:
        self.workers = workers
        self.directory = directory

    def open(self) -> None:
        """Start what stays up between jobs."""

    def close(self) -> None:
        """End it."""

    def load(self, job: Job, fill: Callable[[np.ndarray], None]) -> None:
        """Have the job's input in the system's own memory."""
        self.job = job
        self.input = self.empty(job.shape, job.dtype)
        fill(self.input)

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An array in the system's own memory, each page there already."""
        array = np.empty(shape, dtype)
        array.fill(0)
        return array

    def drop(self) -> None:
        """Forget the job and its memory."""
        self.input = self.job = None

    def ways(self) -> tuple[str, ...]:
        """The ways that differ for the job that is loaded; a copy has one."""
        return ("same",) if self.job.kind == "copy" else ("same", "own")

    def refuses(self, job: Job) -> str | None:
        """Why the system has nothing for a job, if it has nothing."""
        return None if hasattr(self, job.kind) else f"has nothing for {job.kind}"

    def call(self, way: str) -> Run:
        """Return what is timed."""
        return getattr(self, self.job.kind)(way)

    def answer(self, result: Any) -> np.ndarray:
        """The result as an array of `Job.out_shape`."""
        if self.job.kind in {"rows", "tiles"}:
            return columns(result).reshape(self.job.out_shape)
        return np.asarray(result)


class HandMade(System):
    """Tasks over arrays that all workers have: spans and chunks dealt out by a plain map."""

    arrays: Sequence[np.ndarray] = ()

    def load(self, job: Job, fill: Callable[[np.ndarray], None]) -> None:
        """Have input and outputs in memory that workers see, then start these."""
        super().load(job, fill)
        outputs = () if job.kind == "copy" else range(len(job.funcs))
        self.arrays = [self.input, *(self.empty(job.out_shape, job.out_dtype) for _ in outputs)]
        if job.kind != "copy":
            self.start()

    def start(self) -> None:
        """Start workers that have the arrays."""
        raise NotImplementedError

    def stop(self) -> None:
        """End them."""

    def drop(self) -> None:
        """Forget the arrays, after those who have them."""
        self.stop()
        self.arrays = ()
        super().drop()

    def map(self, func: Callable[..., Any], tasks: Sequence[Any]) -> list[Any]:
        """Call the function for each task, batched as the system recommends."""
        raise NotImplementedError

    def rows(self, way: str) -> Run:
        """A task a row whose value is returned, or spans that write to a shared output."""
        if way == "same":
            return lambda: self.map(hand.value, range(len(self.job)))
        return lambda: self.write("own", self.job.spans(self.workers))

    tiles = rows

    def blocks(self, way: str) -> Run:
        """A task a chunk that writes to a shared output: the same chunks, or bands of rows."""
        job = self.job if way == "same" else self.job.in_bands(self.workers)
        return lambda: self.write(way, [range(n, n + 1) for n in range(len(job))])

    halo = blocks

    def write(self, way: str, spans: Sequence[range]) -> np.ndarray:
        """Run all stages, one after another."""
        for stage in range(len(self.job.funcs)):
            self.map(hand.span, [(way, stage, numbers) for numbers in spans])
        return self.arrays[-1]

    def answer(self, result: Any) -> np.ndarray:
        """A list of values, or the output itself."""
        return result if result is self.arrays[-1] else super().answer(result)
