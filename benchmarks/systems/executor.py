"""concurrent.futures.ProcessPoolExecutor over the same hand-made shared memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.systems import pool
from benchmarks.workloads import Job


class Implementation(pool.Implementation):
    """The same as `mp.Pool`, but with chunksize= given, since its default is 1."""

    title = "ProcessPoolExecutor"
    about = "its map with a large chunksize= over SharedMemory that an initializer attaches"
    cold = (
        "from concurrent.futures import ProcessPoolExecutor",
        """
with ProcessPoolExecutor({workers}) as pool:
    result = list(pool.map(np.sum, rows, chunksize=4))
    done(result)
""",
    )

    def refuses(self, job: Job) -> str | None:
        """Refuse to copy in: `mp.Pool` has the same idiom."""
        return "the same as mp.Pool" if job.kind == "copy" else None

    def start(self) -> None:
        """Start workers that attach the segments."""
        self.pool = ProcessPoolExecutor(self.workers, **self.initializer())

    def stop(self) -> None:
        """Shut down the workers."""
        self.pool.shutdown()

    def map(self, func: Callable[..., Any], tasks: Sequence[Any]) -> list[Any]:
        """Call `map` with batches of a quarter of a worker's share."""
        size = max(1, len(tasks) // (4 * self.workers))
        return list(self.pool.map(func, tasks, chunksize=size))
