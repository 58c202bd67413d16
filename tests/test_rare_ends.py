"""Ends of workers, runs and pools that are rare: no pidfd, a fork, a run in another thread."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.interpreters import run_python
from tests.pools import ENGINES

BOUND = 20.0  # seconds after which a wait counts as a hang
ARRAY = np.arange(6.0)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that is set when the test ends."""
    event = threading.Event()
    yield event
    event.set()


def test_shutdown_waits_for_a_serial_run_of_another_thread(gate: threading.Event) -> None:
    """A run in its caller's thread is a run of the pool, as on the other engines."""
    begun = threading.Event()

    def work(block: Any) -> Any:
        begun.set()
        assert gate.wait(BOUND)
        return -block

    pool = shmpar.Pool(engine="serial")
    with ThreadPoolExecutor(2) as threads:
        result = threads.submit(pool.map_blocks, work, ARRAY, chunks=2)
        assert begun.wait(BOUND)
        closing = threads.submit(pool.shutdown)
        with pytest.raises(TimeoutError):
            closing.result(0.2)
        gate.set()
        closing.result(BOUND)
        assert result.result(BOUND)[-1] == -5


def test_a_callback_may_close_the_serial_pool_of_its_run() -> None:
    """A progress callback that closes the pool does not wait for its own run."""
    pool = shmpar.Pool(engine="serial")
    result = pool.map_blocks(
        lambda block: time.sleep(0.06) or -block,
        ARRAY,
        chunks=1,
        progress=lambda *_: pool.shutdown(),
    )
    assert result[-1] == -5
    assert pool.closed


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_is_waited_for_can_be_cancelled(engine: str, gate: threading.Event) -> None:
    """cancel() of a waited run, from another thread, ends it with CancelledError."""
    with shmpar.Pool(1, engine=engine) as pool:
        pool.submit(abs, -1).result(BOUND)

        def cancel() -> None:
            while pool.last_run is None or not pool.last_run.progress[0]:
                threading.Event().wait(0.01)
            assert pool.last_run.cancel()

        other = threading.Thread(target=cancel)
        other.start()
        with pytest.raises(CancelledError):
            pool.map_blocks(lambda block: time.sleep(0.02) or block, np.arange(2000.0), chunks=1)
        other.join(BOUND)
        assert pool.map_blocks(np.negative, ARRAY)[-1] == -5


class Payload:
    """An object that is watched."""


def _refuse(payload: Any) -> None:
    raise ZeroDivisionError(payload)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_failed_call_is_released_without_the_collector(engine: str) -> None:
    """A future, its exception and what they hold go with the last reference to them."""
    with shmpar.Pool(1, engine=engine) as pool:
        pool.submit(abs, -1).result(BOUND)
        gc.collect()
        gc.disable()
        try:
            payload = Payload()
            future = pool.submit(_refuse, payload)
            gone = [weakref.ref(future)]
            try:
                future.result(BOUND)
            except ZeroDivisionError as error:
                gone.append(weakref.ref(error.args[0]))
            for ask in (future.exception, future.result):
                with contextlib.suppress(ZeroDivisionError):
                    ask(BOUND)
            del future, payload, ask
            deadline = time.monotonic() + BOUND  # the pool thread may still be returning
            while any(one() is not None for one in gone):
                assert time.monotonic() < deadline
                threading.Event().wait(0.01)
        finally:
            gc.enable()


def test_the_end_of_a_worker_is_noticed_without_waitid() -> None:
    """Python has no waitid on macOS before 3.13, and no pidfd either."""
    done = run_python(
        """
        import os
        del os.waitid, os.WEXITED, os.WNOWAIT, os.pidfd_open
        import shmpar

        def die_at_2(number):
            return os._exit(3) if number == 2 else number

        with shmpar.Pool(1, retries=0) as pool:
            try:
                pool.parallel_map(die_at_2, range(4))
            except shmpar.WorkerDied as error:
                print(error.exitcode)
            print(pool.parallel_map(abs, range(2)))
        """,
        timeout=20,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("3\n[0, 1]\n", "", 0)


def test_a_worker_that_hides_without_a_pidfd_is_ended() -> None:
    """Without pidfd_open, a worker that closes its socket and lives does not stop the pool."""
    source = """
        import os, signal
        del os.pidfd_open
        import shmpar
        def hide():
            os.closerange(3, 100)
            signal.pause()
        with shmpar.Pool(1, retries=0) as pool:
            assert pool.submit(abs, -1).result() == 1
            try:
                pool.submit(hide).result(20)
            except shmpar.WorkerDied:
                assert pool.submit(abs, -2).result(20) == 2
                print("ended", flush=True)
    """
    done = run_python(source, timeout=40)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


def test_a_fork_while_a_worker_starts_keeps_no_pipe() -> None:
    """A child that another thread forks at that moment has none of the worker's descriptors."""
    source = """
        import os, threading, warnings
        import shmpar
        from shmpar.engines import launch
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        statuses = []
        def fork(fd):
            child = os.fork()
            if child == 0:
                try:
                    os.fstat(fd)
                except OSError:
                    os._exit(0)
                os._exit(1)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        start, forks = launch.Launcher.start, []
        def start_beside_a_fork(self, number):
            launched = start(self, number)
            forks.append(threading.Thread(target=fork, args=(launched.life[-1],)))
            forks[-1].start()
            forks[-1].join(0.3)
            return launched
        launch.Launcher.start = start_beside_a_fork
        with shmpar.Pool(2) as pool:
            assert pool.submit(abs, -1).result() == 1
            for one in forks:
                one.join()
        assert statuses == [0, 0], statuses
    """
    done = run_python(source, timeout=40)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
