"""Several runs in flight at once share the workers."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.pools import wait_for_workers
from tests.work.concurrent import Gate, wait_at_gate

RUNS = 10


@pytest.fixture(params=["threads", "processes"])
def busy(request: Any, tmp_path: Path) -> Iterator[shmpar.Pool]:
    """A pool of two workers; a chunk occupies one of them for the whole test."""
    gate = Gate(tmp_path)
    wait = functools.partial(wait_at_gate, str(tmp_path))
    with shmpar.Pool(2, engine=request.param) as pool:
        wait_for_workers(pool)
        long = pool.map_blocks(wait, np.arange(2.0), chunks=2, wait=False)
        gate.wait_for_worker()
        yield pool
        assert not long.done()
        gate.open()
        assert long.result(timeout=60).tolist() == [0, 1]
    gate.close()


def test_a_small_run_does_not_wait_for_a_long_chunk_of_another_run(busy: shmpar.Pool) -> None:
    """The free worker computes all chunks of every small run."""
    for _ in range(5):
        assert busy.parallel_map(abs, range(-9, 0)) == list(range(9, 0, -1))


def test_a_run_without_chunks_does_not_wait(busy: shmpar.Pool) -> None:
    """A run without chunks is done at once."""
    assert busy.map_blocks(np.negative, np.empty(0)).shape == (0,)


def test_a_cancelled_run_does_not_wait(busy: shmpar.Pool, tmp_path: Path) -> None:
    """A cancelled run waits only for its own chunks."""
    cancelled = tmp_path / "cancelled"

    def wait(block: Any) -> Any:
        while not cancelled.exists():
            time.sleep(0.001)
        return block

    run = busy.map_blocks(wait, np.zeros(100_000), chunks=2, wait=False)
    assert run.cancel()
    cancelled.touch()
    assert concurrent.futures.wait([run], timeout=60).done == {run}


def test_a_failed_run_does_not_wait(busy: shmpar.Pool) -> None:
    """A failed run waits only for its own chunks."""

    def fail(value: int) -> int:
        raise ValueError(value)

    with pytest.raises(shmpar.ChunkError):
        busy.parallel_map(fail, range(5))


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_ten_concurrent_runs_equal_ten_consecutive_runs(engine: str) -> None:
    """The results do not depend on the order of the chunks."""
    arrays = [np.random.default_rng(seed).normal(size=(50, 40)) for seed in range(RUNS)]

    def work(block: Any) -> Any:
        return np.sqrt(np.abs(block)).cumsum(axis=1)

    with shmpar.Pool(2, engine=engine) as pool:
        runs = [pool.map_blocks(work, array, chunks=(7, 40), wait=False) for array in arrays]
        together = [run.result(timeout=60) for run in runs]
        for array, result in zip(arrays, together, strict=True):
            assert np.array_equal(result, pool.map_blocks(work, array, chunks=(7, 40)))


def test_threads_limit_blas_while_the_pool_is_open() -> None:
    """Each thread of the pool uses one BLAS thread, and the old limit returns afterwards."""
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def limits() -> list[int]:
        return [one["num_threads"] for one in threadpoolctl.threadpool_info()]

    with threadpoolctl.threadpool_limits(2):
        before = limits()
        with shmpar.Pool(2, engine="threads") as pool:
            assert set(pool.submit(limits).result()) <= {1}
        assert limits() == before


def test_a_call_that_waits_for_a_fatal_chunk_is_not_lost(tmp_path: Path) -> None:
    """The next worker makes the call, and the death counts for the chunk."""
    gate, first = Gate(tmp_path), tmp_path / "first"

    def die_once(block: Any) -> Any:
        if not first.exists():
            first.touch()
            wait_at_gate(str(tmp_path), block)
            os._exit(7)
        return -block

    with shmpar.Pool(1, retries=1) as pool:
        run = pool.map_blocks(die_once, np.arange(2.0), chunks=2, wait=False)
        gate.wait_for_worker()
        call = pool.submit(pow, 2, 5)
        gate.open()
        assert call.result(timeout=60) == 32
        assert run.result(timeout=60).tolist() == [0, -1]
    gate.close()


def test_a_chunk_is_not_blamed_for_a_kill_by_another_run(tmp_path: Path) -> None:
    """If a run kills a worker that computes a chunk of another run, that chunk has no death."""
    gate = Gate(tmp_path)
    calls = tmp_path / "calls"

    def wait_once(block: Any) -> Any:
        with calls.open("a") as log:
            log.write("x")
        if calls.stat().st_size == 1:
            wait_at_gate(str(tmp_path), block)
        return -block

    with shmpar.Pool(1, retries=0) as pool:
        wait_for_workers(pool)
        long = pool.map_blocks(wait_once, np.arange(2.0), chunks=2, wait=False)
        gate.wait_for_worker()
        other = pool.map_blocks(np.negative, np.arange(4.0), chunks=2, wait=False)
        pool._loop.settle()  # Why: the pool thread must have begun the run.
        # The same as an interrupt after its grace period.
        pool._loop.engine.kill(0, other.execution.number)
        assert other.result(60).tolist() == [0, -1, -2, -3]
        assert long.result(60).tolist() == [0, -1]
        assert calls.stat().st_size == 2
        assert long.report.deaths == 0
    gate.close()
