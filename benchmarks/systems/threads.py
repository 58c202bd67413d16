"""A thread pool of the standard library over a plain array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.systems import HandMade, set_arrays


class Implementation(HandMade):
    """Threads share all memory at no cost, and the interpreter lock too."""

    title = "threads"
    about = "concurrent.futures.ThreadPoolExecutor.map over a plain array"
    cold = (
        "from concurrent.futures import ThreadPoolExecutor",
        """
with ThreadPoolExecutor({workers}) as pool:
    result = list(pool.map(np.sum, rows))
    done(result)
""",
    )

    def start(self) -> None:
        """Start threads, which see the arrays as they are."""
        set_arrays(self.job, self.workers, self.arrays)
        self.pool = ThreadPoolExecutor(self.workers)

    def stop(self) -> None:
        """Join the threads."""
        self.pool.shutdown()

    def map(self, func: Callable[..., Any], tasks: Sequence[Any]) -> list[Any]:
        """Submit a task for each call."""
        return list(self.pool.map(func, tasks))
