"""Outcomes of calls: cancelled ones, exceptions of any class, failed initializers, callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.pools import ENGINES
from tests.work.outcomes import (
    Another,
    Frozen,
    FrozenSlots,
    Hidden,
    Keyword,
    Leaving,
    Missing,
    Rebuilt,
    Reduced,
    Refusing,
    Slots,
    Unnoted,
    Unreachable,
    fail,
    initialize,
    raise_unreachable,
    read,
    slow,
)

BOUND = 20.0  # seconds after which a wait counts as a hang
ARRAY = np.arange(6.0)


@pytest.fixture(params=ENGINES)
def own_pool(request: Any, nothing_left: None) -> Iterator[shmpar.Pool]:
    """A pool of one worker, whose first call takes a moment."""
    with shmpar.Pool(1, engine=request.param, retries=0) as pool:
        yield pool


@pytest.fixture
def held(own_pool: shmpar.Pool, tmp_path: Path) -> Iterator[Future[str]]:
    """A call that has the worker of the pool until the test ends."""
    os.mkfifo(tmp_path / "fifo")
    future = own_pool.submit(read, str(tmp_path / "fifo"))
    yield future
    with open(tmp_path / "fifo", "w"):
        pass
    assert future.result(BOUND) == ""


# Cancelled calls


def test_a_call_that_is_cancelled_at_once_stays_so(own_pool: shmpar.Pool) -> None:
    """Cancelled calls never run, and the pool that they wait for closes in silence."""
    with shmpar.Pool(1, engine=own_pool.engine) as pool:
        futures = [pool.submit(abs, -number) for number in range(5)]
        cancelled = [future.cancel() for future in futures]
    for number, future in enumerate(futures):
        assert future.cancelled() == cancelled[number]
        assert cancelled[number] or future.result(0) == number


def test_a_map_that_timed_out_leaves_a_pool_that_works(
    own_pool: shmpar.Pool, held: Future[str]
) -> None:
    """The calls of a map whose iterator has raised TimeoutError are cancelled, and stay so."""
    with pytest.raises(TimeoutError):
        list(own_pool.map(abs, range(9), timeout=0.05))
    assert not held.done()


def test_a_coroutine_that_timed_out_leaves_a_pool_that_works(
    own_pool: shmpar.Pool, held: Future[str]
) -> None:
    """asyncio.wait_for cancels the call of run_in_executor, and the next one is right."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(own_pool, abs, -1), 0.05)

    asyncio.run(main())
    assert not held.done()


def test_a_map_of_items_that_crash_leaves_a_pool_that_works(own_pool: shmpar.Pool) -> None:
    """The iterator raises the error of the item, and each other call has its own outcome."""
    wrong = shmpar.WorkerDied if own_pool.engine == "processes" else ZeroDivisionError
    for _ in range(3):
        results = own_pool.map(fail, [0, 1, 1, 0, 1], [own_pool.engine] * 5)
        lone = own_pool.submit(fail, 1, own_pool.engine)
        assert next(results) == 0
        with pytest.raises(wrong):
            next(results)
        with pytest.raises(wrong):
            lone.result(BOUND)
    assert own_pool.submit(abs, -1).result(BOUND) == 1


# Exceptions


MADE: dict[str, Callable[[], Exception]] = {
    "frozen": lambda: Frozen(7),
    "frozen, with slots": lambda: FrozenSlots(7),
    "frozen, with a keyword": lambda: Frozen(code=7),
    "slots": lambda: Slots("text", 7),
    "no attributes": lambda: Refusing(7),
    "keyword": lambda: Keyword(code=7),
    "not pickled": lambda: Reduced(7),
    "not unpickled": lambda: Rebuilt(7),
    "another object": lambda: Another(7),
    "exit": lambda: Leaving(7),
    "OSError": lambda: Missing("/there", 7),
    "no notes": lambda: Unnoted(7),
    "hidden": lambda: Hidden(7),
}


def _raise(_: Any, name: str) -> None:
    error = MADE[name]()
    raise error


def _raise_group(_: Any, name: str) -> None:
    raise ExceptionGroup("group", [MADE[name]()])


def _submit(pool: shmpar.Pool, call: Any, name: str) -> Any:
    return pool.submit(call, 0, name).result(BOUND)


VERBS: dict[str, Callable[..., Any]] = {
    "submit": _submit,
    "map": lambda pool, call, name: list(pool.map(call, [0], [name])),
    "parallel_map": lambda pool, call, name: pool.parallel_map(call, [0], kwargs={"name": name}),
    "map_blocks": lambda pool, call, name: pool.map_blocks(
        lambda block: call(block, name), ARRAY, chunks=2, wait=False
    ).result(BOUND),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("verb", VERBS)
def test_the_exception_of_the_user_comes_out(pool: shmpar.Pool, verb: str, name: str) -> None:
    """An exception of any class comes out with its values, and costs no worker."""
    expected = MADE[name]()
    for call in (_raise, _raise_group):
        with pytest.raises(Exception) as caught:
            VERBS[verb](pool, call, name)
        found: Any = caught.value
        if verb in {"parallel_map", "map_blocks"}:
            assert type(found) is shmpar.ChunkError
            found = found.__cause__
        if call is _raise_group:
            assert type(found) is ExceptionGroup
            [found] = found.exceptions
        assert type(found) is type(expected)
        assert (found.code, found.args) == (7, expected.args)
        assert getattr(found, "filename", None) == getattr(expected, "filename", None)
    assert pool.submit(abs, -1).result(BOUND) == 1


def test_the_traceback_of_the_worker_is_a_note() -> None:
    """An exception that refuses attributes has the worker's traceback too."""
    with shmpar.Pool(1) as pool:
        for name in ("frozen", "no attributes", "keyword"):
            error = pool.submit(_raise, 0, name).exception(BOUND)
            assert error is not None
            assert "raise error" in error.__notes__[0]


def test_an_exception_without_attributes_ends_the_call(pool: shmpar.Pool) -> None:
    """The call ends with the exception or a stand-in that names it, and the pool goes on."""
    error = pool.submit(raise_unreachable, 0).exception(BOUND)
    assert type(error) is Unreachable or "Unreachable" in str(error)
    with pytest.raises(shmpar.ChunkError, match="the function raised Unreachable"):
        pool.parallel_map(raise_unreachable, [0])
    assert pool.submit(abs, -1).result(BOUND) == 1


def test_a_worker_thread_that_cannot_work_tells_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error outside of the function ends the run with it, and the thread serves the next one."""
    with shmpar.Pool(1, engine="threads") as pool:
        assert pool.submit(abs, -1).result(BOUND) == 1
        engine: Any = pool._loop.engine

        def fail(*_: Any) -> None:
            raise ValueError("no view")

        monkeypatch.setattr(engine, "_assignment", fail)
        with pytest.raises(ValueError, match="no view"):
            pool.map_blocks(np.negative, ARRAY, wait=False).result(BOUND)
        monkeypatch.undo()
        assert pool.map_blocks(np.negative, ARRAY)[-1] == -5


# Initializers


FAILURES = [ValueError, SystemExit, KeyboardInterrupt]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", FAILURES)
def test_a_pool_whose_initializer_failed_takes_no_call(
    engine: str, kind: type[BaseException], nothing_left: None
) -> None:
    """Once the failure is known, each call raises it at once, as a BrokenExecutor."""
    with shmpar.Pool(2, engine=engine, initializer=initialize, initargs=(kind,)) as pool:
        try:
            first = pool.submit(abs, -1)
        except BrokenExecutor as error:
            found: BaseException | None = error
        else:
            found = first.exception(BOUND)
        calls: list[Callable[[], object]] = [
            lambda: pool.submit(abs, -1),
            lambda: pool.map(abs, [-1]),
            lambda: pool.map_blocks(np.negative, ARRAY),
            lambda: pool.map_blocks(np.negative, ARRAY, wait=False),
        ]
        errors = [found]
        for call in calls:
            with pytest.raises(BrokenExecutor, match="the pool's initializer failed") as caught:
                call()
            errors.append(caught.value)
        for error in errors:
            assert isinstance(error, (BrokenExecutor, shmpar.ShmparError))
            assert isinstance(error.__cause__, kind)


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_an_idle_pool_hears_of_its_initializer(engine: str, nothing_left: None) -> None:
    """The failure is known soon, though nobody has called the pool yet."""
    with shmpar.Pool(1, engine=engine, initializer=initialize, initargs=(ValueError,)) as pool:
        deadline = time.monotonic() + BOUND
        while pool._loop.engine._broken is None:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        with pytest.raises(BrokenExecutor, match="not today"):
            pool.submit(abs, -1)


# Callbacks


def test_a_callback_of_a_cancelled_future_may_use_the_pool(
    own_pool: shmpar.Pool, held: Future[str]
) -> None:
    """cancel() calls back in its own thread; the pool works there, beside a held worker."""
    found: list[object] = []

    def use(_: Any) -> None:
        found.append(own_pool.submit(abs, -1))
        found.append(own_pool.map_blocks(np.negative, ARRAY, wait=False))

    call = own_pool.submit(abs, -2)
    call.add_done_callback(use)
    assert call.cancel()
    assert [type(one).__name__ for one in found] == ["Call", "Run"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("wait", [False, True])
def test_a_progress_function_does_not_wait_for_its_own_run_for_ever(
    engine: str, wait: bool, nothing_left: None
) -> None:
    """It gets the result if that is possible, else an error, which ends the run."""
    with shmpar.Pool(1, engine=engine) as pool:
        pool.submit(abs, -1).result(BOUND)

        def ask(*_: int) -> None:
            run = pool.last_run
            assert run is not None
            run.exception()
            run.result()

        refusal = "a progress function cannot wait for its own run"
        refused = not wait or engine == "serial"
        with pytest.raises(RuntimeError, match=refusal) if refused else contextlib.nullcontext():
            result = pool.map_blocks(slow, ARRAY, chunks=1, progress=ask, wait=wait)
            if not wait:
                result = result.result(BOUND)
            assert result[-1] == -5
        assert pool.map_blocks(np.negative, ARRAY)[-1] == -5


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("verb", ["submit", "run"])
def test_an_exit_of_a_callback_is_logged_and_goes_nowhere(
    own_pool: shmpar.Pool, kind: type[BaseException], verb: str, caplog: Any
) -> None:
    """SystemExit and KeyboardInterrupt of a done-callback come out of no call of anybody."""
    called = threading.Event()

    def leave(_: Any) -> None:
        called.set()
        raise kind("from a callback")

    if verb == "submit":
        future: Any = own_pool.submit(abs, -1)
    else:
        future = own_pool.map_blocks(np.negative, ARRAY, wait=False)
    future.add_done_callback(leave)
    other = own_pool.submit(abs, -2)
    assert other.result(BOUND) == 2
    future.result(BOUND)
    assert called.wait(BOUND)
    future.add_done_callback(leave)  # it is done: called here
    waiting = own_pool.submit(abs, -3)
    waiting.add_done_callback(leave)
    waiting.cancel()
    own_pool.shutdown()
    assert "from a callback" in caplog.text
    caplog.clear()  # Why: its records hold the futures


def test_a_run_that_lacks_a_chunk_is_an_error() -> None:
    """A mark that is lost never makes a result, nor None in its place."""

    def work(row: np.ndarray) -> float:
        if row[0] == 6:
            from shmpar.worker.environment import _works

            _works[-1].ledger.status[:2] = 0
        return float(row.sum())

    rows = np.arange(8.0).reshape(4, 2)
    with shmpar.Pool(1) as pool:
        with pytest.raises(
            shmpar.ShmparError, match=r"2 of 4 chunks were computed, not the one at \[0:1\]"
        ):
            pool.parallel_map(work, rows)
        assert pool.parallel_map(np.max, rows).tolist() == [1, 3, 5, 7]
