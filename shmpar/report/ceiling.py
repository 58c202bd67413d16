"""How fast this machine's memory is: a quick measurement, made when it is asked for.

Imports cpus and room.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from shmpar.cpus import affinity_cpus
from shmpar.segment import room

__all__ = ["Ceiling", "measured"]

Array = np.ndarray[Any, Any]

_BYTES = 256 << 20  # of all threads: more than the caches of most machines hold
_ROUNDS = 6


class Ceiling(NamedTuple):
    """Bytes a second that all CPUs together move between memory and themselves.

    Attributes
    ----------
    read, write : float
        When they do nothing else.
    """

    read: float
    write: float

    def of(self, read: int, written: int) -> float:
        """Bytes a second for a mixture of both, each at its own best.

        Examples
        --------
        >>> Ceiling(read=20e9, write=10e9).of(100, 100) / 1e9
        13.3...
        """
        seconds = read / self.read + written / self.write
        return (read + written) / seconds if seconds else self.read


@functools.cache
def measured() -> Ceiling:
    """Measure it; takes about a fifth of a second once a process, and 256 MB for as long.

    Each thread reads, then writes, an array of its own; the best of a few rounds counts.
    """
    threads = affinity_cpus()
    nbytes = min(_BYTES, room.memory() // 8)
    arrays = [np.ones(max(nbytes // threads, 1 << 19), np.uint8) for _ in range(threads)]
    total = sum(array.nbytes for array in arrays)
    read = min(_together(np.max, arrays) for _ in range(_ROUNDS))
    write = min(_together(lambda array: array.fill(2), arrays) for _ in range(_ROUNDS))
    return Ceiling(total / read, total / write)


def _together(work: Callable[[Array], object], arrays: Sequence[Array]) -> float:
    """Seconds in which as many threads as arrays do this with one each."""
    start = threading.Barrier(len(arrays) + 1)

    def one(array: Array) -> None:
        start.wait()
        work(array)

    threads = [threading.Thread(target=one, args=(array,)) for array in arrays]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began
