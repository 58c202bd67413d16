"""A thread pool of the standard library over a plain array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.peers import hand
from benchmarks.peers.systems.system import HandMade


class This(HandMade):
    """Shares everything for nothing, the interpreter lock too."""

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
        """Threads see the arrays as they are."""
        hand.attach(self.job, self.workers, self.arrays)
        self.pool = ThreadPoolExecutor(self.workers)

    def stop(self) -> None:
        """Join them."""
        self.pool.shutdown()

    def map(self, func: Callable[..., Any], tasks: Sequence[Any]) -> list[Any]:
        """A task each."""
        return list(self.pool.map(func, tasks))
