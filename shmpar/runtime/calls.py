"""Futures of a pool, and the calls that were submitted.

Guarantees
----------
- The pool thread resolves a future, and runs no code of the user for it: callbacks run in threads
  of their own, which may wait for the pool and for each other.
- A cancelled future is never set again.
- A worker has one call at a time: no call waits behind another that may be waiting for it.
- A call whose worker died is made again, as often as it may be; any other outcome is final.
"""

from __future__ import annotations

import _thread
import contextlib
import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from shmpar.engines.engine import Engine, Exit
from shmpar.ipc.protocol import CallFinished, WorkerLost
from shmpar.plan import Function
from shmpar.runtime import failures

_numbers = itertools.count()
_SLICE_SECONDS = 0.1  # until a waiting thread looks for signals
_IDLE_SECONDS = 0.2  # until a callback thread without a task exits


class Latch:
    """A one-shot event whose waiters may be interrupted at any instruction.

    Why not `threading.Event`: it waits under a condition. A KeyboardInterrupt right after the
    condition's lock was acquired leaves it locked, and the thread that sets it waits for ever.
    Here each waiter has a lock of its own.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._waiters: deque[threading.Lock] = deque()

    def set(self) -> None:
        """Let all waiters go on."""
        if self.is_set:
            return
        self.is_set = True
        with contextlib.suppress(IndexError):
            while True:
                self._waiters.popleft().release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds; return True if it is set."""
        if self.is_set:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        waiter = threading.Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        # Invariant: `set` may have emptied the waiters before the append, but then it is set.
        while not self.is_set:
            left = _SLICE_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                break
            # Why slices: a signal that arrives just before the system call does not interrupt it.
            waiter.acquire(timeout=min(left, _SLICE_SECONDS))
        with contextlib.suppress(ValueError):
            self._waiters.remove(waiter)
        return self.is_set


class CallbackThreads:
    """Threads that run callbacks of the user; one for each callback that has not returned."""

    def __init__(self) -> None:
        self._tasks = queue.SimpleQueue[Callable[[], object] | None]()
        self._idle = threading.Semaphore(0)
        self._threads: set[threading.Thread] = set()

    def run(self, task: Callable[[], object]) -> None:
        """Run a task in an idle thread, or in a new one; only the pool thread calls this."""
        self._tasks.put(task)
        if not self._idle.acquire(blocking=False):
            thread = threading.Thread(target=self._serve, name="shmpar-callback", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _serve(self) -> None:
        while (task := self._next()) is not None:
            try:
                task()
            except BaseException:
                # Why the futures' logger: it is where other executors report this.
                logging.getLogger("concurrent.futures").exception("exception calling callback")
            del task
            self._idle.release()

    def _next(self) -> Callable[[], object] | None:
        """Return the next task; None if there was none for a while, or never will be."""
        while True:
            try:
                return self._tasks.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                # Invariant: a thread exits only if it is still counted as idle, so that a task
                # that was put meanwhile finds one.
                if self._idle.acquire(blocking=False):
                    self._threads.discard(threading.current_thread())
                    return None

    def __contains__(self, thread: threading.Thread) -> bool:
        return thread in self._threads

    def close(self) -> None:
        """End the threads; wait for them unless this is one of them."""
        threads, self._threads = list(self._threads), set()
        for _ in threads:
            self._tasks.put(None)
        if threading.current_thread() not in threads:
            for thread in threads:
                thread.join()


class _Condition(_thread.RLock):  # type: ignore[misc]
    """The condition of a future that waits at its latch.

    Why not `threading.Condition`: its `__enter__` and `__exit__` are Python functions. An interrupt
    inside of them, in a thread that polls `done()`, leaves the lock locked, and the pool thread
    waits for it for ever. Those of a lock are not interrupted.
    """

    def wait(self, timeout: float | None = None) -> bool:
        """Return at once: the future has been waited for."""
        return False

    def notify_all(self) -> None:
        """Do nothing: nobody waits here."""


class PoolFuture(Future[Any]):
    """A future whose callbacks the pool thread does not run.

    Attributes
    ----------
    resolved : Latch
        Set when the outcome is there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._condition = _Condition()  # type: ignore[assignment]
        self.resolved = Latch()
        self._pool_callbacks: deque[Callable[[Future[Any]], object]] = deque()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the outcome; return the result, or raise the exception."""
        self.resolved.wait(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the outcome; return the exception, None if there is none."""
        self.resolved.wait(timeout)
        return super().exception(0)

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call ``fn(self)`` when the future is done: in another thread, or at once here."""
        self._pool_callbacks.append(fn)
        if super().done():
            self.run_callbacks()

    def run_callbacks(self) -> None:
        """Run the callbacks that have not run yet."""
        while self._pool_callbacks:
            try:
                callback = self._pool_callbacks.popleft()
            except IndexError:  # another thread has taken it
                return
            try:
                callback(self)
            except BaseException:
                logging.getLogger("concurrent.futures").exception(
                    "exception calling callback for %r", self
                )

    def resolve(self, callbacks: CallbackThreads, value: Any, error: BaseException | None) -> None:
        """Set the outcome, in the pool thread; a future that was cancelled stays so."""
        if Future.running(self) or self.set_running_or_notify_cancel():
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        self.notify(callbacks)

    def notify(self, callbacks: CallbackThreads) -> None:
        """Let the waiters go on, and have the callbacks run."""
        self.resolved.set()
        if self._pool_callbacks:
            callbacks.run(self.run_callbacks)


class Call(PoolFuture):
    """A call that was submitted; a :class:`concurrent.futures.Future`."""

    def __init__(self, function: Function, prepared: Any, retries: int) -> None:
        super().__init__()
        self.number = next(_numbers)
        self.name = failures.function_name(function)
        self.prepared = prepared
        self.retries = retries
        self.worker: int | None = None

    def cancel(self) -> bool:
        """Cancel the call unless a worker has it; return whether it is cancelled."""
        cancelled = super().cancel()
        if cancelled:
            self.prepared = None  # Why: it may be queued for long, and needs its arguments no more.
            self.resolved.set()
            self.run_callbacks()
        return cancelled


class Calls:
    """The calls of one pool; only the pool thread uses it."""

    def __init__(self, callbacks: CallbackThreads) -> None:
        self._callbacks = callbacks
        self._queue: deque[Call] = deque()
        self._running: dict[int, Call] = {}
        self._startup_failures = 0  # workers that died in a row without work

    def __bool__(self) -> bool:
        return bool(self._queue or self._running)

    def add(self, call: Call) -> None:
        """Queue a call."""
        self._queue.append(call)

    def assign(self, engine: Engine) -> None:
        """Give calls to workers, while there are both."""
        while self._queue and (worker := engine.free_worker()) is not None:
            call = self._queue.popleft()
            # Why only the first time: a call that is made again is running already.
            if call.worker is None and not call.set_running_or_notify_cancel():
                call.prepared = None
                call.notify(self._callbacks)  # Why again: `cancel` may have been interrupted.
                continue
            call.worker = worker
            self._running[call.number] = call
            try:
                engine.call(worker, call.number, call.prepared)
            except Exception as error:  # noqa: BLE001 - a segment was closed: that call's fault
                self.finished(CallFinished(call.number, error=error))

    def finished(self, event: CallFinished) -> None:
        """Resolve a call."""
        self._startup_failures = 0
        call = self._running.pop(event.call, None)
        if call is not None:
            self._resolve(call, event.value, event.error)

    def _resolve(self, call: Call, value: Any, error: BaseException | None) -> None:
        call.prepared = None  # Why: a call that is over keeps no arguments.
        call.resolve(self._callbacks, value, error)

    def worker_lost(self, event: WorkerLost, *, innocent: bool) -> bool:
        """Queue the calls of a lost worker again; return whether it had one.

        It is `innocent` if it died for the sake or the fault of a run.
        """
        exit_, had = event.exit or Exit(None), False
        for number in [n for n, call in self._running.items() if call.worker == event.worker]:
            call, had = self._running.pop(number), True
            if innocent or call.retries > 0:
                call.retries -= not innocent
                self._queue.appendleft(call)
            else:
                self._resolve(call, None, failures.call_died(call.name, exit_))
        self._startup_failures = 0 if had or innocent else self._startup_failures + 1
        return had

    def give_up(self, max_startup_failures: int, exit_: Exit) -> None:
        """Fail all calls if too many workers in a row have died without work."""
        if self._startup_failures > max_startup_failures:
            while self._queue:
                call = self._queue.popleft()
                self._resolve(call, None, failures.call_died(call.name, exit_))

    def cancel_waiting(self) -> None:
        """Cancel the calls that no worker has had."""
        for call in [call for call in self._queue if call.worker is None]:
            self._queue.remove(call)
            call.prepared = None
            Future.cancel(call)
            call.set_running_or_notify_cancel()
            call.notify(self._callbacks)

    def abort(self, error: BaseException) -> None:
        """Fail all calls: the engine is gone."""
        calls = [*self._running.values(), *self._queue]
        self._queue.clear()
        self._running.clear()
        for call in calls:
            self._resolve(call, None, error)
