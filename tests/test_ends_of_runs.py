"""Runs and calls end with an outcome: after a failure in a rare place, and where none can begin."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.engines import packing
from shmpar.engines.segments import SegmentTracker
from shmpar.ipc.protocol import CallFinished
from shmpar.runtime import progress
from shmpar.runtime.calls import Call
from tests.pools import wait_for_workers
from tests.work.concurrent import Gate, wait_at_gate
from tests.work.loading import Elsewhere, Hanging

BOUND = 30.0  # seconds after which a wait counts as a hang
X = np.arange(16.0).reshape(4, 4)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path)
    yield made
    made.close()


# Stores and files


def test_a_run_after_an_interrupt_reads_the_file_that_is_there(tmp_path: Path) -> None:
    """A serial call that was interrupted keeps no file open."""
    path = str(tmp_path / "x.npy")

    def write(value: float) -> None:
        np.save(tmp_path / "new.npy", np.full((4, 4), value))
        os.replace(tmp_path / "new.npy", path)

    def interrupt(block: Any) -> Any:
        raise KeyboardInterrupt

    write(1.0)
    with shmpar.Pool(engine="serial") as pool:
        with pytest.raises(KeyboardInterrupt):
            pool.map_blocks(interrupt, shmpar.opened(np.load, path), chunks=2)
        write(2.0)
        found = pool.map_blocks(np.negative, shmpar.opened(np.load, path), chunks=2)
    assert (found == -2).all()


def test_an_output_that_cannot_be_read_again_is_an_error(zarr: ModuleType, tmp_path: Path) -> None:
    """With check=True a damaged store is no result, and the pool goes on."""
    out = zarr.create_array(str(tmp_path / "out.zarr"), shape=(4, 4), chunks=(2, 4), dtype="f8")

    def damage(block: Any) -> Any:
        if block[0, 0] == 8:
            (tmp_path / "out.zarr/c/0/0").write_bytes(b"no chunk")
        return block + 1

    with shmpar.Pool(1, check=True) as pool:
        wait_for_workers(pool)
        (pid,) = pool._loop.engine.pids()  # type: ignore[union-attr]
        with pytest.raises(shmpar.StoreError):
            pool.map_blocks(damage, X, out=out, chunks=(2, 4))
        assert pool.map_blocks(np.negative, X, chunks=2).tolist() == (-X).tolist()
        assert pool.submit(os.getpid).result(BOUND) == pid


# Results


def test_an_item_whose_result_does_not_load_is_not_done(tmp_path: Path) -> None:
    """It is failed in the table and in the report, and a resumed run computes it again."""
    ready = tmp_path / "ready"

    def work(item: int) -> Any:
        return Elsewhere() if item == 1 and not ready.exists() else item

    with shmpar.Pool(2) as pool:
        with pytest.raises(shmpar.FailedChunks) as caught:
            pool.parallel_map(work, range(3), on_error="collect")
        run = caught.value.run
        assert [one["status"] for one in run.table()] == ["done", "failed", "done"]
        assert (run.report.done, run.report.failed) == (2, 1)
        ready.touch()
        assert run.resume().result(BOUND) == [0, 1, 2]


def test_a_run_whose_chunks_disagree_counts_none_as_done(tmp_path: Path) -> None:
    """The report of results of two dtypes, none of which is kept."""

    def work(block: Any) -> Any:
        mine, other = (tmp_path / str(n) for n in (int(block[0]), 1 - int(block[0])))
        mine.touch()
        while not other.exists():  # until both workers have a chunk
            pass
        return 1 if block[0] else 1.5

    with shmpar.Pool(2) as pool:
        wait_for_workers(pool)
        with pytest.raises(shmpar.ChunkError, match="dtype"):
            pool.block_reduce(work, np.arange(2.0), chunks=1)
        report = pool.last_run.report  # type: ignore[union-attr]
        assert (report.done, report.failed) == (0, 1)
        assert pool.last_run.progress == (1, 2)  # type: ignore[union-attr]


# Workers


def test_a_worker_that_does_not_exit_is_replaced() -> None:
    """A thread of the function holds up the exit of its worker, and not the run."""

    def work(item: int) -> int:
        if item == 0:
            threading.Thread(target=threading.Event().wait).start()
        return item

    with shmpar.Pool(1, max_tasks_per_worker=1) as pool:
        run = pool.parallel_map(work, range(2), wait=False)
        assert run.result(BOUND) == [0, 1]
        assert run.report.deaths == 0


def test_a_worker_that_hangs_in_a_function_that_it_loads_is_replaced(tmp_path: Path) -> None:
    """After an interrupt the next call is right, with a single worker too."""
    loading = tmp_path / "loading"

    def press() -> None:
        while not loading.exists():
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with shmpar.Pool(1) as pool:
        wait_for_workers(pool)
        presser = threading.Thread(target=press)
        presser.start()
        with pytest.raises(KeyboardInterrupt):
            pool.map_blocks(Hanging(str(loading)), X, chunks=2)
        presser.join()
        run = pool.map_blocks(np.negative, X, chunks=2, wait=False)
        assert run.result(BOUND).tolist() == (-X).tolist()
        assert run.report.deaths == 0


def test_a_call_that_was_refused_before_a_restart_is_an_error() -> None:
    """The worker's initializer had failed; the restart has forgotten its error."""
    event = CallFinished(0, started=False)
    adopt = SegmentTracker(None).adopt
    found = packing.unpack_call(event, [], None, adopt=adopt, own_path=False)
    assert isinstance(found.error, concurrent.futures.BrokenExecutor)


# Pools that cannot begin


@contextlib.contextmanager
def no_threads() -> Iterator[None]:
    """Let the system refuse each new thread."""
    before = threading.stack_size(1 << 47)  # Why: no address space is that large.
    try:
        yield
    finally:
        threading.stack_size(before)


@pytest.mark.parametrize("wait", [True, False])
def test_a_run_for_which_no_thread_can_be_started_is_over(wait: bool, tmp_path: Path) -> None:
    """It has an outcome, and leaves its ledger to the next call."""
    files = {"out": tmp_path / "x.npy", "ledger": tmp_path / "ledger"}
    with shmpar.Pool(1) as pool:
        with no_threads(), pytest.raises(RuntimeError, match="thread"):
            pool.map_blocks(np.negative, X, chunks=2, wait=wait, **files)
        left = pool.last_run
        assert left is not None
        assert isinstance(left.exception(BOUND), RuntimeError)
        assert pool.map_blocks(np.negative, X, chunks=2, **files).tolist() == (-X).tolist()


def test_a_call_for_which_no_thread_can_be_started_is_never_made(tmp_path: Path) -> None:
    """submit() has raised an error, so nobody expects the call."""
    made = tmp_path / "made"
    with shmpar.Pool(1) as pool:
        with no_threads(), pytest.raises(RuntimeError, match="thread"):
            pool.submit(made.touch)
        assert pool.submit(abs, -2).result(BOUND) == 2
    assert not made.exists()


def test_an_interrupted_begin_of_a_bar_cancels_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With wait=False, nobody has the run: it is cancelled, and its ledger is free."""
    files = {"out": tmp_path / "x.npy", "ledger": tmp_path / "ledger"}

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with shmpar.Pool(1) as pool:
        monkeypatch.setattr(progress._Call, "begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.map_blocks(np.negative, X, wait=False, progress=lambda *_: None, **files)
        monkeypatch.undo()
        left = pool.last_run
        assert left is not None
        with pytest.raises(concurrent.futures.CancelledError):
            left.result(BOUND)
        assert pool.map_blocks(np.negative, X, **files).tolist() == (-X).tolist()


# The pool thread


def test_a_request_for_which_there_is_no_engine_ends() -> None:
    """restart() returns although the engine broke meanwhile, and none could be made."""
    begun, go = threading.Event(), threading.Event()

    def fail(*_: Any) -> Any:
        raise RuntimeError("broken")

    def block() -> None:
        begun.set()
        go.wait(BOUND)
        fail()

    with shmpar.Pool(1, engine="threads") as pool:
        assert pool.submit(abs, -1).result(BOUND) == 1
        loop: Any = pool._loop
        loop._post(block)
        assert begun.wait(BOUND)
        restart = threading.Thread(target=pool.restart, daemon=True)
        restart.start()
        while not loop._inbox:
            threading.Event().wait(0.01)
        make, loop._make_engine = loop._make_engine, fail
        go.set()
        restart.join(BOUND)
        assert not restart.is_alive()
        loop._make_engine = make
        assert pool.submit(abs, -2).result(BOUND) == 2


def test_an_iterator_may_be_dropped_in_the_pool_thread(tmp_path: Path, gate: Gate) -> None:
    """The garbage collector may end an iterator of map() between any two steps of that thread."""
    drop: list[Callable[[], object]] = []

    class Dropping(Call):
        @property
        def more(self) -> tuple[()]:  # type: ignore[override]
            if drop and threading.current_thread().name == "shmpar-pool":
                drop.pop()()
            return ()

    with shmpar.Pool(1) as pool:
        slow: Any = pool.submit(wait_at_gate, str(tmp_path), 3)
        gate.wait_for_worker()
        iterator: Any = pool.map(abs, range(3))
        waiting: Any = pool.submit(abs, -4)
        while iterator._calls[0].withdraw is None:  # until the worker has it ahead
            threading.Event().wait(0.01)
        slow.__class__ = Dropping
        drop.append(iterator.close)
        pool._loop._post(lambda: None)
        while drop:
            threading.Event().wait(0.01)
        gate.open()
        assert slow.result(BOUND) == 3
        assert waiting.result(BOUND) == 4
        assert pool.submit(abs, -5).result(BOUND) == 5


# Names of multiprocessing


def test_a_cancelled_map_async_is_done_for_every_waiter(tmp_path: Path, gate: Gate) -> None:
    """concurrent.futures.wait() returns it."""
    with shmpar.Pool(1) as pool:
        slow = pool.submit(wait_at_gate, str(tmp_path), 3)
        gate.wait_for_worker()
        joined = pool.map_async(abs, range(4))
        assert joined.cancel()
        gate.open()
        assert slow.result(BOUND) == 3
        assert concurrent.futures.wait([joined], BOUND).done == {joined}
        assert joined.cancelled()


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_the_results_before_an_error_of_the_iterable_come_first(method: str) -> None:
    """As multiprocessing gives them; afterwards the iterator is at its end."""

    def numbers() -> Iterator[int]:
        yield from range(200)
        raise ZeroDivisionError

    found = []
    with shmpar.Pool(1, engine="threads") as pool:
        results = getattr(pool, method)(abs, numbers())
        with pytest.raises(ZeroDivisionError):
            found.extend(results)
        assert sorted(found) == list(range(200))
        assert list(results) == []
