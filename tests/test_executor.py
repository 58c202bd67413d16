"""The pool as an Executor: ``submit``, ``map`` and ``shutdown``, and CPython's tests of executors.

CPython's tests are in a package of the interpreter, which some distributions leave out.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import importlib
import os
import signal
import threading
import unittest
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.runtime import futures
from tests.interpreters import run_python
from tests.pools import ENGINES
from tests.work.executor import NotUnpicklable, die_once, wait_for

LARGE = 100_000  # elements, so many that an array is sent through shared memory


@pytest.fixture(params=ENGINES)
def own_pool(request: Any) -> Iterator[shmpar.Pool]:
    """A pool of each engine that the test may close."""
    with shmpar.Pool(2, engine=request.param) as made:
        yield made


def test_a_pool_is_an_executor(pool: shmpar.Pool) -> None:
    """A pool is an Executor, and submit() returns a Future."""
    assert isinstance(pool, concurrent.futures.Executor)
    assert isinstance(pool.submit(abs, -1), concurrent.futures.Future)


def test_a_call_gets_its_arguments(pool: shmpar.Pool) -> None:
    """submit() passes positional arguments, and keyword arguments of any name."""

    def echo(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    future = pool.submit(echo, 1, self=2, fn=3, chunks=4)
    assert future.result() == ((1,), {"self": 2, "fn": 3, "chunks": 4})
    assert future.done()
    assert not future.cancel()


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt("mine")])
def test_the_exception_of_a_call_is_set_on_its_future(
    pool: shmpar.Pool, error: BaseException
) -> None:
    """An exception that would end a process is set as well."""

    def fail() -> None:
        raise error

    future = pool.submit(fail)
    with pytest.raises(type(error)) as caught:
        future.result()
    assert caught.value.args == error.args
    assert type(future.exception()) is type(error)
    assert pool.submit(abs, -1).result() == 1


def test_a_result_that_does_not_pickle_is_an_error() -> None:
    """The error states the cause, and the worker goes on."""
    with shmpar.Pool(1) as pool:
        with pytest.raises(shmpar.PlanError, match="does not pickle"):
            pool.submit(threading.Lock).result()
        assert pool.submit(abs, -1).result() == 1


def test_an_argument_that_does_not_pickle_is_an_error_at_once() -> None:
    """submit() itself raises the error."""
    with shmpar.Pool(1) as pool, pytest.raises(shmpar.PlanError, match="does not pickle"):
        pool.submit(id, threading.Lock())


def test_an_argument_that_does_not_unpickle_is_an_error() -> None:
    """The future has the error of a verb, and the worker goes on."""
    with shmpar.Pool(1) as pool:
        with pytest.raises(shmpar.PlanError, match=r"does not load in a worker .*invalid literal"):
            pool.submit(id, NotUnpicklable()).result()
        with pytest.raises(ValueError, match="invalid literal"):
            pool.submit(NotUnpicklable).result()
        assert pool.submit(abs, -1).result() == 1


@pytest.mark.parametrize("dtype", ["f8", "i2", "M8[s]", "c16", [("a", "f4"), ("b", "i8")]])
def test_large_arrays_travel_there_and_back(pool: shmpar.Pool, dtype: Any) -> None:
    """The receiver gets a copy, and writing to it changes no other array."""
    array = np.zeros(LARGE, dtype)

    def change(given: Any) -> Any:
        given[0] = np.ones((), "i8")
        return given, {"more": [given[:10], given[::2]]}

    if pool.engine != "processes":
        array = array.copy()
    given, more = pool.submit(change, array).result()
    assert given.dtype == array.dtype
    assert given[0] == np.ones((), "i8").astype(dtype)
    if pool.engine == "processes":
        assert array[0] == np.zeros((), dtype)
    assert type(given) is np.ndarray
    given[1] = given[0]  # the result is writable
    assert len(more["more"][1]) == LARGE // 2


def test_a_result_is_independent_of_its_source() -> None:
    """A plain array in shared memory is returned as a copy."""
    with shmpar.Pool(1) as pool:
        shared = pool.map_blocks(np.abs, np.ones(LARGE))  # a plain array in a segment
        result = pool.submit(lambda: shared).result()
        shared[:] = 7
        assert result[0] == 1


def test_a_shared_array_stays_shared() -> None:
    """A SharedArray is the same memory as an argument and as a result."""
    with shmpar.Pool(1) as pool:
        shared = pool.zeros(LARGE)

        def write(array: Any) -> Any:
            array[3] = 5
            return array

        result = pool.submit(write, shared).result()
        assert shared[3] == 5
        shared[4] = 6
        assert result[4] == 6
        assert isinstance(result, shmpar.SharedArray)


def test_a_result_outlives_the_pool() -> None:
    """The memory of a result exists until its last view is gone."""
    with shmpar.Pool(1) as pool:
        result = pool.submit(np.arange, LARGE).result()
    assert result.sum() == LARGE * (LARGE - 1) // 2


def test_a_list_of_many_large_arrays_returns() -> None:
    """The result has more descriptors than one message can carry."""
    with shmpar.Pool(1) as pool:
        arrays = pool.submit(lambda: [np.full(10_000, i) for i in range(300)]).result()
        assert [array[0] for array in arrays] == list(range(300))


def test_object_results_of_verbs_hold_large_arrays(pool: shmpar.Pool) -> None:
    """Objects with large arrays are returned as from submit()."""
    found = pool.parallel_map(lambda i: {"a": np.full(LARGE, i)}, range(5), dtype=object)
    assert [one["a"].sum() for one in found] == [i * LARGE for i in range(5)]


# map


def test_map_gives_results_in_order(pool: shmpar.Pool) -> None:
    """The order does not depend on the chunksize, and the shortest iterable ends the map."""
    for chunksize in (1, 3, 100):
        found = pool.map(pow, range(10), range(8), chunksize=chunksize)
        assert list(found) == [i**i for i in range(8)]
    assert list(pool.map(abs, [])) == []


def test_map_raises_at_the_position_of_the_result(pool: shmpar.Pool) -> None:
    """The iterator gives the earlier results before it raises."""
    found = pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert [next(found), next(found)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(found)


@pytest.mark.parametrize("chunksize", [0, -1, 2.5, "1"])
def test_an_invalid_chunksize_is_refused(pool: shmpar.Pool, chunksize: Any) -> None:
    """map() itself raises the error, before the first result."""
    with pytest.raises((ValueError, TypeError), match="chunksize"):
        pool.map(abs, [1], chunksize=chunksize)


def test_map_keeps_no_result(pool: shmpar.Pool) -> None:
    """A result is deleted as soon as the user drops it."""
    for result in pool.map(np.ones, [LARGE] * 3):
        gone = weakref.ref(result)
        del result
        gc.collect()
        assert gone() is None


# Waiting


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A named pipe: a function that reads it waits until the test writes."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_a_late_result_is_a_timeout(engine: str, fifo: Path) -> None:
    """result() and exception() raise TimeoutError, and the result is available later."""
    with shmpar.Pool(1, engine=engine) as pool:
        future = pool.submit(wait_for, str(fifo))
        with pytest.raises(
            TimeoutError, match=r"^<Call of wait_for at .*> is not done after 50 ms$"
        ):
            future.result(timeout=0.05)
        with pytest.raises(TimeoutError, match=r"is not done after 0 s$"):
            future.exception(timeout=0)
        with pytest.raises(TimeoutError) as caught:
            pool.map_async(abs, [-1]).get(1e-6)
        assert not future.done()
        fifo.write_text("go")
        assert future.result(timeout=60) == "go"
        assert str(caught.value).startswith("<Batches of abs at ")


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_no_task_waits_for_a_long_one(engine: str, fifo: Path) -> None:
    """The other worker computes all other tasks, even those sent to the busy worker."""
    with shmpar.Pool(2, engine=engine) as pool:
        slow = pool.submit(wait_for, str(fifo))
        rest = [pool.submit(abs, -i) for i in range(20)]
        assert [one.result(timeout=60) for one in rest] == list(range(20))
        assert not slow.done()
        fifo.write_text("go")
        assert slow.result(timeout=60) == "go"


def test_runs_and_calls_share_the_workers(pool: shmpar.Pool) -> None:
    """Runs and calls complete in any order."""
    calls = [pool.submit(abs, -i) for i in range(10)]
    runs = [pool.map_blocks(np.negative, np.arange(9.0), chunks=2, wait=False) for _ in range(5)]
    more = [pool.submit(abs, -i) for i in range(10)]
    assert pool.parallel_map(abs, range(-3, 0)) == [3, 2, 1]
    for run in runs:
        assert run.result(timeout=60)[3] == -3
    assert [one.result() for one in calls + more] == [*range(10)] * 2


def test_all_ways_to_wait(pool: shmpar.Pool) -> None:
    """wait(), as_completed(), a callback and an event loop get the results."""
    futures = [pool.submit(abs, -i) for i in range(6)]
    assert concurrent.futures.wait(futures, timeout=60).not_done == set()
    futures = [pool.submit(abs, -i) for i in range(6)]
    done = concurrent.futures.as_completed(futures, timeout=60)
    assert sorted(future.result() for future in done) == list(range(6))
    called = threading.Event()
    pool.submit(abs, -1).add_done_callback(lambda _: called.set())
    assert called.wait(60)

    async def both() -> list[int]:
        loop = asyncio.get_running_loop()
        tasks = [loop.run_in_executor(pool, abs, -i) for i in range(3)]
        return await asyncio.wait_for(asyncio.gather(*tasks), 60)

    assert asyncio.run(both()) == [0, 1, 2]


def test_each_future_has_a_lock_of_its_own(pool: shmpar.Pool) -> None:
    """A thread that has the lock of a future, as that of wait() for a moment, delays no other."""
    first, second = pool.submit(abs, -1), pool.submit(abs, -2)
    assert [first.result(60), second.result(60)] == [1, 2]
    other = threading.Thread(target=concurrent.futures.wait, args=([second], 60), daemon=True)
    with first._condition:  # type: ignore[attr-defined] - `concurrent.futures` acquires this one
        other.start()
        other.join(20)
        assert not other.is_alive()


def test_done_becomes_true_without_waiting(pool: shmpar.Pool) -> None:
    """Polling done() is enough, and no thread has to wait for the result."""
    future = pool.submit(abs, -1)
    while not future.done():
        pass
    assert future.result(timeout=0) == 1


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_a_waiting_call_can_be_cancelled(engine: str, fifo: Path) -> None:
    """A running call cannot be cancelled."""
    with shmpar.Pool(1, engine=engine) as pool:
        first = pool.submit(wait_for, str(fifo))
        second, third = pool.submit(abs, -2), pool.submit(abs, -3)
        while not first.running():
            pass
        assert not first.cancel()
        assert second.cancel()
        assert second.cancelled()
        with pytest.raises(concurrent.futures.CancelledError):
            second.result()
        fifo.write_text("go")
        assert third.result(timeout=60) == 3
        assert concurrent.futures.wait([first, second], timeout=60).not_done == set()


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_arguments_and_results_are_released(engine: str) -> None:
    """The objects of a finished call are released without a call of result()."""

    class Thing:
        def method(self) -> None:
            pass

    gone = threading.Event()
    thing = Thing()
    reference = weakref.ref(thing, lambda _: gone.set())
    with shmpar.Pool(1, engine=engine) as pool:
        pool.submit(thing.method)
        del thing
        assert gone.wait(60)
    assert reference() is None


# Faults


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_call_whose_worker_died_is_retried(tmp_path: Path, how: int) -> None:
    """A new worker makes the call."""
    with shmpar.Pool(1) as pool:
        assert pool.submit(die_once, str(tmp_path / "once"), how).result(timeout=60) == "alive"


def test_a_call_that_kills_its_workers_is_an_error() -> None:
    """WorkerDied is raised after the retries, and other calls succeed."""
    with shmpar.Pool(2) as pool:
        others = [pool.submit(abs, -i) for i in range(5)]
        deadly = pool.submit(os._exit, 7)
        others += [pool.submit(abs, -i) for i in range(5)]
        with pytest.raises(shmpar.WorkerDied, match="exit") as caught:
            deadly.result(timeout=60)
        assert caught.value.exitcode == 7
        assert [one.result(timeout=60) for one in others] == [*range(5)] * 2


def test_workers_that_never_start_are_an_error() -> None:
    """No call waits for ever."""
    broken = {"PYTHONHOME": "/nonexistent"}
    with shmpar.Pool(1, env=broken) as pool, pytest.raises(shmpar.WorkerDied):
        pool.submit(abs, -1).result(timeout=60)


# Shutdown


def test_a_closed_pool_takes_no_calls(own_pool: shmpar.Pool) -> None:
    """submit() raises the error of any executor."""
    own_pool.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        own_pool.submit(abs, -1)


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_leaving_the_block_waits_for_a_shutdown_in_another_thread(engine: str, fifo: Path) -> None:
    """The pool is closed after the block, even if another thread started the shutdown."""
    with shmpar.Pool(1, engine=engine) as pool:
        future = pool.submit(wait_for, str(fifo))
        closer = threading.Thread(target=pool.shutdown)
        closer.start()
        while not pool.closed:
            future.done()
        threading.Timer(0.05, fifo.write_text, ("go",)).start()
    assert future.done()
    assert future.result() == "go"
    closer.join()


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_a_callback_may_call_shutdown_during_a_shutdown(engine: str, fifo: Path) -> None:
    """The call in the callback does not wait, since the first shutdown waits for the callback."""
    inside, beat = threading.Event(), threading.Event()
    with shmpar.Pool(1, engine=engine) as pool:

        def close(_: Any) -> None:
            inside.set()
            while not pool.closed:
                beat.wait(0.01)
            pool.shutdown()

        run = pool.parallel_map(wait_for, [str(fifo)], dtype=object, wait=False)
        run.add_done_callback(close)
        fifo.write_text("go")
        assert inside.wait(60)
    assert run.result(0).tolist() == ["go"]


def test_cancelled_calls_of_imap_and_map_async(fifo: Path) -> None:
    """The iterator raises at each of them and then ends, and a future stays cancelled."""
    pool = shmpar.Pool(1, engine="threads")
    results = pool.imap(wait_for, [str(fifo)] * 3)
    joined = pool.map_async(abs, [-1, -2])
    while not joined.cancel():
        pass
    assert joined.cancel()
    with open(
        fifo, "w", encoding="ascii"
    ) as stream:  # Opening waits until the first call has begun.
        pool.shutdown(wait=False, cancel_futures=True)
        stream.write("go")
    assert next(results) == "go"
    for _ in range(2):
        with pytest.raises(concurrent.futures.CancelledError):
            next(results)
    assert list(results) == []
    pool.shutdown()


def test_leaving_the_block_waits(own_pool: shmpar.Pool) -> None:
    """Every call that was submitted is done after the block."""
    with own_pool:
        futures = [own_pool.submit(abs, -i) for i in range(20)]
    assert [future.result(timeout=0) for future in futures] == list(range(20))


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_shutdown_without_waiting(engine: str, fifo: Path) -> None:
    """shutdown(wait=False) returns at once, and all calls are computed later."""
    pool = shmpar.Pool(1, engine=engine)
    futures = [pool.submit(wait_for, str(fifo)), *(pool.submit(abs, -i) for i in range(3))]
    pool.shutdown(wait=False)
    assert not futures[0].done()
    fifo.write_text("go")
    assert [future.result(timeout=60) for future in futures] == ["go", 0, 1, 2]
    pool.shutdown()


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_shutdown_cancels_waiting_calls(engine: str, fifo: Path) -> None:
    """They are cancelled when it returns, and the running call finishes."""
    pool = shmpar.Pool(1, engine=engine)
    first = pool.submit(wait_for, str(fifo))
    rest = [pool.submit(abs, -i) for i in range(5)]
    while not first.running():
        first.done()
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in rest)
    assert not first.done()
    fifo.write_text("go")
    assert first.result(timeout=60) == "go"
    pool.shutdown()


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
@pytest.mark.parametrize("begun", [True, False])
def test_shutdown_with_neither_wait_nor_calls(engine: str, begun: bool) -> None:
    """It returns, before and after the first call, and a second time."""
    pool = shmpar.Pool(1, engine=engine)
    if begun:
        assert pool.submit(abs, -1).result(60) == 1
    pool.shutdown(wait=False, cancel_futures=True)
    pool.shutdown(wait=False, cancel_futures=True)
    pool.shutdown()


def test_a_serial_pool_does_not_wait_for_its_call(fifo: Path) -> None:
    """Its thread is in the call. After it, it makes one call at most, and cancels the others."""
    pool = shmpar.Pool(engine="serial")
    first, _, *rest = pool.submit(wait_for, str(fifo)), *(pool.submit(abs, -i) for i in range(3))
    while not first.running():
        first.done()
    pool.shutdown(wait=False, cancel_futures=True)
    fifo.write_text("go")
    assert first.result(60) == "go"
    pool.shutdown()
    assert all(future.cancelled() for future in rest)


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_a_callback_and_a_call_may_end_the_pool_without_waiting(engine: str) -> None:
    """Neither waits for the thread of the pool, which may wait for it."""
    with shmpar.Pool(1, engine=engine) as pool:
        ended = threading.Event()

        def end(_: Any) -> None:
            pool.shutdown(wait=False, cancel_futures=True)
            ended.set()

        pool.submit(abs, -1).add_done_callback(end)
        assert ended.wait(60)
    with shmpar.Pool(1, engine="threads") as pool:
        future = pool.submit(pool.shutdown, wait=False, cancel_futures=True)
        assert future.result(60) is None


def test_an_exception_in_the_block_ends_a_running_call(fifo: Path) -> None:
    """The pool ends a call in progress after a short grace period."""
    with contextlib.suppress(ZeroDivisionError), shmpar.Pool(1) as pool:
        pool.submit(abs, -1).result()
        future = pool.submit(wait_for, str(fifo))
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="closed"):
        future.result(timeout=0)


@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_an_interpreter_finishes_submitted_calls(engine: str) -> None:
    """The interpreter exits after all calls, as with other executors."""
    source = f"""
        import shmpar
        pool = shmpar.Pool(1, engine={engine!r})
        for word in ("one", "two", "three"):
            pool.submit(print, word, flush=True)
    """
    done = run_python(source)
    assert (done.stdout, done.stderr, done.returncode) == ("one\ntwo\nthree\n", "", 0)


def test_a_nested_call_runs_in_the_same_worker(pool: shmpar.Pool) -> None:
    """A worker never waits for another worker, which could deadlock."""

    def outer(inner: shmpar.Pool) -> Any:
        return [inner.submit(pow, 2, i).result() for i in range(4)]

    assert pool.submit(functools.partial(outer, pool)).result(timeout=60) == [1, 2, 4, 8]


# CPython's tests


def cpython_tests(name: str) -> Any:
    """Return a module of CPython's tests of executors, or None if it is not installed."""
    try:
        return importlib.import_module(f"test.test_concurrent_futures.{name}")
    except ImportError:
        return None


def _case(module: str, mixin: str, engine: str) -> None:
    """Define a test class from a mixin of CPython."""
    found = cpython_tests(module)
    if found is None:
        return
    tests = getattr(found, mixin)

    class Case(tests, unittest.TestCase):  # type: ignore[misc]
        worker_count = 2
        executor_type = shmpar.Pool

        def setUp(self) -> None:
            self.executor = shmpar.Pool(self.worker_count, engine=engine)
            self.executor.submit(abs, -1).result()  # Why: the tests assume started workers

        def tearDown(self) -> None:
            self.executor.shutdown()

    for other in NOT_FOR_POOLS:
        if hasattr(Case, other):
            setattr(Case, other, None)
    Case.__name__ = Case.__qualname__ = f"Test{engine.capitalize()}{mixin}"
    globals()[Case.__name__] = Case


# Why: these tests need an argument max_workers or a class of concurrent.futures.
NOT_FOR_POOLS = (
    "test_max_workers_negative",
    "test_interpreter_shutdown",
    "test_submit_after_interpreter_shutdown",
    "test_hang_gh83386",
    "test_hang_gh94440",
)
for _engine in ("threads", "processes"):
    _case("executor", "ExecutorTest", _engine)
    _case("test_wait", "WaitTests", _engine)
    _case("test_as_completed", "AsCompletedTests", _engine)
    _case("test_shutdown", "ExecutorShutdownTest", _engine)


@pytest.mark.parametrize(("stall", "most"), [(60.0, 2), (0.01, 4)])
def test_more_callbacks_run_only_if_those_in_progress_wait(
    stall: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback may wait for one that comes later; else a few run at a time."""
    monkeypatch.setattr(futures, "_FEW_THREADS", 2)
    monkeypatch.setattr(futures, "_STALL_SECONDS", stall)
    begin, together, numbers = threading.Event(), threading.Barrier(most), list[int]()

    def wait(_: object) -> None:
        together.wait(60)
        numbers.append(sum(one.name == "shmpar-callback" for one in threading.enumerate()))

    with shmpar.Pool(1, engine="threads") as pool:
        calls = [pool.submit(begin.wait, 60) for _ in range(4)]
        for call in calls:
            call.add_done_callback(wait)
        begin.set()
    assert len(numbers) == 4
    assert max(numbers) <= most


@pytest.mark.parametrize("later", [True, False])
def test_a_callback_without_a_thread_runs_later(
    later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the system has no thread for it, it has one later, or runs as the pool is closed."""
    start, scarce = threading.Thread.start, [True]
    called, begin = threading.Event(), threading.Event()

    def start_others(thread: threading.Thread) -> None:
        if thread.name == "shmpar-callback" and scarce:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_others)
    with shmpar.Pool(1, engine="threads") as pool:
        call = pool.submit(begin.wait, 60)
        call.add_done_callback(lambda _: called.set())
        begin.set()
        assert call.result(60)
        run = pool.map_blocks(abs, np.ones(2), progress=lambda *_: None, wait=False)
        assert run.result(60).tolist() == [1, 1]
        assert not called.is_set()
        if later:
            scarce.clear()
            assert called.wait(60)
    assert called.is_set()
