"""A run: one execution of a plan, as a Future; takes an engine's events to the scheduler.

Imports the scheduler, the engine's protocol, failures, outputs, policy, report and
scratch.

Guarantees
----------
- A run is done only when no worker writes to its outputs any more, and then at once.
- What ends up in the Future follows from the ledger and the recorded errors alone, not from the
  order in which workers finished.
- All but the methods of a Future is called under the driver's lock.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from shmpar import engines, failures, scheduler
from shmpar.engines.protocol import Engine, Execution, Generation
from shmpar.errors import ShmparError
from shmpar.interrupts import allowed
from shmpar.ledger import DONE, FAILED, SAID
from shmpar.outputs import HandedOver, Outputs
from shmpar.plan import Announcement, Failure, Function, Plan
from shmpar.policy import Observer, Policy
from shmpar.report import Report
from shmpar.scheduler import Scheduler
from shmpar.scratch import Scratch
from shmpar.segment import locate

__all__ = ["Run"]

Array = np.ndarray[Any, Any]
_numbers = itertools.count()


class Run(Future[Any]):
    """One execution of a plan.

    A :class:`concurrent.futures.Future`; the verbs make it.

    Attributes
    ----------
    report : Report
        Its numbers, so far.
    failed : list of ShmparError
        What went wrong, in the order of the chunks.
    """

    def __init__(
        self,
        plan: Plan,
        function: Function,
        arrays: list[Array],
        outputs: Outputs,
        policy: Policy,
    ) -> None:
        super().__init__()
        self.number = next(_numbers)
        self.plan = plan
        self.policy = policy
        self.observer: Observer | None = None
        self._function: Function | None = function
        self._arrays, self._outputs = arrays, outputs
        self._memory: tuple[str, ...] | None = None
        self._engine: Engine | None = None
        self._execution: Execution | None = None
        self._scheduler = Scheduler(
            retries=policy.retries,
            fail_fast=policy.on_error == "raise",
            in_place=policy.in_place,
        )
        self._pending: deque[scheduler.Event] = deque()
        self._errors: dict[int, ShmparError] = {}
        self._fatal: BaseException | None = None
        self._cancelled = False
        self._scratch = Scratch()
        self._allocating = threading.Lock()
        self._deaths = 0
        self._exitcode: int | None = None
        self._began = time.perf_counter()
        self._seconds: float | None = None
        self._told = 0.0
        self._settled = 0
        self._cancel: Callable[[], None] | None = None
        self._outcome: Any = None
        self.over = False

    # For users

    @property
    def progress(self) -> tuple[int, int]:
        """Chunks that are settled (done or failed), and all of them."""
        execution = self._execution
        settled = self._settled if execution is None else execution.ledger.settled
        return settled, self.plan.chunks

    @property
    def out(self) -> Any:
        """The output's shared buffer (a tuple of them), or None while its shape is unknown."""
        arrays = self._outputs.arrays
        if not arrays:
            return None
        return tuple(arrays) if self._outputs.several else arrays[0]

    @property
    def failed(self) -> list[ShmparError]:
        """What went wrong, in the order of the chunks."""
        return [error for _, error in sorted(self._errors.items())]

    @property
    def report(self) -> Report:
        """The run's numbers, so far."""
        engine = self._engine
        return Report(
            verb=self.plan.verb,
            engine=engine.name if engine else "",
            workers=engine.workers if engine else 0,
            chunks=self.plan.chunks,
            done=self.progress[0] - len(self._errors),
            failed=len(self._errors),
            deaths=self._deaths,
            seconds=time.perf_counter() - self._began if self._seconds is None else self._seconds,
            memory=self._memory or self._where(),
            seed=self.plan.seed,
        )

    def result(self, timeout: float | None = None) -> Any:
        """What the verb returns, when it is there.

        Raises
        ------
        TimeoutError, CancelledError
            As of any Future.
        ShmparError
            If the run failed, or if the verb was waited for and its result has been dropped: such
            a run does not keep it, so that the memory goes with the last array.
        """
        result = super().result(timeout)
        if isinstance(result, HandedOver):
            return result.again()
        return result

    def _where(self) -> tuple[str, ...]:
        """Where each input and output lies."""
        places = [locate(array) for array in (*self._arrays, *(self._outputs.arrays or ()))]
        return tuple("private" if place is None else place.segment.kind for place in places)

    def cancel(self) -> bool:
        """Stop handing out chunks; True unless the run was done already.

        The run is done, and :meth:`result` raises ``CancelledError``, when the chunks in progress
        have been finished.
        """
        if self.done():
            return self.cancelled()
        if self._cancel is not None:
            self._cancel()
        return True

    def running(self) -> bool:
        """Whether it has begun and is not done."""
        return self._execution is not None and not self.done()

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait in a coroutine, without blocking its loop."""
        import asyncio

        return asyncio.wrap_future(self).__await__()

    # For the driver

    def begin(self, engine: Engine, cancel: Callable[[], None], *, attended: bool) -> None:
        """Start on an engine.

        Parameters
        ----------
        cancel : callable
            Has this run cancelled, under the driver's lock.
        attended : bool
            Somebody waits for its end; nobody looks at its output before.

        Raises
        ------
        PlanError
            If the function does not travel; nothing was started.
        """
        if self._function is None:
            raise RuntimeError("this run is over")
        self._engine, self._cancel = engine, cancel
        self._execution = execution = Execution(
            number=self.number,
            plan=self.plan,
            function=self._function,
            arrays=self._arrays,
            ledger=engine.ledger(self.plan.chunks),
            allocate=self._allocate,
            outputs=self._outputs.arrays,
            several=self._outputs.several,
        )
        known = self._outputs.arrays is not None
        may_wait = attended and self.plan.fail_fast
        execution.scratch = may_wait and engine.slab is not None and not known
        try:
            with allowed():  # the user's objects pickle themselves, and may be large
                ready = engine.open(execution)
        except BaseException:
            self._execution = None
            engine.close(execution)
            raise
        self._scheduler.patience = 2 * engine.workers + 2
        for command in self._scheduler.start(ready):
            self._do(command)
        self._settle()

    def _allocate(self, announcement: Announcement) -> None:
        with self._allocating:  # two threads may have their first result at once
            execution = self._alive
            if execution.outputs is None:
                outputs = self._outputs.allocate(announcement)
                execution.several = announcement.several
                execution.outputs = outputs

    @property
    def _alive(self) -> Execution:
        if self._execution is None:
            raise RuntimeError("this run is not being executed")
        return self._execution

    def feed(self, event: scheduler.Event) -> None:
        """Take an event to the scheduler and do what it says."""
        self._pending.append(event)
        self._settle()

    def _settle(self) -> None:
        while self._pending and not self.over:
            for command in self._scheduler.handle(self._pending.popleft()):
                self._do(command)

    def chunk_failed(self, failure: Failure) -> None:
        """The function failed on a chunk."""
        if failure.chunk not in self._errors:
            self._errors[failure.chunk] = failures.chunk_error(self.plan, failure, self)
            self.feed(scheduler.ChunkFailed(failure.chunk))

    def said(self, announcement: Announcement) -> None:
        """A worker has put outputs that are such into the scratch."""
        failure = self._scratch.hear(announcement)
        if failure is not None:
            self.chunk_failed(failure)

    def rejected(self, error: BaseException) -> None:
        """A worker cannot go on with this run."""
        self._fatal = self._fatal or error
        self.feed(scheduler.Refused())

    def collected(self, values: Sequence[tuple[int, Any]]) -> None:
        """Results that are objects have arrived."""
        for chunk, value in values:
            (self._outputs.arrays or [])[0][self.plan.window(chunk)] = value

    def worker_lost(self, worker: int, exitcode: int | None, *, barren: bool) -> None:
        """A worker is gone, and has been reaped: its slot will not change any more."""
        execution = self._alive
        self._exitcode = exitcode
        blamed, unfinished = execution.taken_by(worker)
        self._deaths += blamed is not None
        self._scratch.lost(execution.ledger.slot(worker)[SAID])
        execution.ledger.empty(worker)
        self.feed(scheduler.Died(worker, blamed, unfinished, barren))

    def holds(self, worker: int) -> bool:
        """Whether the worker has a chunk of this run."""
        return self._alive.ledger.held(worker) is not None

    def tick(self, now: float) -> None:
        """Tell the observer, ten times a second, and look for chunks that take too long."""
        if now - self._told >= engines.TICK_SECONDS:
            self._told = now
            self._tell_observer()
        if self.policy.task_timeout is not None:
            self._check_overdue(self.policy.task_timeout)

    def _tell_observer(self) -> None:
        if self.observer is None:
            return
        try:
            self.observer.update(*self.progress)
        except Exception as error:  # noqa: BLE001 - the user's code; the run ends with its error
            self.observer = None
            self._fatal = self._fatal or error
            self._pending.append(scheduler.Cancelled())
            self._settle()

    def close_observer(self) -> None:
        """Close the bar, if there is one."""
        observer, self.observer = self.observer, None
        if observer is not None:
            observer.close()

    def _check_overdue(self, limit: float) -> None:
        execution = self._alive
        for worker in range(execution.ledger.workers):
            held = execution.ledger.held(worker)
            if held and held.since and time.monotonic_ns() - held.since > limit * 1e9:
                chunk = execution.generations[held.generation].chunk(held.cursor)
                self.feed(scheduler.TimedOut(worker, chunk))

    # What the scheduler wants done

    def _do(self, command: scheduler.Command) -> None:  # noqa: C901 - one case a command
        execution, engine = self._alive, self._engine
        if engine is None:
            raise RuntimeError("this run has no engine")
        match command:
            case scheduler.Open(number, todo):
                execution.generations.append(Generation(number, todo, engine.tickets()))
            case scheduler.Assign(worker, number):
                engine.assign(worker, execution, execution.generations[number])
            case scheduler.Stop():
                self._stop(engine, execution)
            case scheduler.Kill(worker):
                engine.kill(worker)
            case scheduler.Replace(worker):
                engine.replace(worker)
            case scheduler.Fail(chunk, timed_out):
                execution.ledger.status[chunk] = FAILED
                self._errors[chunk] = self._death(chunk, timed_out=timed_out)
            case scheduler.GiveUp():
                self._fatal = self._fatal or failures.barren(self.plan, self._exitcode, self)
            case scheduler.Audit():
                self._pending.append(scheduler.Audited(self._audit(execution)))
            case scheduler.Finish():
                self._finish(engine, execution)

    def _audit(self, execution: Execution) -> list[int]:
        """Numbers of the chunks that are still to be computed; nobody computes any now."""
        if execution.scratch and execution.outputs is None:
            self._scratch.void(execution.ledger)
        return execution.ledger.pending()

    def _death(self, chunk: int, *, timed_out: bool) -> ShmparError:
        if timed_out:
            return failures.timeout(self.plan, chunk, self.policy.task_timeout, self)
        in_place = self.policy.in_place
        return failures.death(self.plan, chunk, self._exitcode, self, in_place=in_place)

    def _stop(self, engine: Engine, execution: Execution) -> None:
        for generation in execution.generations:
            generation.tickets.stop(self.plan.chunks)
        for taken in engine.stop(execution):
            self._pending.append(scheduler.Drained(taken.worker, taken.generation))

    def _finish(self, engine: Engine, execution: Execution) -> None:
        self._tell_observer()
        self.over = True
        self._settled = execution.ledger.settled
        done = self._done_chunks(execution)
        self._execution = None
        try:
            self._outputs.slab = engine.slab
            if not self._errors and self._fatal is None:
                self._scratch.take(execution.ledger, self._outputs)
            self._outcome = self._conclude(done)
        except BaseException as error:  # noqa: BLE001 - it is the outcome
            self._outcome = error
        engine.close(execution)
        self._seconds = time.perf_counter() - self._began

    def _done_chunks(self, execution: Execution) -> list[int] | None:
        """Numbers of the chunks that are done; None: all of them."""
        ledger = execution.ledger
        if ledger.done == self.plan.chunks:
            return None
        found: list[int] = np.flatnonzero(ledger.status == DONE).tolist()
        return found

    def _conclude(self, done: list[int] | None) -> Any:
        """The result, or the exception that is raised for it."""
        errors = self.failed
        filled = self.policy.on_error == "fill" and self._fatal is None and not self._cancelled
        if filled and errors and self._outputs.arrays is not None:
            windows = [self.plan.window(chunk) for chunk in self._errors]
            self._outputs.fill(windows)
            self._outputs.deliver(None)
            failures.warn_filled(errors)
            return self._outputs.result()
        finished = None if done is None else [self.plan.window(chunk) for chunk in done]
        self._outputs.deliver(finished)
        if self._fatal is not None:
            return self._fatal
        if errors:
            if self.policy.on_error == "raise":
                return errors[0]
            return ExceptionGroup(f"{len(errors)} chunks of {self.plan.verb} failed", errors)
        return self._outputs.result()

    def resolve(self) -> None:
        """Tell whoever waits; not under the driver's lock, since callbacks are the user's."""
        self.close_observer()
        outcome, self._outcome = self._outcome, None
        # What is over keeps neither its inputs nor what the function holds.
        self._memory = self._where()
        self._arrays, self._function, self._cancel = [], None, None
        if self._cancelled and self._fatal is None:
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        self.set_running_or_notify_cancel()
        if isinstance(outcome, BaseException):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)

    def hand_over(self) -> Any:
        """Give the result to the caller who has waited for it, and keep it only while he does."""
        result = self.result()
        self._outputs = Outputs(None)
        self._result = HandedOver(result)
        return result

    def stop(self) -> None:
        """Cancel, under the driver's lock."""
        self._cancelled = True
        self.feed(scheduler.Cancelled())

    def expire(self) -> None:
        """End the workers that still compute chunks of it."""
        self.feed(scheduler.Expired())

    def abort(self, error: BaseException) -> None:
        """The engine is gone, and all its workers; so is the run."""
        if self.over:
            return
        self.over = True
        execution, self._execution = self._execution, None
        self._fatal = self._outcome = error
        if execution is not None:
            self._settled = execution.ledger.settled
            self._conclude(self._done_chunks(execution))
            for generation in execution.generations:
                generation.tickets.close()
