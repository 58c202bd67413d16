"""Single calls that were submitted: which waits, which worker has which, and what came of them.

Imports the engine's protocol, failures and plan.

Guarantees
----------
- A worker has one task at a time: none waits behind another that may be waiting for it.
- A task whose worker died is run again, as often as it may be; any other outcome is final.
- Futures are resolved by :meth:`Tasks.resolve` alone, under no lock of ours: their callbacks are
  the user's.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol

from shmpar.engines.engine import Engine, Exit
from shmpar.plan import Function
from shmpar.runtime import failures

__all__ = ["Drives", "Task", "Tasks"]

_numbers = itertools.count()


class Drives(Protocol):
    """Who brings news of tasks."""

    def drive_task(self, task: Task, timeout: float | None) -> None:
        """Bring events until the task is done, or for so many seconds."""
        ...

    def poll(self) -> None:
        """Bring the events that there are."""
        ...

    def attend(self, task: Task) -> None:
        """Bring events in a thread until the task is done."""
        ...


class Task(Future[Any]):
    """A call that was submitted; a :class:`concurrent.futures.Future`.

    Whoever waits for its result brings the engine's events himself. A thread does so for those who
    wait in any other way: with a callback, :func:`concurrent.futures.wait` or an event loop.
    """

    def __init__(self, driver: Drives, call: Function, retries: int) -> None:
        super().__init__()
        self.number = next(_numbers)
        self.call: Function | None = call
        self.name = failures.function_name(call)
        self.packed: Any = None
        self.retries = retries
        self.worker: int | None = None
        self._driver: Drives | None = driver
        self._waiters = _Waiters(self)

    def done(self) -> bool:
        """Whether it is cancelled or finished."""
        driver = self._driver
        if driver is not None and not super().done():
            driver.poll()
        return super().done()

    def result(self, timeout: float | None = None) -> Any:
        """What the function returned; raises what it raised."""
        self._drive(timeout)
        return super().result(timeout if self._driver is None else 0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the function raised; None if it did not."""
        self._drive(timeout)
        return super().exception(timeout if self._driver is None else 0)

    def _drive(self, timeout: float | None) -> None:
        driver = self._driver
        if driver is not None and not super().done():
            driver.drive_task(self, timeout)

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Have ``fn(self)`` called when it is done."""
        super().add_done_callback(fn)
        self.attend()

    def attend(self) -> None:
        """Have it brought to its end though nobody waits for its result."""
        driver = self._driver
        if driver is not None and not super().done():
            driver.attend(self)

    def release(self) -> None:
        """What is over keeps neither its arguments nor its driver."""
        self.call = self.packed = self._driver = None


class _Waiters(list[Any]):
    """Where `concurrent.futures.wait` and `as_completed` put themselves."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._task = task

    def append(self, waiter: Any) -> None:
        """From now on somebody waits."""
        super().append(waiter)
        self._task.attend()


class Tasks:
    """The tasks of one driver."""

    def __init__(self) -> None:
        self._queue: deque[Task] = deque()
        self._running: dict[int, Task] = {}
        self._barren = 0  # workers that died in a row and had nothing
        self._over: deque[tuple[Task, Any, BaseException | None]] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue or self._running)

    def pending(self) -> list[Task]:
        """All that are not over."""
        return [*self._running.values(), *self._queue]

    def add(self, task: Task, engine: Engine) -> None:
        """Take a task.

        Raises
        ------
        PlanError
            If the function or an argument does not travel.
        """
        if task.call is not None:
            task.packed = engine.prepare(task.call)
            task.call = None  # what the user drops is dropped, once it has been packed
        self._queue.append(task)

    def give(self, engine: Engine) -> None:
        """Give tasks to workers, as long as both are there."""
        while self._queue and (worker := engine.free()) is not None:
            task = self._queue.popleft()
            # One that is run again is running already.
            if task.worker is None and not task.set_running_or_notify_cancel():
                task.release()
                continue
            task.worker = worker
            self._running[task.number] = task
            try:
                engine.call(worker, task.number, task.packed)
            except Exception as error:  # noqa: BLE001 - a segment was closed: that task's fault
                self.returned(task.number, None, error)

    def returned(self, number: int, value: Any, error: BaseException | None) -> None:
        """A worker is through with a task."""
        task = self._running.pop(number, None)
        self._barren = 0
        if task is not None:
            self._over.append((task, value, error))

    def lost(self, worker: int, end: Exit, *, innocent: bool) -> bool:
        """A worker is gone; `innocent` says that its death was another's fault.

        Returns
        -------
        bool
            Whether it had a task.
        """
        had = False
        for number in [n for n, task in self._running.items() if task.worker == worker]:
            task, had = self._running.pop(number), True
            if innocent or task.retries > 0:
                task.retries -= not innocent
                self._queue.appendleft(task)
            else:
                self._over.append((task, None, failures.call_died(task.name, end)))
        self._barren = 0 if had or innocent else self._barren + 1
        return had

    def give_up(self, patience: int, end: Exit) -> None:
        """Workers die and have nothing: after so many in a row, no task has a chance."""
        if self._barren > patience:
            for task in self._queue:
                self._over.append((task, None, failures.call_died(task.name, end)))
            self._queue.clear()

    def cancel_waiting(self) -> None:
        """Cancel what no worker has had."""
        for task in [task for task in self._queue if task.worker is None]:
            self._queue.remove(task)
            self._over.append((task, None, CancelledError()))

    def abort(self, error: BaseException) -> None:
        """The engine is gone, and all its workers."""
        for task in self.pending():
            self._over.append((task, None, error))
        self._queue.clear()
        self._running.clear()

    def resolve(self) -> bool:
        """Tell whoever waits, not under a lock; return whether there was somebody to tell."""
        told = False
        while self._over:
            try:
                task, value, error = self._over.popleft()
            except IndexError:  # another thread was quicker
                return told
            told = True
            task.release()
            if isinstance(error, CancelledError) and task.cancel():
                task.set_running_or_notify_cancel()
            elif error is None:
                task.set_result(value)
            else:
                task.set_exception(error)
        return told
