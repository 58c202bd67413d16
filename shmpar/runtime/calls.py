"""Calls that were submitted: their futures, and the workers that have them.

Guarantees
----------
- A worker has one call at a time: no call waits behind another that may be waiting for it.
- A call whose worker died is made again, as often as it may be; any other outcome is final.
"""

from __future__ import annotations

import itertools
from collections import deque
from concurrent.futures import Future
from typing import Any

from shmpar.engines.engine import Engine, Exit
from shmpar.ipc.protocol import CallFinished, WorkerLost
from shmpar.plan import Function
from shmpar.runtime import error_texts
from shmpar.runtime.futures import CallbackThreads
from shmpar.runtime.tasks import TaskFuture

_numbers = itertools.count()


class Call(TaskFuture):
    """A call that was submitted; a :class:`concurrent.futures.Future`."""

    def __init__(self, function: Function, prepared: Any, retries: int) -> None:
        super().__init__()
        self.number = next(_numbers)
        self.name = error_texts.function_name(function)
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

    def running(self, number: int) -> Call | None:
        """Return the call that a worker has under this number."""
        return self._running.get(number)

    def all(self) -> list[Call]:
        """Return the calls that are not over."""
        return [*self._running.values(), *self._queue]

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
                self._resolve(call, None, error_texts.call_died(call.name, exit_))
        self._startup_failures = 0 if had or innocent else self._startup_failures + 1
        return had

    def give_up(self, max_startup_failures: int, exit_: Exit) -> None:
        """Fail all calls if too many workers in a row have died without work."""
        if self._startup_failures > max_startup_failures:
            while self._queue:
                call = self._queue.popleft()
                self._resolve(call, None, error_texts.call_died(call.name, exit_))

    def cancel_waiting(self) -> None:
        """Cancel the calls that no worker has had; ask the tasks of the others to stop."""
        for call in self._running.values():
            TaskFuture.cancel(call)
        for call in [call for call in self._queue if call.worker is None]:
            self._queue.remove(call)
            call.prepared = None
            Future.cancel(call)
            call.set_running_or_notify_cancel()
            call.notify(self._callbacks)

    def abort(self, error: BaseException) -> None:
        """Fail all calls: the engine is gone."""
        calls = self.all()
        self._queue.clear()
        self._running.clear()
        for call in calls:
            self._resolve(call, None, error)
