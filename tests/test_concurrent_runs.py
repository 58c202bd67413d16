"""Several runs in flight at once share the workers."""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.pools import wait_for_workers

RUNS = 10


class Gate:
    """What `_wait` waits for in a worker."""

    def __init__(self, folder: Path) -> None:
        paths = folder / "begun", folder / "go"
        for path in paths:
            os.mkfifo(path)
        # Open at both ends, so that nobody waits for the other end to be opened.
        self._begun, self._go = (os.open(path, os.O_RDWR) for path in paths)

    def until_begun(self) -> None:
        """Return when a worker waits."""
        os.read(self._begun, 1)

    def open(self) -> None:
        """Let it through."""
        os.write(self._go, b"!")

    def close(self) -> None:
        """Close our ends."""
        os.close(self._begun)
        os.close(self._go)


def _wait(folder: str, block: Any) -> Any:
    begun, go = (os.open(f"{folder}/{name}", os.O_RDWR) for name in ("begun", "go"))
    os.write(begun, b"!")
    os.read(go, 1)
    os.close(begun)
    os.close(go)
    return block


@pytest.fixture(params=["threads", "processes"])
def busy(request: Any, tmp_path: Path) -> Iterator[shmpar.Pool]:
    """A pool of two workers, one of which is in a chunk that lasts as long as the test."""
    gate = Gate(tmp_path)
    wait = functools.partial(_wait, str(tmp_path))
    with shmpar.Pool(2, engine=request.param) as pool:
        wait_for_workers(pool)
        long = pool.map_blocks(wait, np.arange(2.0), chunks=2, wait=False)
        gate.until_begun()
        yield pool
        assert not long.done()
        gate.open()
        assert long.result(timeout=60).tolist() == [0, 1]
    gate.close()


def test_a_small_run_does_not_wait_for_the_long_chunk_of_another(busy: shmpar.Pool) -> None:
    """One worker does all of it; there are more than the other one is sent ahead."""
    for _ in range(5):
        assert busy.parallel_map(abs, range(-9, 0)).tolist() == list(range(9, 0, -1))


def test_a_run_without_chunks_does_not_wait(busy: shmpar.Pool) -> None:
    """There is nothing to wait for."""
    assert busy.map_blocks(np.negative, np.empty(0)).shape == (0,)


def test_a_run_that_is_cancelled_does_not_wait(busy: shmpar.Pool) -> None:
    """It is done when its own chunks are."""
    run = busy.map_blocks(lambda block: block, np.zeros(100_000), chunks=1, wait=False)
    assert run.cancel()
    assert concurrent.futures.wait([run], timeout=60).done == {run}


def test_a_run_that_fails_does_not_wait(busy: shmpar.Pool) -> None:
    """Its error comes when its own chunks are done."""

    def fail(value: int) -> int:
        raise ValueError(value)

    with pytest.raises(shmpar.ChunkError):
        busy.parallel_map(fail, range(5))


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_ten_at_once_give_what_they_give_one_after_another(engine: str) -> None:
    """Whatever order their chunks are computed in."""
    arrays = [np.random.default_rng(seed).normal(size=(50, 40)) for seed in range(RUNS)]

    def work(block: Any) -> Any:
        return np.sqrt(np.abs(block)).cumsum(axis=1)

    with shmpar.Pool(2, engine=engine) as pool:
        runs = [pool.map_blocks(work, array, chunks=(7, 40), wait=False) for array in arrays]
        together = [run.result(timeout=60) for run in runs]
        for array, result in zip(arrays, together, strict=True):
            assert np.array_equal(result, pool.map_blocks(work, array, chunks=(7, 40)))


def test_threads_cap_blas_while_the_pool_is_open() -> None:
    """Else each of them would start as many threads as there are processors."""
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def caps() -> list[int]:
        return [one["num_threads"] for one in threadpoolctl.threadpool_info()]

    with threadpoolctl.threadpool_limits(2):
        before = caps()
        with shmpar.Pool(2, engine="threads") as pool:
            assert set(pool.submit(caps).result()) <= {1}
        assert caps() == before


def test_a_call_behind_a_chunk_that_ends_the_worker_is_made_by_the_next(tmp_path: Path) -> None:
    """The death is the chunk's fault; the call is not lost with the worker that had both."""
    gate, first = Gate(tmp_path), tmp_path / "first"

    def die_once(block: Any) -> Any:
        if not first.exists():
            first.touch()
            _wait(str(tmp_path), block)
            os._exit(7)
        return -block

    with shmpar.Pool(1, retries=1) as pool:
        run = pool.map_blocks(die_once, np.arange(2.0), chunks=2, wait=False)
        gate.until_begun()
        call = pool.submit(pow, 2, 5)
        gate.open()
        assert call.result(timeout=60) == 32
        assert run.result(timeout=60).tolist() == [0, -1]
    gate.close()


def test_a_chunk_is_not_blamed_for_the_end_of_another_run(tmp_path: Path) -> None:
    """A worker that is ended for one run's sake may have a chunk of another: that is no death."""
    gate = Gate(tmp_path)
    calls = tmp_path / "calls"

    def patient(block: Any) -> Any:
        with calls.open("a") as log:
            log.write("x")
        if calls.stat().st_size == 1:
            _wait(str(tmp_path), block)
        return -block

    with shmpar.Pool(1, retries=0) as pool:
        wait_for_workers(pool)
        long = pool.map_blocks(patient, np.arange(2.0), chunks=2, wait=False)
        gate.until_begun()
        other = pool.map_blocks(np.negative, np.arange(4.0), chunks=2, wait=False)
        # As an interrupt does whose grace is over.
        pool._loop.engine.kill(0, other.execution.number)
        assert other.result(60).tolist() == [0, -1, -2, -3]
        assert long.result(60).tolist() == [0, -1]
        assert calls.stat().st_size == 2
        assert long.report.deaths == 0
    gate.close()
