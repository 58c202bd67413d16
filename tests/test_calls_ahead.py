"""A worker that has a call is sent its next one ahead: order, cancel, faults."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import shmpar
from tests.work.calls_ahead import note, read

BOUND = 60


@pytest.fixture(scope="module")
def two() -> Iterator[shmpar.Pool]:
    """Two worker processes."""
    with shmpar.Pool(2) as pool:
        seen: set[int] = set()
        while len(seen) < 2:  # until both have started
            seen.update([one.result(BOUND) for one in [pool.submit(os.getpid) for _ in range(4)]])
        yield pool


@pytest.fixture
def fifos(tmp_path: Path) -> list[str]:
    """Named pipes: a function that reads one waits until the test writes."""
    names = [str(tmp_path / f"{number}") for number in range(4)]
    for name in names:
        os.mkfifo(name)
    return names


def wait_until_ahead(future: concurrent.futures.Future[int]) -> None:
    """Return when a worker has the call ahead."""
    while future.withdraw is None:  # type: ignore[attr-defined]
        assert not future.running()


def test_a_call_ahead_can_be_cancelled(fifos: list[str], tmp_path: Path) -> None:
    """A cancelled call is never made, although a worker had it already."""
    path = str(tmp_path / "log")
    with shmpar.Pool(1) as pool:
        slow, ahead, behind = (
            pool.submit(read, fifos[0]),
            pool.submit(note, path),
            pool.submit(abs, -1),
        )
        wait_until_ahead(ahead)
        assert not ahead.running()
        assert ahead.cancel()
        assert ahead.cancelled()
        assert ahead.cancel()
        os.close(os.open(fifos[0], os.O_WRONLY))
        assert behind.result(BOUND) == 1
        slow.result(BOUND)
    assert not os.path.exists(path)


def test_a_call_ahead_runs_elsewhere(two: shmpar.Pool, fifos: list[str]) -> None:
    """A free worker makes a call that waits behind a long one, which may wait for it."""
    first, second = two.submit(read, fifos[0]), two.submit(read, fifos[1])
    calls = [two.submit(os.getpid) for _ in range(2)]
    for call in calls:
        wait_until_ahead(call)
    os.close(os.open(fifos[1], os.O_WRONLY))
    pid = second.result(BOUND)
    assert [call.result(BOUND) for call in calls] == [pid, pid]
    os.close(os.open(fifos[0], os.O_WRONLY))
    assert first.result(BOUND) != pid


def test_a_call_ahead_of_a_dead_worker_is_innocent(fifos: list[str], tmp_path: Path) -> None:
    """The call in progress is blamed. The next one had not begun, and is made once elsewhere."""
    path = str(tmp_path / "log")
    with shmpar.Pool(1, retries=0) as pool:
        slow, ahead = pool.submit(read, fifos[0]), pool.submit(note, path)
        wait_until_ahead(ahead)
        writer = os.open(fifos[0], os.O_WRONLY)
        (pid,) = pool._loop.engine.pids()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(shmpar.WorkerDied):
            slow.result(BOUND)
        assert ahead.result(BOUND) != pid
        os.close(writer)
    assert Path(path).read_text() == "made\n"


def test_a_shutdown_cancels_a_call_ahead(fifos: list[str]) -> None:
    """cancel_futures= cancels each call that no worker has begun."""
    pool = shmpar.Pool(1)
    slow, ahead = pool.submit(read, fifos[0]), pool.submit(abs, -1)
    wait_until_ahead(ahead)
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(concurrent.futures.CancelledError):
        ahead.result(BOUND)
    os.close(os.open(fifos[0], os.O_WRONLY))
    slow.result(BOUND)
    pool.shutdown()


@pytest.mark.parametrize("engine", ["processes", "threads"])
def test_a_call_behind_a_chunk_can_be_cancelled(engine: str, fifos: list[str]) -> None:
    """It waits at a worker that has not begun it, so cancel() and cancel_futures= cancel it."""
    pool = shmpar.Pool(1, engine=engine)
    pool.parallel_map(read, fifos[:1], wait=False)
    writer = os.open(fifos[0], os.O_WRONLY)  # Opening waits until the chunk has begun.
    first = pool.submit(abs, -1)
    wait_until_ahead(first)
    assert first.cancel()
    second = pool.submit(abs, -2)
    wait_until_ahead(second)
    pool.shutdown(wait=False, cancel_futures=True)
    os.close(writer)
    pool.shutdown()
    assert [first.cancelled(), second.cancelled()] == [True, True]


def test_calls_are_made_once_when_they_are_cancelled_at_random(
    two: shmpar.Pool, tmp_path: Path
) -> None:
    """A call is either cancelled or made, whenever the cancel comes."""
    path = str(tmp_path / "log")
    for _ in range(20):
        futures = [two.submit(note, path) for _ in range(20)]
        for future in futures[::3]:
            future.cancel()
        made = [one for one in futures if not one.cancelled()]
        concurrent.futures.wait(made, BOUND)
        assert all(one.exception() is None for one in made)
        assert Path(path).read_text().count("made") == len(made)
        os.truncate(path, 0)


def test_the_environment_of_a_withdrawn_call_is_that_of_the_next(
    fifos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is in the directory of its caller, also after a withdrawn call brought it."""
    with shmpar.Pool(1) as pool:
        slow = pool.submit(read, fifos[0])
        monkeypatch.chdir(tmp_path)
        ahead, behind = pool.submit(abs, -1), pool.submit(os.getcwd)
        wait_until_ahead(ahead)
        assert ahead.cancel()
        os.close(os.open(fifos[0], os.O_WRONLY))
        slow.result(BOUND)
        assert behind.result(BOUND) == str(tmp_path)


def test_a_worker_with_a_task_limit_leaves_its_next_call(tmp_path: Path) -> None:
    """A worker that exits after each call makes no call twice and loses none."""
    path = str(tmp_path / "log")
    with shmpar.Pool(2, max_tasks_per_worker=1, retries=0) as pool:
        futures = [pool.submit(note, path) for _ in range(6)]
        assert len({future.result(BOUND) for future in futures}) == 6
    assert Path(path).read_text().count("made") == 6


def test_arguments_are_those_of_the_moment_of_the_call(two: shmpar.Pool) -> None:
    """Plain arguments are pickled at once, as all others are."""
    futures, items = [], [0]
    for number in range(50):
        items[0] = number
        futures.append(two.submit(tuple, items))
    assert [future.result(BOUND) for future in futures] == [(number,) for number in range(50)]


def test_a_changed_global_is_used_by_the_next_call(two: shmpar.Pool) -> None:
    """The pickle of a function is used again only while all that it reaches is the same."""
    space = {"__name__": "__main__", "time": time}
    exec("def f(x):\n    return K * x", space)  # noqa: S102 - a function with globals of its own
    found = []
    for value in (2, 3, 3, 4):
        space["K"] = value
        found.append(two.submit(space["f"], 10).result(BOUND))
    assert found == [20, 30, 30, 40]
