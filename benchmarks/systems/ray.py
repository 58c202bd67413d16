"""Ray on one machine: the array put in its object store once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.systems import Call, System
from benchmarks.workloads import Job


def _value(job: Job, array: np.ndarray, number: int) -> Any:
    return job.valuer(array)(number)


def _values(job: Job, array: np.ndarray, numbers: range) -> np.ndarray:
    if job.banded:
        return job.whole(array[numbers.start : numbers.stop])
    return np.array(list(map(job.valuer(array), numbers)))


def _block(job: Job, array: np.ndarray, number: int) -> np.ndarray:
    read, _, inner = job.regions(number)
    return job.funcs[0](array[read])[inner]


def _next(func: Callable[..., Any], block: np.ndarray) -> np.ndarray:
    return func(block)


class Implementation(System):
    """Tasks return blocks, since objects of the store are immutable; the caller joins them."""

    title = "Ray"
    about = "ray.put once, a task a chunk, or batches; no dashboard"
    needs = ("ray",)
    fewer = 20
    cold = (
        "import ray",
        """
ray.init(num_cpus={workers}, include_dashboard=False, log_to_driver=False, _temp_dir={directory!r})
total = ray.remote(lambda row: np.sum(row))
result = ray.get([total.remote(row) for row in rows])
done(result)
ray.shutdown()
""",
    )

    def open(self) -> None:
        """Start Ray's processes."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        ray.init(
            num_cpus=self.workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=4 << 30,
            _temp_dir=os.path.join(self.directory, "r"),
        )
        self.value, self.values, self.block, self.next = map(
            ray.remote, (_value, _values, _block, _next)
        )

    def close(self) -> None:
        """Shut down Ray's processes."""
        import ray

        ray.shutdown()

    def load(self, job: Job, fill: Callable[[np.ndarray], None]) -> None:
        """Put the input and the job into the store."""
        import ray

        super().load(job, fill)
        self.ref, self.job_ref = ray.put(self.input), ray.put(job)
        self.input = ray.get(self.ref)

    def drop(self) -> None:
        """Release both."""
        super().drop()
        self.ref = self.job_ref = None

    def rows(self, way: str) -> Call:
        """Make a task of each row, or of batches, as the documentation advises."""
        import ray

        if way == "same":
            numbers = range(len(self.job))
            return lambda: ray.get(
                [self.value.remote(self.job_ref, self.ref, number) for number in numbers]
            )
        spans = self.job.spans(self.workers)
        return lambda: np.concatenate(
            ray.get([self.values.remote(self.job_ref, self.ref, span) for span in spans])
        )

    tiles = rows

    def blocks(self, way: str) -> Call:
        """Pass blocks from task to task in the store, and join them at the end."""
        import ray

        job = self.job if way == "same" else self.job.in_bands(self.workers)
        job_ref = ray.put(job)
        out = np.zeros(job.out_shape, job.out_dtype)

        def run() -> np.ndarray:
            refs = [self.block.remote(job_ref, self.ref, number) for number in range(len(job))]
            for func in job.funcs[1:]:
                refs = [self.next.remote(func, ref) for ref in refs]
            for number, ref in enumerate(refs):
                out[job.regions(number)[1]] = ray.get(ref)
            return out

        return run

    halo = blocks

    def copy(self, _: str) -> Call:
        """Put a plain array into the store."""
        import ray

        source = np.array(self.input)
        return lambda: ray.put(source)
