"""Runs and calls that share workers: a wait, an interrupt or a death of the one harms no other."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.ipc.protocol import WorkerLost
from tests.pools import wait_for_workers
from tests.work.concurrent import Gate, wait_at_gate
from tests.work.loading import Fatal

BOUND = 30.0  # seconds after which a wait counts as a hang
X = np.arange(8.0)


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[list[Gate]]:
    """Two gates, in the folders ``0`` and ``1``."""
    made = []
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        made.append(Gate(tmp_path / name))
    yield made
    for one in made:
        one.close()


@pytest.fixture
def two() -> Iterator[shmpar.Pool]:
    """Two worker processes, which are up."""
    with shmpar.Pool(2) as pool:
        wait_for_workers(pool)
        yield pool


@pytest.fixture(params=["threads", "processes"])
def either(request: pytest.FixtureRequest) -> Iterator[shmpar.Pool]:
    """Two workers of an engine, which are up."""
    with shmpar.Pool(2, engine=request.param) as pool:
        wait_for_workers(pool)
        yield pool


def test_a_run_does_not_wait_for_a_long_call(
    either: shmpar.Pool, gates: list[Gate], tmp_path: Path
) -> None:
    """A call may take long, or wait for a run: the other worker computes all chunks."""
    call = either.submit(wait_at_gate, str(tmp_path / "0"), 3)
    gates[0].wait_for_worker()
    try:
        for _ in range(3):
            run = either.map_blocks(np.negative, X, chunks=2, wait=False)
            assert run.result(BOUND).tolist() == (-X).tolist()
        assert not call.done()
    finally:
        gates[0].open()
    assert call.result(BOUND) == 3


def interrupt_a_run(pool: shmpar.Pool, gate: Gate, folder: Path) -> None:
    """Interrupt a call whose only chunk waits at a gate for ever."""

    def press() -> None:
        gate.wait_for_worker()
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        pool.map_blocks(functools.partial(wait_at_gate, str(folder)), X[:2], chunks=2)
    presser.join()


def test_an_interrupt_ends_no_call_of_another_thread(
    two: shmpar.Pool, gates: list[Gate], tmp_path: Path
) -> None:
    """The worker that makes the call had the plan of the run too, and goes on with the call."""
    log = tmp_path / "log"

    def call() -> Any:
        with log.open("a") as file:
            file.write("begun\n")
        return wait_at_gate(str(tmp_path / "0"), 3)

    future = two.submit(call)
    gates[0].wait_for_worker()
    interrupt_a_run(two, gates[1], tmp_path / "1")
    gates[0].open()
    assert future.result(BOUND) == 3
    assert log.read_text() == "begun\n"
    assert two.map_blocks(np.negative, X, chunks=2).tolist() == (-X).tolist()


def test_an_interrupt_ends_a_chunk_behind_messages_that_were_not_read(
    gates: list[Gate], tmp_path: Path
) -> None:
    """The worker has ended a call and begun the chunk, while its results before load slowly."""
    parent, folder = os.getpid(), str(tmp_path / "0")

    def load() -> None:
        time.sleep(0.05 * (os.getpid() == parent))

    class Slow:
        def __reduce__(self) -> tuple[Any, ...]:
            return load, ()

    def make(_: int) -> Slow:
        time.sleep(0.012)  # each result is a message of its own
        return Slow()

    with shmpar.Pool(1) as pool:
        wait_for_workers(pool)
        slow, call = pool.parallel_map(make, range(20), wait=False), pool.submit(os.getpid)
        pool._loop.settle()  # Why: the call goes to the worker before the chunk does.
        run = pool.map_blocks(functools.partial(wait_at_gate, folder), X, wait=False)
        gates[0].wait_for_worker()
        pool._loop.cancel(run, 0.1)  # as an interrupt does
        assert run.over.wait(BOUND)
        with pytest.raises(ProcessLookupError):
            os.kill(call.result(BOUND), 0)
        assert slow.result(BOUND) == 20 * [None]


def test_an_interrupt_ends_no_chunk_in_place_of_another_run(
    two: shmpar.Pool, gates: list[Gate], tmp_path: Path
) -> None:
    """A chunk in place could not be computed again."""

    def negate(block: Any) -> Any:
        return -wait_at_gate(str(tmp_path / "0"), block)

    values = two.array(X[:2] + 1)
    other = two.map_blocks(negate, values, out=values, chunks=2, wait=False)
    gates[0].wait_for_worker()
    interrupt_a_run(two, gates[1], tmp_path / "1")
    gates[0].open()
    assert other.result(BOUND).tolist() == [-1, -2]
    assert other.report.deaths == 0


def test_a_function_that_kills_its_workers_fails_alone(
    two: shmpar.Pool, gates: list[Gate], tmp_path: Path
) -> None:
    """Another run, in a long chunk, and calls that wait do not give up with it."""
    wait = functools.partial(wait_at_gate, str(tmp_path / "0"))
    long = two.map_blocks(wait, X[:2], chunks=2, wait=False)
    gates[0].wait_for_worker()
    fatal = two.map_blocks(Fatal(), X, chunks=2, wait=False)
    calls = [two.submit(abs, -number) for number in range(4)]
    with pytest.raises(shmpar.WorkerDied, match="before they take a chunk"):
        fatal.result(BOUND)
    assert [one.result(BOUND) for one in calls] == [0, 1, 2, 3]
    assert not long.done()
    gates[0].open()
    assert long.result(BOUND).tolist() == [0, 1]


def test_workers_that_die_at_once_leave_no_chunk_to_two_others(
    two: shmpar.Pool, tmp_path: Path
) -> None:
    """The successor that a new call starts early gets no plan before the death is known."""
    log = tmp_path / "log"

    def hang_once(item: int) -> int:
        with log.open("a") as file:
            file.write(f"{item}\n")
        if log.read_text().split().count(str(item)) == 1:
            signal.pause()
        return item

    run = two.parallel_map(hang_once, range(2), wait=False)
    while not log.exists() or len(log.read_text().split()) < 2:
        threading.Event().wait(0.01)
    engine: Any = two._loop.engine
    wait, blocked, go = engine.wait, threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go.wait(BOUND)

    two._loop._post(block)
    assert blocked.wait(BOUND)
    for pid in engine.pids():
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        calls = []

        def wait_and_submit(timeout: float | None) -> Any:
            events = wait(timeout)
            if [type(one) for one in events].count(WorkerLost) == 2:
                del engine.wait
                calls.append(thread.submit(two.submit, abs, -1).result(BOUND))
            return events

        engine.wait = wait_and_submit
        go.set()
        assert run.result(BOUND) == [0, 1]
    assert [one.result(BOUND) for one in calls] == [1]
    wait_for_workers(two)
    assert sorted(log.read_text().split()) == ["0", "0", "1", "1"]


def test_the_memory_of_a_pool_may_be_asked_for_at_any_time() -> None:
    """A thread that looks at the arrays does not meet one that is being made."""
    done = threading.Event()
    interval = sys.getswitchinterval()

    def look(pool: shmpar.Pool) -> int:
        looks = 0
        while not done.is_set():
            looks += len(pool.memory) >= 0
        return looks

    with shmpar.Pool(1, engine="serial") as pool:
        arrays = [pool.array(X) for _ in range(300)]
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            looking = thread.submit(look, pool)
            try:
                sys.setswitchinterval(1e-6)
                for _ in range(2_000):
                    arrays.append(pool.array(X))
                    del arrays[0]
            finally:
                sys.setswitchinterval(interval)
                done.set()
            assert looking.result(BOUND) > 0


# Calls behind a chunk


def call_behind(pool: shmpar.Pool, *args: Any) -> Any:
    """Submit a call; return its future when a worker, which is in a chunk, has it."""
    call: Any = pool.submit(*args)
    while call.worker is None:
        threading.Event().wait(0.01)
    return call


def test_a_call_behind_a_chunk_runs_elsewhere(
    either: shmpar.Pool, gates: list[Gate], tmp_path: Path
) -> None:
    """A worker that has nothing to do makes a call that waits behind a long chunk."""
    runs = []
    for number in range(2):
        wait = functools.partial(wait_at_gate, str(tmp_path / str(number)))
        runs.append(either.map_blocks(wait, X[:2], chunks=2, wait=False))
        gates[number].wait_for_worker()
    # The worker of the first run has the plan of the second too, and so more to do.
    call = call_behind(either, abs, -1)
    gates[0].open()
    try:
        assert call.result(BOUND) == 1
        assert not runs[1].done()
    finally:
        gates[1].open()
    assert [run.result(BOUND).tolist() for run in runs] == [[0, 1], [0, 1]]
