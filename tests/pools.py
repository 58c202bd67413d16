"""Pools that outlive a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import shmpar
from shmpar.memory.segment import Slab

ENGINES = ("serial", "threads", "processes")


@contextmanager
def warm(engine: str, workers: int = 2, **options: Any) -> Iterator[shmpar.Pool]:
    """Open a pool whose workers are up before it is given, for a module's tests."""
    with shmpar.Pool(workers, engine=engine, **options) as pool:
        wait_for_workers(pool)
        let_go(pool)
        yield pool


def let_go(pool: shmpar.Pool) -> None:
    """Drop what a pool keeps from run to run, so that what is left is the test's doing."""
    pool._last_run = None
    engine = pool._loop.engine
    if engine.name == "processes":
        engine._ledgers.clear()
        engine.slab = Slab()


def wait_for_workers(pool: shmpar.Pool) -> None:
    """Run until each worker has taken part in a run."""
    pids: set[int] = set()
    while len(pids) < (pool.n_workers if pool.engine == "processes" else 1):
        pids.update(pool.parallel_map(_pid, range(64), dtype=object))
    pool.submit(_pid, 0).result()  # the serial engine has its pool thread from here on


def _pid(_: int) -> int:
    return os.getpid()
