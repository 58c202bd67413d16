"""Workers share the memory of a captured array, and each function call may write to its copy."""

from __future__ import annotations

import contextlib
import os
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

SIZE = 40_000_000  # bytes
LITTLE = SIZE // 10
WORKERS = 2

# Why: functions of a module that cannot be imported are pickled by value with their globals.
SOURCE = """
import os

def private_bytes():
    # Bytes that only this process uses; a page of a file counts after it was written.
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("Anonymous:"))

def measure(array):
    # Why: the array is read first, so that its pages count.
    return os.getpid(), float(array.sum()), private_bytes()

def from_closure(array):
    return lambda row: measure(array)

def from_global(row):
    return measure(table)

def from_keyword(row, array):
    return measure(array)

def copying(row):
    copy = table.copy()
    return measure(copy)

def writing(row):
    before = float(table[0]), float(table[-1])
    table[0] = table[-1] = -1.0
    return before, (float(table[0]), float(table[-1])), private_bytes()
"""


@pytest.fixture(scope="module")
def warm_pool() -> Iterator[shmpar.Pool]:
    """A pool whose workers start before the first test."""
    with shmpar.Pool(WORKERS) as made:
        wait_for_workers(made)
        yield made


@pytest.fixture
def pool(warm_pool: shmpar.Pool, nothing_left: None) -> Iterator[shmpar.Pool]:
    """The pool of the module; its caches are dropped after the test."""
    yield warm_pool
    drop_caches(warm_pool)


@pytest.fixture
def notebook() -> dict[str, Any]:
    """Globals of a notebook, with a table of 40 MB."""
    made: dict[str, Any] = {"__name__": "notebook_of_a_test", "table": np.ones(SIZE // 8)}
    exec(SOURCE, made)  # noqa: S102 - as a notebook cell does
    return made


def each_worker(call: Callable[[], Any]) -> dict[int, tuple[float, int]]:
    """Make calls until each worker has returned a measurement; return these by pid."""
    measured: dict[int, tuple[float, int]] = {}
    while len(measured) < WORKERS:
        measured.update({pid: (total, private) for pid, total, private in call()})
    return measured


@contextlib.contextmanager
def all_busy(pool: shmpar.Pool) -> Iterator[None]:
    """Keep every worker busy until the end of the block."""
    reading, writing = os.pipe()
    path = f"/proc/{os.getpid()}/fd/{reading}"

    def wait_for_end() -> None:
        with open(path, "rb") as pipe:
            pipe.read()

    futures = [pool.submit(wait_for_end) for _ in range(WORKERS)]
    try:
        yield
    finally:
        os.close(writing)
        for future in futures:
            future.result(timeout=60)
        os.close(reading)


def captured(way: str, notebook: dict[str, Any], pool: shmpar.Pool, table: Any) -> Any:
    """Call a function that captures the table in the given way."""
    if way == "arguments of submit":
        with all_busy(pool):  # Why: one worker may be quicker than this process submits.
            futures = [pool.submit(notebook["measure"], table) for _ in range(8)]
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
    """A function that has read the whole array does not increase the private memory of a worker."""
    table = notebook["table"]
    before = each_worker(lambda: captured(way, notebook, pool, np.ones(1)))
    during = each_worker(lambda: captured(way, notebook, pool, table))
    assert before.keys() == during.keys()
    for pid, (total, private) in during.items():
        assert total == SIZE // 8
        assert private - before[pid][1] < LITTLE


def test_a_worker_without_a_ticket_releases_the_input(tmp_path: Path) -> None:
    """A worker that received a plan after the last ticket was claimed unmaps its input."""
    go_on = tmp_path / "go-on"

    def waits(block: Any) -> Any:
        while not go_on.exists():
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
        deadline = time.monotonic() + 30
        while not all(map(mapped, pids)) and time.monotonic() < deadline:
            time.sleep(0.001)
        go_on.touch()
        assert run.result(60)[0] == SIZE // 80
        pool._last_run = run = None
        wait_for_workers(pool)  # each worker has received the message to forget the input
        assert not any(map(mapped, pids))


def test_the_measurement_finds_a_copy(pool: shmpar.Pool, notebook: dict[str, Any]) -> None:
    """The private memory grows by the size of the array if the function copies it."""
    way, table = "copied by the function", notebook["table"]
    before = each_worker(lambda: captured(way, notebook, pool, np.ones(1)))
    during = each_worker(lambda: captured(way, notebook, pool, table))
    for pid, (_, private) in during.items():
        assert private - before[pid][1] > SIZE - LITTLE


def test_writes_to_a_captured_array_stay_private(
    pool: shmpar.Pool, notebook: dict[str, Any]
) -> None:
    """Neither the parent, nor another worker, nor a later call sees the values.

    Only the written pages are copied.  All chunks of a call in a worker share the array, as they
    share any object that the function captures.
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
        assert max(row[2] for row in rows) - max(private for _, private in before.values()) < LITTLE
        assert (table[0], table[-1]) == ends
        np.testing.assert_array_equal(table, np.arange(SIZE // 8))
