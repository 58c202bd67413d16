"""scikit-image's apply_parallel, which runs on Dask's threads."""

from __future__ import annotations

import numpy as np

from benchmarks.systems import Call, System
from benchmarks.workloads import Job


class Implementation(System):
    """Maps with functions that keep the shape, with or without neighbours."""

    title = "apply_parallel"
    about = "skimage.util.apply_parallel over a plain array, dtype= given"
    needs = ("skimage", "dask")

    def open(self) -> None:
        """Set the number of threads for Dask: `apply_parallel` has no argument for it."""
        import dask

        dask.config.set(num_workers=self.workers, scheduler="threads")

    def refuses(self, job: Job) -> str | None:
        """Refuse jobs whose function changes the shape."""
        return None if hasattr(self, job.kind) else "the function must keep the shape of its block"

    def blocks(self, way: str) -> Call:
        """Run the maps one after another."""
        from skimage.util import apply_parallel

        job = self.job
        chunks = job.chunks if way == "same" else None

        def run() -> np.ndarray:
            array = self.input
            for func in job.funcs:
                array = apply_parallel(
                    func,
                    array,
                    chunks=chunks,
                    depth=job.depth,
                    mode="symmetric" if job.depth else None,
                    dtype=job.out_dtype,
                    compute=True,
                )
            return array

        return run

    halo = blocks
