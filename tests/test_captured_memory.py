"""A large array that a function has captured lies in memory once, and is the function's own."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.pools import drop_caches, wait_for_workers

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="memory is read from /proc"
)

SIZE = 80_000_000  # bytes
LITTLE = SIZE // 20
WORKERS = 2

# What these make travels by value, with its globals: there is no such module to import.
SOURCE = """
import os

def own():
    # Bytes that this process shares with nobody: a page of a file counts once it has been written.
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("Anonymous:"))

def told(array):
    # The array is read before the memory is.
    return os.getpid(), float(array.sum()), own()

def from_closure(array):
    return lambda row: told(array)

def from_global(row):
    return told(table)

def from_keyword(row, array):
    return told(array)

def copying(row):
    copy = table.copy()
    return told(copy)

def writing(row):
    before = float(table[0]), float(table[-1])
    table[0] = table[-1] = -1.0
    return before, (float(table[0]), float(table[-1])), own()
"""


@pytest.fixture(scope="module")
def warm_pool() -> Iterator[shmpar.Pool]:
    """A pool whose workers were up before the first test."""
    with shmpar.Pool(WORKERS) as made:
        wait_for_workers(made)
        yield made


@pytest.fixture
def pool(warm_pool: shmpar.Pool, nothing_left: None) -> Iterator[shmpar.Pool]:
    """What it remembers of its runs goes with the test."""
    yield warm_pool
    drop_caches(warm_pool)


@pytest.fixture
def notebook() -> dict[str, Any]:
    """Globals as a notebook has them, with a table of 80 MB."""
    made: dict[str, Any] = {"__name__": "notebook_of_a_test", "table": np.ones(SIZE // 8)}
    exec(SOURCE, made)  # noqa: S102 - as a cell does
    return made


def each_worker(call: Callable[[], Any]) -> dict[int, tuple[float, int]]:
    """What `told` says in each worker: calls are made until all of them have taken part."""
    said: dict[int, tuple[float, int]] = {}
    while len(said) < WORKERS:
        said.update({pid: (total, own) for pid, total, own in call()})
    return said


def captured(way: str, notebook: dict[str, Any], pool: shmpar.Pool, table: Any) -> Any:
    """Call a function that has captured the table in one of the ways there are."""
    if way == "arguments of submit":
        futures = [pool.submit(notebook["told"], table) for _ in range(8)]
        return [future.result(timeout=60) for future in futures]
    notebook["table"] = table
    function, kwargs = {
        "closure": (notebook["from_closure"](table), {}),
        "global": (notebook["from_global"], {}),
        "kwargs": (notebook["from_keyword"], {"array": table}),
        "copied by the function": (notebook["copying"], {}),
    }[way]
    return pool.parallel_map(function, range(8), kwargs=kwargs, dtype=object)


WAYS = ["closure", "global", "kwargs", "arguments of submit"]


@pytest.mark.parametrize("way", WAYS)
def test_a_captured_array_is_not_copied_in_any_worker(
    pool: shmpar.Pool, notebook: dict[str, Any], way: str
) -> None:
    """While the function holds it and has read all of it, a worker's own memory is as before."""
    table = notebook["table"]
    before = each_worker(lambda: captured(way, notebook, pool, np.ones(1)))
    during = each_worker(lambda: captured(way, notebook, pool, table))
    assert before.keys() == during.keys()
    for pid, (total, own) in during.items():
        assert total == SIZE // 8
        assert own - before[pid][1] < LITTLE


def test_a_worker_that_came_too_late_keeps_nothing(tmp_path: Path) -> None:
    """It was sent the plan, and its input, and found no ticket left."""
    other = tmp_path / "other"

    def waits(block: Any) -> Any:
        while not other.exists():
            time.sleep(0.001)
        return block.sum()

    def mapped(pid: int) -> bool:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        sizes = [one.split()[0].split("-") for one in lines if "(deleted)" in one]
        return any(int(end, 16) - int(begin, 16) >= SIZE // 10 for begin, end in sizes)

    with shmpar.Pool(2) as pool:
        wait_for_workers(pool)
        pids = pool._loop.engine.pids()
        run = pool.block_reduce(waits, np.ones(SIZE // 80), chunks=-1, wait=False)
        late = time.monotonic() + 30
        while not all(map(mapped, pids)) and time.monotonic() < late:
            time.sleep(0.001)
        other.touch()
        assert run.result(60)[0] == SIZE // 80
        pool._last_run = run = None
        wait_for_workers(pool)  # each has been told to forget the input
        assert not any(map(mapped, pids))


def test_a_copy_would_be_seen(pool: shmpar.Pool, notebook: dict[str, Any]) -> None:
    """The measure rises by 80 MB in a function that makes a copy itself."""
    way, table = "copied by the function", notebook["table"]
    before = each_worker(lambda: captured(way, notebook, pool, np.ones(1)))
    during = each_worker(lambda: captured(way, notebook, pool, table))
    for pid, (_, own) in during.items():
        assert own - before[pid][1] > SIZE - LITTLE


def test_what_a_function_writes_is_its_own(pool: shmpar.Pool, notebook: dict[str, Any]) -> None:
    """It reaches neither the parent, nor the other worker, nor a later call; two pages are copied.

    Within a call each worker has one copy, as it has when functions are pickled.
    """
    table = notebook["table"]
    before = each_worker(lambda: captured("global", notebook, pool, np.ones(1)))
    notebook["table"] = table
    table[:] = np.arange(SIZE // 8)
    ends = (0.0, SIZE // 8 - 1.0)
    for _ in range(2):
        rows = [list(row) for row in pool.parallel_map(notebook["writing"], range(8), dtype=object)]
        assert [row[0] for row in rows].count(ends) in range(1, WORKERS + 1)
        assert {row[0] for row in rows} <= {ends, (-1.0, -1.0)}
        assert {row[1] for row in rows} == {(-1.0, -1.0)}
        assert max(row[2] for row in rows) - max(own for _, own in before.values()) < LITTLE
        assert (table[0], table[-1]) == ends
        np.testing.assert_array_equal(table, np.arange(SIZE // 8))
