"""joblib with memory-mapped arrays, on its processes (loky)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.systems import Call, Copy, System
from benchmarks.workloads import Job, Region


def _value(func: Callable[..., Any], array: np.ndarray, index: int | Region) -> Any:
    return func(array[index])


def _block(
    func: Callable[..., Any],
    array: np.ndarray,
    out: np.ndarray,
    regions: tuple[Region, Region, Region],
) -> None:
    read, write, inner = regions
    if isinstance(func, np.ufunc):
        func(array[read], out=out[write])
    else:
        out[write] = func(array[read])[inner]


def _span(job: Job, array: np.ndarray, out: np.ndarray, numbers: range) -> None:
    job.spanner(array, out, way="own")(numbers)


class Implementation(System):
    """A warm `Parallel`, and memmaps in the folder that joblib would choose itself."""

    title = "joblib"
    about = "a warm Parallel (loky); input and output are memmaps, as its documentation shows"
    needs = ("joblib",)
    fewer = 10
    cold = (
        "from joblib import Parallel, delayed",
        """
result = Parallel(n_jobs={workers})(delayed(np.sum)(row) for row in rows)
done(result)
""",
    )

    def open(self) -> None:
        """Start a `Parallel` that reuses its workers, as in a `with` block."""
        from joblib import Parallel

        self.parallel = Parallel(n_jobs=self.workers).__enter__()

    def close(self) -> None:
        """Shut down the workers."""
        from joblib.externals.loky import get_reusable_executor

        self.parallel.__exit__(None, None, None)
        get_reusable_executor().shutdown(wait=True)

    def empty(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Allocate a memmap."""
        path = os.path.join(self.directory, f"joblib-{len(os.listdir(self.directory))}.memmap")
        array = np.memmap(path, dtype, "w+", shape=shape)
        array.fill(0)
        self.files = [*getattr(self, "files", ()), path]
        return array

    def drop(self) -> None:
        """Remove the files by hand."""
        super().drop()
        self.out = None
        for path in getattr(self, "files", ()):
            os.unlink(path)
        self.files = []

    def rows(self, way: str) -> Call:
        """Make a task of each row or tile, in batches that joblib chooses, or of each span."""
        from joblib import delayed

        (func,), job, of_rows = self.job.funcs, self.job, self.job.kind == "rows"
        if way == "own":
            return self._spans()
        return lambda: self.parallel(
            delayed(_value)(func, self.input, n if of_rows else job.regions(n)[1])
            for n in range(len(job))
        )

    tiles = rows

    def _spans(self) -> Call:
        from joblib import delayed

        job, spans = self.job, self.job.spans(self.workers)
        out = self.empty(job.out_shape, job.out_dtype)

        def run() -> np.ndarray:
            self.parallel(delayed(_span)(job, self.input, out, span) for span in spans)
            return out.T if job.outputs > 1 else out

        return run

    def blocks(self, way: str) -> Call:
        """Make a task of each chunk, which writes to an output memmap."""
        from joblib import delayed

        job = self.job if way == "same" else self.job.in_bands(self.workers)
        arrays = [self.input, *(self.empty(job.out_shape, job.out_dtype) for _ in job.funcs)]

        def run() -> np.ndarray:
            for stage, func in enumerate(job.funcs):
                self.parallel(
                    delayed(_block)(func, arrays[stage], arrays[stage + 1], job.regions(n))
                    for n in range(len(job))
                )
            return arrays[-1]

        return run

    halo = blocks

    def copy(self, _: str) -> Call:
        """Dump a plain array and map the file."""
        from joblib import dump, load

        source, path = np.array(self.input), os.path.join(self.directory, "joblib.dump")

        def run() -> Copy:
            dump(source, path)
            load(path, mmap_mode="r")
            return Copy(lambda: os.unlink(path))

        return run
