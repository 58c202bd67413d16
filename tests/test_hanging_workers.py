"""Workers that hang, are stopped, or never start are replaced or reported."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar

X = np.arange(100.0).reshape(10, 10)
HANGS = (
    "signal.pause()",
    "re.match('(a+)+$', 'a' * 40 + 'b')",
    "os.kill(os.getpid(), signal.SIGSTOP)",
)


@pytest.fixture
def pool() -> Iterator[shmpar.Pool]:
    # Why so long: it is a limit of the chunks that do not hang too.
    with shmpar.Pool(2, task_timeout=1) as made:
        made.parallel_map(abs, range(9))
        yield made


def hang_in_chunk_6(how: str, once: Path | None = None) -> Any:
    """Make a function that hangs in chunk 6 of X in chunks of 2 x 2, each time or once."""

    def work(block: Any) -> Any:
        if block.flat[0] == 22 and not (once and once.exists()):
            if once:
                once.touch()
            eval(how, {"os": os, "re": re, "signal": signal})  # noqa: S307
        return -block

    return work


@pytest.mark.parametrize("how", HANGS, ids=["python", "gil", "stopped"])
def test_a_worker_that_hangs_once_is_replaced(pool: shmpar.Pool, how: str, tmp_path: Path) -> None:
    """After task_timeout another worker computes the chunk again."""
    got = pool.map_blocks(hang_in_chunk_6(how, tmp_path / "once"), X, chunks=2)
    np.testing.assert_array_equal(got, -X)
    assert pool.last_run.report.deaths == 1
    np.testing.assert_array_equal(pool.map_blocks(np.negative, X, chunks=2), -X)


def test_a_chunk_that_always_hangs_is_a_timeout(pool: shmpar.Pool) -> None:
    """TaskTimeout names the chunk under each value of on_error."""
    work = hang_in_chunk_6(HANGS[2])
    with pytest.raises(shmpar.TaskTimeout) as caught:
        pool.map_blocks(work, X, chunks=2, retries=0)
    assert (caught.value.chunk, caught.value.region) == (6, (slice(2, 4), slice(2, 4)))
    del caught
    out = np.zeros_like(X)
    with pytest.raises(ExceptionGroup) as group:
        pool.map_blocks(work, X, chunks=2, on_error="collect", retries=1, out=out)
    assert [(type(one), one.chunk) for one in group.value.exceptions] == [(shmpar.TaskTimeout, 6)]
    del group
    expected = -X
    expected[2:4, 2:4] = 0
    np.testing.assert_array_equal(out, expected)
    with pytest.warns(RuntimeWarning, match="took longer than task_timeout"):
        got = pool.map_blocks(work, X, chunks=2, on_error="fill", retries=0)
    expected[2:4, 2:4] = np.nan
    np.testing.assert_array_equal(got, expected)
    assert [type(one) for one in pool.last_run.failed] == [shmpar.TaskTimeout]


def test_a_stopped_idle_worker_delays_no_run(pool: shmpar.Pool) -> None:
    """The other worker computes all chunks, and the pool closes."""
    os.kill(pool._loop.engine.pids()[0], signal.SIGSTOP)
    for _ in range(3):
        np.testing.assert_array_equal(pool.map_blocks(np.negative, X, chunks=2), -X)


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"env": {"PYTHONHOME": "/nonexistent"}}, "status 1"),
        ({"initializer": os._exit, "initargs": (5,)}, "status 5"),
        pytest.param(
            {"initializer": os.kill, "initargs": (0, signal.SIGKILL)},
            "SIGKILL",
            marks=pytest.mark.stress,
        ),
    ],
    ids=["no library", "initializer exits", "initializer is killed"],
)
def test_workers_that_never_start_are_an_error(options: Any, status: str) -> None:
    """Every run and every call raises WorkerDied, and none waits for ever."""
    with shmpar.Pool(1, **options) as pool:
        with pytest.raises(shmpar.WorkerDied, match=status):
            pool.map_blocks(np.negative, X)
        with pytest.raises(shmpar.WorkerDied, match=status):
            pool.submit(abs, -1).result(60)


def test_a_worker_that_dies_in_its_initializer_is_replaced(tmp_path: Path) -> None:
    """The pool works if the initializer of the next worker succeeds."""
    once = tmp_path / "once"

    def initialize() -> None:
        try:
            once.touch(exist_ok=False)
        except FileExistsError:
            return
        os._exit(5)

    with shmpar.Pool(1, initializer=initialize) as pool:
        np.testing.assert_array_equal(pool.map_blocks(np.negative, X, chunks=2), -X)
        assert pool.submit(abs, -1).result(60) == 1


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_sys_exit_in_an_initializer_is_a_failure(engine: str) -> None:
    """Every run and every call raises an error with the exit message."""
    with shmpar.Pool(1, engine=engine, initializer=sys.exit, initargs=("no licence",)) as pool:
        for _ in range(2):
            with pytest.raises(shmpar.ShmparError, match=r"initializer failed: .*no licence"):
                pool.map_blocks(np.negative, X)
            with pytest.raises(shmpar.ShmparError, match=r"initializer failed: .*no licence"):
                pool.submit(abs, -1).result(60)
        pool._last_run = None


def test_a_file_that_cannot_be_executed_is_an_error_at_once(tmp_path: Path) -> None:
    """Pool() raises the error of the operating system and leaves nothing."""
    python = tmp_path / "python"
    python.write_text("no program")
    with pytest.raises(PermissionError):
        shmpar.Pool(2, python=str(python))
    python.chmod(0o700)
    with pytest.raises(OSError, match="Exec format"):
        shmpar.Pool(2, python=str(python))
