"""The driver: brings the events of one engine to its runs, in whichever thread waits.

Imports run, conductor, scheduler, interrupts and the engine's protocol.

The thread that waits for a run drives all of them: a message of a worker wakes that thread
itself, and there is no thread in between. Where two wait, one drives and the other is told. Only
runs that nobody waits for have a thread of ours, as long as they last.

Guarantees
----------
- Whatever changes a run or the engine does so under one lock, which is not held while waiting
  for workers, nor while the user's code runs in another process or thread.
- An interrupt (Ctrl-C) is let through only while waiting, and cancels the run in order: tickets
  stop, chunks in progress get a short grace, then their workers are ended. Any other exception,
  and a second interrupt, may have cut a change in half, so the engine is thrown away and made
  anew.
- After either, the next run works.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from shmpar.engines.engine import (
    TICK_SECONDS,
    Emptied,
    Engine,
    Event,
    Failed,
    Finished,
    Lost,
    Ready,
    Rejected,
    Returned,
    Values,
    patience,
)
from shmpar.plan import Function
from shmpar.runtime import scheduler
from shmpar.runtime.calls import Task, Tasks
from shmpar.runtime.execution import Conductor
from shmpar.runtime.interrupts import allowed, held_back
from shmpar.runtime.run import Run

__all__ = ["Driver", "End"]

_PAUSE = 2e-3  # seconds that the thread leaves the work to whoever has waited
_GRACE = 0.3  # seconds that chunks in progress get after an interrupt


class End(NamedTuple):
    """How a driver ends.

    Attributes
    ----------
    cancel_runs : bool
        Cancel runs in flight; else wait for them.
    cancel_tasks : bool
        Cancel tasks that no worker has; else wait for them.
    kill : bool
        Tasks in progress get no more than a short grace.
    """

    cancel_runs: bool
    cancel_tasks: bool
    kill: bool = False


class Driver:
    """Runs plans on one engine.

    Parameters
    ----------
    make_engine : callable
        Makes the engine, now and after an interrupt that broke it.
    """

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self._make_engine = make_engine
        self._lock = threading.RLock()
        self._turn = threading.RLock()
        self._changed = threading.Condition()
        self._runs: dict[int, Run] = {}
        self._tasks = Tasks()
        # Has nothing to do with the others: attend() is called under the locks of futures.
        self._attending = threading.Lock()
        self._unattended: set[Run | Task] = set()
        self._background: threading.Thread | None = None
        self._driving = False
        self._waiting = 0  # threads that wait for one of theirs while another drives
        self._here = _Here()
        self.engine: Engine | None = make_engine()

    # Runs

    def run(self, run: Run) -> Any:
        """Execute a run to its end in this thread; return its result or raise its error."""
        with held_back():
            try:
                self._begin(run, attended=True)
                self._drive(run)
            except BaseException as error:
                self._interrupted(run, error)
                raise
            return run.hand_over()

    def launch(self, run: Run) -> None:
        """Execute a run while nobody waits for it."""
        with held_back():
            try:
                self._begin(run, attended=False)
            except BaseException as error:
                self._interrupted(run, error)
                raise
            self.attend(run)

    def submit(self, call: Function, retries: int) -> Task:
        """Take a single call; it is given to a worker now, if one is free."""
        with held_back():
            task = Task(self, call, retries)
            with self._lock:
                engine = self._alive
                self._tasks.add(task, engine)
                self._tasks.give(engine)
            if task.worker is None or not engine.holds_results:
                self.attend(task)
        return task

    def drive_task(self, task: Task, timeout: float | None) -> None:
        """Bring events until the task is done, or for so many seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        with held_back():
            try:
                self._drive(task, until)
            except BaseException as error:
                if not self._here.waiting:  # else it is an interrupt, and the task goes on
                    self._break(error)
                raise
            finally:
                self._here.waiting = False

    def poll(self) -> None:
        """Bring the events that there are, unless another thread is at it."""
        if self.engine is not None and self._turn.acquire(blocking=False):
            try:
                with held_back():
                    self._step(until=0.0)
            finally:
                self._here.waiting = False
                self._turn.release()

    def attend(self, one: Run | Task) -> None:
        """Bring events in a thread until this one is done; takes no lock but its own."""
        with self._attending:
            self._unattended.add(one)
            if self._background is None:
                self._background = threading.Thread(
                    target=self._attend, name="shmpar-driver", daemon=True
                )
                self._background.start()
        engine = self.engine
        if engine is not None:
            engine.wake()

    @property
    def _alive(self) -> Engine:
        if self.engine is None:
            raise RuntimeError("this pool is closed: make a new one")
        return self.engine

    def _begin(self, run: Run, *, attended: bool) -> None:
        with self._lock:
            engine = self._alive
            conductor = run.conductor
            self._runs[conductor.number] = run
            run.cancel_by(lambda: self.cancel(run))
            try:
                conductor.begin(engine, attended=attended)
            except BaseException as error:
                # Had it begun, some worker may have it: then it is not clean.
                if not conductor.running:
                    del self._runs[conductor.number]
                    conductor.abort(error)
                    run.resolve()
                raise
        if conductor.over:
            self._sweep()

    def cancel(self, run: Run) -> None:
        """Stop a run; it is done when its last writer is idle."""
        with held_back():
            with self._lock:
                if not run.conductor.over:
                    run.conductor.stop()
                engine = self.engine
            self._sweep()
            if engine is not None:
                engine.wake()

    # Driving

    def _drive(self, one: Run | Task, until: float | None = None, *, yields: bool = False) -> None:
        """Bring events to all until this one is done, or the time has come.

        With `yields` it is the thread of those that nobody waits for, and leaves the work to
        whoever waits: an event that has to go from thread to thread takes longer.
        """
        waits = False
        try:
            while not (_done(one) or _past(until)):
                if not (yields and self._waiting) and self._turn.acquire(blocking=False):
                    self._driving = True
                    try:
                        while not (_done(one) or _past(until) or (yields and self._waiting)):
                            self._step(until)
                    finally:
                        with self._changed:
                            self._driving = False
                            self._turn.release()
                            self._changed.notify_all()
                    continue
                if not yields:
                    if not waits:
                        with self._changed:
                            self._waiting, waits = self._waiting + 1, True
                    self._alive.wake()  # the thread that drives has not heard of this one
                self._here.waiting = True
                with allowed(), self._changed:
                    # Else it was told between the look above and here.
                    if self._driving or (yields and self._waiting):
                        self._changed.wait(_patience(TICK_SECONDS, until))
                        if yields:  # whoever has waited may come back at once
                            self._changed.wait(_PAUSE)
                self._here.waiting = False
        finally:
            if waits:
                with self._changed:
                    self._waiting -= 1
                    self._changed.notify_all()

    def _step(self, until: float | None = None) -> None:
        engine = self._alive
        timeout = _patience(self._patience(), until)
        self._here.waiting = True
        engine.wait(timeout)
        self._here.waiting = False
        with self._lock:
            if engine is not self.engine:
                return  # another thread has thrown it away
            for event in engine.events():
                self._tell(event)
            now = time.monotonic()
            for conductor in self._running():
                conductor.tick(now)
            self._tasks.give(engine)
        self._sweep()

    def _patience(self) -> float | None:
        """Seconds until somebody must be told of progress, or a chunk may be overdue."""
        for run in self._runs.copy().values():
            conductor = run.conductor
            limit = conductor.policy.task_timeout
            if conductor.observer is not None or limit is not None:
                return min(TICK_SECONDS, limit or 1.0)
        return None

    def _sweep(self) -> None:
        """Resolve the runs that are over, outside the lock: their callbacks are the user's."""
        with self._lock:
            over = [run for run in self._runs.values() if run.conductor.over]
            for run in over:
                del self._runs[run.conductor.number]
        before, self._here.telling = self._here.telling, True
        try:
            for run in over:
                run.resolve()
            if self._tasks.resolve() or over:
                with self._changed:
                    self._changed.notify_all()
        finally:
            self._here.telling = before

    def _tell(self, event: Event) -> None:
        match event:
            case Ready(worker):
                for conductor in self._running():
                    conductor.feed(scheduler.Joined(worker))
            case Lost():
                self._lost(event)
            case Returned(task, value, error):
                self._tasks.returned(task, value, error)
            case _:
                found = self._runs.get(event.run)
                if found is not None and not found.conductor.over:
                    self._tell_one(found.conductor, event)

    def _lost(self, event: Lost) -> None:
        worker, end, engine = event.worker, event.end, self._alive
        conductors = self._running()
        holds = any(conductor.holds(worker) for conductor in conductors)
        known = holds or event.left or event.killed_for is not None
        had = self._tasks.lost(worker, end, innocent=known)
        for conductor in conductors:
            innocent = event.killed_for not in {None, conductor.number}
            conductor.worker_lost(worker, end, barren=not (known or had), innocent=innocent)
        self._tasks.give_up(patience(engine.workers), end)
        if self._tasks:
            engine.replace(worker)

    def _running(self) -> list[Conductor]:
        """Those of the runs that are not over; the others wait to be swept."""
        conductors = [run.conductor for run in self._runs.values()]
        return [one for one in conductors if one.running and not one.over]

    @staticmethod
    def _tell_one(
        conductor: Conductor, event: Emptied | Finished | Failed | Rejected | Values
    ) -> None:
        match event:
            case Emptied(worker, _, generation, claimed, handed, said):
                if said is not None:
                    conductor.said(said)
                conductor.feed(scheduler.Drained(worker, generation, claimed, handed))
            case Finished(_, generation, first, last):
                conductor.finished(generation, first, last)
            case Failed(_, failure):
                conductor.chunk_failed(failure)
            case Rejected(_, error):
                conductor.rejected(error)
            case Values(_, values):
                conductor.collected(values)

    def _attend(self) -> None:
        """Drive while there are runs that nobody waits for."""
        while True:
            with self._attending:
                one = next(iter(self._unattended), None)
                if one is None:
                    self._background = None
                    return
            try:
                self._drive(one, yields=True)
            except BaseException as error:  # noqa: BLE001 - the runs are told; nobody else could be
                self._break(error)
            with self._attending:
                self._unattended.discard(one)

    # Interrupts and the end

    def _interrupted(self, run: Run, error: BaseException) -> None:
        if run.conductor.number not in self._runs:
            return  # it never began, or is over
        if not self._here.waiting:
            self._break(error)
            return
        self._here.waiting = False
        try:
            self._abandon(run)
        except BaseException as again:
            self._break(again)
            raise

    def _abandon(self, run: Run) -> None:
        """Cancel a run; end the workers whose chunks take longer than the grace."""
        self.cancel(run)
        self._drive(run, until=time.monotonic() + _GRACE)
        if not run.done():
            with self._lock:
                run.conductor.expire()
            self._drive(run)

    def _break(self, error: BaseException) -> None:
        """Throw the engine away, with all its runs, and make a new one."""
        with self._lock:
            broken, self.engine = self.engine, None
            try:
                if broken is not None:
                    broken.wake()
                    broken.shutdown()
                    self.engine = self._make_engine()
            finally:  # where none can be made the pool is closed, and they are told all the same
                for run in self._runs.values():
                    run.conductor.abort(error)
                self._tasks.abort(error)
                self._sweep()

    def close(self, end: End) -> None:
        """End runs and tasks, by waiting or with the grace of an interrupt, then the workers."""
        try:
            for run in list(self._runs.values()):
                if end.cancel_runs:
                    self._abandon(run)
                else:
                    self._drive(run)
            if end.cancel_tasks:
                with self._lock:
                    self._tasks.cancel_waiting()
                self._sweep()
            until = time.monotonic() + _GRACE if end.kill else None
            for task in self._tasks.pending():
                self._drive(task, until)
        finally:
            self._end()

    @property
    def calls_back(self) -> bool:
        """Whether this thread is in a callback, for whose end :meth:`close` waits."""
        return self._here.telling

    def _end(self) -> None:
        with self._lock:
            engine, self.engine = self.engine, None
            background = self._background
        if engine is None:
            return
        try:
            if background is not None and background is not threading.current_thread():
                engine.wake()
                with allowed():
                    background.join()
        finally:
            engine.shutdown()
            self._tasks.abort(RuntimeError("the pool was closed before this call was done"))
            self._tasks.resolve()


class _Here(threading.local):
    """What this thread does: nothing but wait, so that it may be interrupted; or call back."""

    waiting = False
    telling = False


def _done(one: Run | Task) -> bool:
    return Future.done(one)  # a task's own looks for news first


def _patience(seconds: float | None, until: float | None) -> float | None:
    """Seconds to wait, not beyond a point in time."""
    if until is None:
        return seconds
    left = max(0.0, until - time.monotonic())
    return left if seconds is None else min(seconds, left)


def _past(until: float | None) -> bool:
    return until is not None and time.monotonic() >= until
