"""A submitted function with a parameter `task` reports its progress, and can be asked to stop."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from shmpar.worker.task import NBYTES, Progress, Task
from tests.interpreters import run_python
from tests.pools import ENGINES, drop_caches, warm


@pytest.fixture(scope="module", params=ENGINES)
def pool(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A pool of each engine, with workers that are up."""
    with warm(request.param) as pool:
        yield pool


class Meeting:
    """Two named pipes, at which a function waits for the test and the test for the function."""

    def __init__(self, folder: Path) -> None:
        self.begun, self.go = str(folder / "begun"), str(folder / "go")
        os.mkfifo(self.begun)
        os.mkfifo(self.go)

    def arrive(self) -> None:
        """Tell the test that the function is here; wait until it may go on."""
        open(self.begun, "w").close()
        open(self.go).close()

    def wait(self) -> None:
        """Wait until the function is here."""
        open(self.begun).close()

    def release(self) -> None:
        """Let the function go on."""
        open(self.go, "w").close()


@pytest.fixture
def meeting(tmp_path: Path) -> Meeting:
    """A place where a function and the test meet."""
    return Meeting(tmp_path)


def work(meeting: Meeting, task: Any) -> str:
    """Report, wait for the test, report again; tell whether it was asked to stop."""
    task.update(2, 5, "half")
    meeting.arrive()
    task.update(5, message="done")
    return "stopped" if task.cancelled else "finished"


def test_progress_is_seen_while_the_function_runs(pool: Any, meeting: Meeting) -> None:
    future = pool.submit(work, meeting)
    meeting.wait()
    assert future.progress == (2, 5, "half")
    assert future.running()
    meeting.release()
    assert future.result() == "finished"
    assert future.progress == Progress(current=5, total=5, message="done")


def test_cancel_of_a_call_that_runs_asks_the_function(pool: Any, meeting: Meeting) -> None:
    """The call is not cancelled: its function decides on the outcome."""
    future = pool.submit(work, meeting)
    meeting.wait()
    assert future.cancel() is False
    meeting.release()
    assert future.result() == "stopped"
    assert not future.cancelled()
    assert future.cancel() is False


def test_a_function_may_raise_when_it_is_asked_to_stop(pool: Any, meeting: Meeting) -> None:
    def stop(task: Any) -> None:
        meeting.arrive()
        if task.cancelled:
            raise CancelledError("stopped in order")

    future = pool.submit(stop)
    meeting.wait()
    future.cancel()
    meeting.release()
    assert isinstance(future.exception(), CancelledError)


def test_cancel_of_a_call_that_waits_cancels_it(pool: Any, tmp_path: Path) -> None:
    """The function is never called."""
    meetings = []
    for number in range(pool.n_workers):
        (tmp_path / str(number)).mkdir()
        meetings.append(Meeting(tmp_path / str(number)))
    busy = [pool.submit(work, one) for one in meetings]
    for one in meetings:
        one.wait()
    path = tmp_path / "called"

    def never(task: Any) -> None:
        path.touch()

    waiting = pool.submit(never)
    assert waiting.cancel() is True
    assert waiting.cancelled()
    assert waiting.progress == (0, None, "")
    for one in meetings:
        one.release()
    assert [future.result() for future in busy] == ["finished"] * len(busy)
    pool.submit(abs, 1).result()
    assert not path.exists()


def test_a_call_without_a_report_has_the_first_progress(pool: Any) -> None:
    """So has a call of a function without a task."""
    for future in (pool.submit(abs, -1), pool.submit(lambda task: None)):
        future.result()
        assert future.progress == (0, None, "")


class Model:
    """A callable object, and a method, with a task."""

    def __call__(self, task: Any) -> bool:
        return isinstance(task, Task)

    def fit(self, value: int, *, task: Any = None) -> bool:
        """Return whether it got a task."""
        return isinstance(task, Task)

    @staticmethod
    def fixed(value: int, task: Any = None) -> bool:
        """Return whether it got a task."""
        return value == 1 and isinstance(task, Task)


class Kept:
    """A class whose objects keep the task."""

    def __init__(self, task: Any) -> None:
        self.got = isinstance(task, Task)


def plain(value: Any, task: Any = None) -> bool:
    """Return whether it got a task."""
    return isinstance(task, Task)


@functools.wraps(plain)
def decorated(*args: Any, **kwargs: Any) -> bool:
    """Call the function that it decorates."""
    return plain(*args, **kwargs)


def test_functions_of_all_kinds_get_a_task(pool: Any) -> None:
    calls = [
        (plain, (1,)), (decorated, (1,)), (functools.partial(plain, 1), ()), (Model(), ()),
        (Model().fit, (1,)), (Model.fixed, (1,)), (functools.partial(decorated, value=1), ()),
        (lambda task: isinstance(task, Task), ()),
    ]  # fmt: skip
    for number, (function, args) in enumerate(calls):
        assert pool.submit(function, *args).result() is True, number
    assert pool.submit(Kept).result().got


def test_a_parameter_that_the_caller_fills_is_the_callers(pool: Any) -> None:
    """The name `task` is common; also partial objects, `map` and the verbs pass their own."""

    def echo(task: Any) -> Any:
        return task

    def positional(task: Any = "mine", /) -> Any:
        return task

    def loose(**kwargs: Any) -> Any:
        return kwargs

    assert pool.submit(echo, 3).result() == 3
    assert pool.submit(echo, task=4).result() == 4
    assert pool.submit(echo, task=None).result() is None
    assert pool.submit(functools.partial(echo, task=5)).result() == 5
    assert pool.submit(functools.partial(echo, 6)).result() == 6
    assert pool.submit(positional).result() == "mine"
    assert pool.submit(loose).result() == {}
    assert list(pool.map(echo, [7, 8])) == [7, 8]
    assert pool.parallel_map(echo, [9]) == [9]
    drop_caches(pool)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'value'"):
        pool.submit(plain).result()
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        pool.submit(plain, 1, other=2).result()


def report_all(last: int, task: Any) -> None:
    """Report numbers whose parts are equal."""
    for number in range(1, last + 1):
        task.update(number, number, str(number))


def test_a_reader_never_sees_parts_of_two_reports(pool: Any) -> None:
    last = 3000
    future = pool.submit(report_all, last)
    latest = 0
    while not future.done():
        current, total, message = future.progress
        if current:
            assert current == total == int(message)
            assert current >= latest
            latest = current
    future.result()
    assert future.progress == (last, last, str(last))


def test_threads_of_a_function_may_report_at_once(pool: Any) -> None:
    def spread(task: Any) -> None:
        threads = [threading.Thread(target=report_all, args=(300, task)) for _ in range(3)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()

    future = pool.submit(spread)
    future.result()
    assert future.progress.current == 300


def test_reports_of_numbers_and_texts() -> None:
    """Parts that are None stay; numbers of NumPy become those of Python; texts are cut."""
    task = Task(np.zeros(NBYTES, "u1"))
    assert task.read() == (0, None, "")
    task.update(np.int64(3), np.float32(4.5))
    assert task.read() == (3, 4.5, "")
    assert [type(one) for one in task.read()] == [int, float, str]
    task.update(message="\U0001f600" * 1000)
    assert task.read() == (3, 4.5, "\U0001f600" * 300)
    task.update(message='"\n\0é')
    task.update(0.25)
    assert task.read() == (0.25, 4.5, '"\n\0é')
    task.update()
    assert task.read() == (0.25, 4.5, '"\n\0é')
    task.update(-(10**300), 10**300, "\0" * 1000)
    assert task.read() == (-1e300, 1e300, "\0" * 300)
    task.update(-(2**62), message="\ud800")
    assert task.read() == (-(2**62), 1e300, "\ud800")


@pytest.mark.parametrize(
    ("given", "named"),
    [(("1",), "current"), ((1, "2"), "total"), ((1, 2, 3), "message"), ((1j,), "current")],
)
def test_reports_of_other_types_are_refused(given: Any, named: str) -> None:
    task = Task(np.zeros(NBYTES, "u1"))
    task.update(1, 2, "x")
    with pytest.raises(TypeError, match=named):
        task.update(*given)
    assert task.read() == (1, 2, "x")


def test_a_report_that_was_cut_off_leaves_the_earlier_one() -> None:
    """A process that is killed while it writes has filled the other record, in part."""
    memory = np.zeros(NBYTES, "u1")
    task = Task(memory)
    for number in range(1, 4):
        task.update(number, 10, "x" * number)
        half = memory[16 + (number + 1) % 2 * 2040 :][:2040]
        half[:40] = 255
        assert task.read() == (number, 10, "x" * number)


def test_a_call_that_is_made_again_reports_anew(tmp_path: Path) -> None:
    """Its worker died after a report; the next one goes on with the same memory."""
    path = tmp_path / "died"

    def die_once(task: Any) -> None:
        if not path.exists():
            task.update(7, 9, "first")
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        task.update(1)

    with shmpar.Pool(1) as pool:
        future = pool.submit(die_once)
        future.result()
        assert future.progress == (1, None, "")


def test_the_memory_of_a_task_ends_with_its_future() -> None:
    """The progress stays readable after the pool was closed."""
    with shmpar.Pool(1) as pool:
        futures = [pool.submit(report_all, 2) for _ in range(30)]
        for one in futures:
            one.result()
        assert sum(one.nbytes for one in pool.memory if one.purpose == "array") == 30 * NBYTES
        kept = futures[3]
        del futures, one
        pool._loop.settle()  # Why: the pool thread may still return from the end of the last call.
        assert sum(one.nbytes for one in pool.memory if one.purpose == "array") == NBYTES
    assert kept.progress == (2, 2, "2")


@pytest.mark.stress  # it starts a program that makes 600 calls
def test_more_tasks_than_a_process_may_open_files() -> None:
    """Tasks share segments when descriptors are scarce."""
    done = run_python(
        """
        import resource, shmpar
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        def work(number, task):
            task.update(number)
        with shmpar.Pool(2) as pool:
            futures = [pool.submit(work, number) for number in range(600)]
            for one in futures:
                one.result()
            print([one.progress.current for one in futures] == list(range(600)))
        """
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_the_end_of_a_pool_asks_its_functions_to_stop(meeting: Meeting) -> None:
    """So does an exception that leaves the `with` block."""

    def until_cancelled(task: Any) -> str:
        open(meeting.begun, "w").close()
        while not task.cancelled:
            pass
        return "stopped"

    with shmpar.Pool(1) as pool:
        future = pool.submit(until_cancelled)
        meeting.wait()
        pool.shutdown(cancel_futures=True)
        assert future.result() == "stopped"
    with contextlib.suppress(ZeroDivisionError), shmpar.Pool(1) as pool:
        future = pool.submit(until_cancelled)
        meeting.wait()
        raise ZeroDivisionError
    assert future.result() == "stopped"


def test_a_call_inside_of_a_worker_has_a_task_too() -> None:
    def outer() -> Any:
        with shmpar.Pool(1) as inner:
            future: Any = inner.submit(report_all, 3)
            future.result()
            return tuple(future.progress)

    with shmpar.Pool(1) as pool:
        assert pool.submit(outer).result() == (3, 3, "3")
