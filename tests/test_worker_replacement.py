"""``max_tasks_per_worker`` limits the chunks and calls of a worker, which is then replaced."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np
import pytest

import shmpar


def pids(pool: shmpar.Pool, chunks: int, **options: Any) -> Counter[int]:
    """Count the chunks of a call that each process computes."""
    return Counter(pool.parallel_map(lambda n: os.getpid(), range(chunks), **options))


@pytest.mark.parametrize(("workers", "most"), [(1, 1), (1, 4), (2, 3), (2, 1000)])
def test_no_worker_exceeds_its_number_of_tasks(workers: int, most: int) -> None:
    """The limit holds across runs, which are all complete."""
    counts: Counter[int] = Counter()
    with shmpar.Pool(workers, max_tasks_per_worker=most) as pool:
        for _ in range(2):
            counts += pids(pool, 4)
            assert pool.last_run.report.deaths == 0
    assert sum(counts.values()) == 8
    assert max(counts.values()) <= most
    assert len(counts) >= 8 / most


def test_calls_count_as_tasks() -> None:
    """A call that was sent to a worker after its last task is made by the next worker."""
    with shmpar.Pool(2, max_tasks_per_worker=3) as pool:
        calls = [pool.submit(os.getpid) for _ in range(12)]
        counts = Counter(call.result(60) for call in calls)
    assert sum(counts.values()) == 12
    assert max(counts.values()) <= 3


def test_a_replacement_does_not_count_as_a_death() -> None:
    """No chunk is retried, no run fails, and results of every kind are complete."""
    rows = np.arange(20.0).reshape(10, 2)
    with shmpar.Pool(2, max_tasks_per_worker=5, retries=0) as pool:
        np.testing.assert_array_equal(pool.map_blocks(np.negative, rows, chunks=(1, -1)), -rows)
        found = pool.block_reduce(str, rows, chunks=(1, -1), dtype=object)
        assert found.ravel().tolist() == [str(row[None]) for row in rows]
        runs = [pool.parallel_map(np.sum, rows, wait=False) for _ in range(2)]
        for run in runs:
            np.testing.assert_array_equal(run.result(60), rows.sum(1))
            assert run.report.deaths == 0
        assert len(list(runs[0].completed())) == 10


def test_each_new_worker_calls_the_initializer(tmp_path: Any) -> None:
    """Every process that computes a chunk has called the initializer."""
    log = tmp_path / "log"

    def initialize() -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")

    with shmpar.Pool(1, max_tasks_per_worker=2, initializer=initialize) as pool:
        seen = pids(pool, 8)
    assert set(seen) <= {int(line) for line in log.read_text().split()}
    assert len(seen) == 4


@pytest.mark.parametrize("engine", ["threads", "serial"])
def test_threads_are_not_replaced(engine: str) -> None:
    """The serial engine and the threads accept the argument and ignore it."""
    with shmpar.Pool(2, engine=engine, max_tasks_per_worker=1) as pool:
        assert set(pids(pool, 8)) == {os.getpid()}


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "many"])
def test_an_invalid_number_of_tasks_is_refused(wrong: Any) -> None:
    """Pool() raises an error that names the argument."""
    with pytest.raises((TypeError, ValueError), match="max_tasks_per_worker"):
        shmpar.Pool(2, max_tasks_per_worker=wrong)
