"""Plain NumPy and SciPy in one process: the whole array in one expression, or a plain loop."""

from __future__ import annotations

import numpy as np

from benchmarks.systems import Call, System


class Implementation(System):
    """NumPy without any parallel map."""

    title = "NumPy alone"
    about = "one process: the loop over the same chunks (same), one expression if there is (own)"

    def ways(self) -> tuple[str, ...]:
        """Return the loop, and the expression if there is one."""
        if self.job.kind == "copy":
            return ("own",)
        return ("same",) if self.job.whole is None else ("same", "own")

    def rows(self, way: str) -> Call:
        """Evaluate the expression, or run the loop."""
        job = self.job
        if way == "own":
            return lambda: job.whole(self.input)
        arrays = [self.input, *(self.empty(job.out_shape, job.out_dtype) for _ in job.funcs)]
        stages = [job.spanner(arrays[n], arrays[n + 1], n) for n in range(len(job.funcs))]

        def run() -> np.ndarray:
            for spanner in stages:
                spanner(range(len(job)))
            return arrays[-1]

        return run

    tiles = blocks = halo = rows

    def answer(self, result: np.ndarray) -> np.ndarray:
        """Return the result, whose first axis is the outputs already."""
        return np.asarray(result).reshape(self.job.out_shape)

    def copy(self, _: str) -> Call:
        """Copy a plain array into fresh private memory."""
        return self.input.copy
