"""The measured systems: a file each with a class `Implementation`, and their common base."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from benchmarks.workloads import Job, columns

# In the order of the page: shmpar, the limits, the peers.
NAMES = (
    "ours",
    "ceiling",
    "numba",
    "whole",
    "threads",
    "pool",
    "executor",
    "joblib",
    "mpire",
    "dask_threads",
    "dask_processes",
    "dask_distributed",
    "skimage",
    "ray",
)

Call = Callable[[], Any]


class Copy:
    """The memory of a copy; it is released when this object goes, after the time was taken."""

    def __init__(self, *release: Callable[[], object]) -> None:
        self._release = release

    def __del__(self) -> None:
        for one in self._release:
            one()


class System:
    """A way to compute jobs, in a process of its own.

    A system that can do a kind of job has a method of that kind's name. The method takes the way
    ("same": the function is called with the same chunks as shmpar calls it; "own": the way that
    the system's documentation recommends) and returns the call whose time is taken.
    """

    title: ClassVar[str]
    about: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    fewer: ClassVar[int] = 1  # divides the number of chunks where the cost per chunk is measured
    cold: ClassVar[tuple[str, str] | None] = None  # a script: its imports, and the rest

    def __init__(self, workers: int, directory: str) -> None:
        self.workers = workers
        self.directory = directory

    def open(self) -> None:
        """Start everything that stays up between jobs."""

    def close(self) -> None:
        """Shut down everything that `open` started."""

    def load(self, job: Job, fill: Callable[[np.ndarray], None]) -> None:
        """Create the job's input in the system's own memory."""
        self.job = job
        self.input = self.empty(job.shape, job.dtype)
        fill(self.input)

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Allocate an array in the system's own memory and touch all of its pages."""
        array = np.empty(shape, dtype)
        array.fill(0)
        return array

    def drop(self) -> None:
        """Release the job and its memory."""
        self.input = self.job = None

    def ways(self) -> tuple[str, ...]:
        """Return the ways that differ for the loaded job; a copy has a single way."""
        return ("same",) if self.job.kind == "copy" else ("same", "own")

    def refuses(self, job: Job) -> str | None:
        """Return the reason if the system cannot do a job."""
        return None if hasattr(self, job.kind) else f"has nothing for {job.kind}"

    def call(self, way: str) -> Call:
        """Return the call whose time is taken."""
        return getattr(self, self.job.kind)(way)

    def answer(self, result: Any) -> np.ndarray:
        """Return the result as an array of `Job.out_shape`."""
        if self.job.kind in {"rows", "tiles"}:
            return columns(result).reshape(self.job.out_shape)
        return np.asarray(result)


class HandMade(System):
    """A plain map over arrays that all workers have: each task is a chunk or a span of chunks."""

    arrays: Sequence[np.ndarray] = ()

    def load(self, job: Job, fill: Callable[[np.ndarray], None]) -> None:
        """Create input and outputs in memory that workers see, then start the workers."""
        super().load(job, fill)
        outputs = () if job.kind == "copy" else range(len(job.funcs))
        self.arrays = [self.input, *(self.empty(job.out_shape, job.out_dtype) for _ in outputs)]
        if job.kind != "copy":
            self.start()

    def start(self) -> None:
        """Start workers that have the arrays."""
        raise NotImplementedError

    def stop(self) -> None:
        """Shut down the workers."""

    def drop(self) -> None:
        """Shut down the workers, then release the arrays."""
        self.stop()
        self.arrays = ()
        super().drop()

    def map(self, func: Callable[..., Any], tasks: Sequence[Any]) -> list[Any]:
        """Call the function for each task, batched as the system recommends."""
        raise NotImplementedError

    def rows(self, way: str) -> Call:
        """Return a value for each task, a row; or write spans into a shared output."""
        if way == "same":
            return lambda: self.map(compute_value, range(len(self.job)))
        return lambda: self.write("own", self.job.spans(self.workers))

    tiles = rows

    def blocks(self, way: str) -> Call:
        """Write a chunk into a shared output for each task: the same chunks, or bands of rows."""
        job = self.job if way == "same" else self.job.in_bands(self.workers)
        return lambda: self.write(way, [range(n, n + 1) for n in range(len(job))])

    halo = blocks

    def write(self, way: str, spans: Sequence[range]) -> np.ndarray:
        """Run all stages one after another."""
        for stage in range(len(self.job.funcs)):
            self.map(write_span, [(way, stage, numbers) for numbers in spans])
        return self.arrays[-1]

    def answer(self, result: Any) -> np.ndarray:
        """Return the output itself, or an array of the listed values."""
        return result if result is self.arrays[-1] else super().answer(result)


# The worker's side of a hand-made map: globals, as a pool's initializer sets them.
_value: Callable[[int], Any]
_spanners: dict[tuple[str, int], Callable[[Iterable[int]], None]]


def set_arrays(job: Job, workers: int, arrays: Sequence[np.ndarray]) -> None:
    """Make the input and the outputs of all stages available in this worker."""
    global _value, _spanners  # noqa: PLW0603 - the idiom that is measured
    if job.kind in {"rows", "tiles"}:
        _value = job.valuer(arrays[0])
    cuts = {"same": job, "own": job.in_bands(workers)}
    if job.kind in {"rows", "tiles"}:
        cuts["own"] = job
    _spanners = {
        (way, stage): cut.spanner(arrays[stage], arrays[stage + 1], stage, way)
        for way, cut in cuts.items()
        for stage in range(len(arrays) - 1)
    }


def compute_value(number: int) -> Any:
    """Return the value of a row or tile."""
    return _value(number)


def write_span(task: tuple[str, int, range]) -> None:
    """Write all chunks of a span."""
    way, stage, numbers = task
    _spanners[way, stage](numbers)


def load(name: str) -> type[System]:
    """Return the class of a system; its package is imported when it is opened."""
    return importlib.import_module(f"benchmarks.systems.{name}").Implementation


def title(name: str) -> str:
    """Return a system's name on the page."""
    return load(name).title if name in NAMES else name
