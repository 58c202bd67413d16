"""Pools that are shared by the tests of a module."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import shmpar
from shmpar.memory.segment import Slab

ENGINES = ("serial", "threads", "processes")


@contextmanager
def warm(engine: str, workers: int = 2, **options: Any) -> Iterator[shmpar.Pool]:
    """Open a pool for the tests of a module, and start its workers before the block."""
    with shmpar.Pool(workers, engine=engine, **options) as pool:
        wait_for_workers(pool)
        drop_caches(pool)
        yield pool


def drop_caches(pool: shmpar.Pool) -> None:
    """Release the memory that a pool reuses, so that it does not count as a leak of the test."""
    pool._last_run = None
    engine = pool._loop.engine
    if engine.name == "processes":
        engine._ledgers.clear()
        engine.slab = Slab()
    elif engine.name == "threads":
        # Why: a run that fails does not wait for a thread that still opens its inputs.
        all_here = threading.Barrier(pool.n_workers)
        for call in [pool.submit(all_here.wait, 20) for _ in range(pool.n_workers)]:
            call.exception(20)


def wait_for_workers(pool: shmpar.Pool) -> None:
    """Make calls until each worker has taken part in one."""
    pids: set[int] = set()
    while len(pids) < (pool.n_workers if pool.engine == "processes" else 1):
        pids.update(pool.parallel_map(_pid, range(64), dtype=object))
    pool.submit(_pid, 0).result()  # Why: the serial engine starts its pool thread with this call


def _pid(_: int) -> int:
    return os.getpid()
