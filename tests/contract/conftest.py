"""Pools of every engine, kept for the module."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

import shmpar

ENGINES = ("serial", "threads", "processes")


@pytest.fixture
def pool(warm_pool: shmpar.Pool) -> Iterator[shmpar.Pool]:
    """The pool of the module; what it remembers of its latest run goes with the test."""
    yield warm_pool
    warm_pool._last_run = None


@pytest.fixture(scope="module", params=ENGINES)
def warm_pool(request: pytest.FixtureRequest) -> Iterator[shmpar.Pool]:
    """A pool whose workers were up before the first test."""
    with shmpar.Pool(2, engine=request.param) as made:
        wait_for_workers(made)
        runs = [made.parallel_map(_pid, range(9), wait=False) for _ in range(4)]
        assert all(run.result(timeout=60) is not None for run in runs)
        made._last_run = None
        yield made


def wait_for_workers(pool: shmpar.Pool) -> None:
    """Run until each worker has taken part in a run."""
    pids: set[int] = set()
    while len(pids) < (pool.n_workers if pool.engine == "processes" else 1):
        pids.update(pool.parallel_map(_pid, range(64), dtype=object))


def _pid(_: int) -> int:
    return os.getpid()


@pytest.fixture
def image() -> np.ndarray:
    """An array of two axes with ragged edges under most chunks."""
    return np.random.default_rng(7).normal(size=(37, 23))
