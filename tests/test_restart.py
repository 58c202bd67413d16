"""`Pool.restart` replaces the workers, and loses no work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

import shmpar
from tests.pools import ENGINES


def pids(pool: shmpar.Pool) -> set[int]:
    """Return the processes that compute a run."""
    return set(pool.block_reduce(lambda _: os.getpid(), np.arange(200.0), chunks=1).tolist())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_workers_are_new(engine: str) -> None:
    """Runs and calls after it are computed by other processes; threads stay."""
    with shmpar.Pool(2, engine=engine) as pool:
        before = pids(pool)
        pool.restart()
        call = pool.submit(os.getpid)
        after = pids(pool) | {call.result()}
    if engine == "processes":
        assert not before & after
    else:
        assert after == before == {os.getpid()}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_idle_pool_closes_after_it(engine: str) -> None:
    """Nothing is left of workers that were to exit."""
    with shmpar.Pool(2, engine=engine) as pool:
        pool.submit(abs, -1).result()
        pool.restart()


def test_work_in_flight_is_finished() -> None:
    """Runs and calls that were begun before it have their results."""
    with shmpar.Pool(2) as pool:
        rows = np.arange(400.0)[:, None]
        for _ in range(5):
            run = pool.parallel_map(np.sum, rows, wait=False)
            calls = [pool.submit(pow, number, 2) for number in range(20)]
            pool.restart()
            pool.restart()
            more = pool.parallel_map(np.sum, rows, wait=False)
            assert run.result().tolist() == more.result().tolist() == rows[:, 0].tolist()
            assert [call.result() for call in calls] == [number**2 for number in range(20)]


def test_an_initializer_gets_another_chance(tmp_path: Path) -> None:
    """A pool that is broken works again after a restart."""
    ready = tmp_path / "ready"

    def initialize() -> None:
        if not ready.exists():
            raise OSError("not ready")

    with shmpar.Pool(1, initializer=initialize) as pool:
        with pytest.raises(shmpar.ShmparError, match="not ready"):
            pool.submit(abs, -1).result()
        ready.touch()
        pool.restart()
        assert pool.submit(abs, -1).result() == 1


def test_a_closed_pool_cannot_restart() -> None:
    with shmpar.Pool(1, engine="threads") as pool:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        pool.restart()


def test_a_module_of_a_library_is_imported_anew(
    run_python: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    """State that a module keeps in its worker is gone."""
    (tmp_path / "counter.py").write_text(
        "import itertools\nnumbers = itertools.count()\ndef step(_): return next(numbers)\n"
    )
    done = run_python(
        """
        import counter, shmpar
        with shmpar.Pool(1) as pool:
            step = lambda: pool.submit(counter.step, 0).result()
            print(step(), step())
            pool.restart()
            print(step())
        """,
        cwd=tmp_path,
    )
    assert (done.stdout, done.stderr) == ("0 1\n0\n", "")
