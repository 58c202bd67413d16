"""Futures of a pool: latches and threads that interrupts do not harm, and records of workers.

Guarantees
----------
- The pool thread resolves a future, and runs no code of the user for it: callbacks run in threads
  of their own, which may wait for the pool and for each other.
- A cancelled future is never set again.
- Logging records of workers reach the handlers of this process in order, in a callback thread,
  one at a time. The result of a run or call waits for the records before it, at most a second.
- A bounded number of records waits for slow handlers; a warning counts the others.
"""

from __future__ import annotations

import _thread
import builtins
import contextlib
import logging
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures._base import PENDING
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from shmpar.display import format_seconds
from shmpar.errors import no_attribute
from shmpar.ipc.protocol import Logged, Warned
from shmpar.pickling.unpack import unpack
from shmpar.tracebacks import delivering, hide_frames, hiding
from shmpar.worker.environment import MOST_WARNINGS
from shmpar.worker.logs import handle

_SLICE_SECONDS = 0.1  # until a waiting thread looks for signals
_LOG_SECONDS = 1.0  # Why: a handler may wait for the thread that asks for the outcome.
_IDLE_SECONDS = 0.2  # until a callback thread without a task exits
_STALL_SECONDS = 0.1  # without the begin of a callback, until one more begins
_FEW_THREADS = 32  # that run callbacks at once, while these return
_MOST_WAITING = 10_000  # records that wait for their handlers


handling = threading.local()  # Its `records` is true in a thread that handles records of workers.


class Latch:
    """A one-shot event whose waiters may be interrupted at any instruction.

    Why not `threading.Event`: it waits under a condition. A KeyboardInterrupt right after the
    condition's lock was acquired leaves it locked, and the thread that sets it waits for ever.
    Here each waiter has a lock of its own.
    """

    # Why in the class: most latches have no waiter, and a program may hold a great many of them.
    _waiters: deque[threading.Lock] | tuple[()] = ()

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        """Let all waiters go on."""
        if self.is_set:
            return
        self.is_set = True
        while self._waiters:
            with contextlib.suppress(IndexError):  # another thread may have taken it
                self._waiters.popleft().release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds; return True if it is set."""
        if self.is_set:
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        waiter = threading.Lock()
        waiter.acquire()
        # Why setdefault: it is one step, so that two waiters get the same deque.
        waiters: deque[threading.Lock] = vars(self).setdefault("_waiters", deque())
        waiters.append(waiter)
        # Invariant: `set` may have emptied the waiters before the append, but then it is set.
        while not self.is_set:
            left = _SLICE_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                break
            # Why slices: a signal that arrives just before the system call does not interrupt it.
            waiter.acquire(timeout=min(left, _SLICE_SECONDS))
        with contextlib.suppress(ValueError):
            waiters.remove(waiter)
        return self.is_set


class CompletionStream:
    """Thread-safe stream of the numbers of completed chunks, and of ``~chunk`` for failed ones."""

    def __init__(self) -> None:
        self._chunks: list[int] = []
        self._complete = False
        # Why a latch for each change: an interrupt of an iterator leaves no lock locked.
        self._changed = Latch()

    def add(self, chunks: Iterable[int], *, last: bool = False) -> None:
        """Add chunks, in one thread at a time; `last` ends the stream."""
        self._chunks.extend(chunks)
        self._complete = self._complete or last
        changed, self._changed = self._changed, Latch()
        changed.set()

    def batches(self, seconds: float | None = None) -> Iterator[list[int]]:
        """Yield lists of completed chunks; an empty one after `seconds` without a chunk."""
        given = 0
        while True:
            # Invariant: the latch is taken before the look, so a later change sets it.
            changed, complete = self._changed, self._complete
            new = self._chunks[given:]
            given += len(new)
            if new:
                yield new
            if complete:
                return
            if not new and not changed.wait(seconds):
                yield []


class _Apart:
    """A task for another thread; its error is raised in the thread that waits for it."""

    def __init__(self, task: Callable[[], object]) -> None:
        self._task, self.done = task, Latch()
        self._error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self._task()
        except BaseException as error:  # noqa: BLE001 - raised below
            self._error = error
        finally:
            self.done.set()

    def wait(self) -> None:
        self.done.wait()
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            # Why: its traceback has this frame, so the engine would live until a collection.
            del error


def start_thread(thread: threading.Thread) -> None:
    """Start a thread from a short-lived one, which no interrupt reaches.

    Why: `Thread.start` waits under a condition. An interrupt there may leave it locked, and then
    the new thread waits for it for ever.
    """
    begun = _Apart(thread.start)
    _thread.start_new_thread(begun, ())
    begun.wait()


def run_apart(task: Callable[[], None]) -> None:
    """Run a task in a thread of its own, which no interrupt reaches, and wait for it.

    After an interrupt the task may still run, or begin later.

    Why: an interrupt between the start of a process and the note of its number would leave it.
    """
    apart = _Apart(task)
    thread = threading.Thread(target=apart, name="shmpar-start", daemon=True)
    start_thread(thread)
    apart.done.wait()
    thread.join()
    apart.wait()


def surely(action: Callable[[], object]) -> None:
    """Call an action, again after each interrupt that comes before it has returned."""
    while True:
        # Why not contextlib.suppress: an interrupt inside of its functions is not suppressed.
        try:
            action()
        except KeyboardInterrupt:
            continue
        return


class CallbackThreads:
    """Threads that run callbacks of the user, which may wait for each other.

    A few run at a time. One more begins whenever none has begun for a while, since those in
    progress may wait for it. No task is lost if the system has no thread for it.
    """

    def __init__(self) -> None:
        self._tasks = deque[Callable[[], object]]()  # those that have not begun
        self._begun = 0.0  # when a task, or a thread, has begun last
        self._idle = deque[threading.Lock]()  # a thread waits at each until it is released
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def run(self, task: Callable[[], object]) -> None:
        """Run a task in another thread; only the pool thread calls this, and :meth:`attend`."""
        self._tasks.append(task)
        try:
            self._idle.pop().release()
        except IndexError:
            if len(self._threads) < _FEW_THREADS:
                self._start()
        else:
            self._begun = time.monotonic()

    def attend(self) -> bool:
        """Start a thread if no task has begun for a while; return whether any waits."""
        if self._tasks and time.monotonic() - self._begun >= _STALL_SECONDS:
            self._start()
        return bool(self._tasks)

    def _start(self) -> None:
        self._begun = time.monotonic()
        thread = threading.Thread(target=self._serve, name="shmpar-callback", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            self._threads.discard(thread)  # Why no error: a later thread runs the task.

    def _serve(self) -> None:
        wake = threading.Lock()
        wake.acquire()
        self._run_tasks()
        while self._is_wanted(wake):
            self._run_tasks()
        self._threads.discard(threading.current_thread())

    def _is_wanted(self, wake: threading.Lock) -> bool:
        """Wait for a task; return False if there is none for a while, or never will be."""
        self._idle.append(wake)
        # Invariant: a task from before the append is seen here, and any later one releases.
        if not (self._tasks or self._closed) and wake.acquire(timeout=_IDLE_SECONDS):
            return True
        try:
            self._idle.remove(wake)
        except ValueError:
            return wake.acquire()  # Why: `run` has taken it, and releases it.
        return bool(self._tasks)

    def _run_tasks(self) -> None:
        """Run the tasks that have not begun, one after the other."""
        with contextlib.suppress(IndexError):
            while True:
                self._run_task(self._tasks.popleft())

    def _run_task(self, task: Callable[[], object]) -> None:
        self._begun = time.monotonic()
        try:
            task()
        except BaseException:
            # Why the futures' logger: it is where other executors report this.
            logging.getLogger("concurrent.futures").exception("exception calling callback")

    def __contains__(self, thread: threading.Thread) -> bool:
        return thread in self._threads

    @property
    def has_threads(self) -> bool:
        """True while a thread runs callbacks, or waits for one."""
        return bool(self._threads)

    def close(self) -> None:
        """End the threads; wait for them unless this is one of them."""
        threads, self._closed = list(self._threads), True
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().release()
        if threading.current_thread() not in threads:
            for thread in threads:
                thread.join()
            self._run_tasks()  # Why: there was no thread for them.


def _unpickled(warned: Warned) -> Warning:
    """Return the warning, or one of a base class with the same text."""
    if warned.body is not None:
        with contextlib.suppress(Exception):
            found = unpack(warned.body)[0]
            if isinstance(found, Warning):
                return found
    stand_in: Warning = getattr(builtins, warned.builtin)(warned.text)
    return stand_in


class Condition(_thread.RLock):  # type: ignore[misc]
    """The condition of a future that is waited for at its latch.

    Invariant: each future has its own. `concurrent.futures.wait` acquires those of many futures, in
    the order of the futures' ids. Threads that wait for shared ones would wait for each other.

    Why not `threading.Condition`: its `__enter__` and `__exit__` are Python functions. An interrupt
    inside of them, in a thread that polls `done()`, leaves the lock locked, and the pool thread
    waits for it for ever. Those of a lock are not interrupted.
    """

    __slots__ = ()  # Why: a program may hold a great many futures.

    def wait(self, timeout: float | None = None) -> bool:
        """Return at once: the future has been waited for."""
        return False

    def notify_all(self) -> None:
        """Do nothing: nobody waits here."""


_STATE = "write done(), running() or cancelled()"
OTHER_NAMES = {
    **dict.fromkeys(
        (
            "compute", "fetch", "gather", "get_result", "join", "load", "persist", "results",
            "value", "values",
        ),
        "write result()",
    ),
    **dict.fromkeys(("abort", "interrupt", "kill", "stop", "terminate"), "write cancel()"),
    "add_callback": "write add_done_callback(f)",
    "close": "write cancel(), or close the pool",
    "error": "write exception()",
    "finished": "write done()",
    "is_alive": "write running()",
    "is_done": "write done()",
    "key": "leave it out: the future is the only name of the call",
    "release": "leave it out: memory goes with the last reference",
    "retry": "make the call again, or pass retries= to the pool",
    "state": _STATE,
    "status": _STATE,
    "then": "write add_done_callback(f)",
    "traceback": "write exception().__traceback__",
}  # fmt: skip


class PoolFuture(Future[Any]):
    """A future whose callbacks the pool thread does not run.

    Attributes
    ----------
    name : str
        Name of its function.
    resolved : Latch
        Set when the outcome is there.
    warned : dict or None
        The warnings of worker processes, until a thread asks for the outcome.
    logged : Latch or None
        Set when the logging records that came before the outcome are handled.
    """

    _other_names: ClassVar[Mapping[str, str]] = OTHER_NAMES
    name: str
    warned: dict[Any, Warned] | None = None
    logged: Latch | None = None
    # Why in the class: most futures have no callback, and a program may hold a great many futures.
    _pool_callbacks: deque[Callable[[Future[Any]], object]] | tuple[()] = ()
    _done_callbacks = ()

    def __init__(self) -> None:
        # Why not Future.__init__: its condition takes longer to make than all that is made here.
        self._condition = Condition()  # type: ignore[assignment]
        self._state = PENDING
        self._result = self._exception = None
        self._waiters: list[Any] = []
        self.resolved = Latch()

    def __repr__(self) -> str:
        kind, _, state = super().__repr__().partition(" ")
        return f"{kind} of {self.name} {state}"

    @delivering
    def result(self, timeout: float | None = None) -> Any:
        """Wait for the outcome; return the result, or raise the exception."""
        self._await_outcome(timeout)
        try:
            return super().result(0)
        finally:
            del self  # Why: the frames of the exception would hold the future that holds it.

    def _await_outcome(self, timeout: float | None) -> None:
        if self.resolved.wait(timeout):
            self.issue_warnings()
        elif not super().done():
            seconds = format_seconds(max(float(timeout or 0), 0))
            raise TimeoutError(f"{self!r} is not done after {seconds}")

    # Names of multiprocessing.pool.AsyncResult

    @delivering
    def get(self, timeout: float | None = None) -> Any:
        """Return the result, as :meth:`result`."""
        return self.result(timeout)

    @hide_frames
    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is done, at most `timeout` seconds."""
        self.resolved.wait(timeout)

    def ready(self) -> bool:
        """Return whether it is done, as :meth:`done`."""
        return self.done()

    def successful(self) -> bool:
        """Return whether it is done without an exception.

        Raises
        ------
        ValueError
            If it is not done.
        """
        if not self.done():
            raise ValueError(f"{self!r} is not done: call wait() before successful()")
        return not self.cancelled() and self.exception() is None

    if not TYPE_CHECKING:  # Why: a type checker would take any name for an attribute.

        def __getattr__(self, name: str) -> NoReturn:
            text = self._other_names.get(name)
            if text is None and not name.startswith("_") and hasattr(np.ndarray, name):
                text = f"write result().{name}"
            with hiding():
                raise no_attribute(self, name, text)

    def _refuse_use(self, *_: Any, **__: Any) -> NoReturn:
        with hiding():
            raise TypeError(
                f"a {type(self).__name__} is a future, not its result: write result() first"
            )

    __getitem__ = __float__ = _refuse_use
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse_use
    __truediv__ = __rtruediv__ = _refuse_use

    def add_warning(self, warned: Warned) -> None:
        """Keep a warning of a worker process, unless it is the same as an earlier one."""
        if self.warned is None:
            self.warned = {}
        if len(self.warned) < MOST_WARNINGS:
            self.warned.setdefault(warned[3:], warned)

    def issue_warnings(self) -> None:
        """Issue the warnings of worker processes, in the thread that asks for the outcome.

        Before, wait until their logging records are handled.
        """
        if (logged := self.logged) is not None:
            self.logged = None
            # Why: a handler that asks for an outcome would wait for itself.
            logged.wait(0 if getattr(handling, "records", False) else _LOG_SECONDS)
        if not self.warned:
            return
        warned, self.warned = self.warned, None
        for one in warned.values():
            module = sys.modules.get(one.module or "")
            # Why the module's registry: there Python notes which warnings it has shown.
            registry = {} if module is None else vars(module).setdefault("__warningregistry__", {})
            warnings.warn_explicit(
                _unpickled(one), None, one.filename, one.lineno, one.module, registry
            )

    @hide_frames
    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the outcome; return the exception, None if there is none."""
        try:
            self._await_outcome(timeout)
        except Warning as error:  # Why: asyncio asks in a callback, which must not raise.
            return error
        return super().exception(0)

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call ``fn(self)`` when the future is done: in another thread, or at once here."""
        # Why setdefault: it is one step, so that two threads get the same deque.
        vars(self).setdefault("_pool_callbacks", deque()).append(fn)
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


class LogRelay:
    """Hands logging records over to a callback thread, a batch at a time; the pool thread owns it.

    Parameters
    ----------
    callbacks : CallbackThreads
        They run the handlers.
    post : callable
        Has a function called in the pool thread.
    """

    def __init__(
        self, callbacks: CallbackThreads, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self._callbacks, self._post = callbacks, post
        self._waiting: list[Logged] = []
        self._dropped = 0
        self._next = Latch()  # set when the records that wait are handled
        self._current: Latch | None = None  # of the batch that a thread handles

    def add(self, message: Logged) -> None:
        """Take a record."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(message)
        else:
            self._dropped += 1

    def pending(self) -> Latch | None:
        """Return a latch that is set when all records so far are handled; None if they are."""
        return self._next if self._waiting else self._current

    def flush(self, *, last: bool = False) -> None:
        """Have the records handled, unless a batch is in progress; the `last` one waits for it."""
        before = self._current
        if not self._waiting or (before is not None and not last):
            return
        batch, self._waiting = self._waiting, []
        if self._dropped:
            text = f"{self._dropped:,} records of workers were dropped: the handlers are too slow"
            fields = {"name": "shmpar", "msg": text, "levelno": 30, "levelname": "WARNING"}
            batch.append(Logged(fields, {}))
            self._dropped = 0
        self._current, self._next = self._next, Latch()
        self._callbacks.run(partial(self._handle, batch, before, self._current))

    def _handle(self, batch: list[Logged], before: Latch | None, done: Latch) -> None:
        """Handle a batch, in a callback thread."""
        try:
            if before is not None:
                before.wait()
            handling.records = True
            for message in batch:
                try:
                    handle(message)
                except Exception:  # noqa: BLE001 - a handler is the user's code
                    # Why the futures' logger: it is where errors of callbacks are reported.
                    futures = logging.getLogger("concurrent.futures")
                    futures.exception("exception in a handler of the record %r", message.fields)
        finally:
            handling.records = False
            done.set()
            # Why suppressed: after the end of the pool there is no batch to follow.
            with contextlib.suppress(RuntimeError):
                self._post(self._finished)

    def _finished(self) -> None:
        if self._current is not None and self._current.is_set:
            self._current = None
        self.flush()
