"""The serial engine: the calling thread is the only worker.

Imports the protocol and worker.  Plans take the same way as on the other engines, so that a
debugger can follow it; the user's function runs in the thread that waits for the result.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shmpar.engines import TICK_SECONDS
from shmpar.engines.protocol import (
    Emptied,
    Event,
    Execution,
    Failed,
    Finished,
    Generation,
    Rejected,
    Returned,
    Values,
)
from shmpar.interrupts import allowed
from shmpar.ledger import Ledger
from shmpar.plan import Announcement, Failure, Function
from shmpar.segment import Slab
from shmpar.tickets import LockTickets, OffsetTickets, new_tickets
from shmpar.worker.assignment import Abandoned, Assignment
from shmpar.worker.chunks import Chunks
from shmpar.worker.inside import entered
from shmpar.worker.loop import work

__all__ = ["LocalChannel", "SerialEngine", "bound", "called"]

Array = np.ndarray[Any, Any]


class LocalChannel:
    """A channel to a run in the same process.

    Parameters
    ----------
    execution : Execution
        The run.
    tell : callable
        Takes an event; may be called by any thread.
    until : float, optional
        When, in seconds of the monotonic clock, the worker has done enough for once.
    interruptible : bool
        Whether the worker is the user's thread.
    """

    def __init__(
        self,
        execution: Execution,
        tell: Callable[[Event], object],
        *,
        until: float | None = None,
        interruptible: bool = False,
    ) -> None:
        self._execution = execution
        self._tell = tell
        self._until = until
        self.interruptible = interruptible

    def enough(self) -> bool:
        """Whether the time is over."""
        return self._until is not None and time.monotonic() >= self._until

    def allocate(self, announcement: Announcement) -> tuple[Sequence[Array], bool]:
        """Allocate the outputs, unless another worker has."""
        execution = self._execution
        if execution.stopped:
            raise Abandoned
        if execution.outputs is None:
            try:
                execution.allocate(announcement)
            except BaseException as error:
                self._tell(Rejected(execution.number, error))
                raise Abandoned from error
        return execution.outputs or (), bool(execution.several)

    def failed(self, failure: Failure) -> None:
        """Report a chunk that failed."""
        self._tell(Failed(self._execution.number, failure))

    def values(self, values: Sequence[tuple[int, Any]]) -> None:
        """Hand over results that are objects."""
        self._tell(Values(self._execution.number, values))

    def finished(self, generation: int, first: int, last: int) -> None:
        """Say that the tickets ``first <= t < last`` are done, or have failed."""
        self._tell(Finished(self._execution.number, generation, first, last))

    def flush(self) -> None:
        """Nothing is kept back."""


def bound(execution: Execution, generation: Generation, worker: int, workers: int) -> Assignment:
    """Bind a run to the memory of this process; inputs become read-only views."""
    arrays = []
    for array in execution.arrays:
        view = array.view(np.ndarray)
        view.flags.writeable = False
        arrays.append(view)
    return Assignment(
        plan=execution.plan,
        function=execution.function,
        arrays=arrays,
        outputs=execution.outputs,
        several=execution.several,
        tickets=generation.tickets,
        todo=generation.todo,
        generation=generation.number,
        ledger=execution.ledger,
        worker=worker,
        slot=execution.ledger.slot(worker),
        workers=workers,
        reports=execution.reports,
        sums=execution.sums,
        origin=execution.origin,
    )


def called(number: int, call: Function) -> Returned:
    """Do a task, here and now."""
    with entered():
        try:
            return Returned(number, call.call(*call.values, **call.keywords))
        except BaseException as error:  # noqa: BLE001 - it is the task's outcome
            return Returned(number, None, error)


class SerialEngine:
    """One worker: whoever waits."""

    name = "serial"
    workers = 1
    slab: Slab | None = None
    holds_results = True

    def __init__(self, initializer: Callable[[], object] | None = None) -> None:
        self._queue: deque[tuple[Execution, Generation]] = deque()
        self._task: tuple[int, Function] | None = None
        self._events: deque[Event] = deque()
        self._initializer = initializer
        self._broken: BaseException | None = None

    def pids(self) -> list[int]:
        """None: its workers are no processes."""
        return []

    def copied(self, arrays: Sequence[Array]) -> list[int]:
        """None is: they are in this process."""
        return []

    def ledger(self, chunks: int) -> Ledger:
        """A ledger in plain memory."""
        buffer = bytearray(Ledger.nbytes(workers=self.workers, chunks=chunks))
        return Ledger(buffer, workers=self.workers, chunks=chunks)

    def tickets(self) -> OffsetTickets | LockTickets:
        """A counter of its own for each generation."""
        return new_tickets()

    def open(self, execution: Execution) -> list[int]:
        """Call the initializer before the first run."""
        self._initialize()
        return [0]

    def _initialize(self) -> None:
        if self._initializer is not None:
            try:
                self._initializer()
            except KeyboardInterrupt:  # the next run calls it again
                raise
            except BaseException as error:  # noqa: BLE001 - each run is told
                from shmpar.engines.incoming import initializer_failed

                self._broken = initializer_failed(error)
            self._initializer = None
        if self._broken is not None:
            raise self._broken.with_traceback(None)

    def assign(self, worker: int, execution: Execution, generation: Generation) -> None:
        """Queue it for the next call of :meth:`wait`."""
        self._queue.append((execution, generation))

    def stop(self, execution: Execution) -> list[Emptied]:
        """Take back what is queued."""
        execution.stopped = True
        mine = [item for item in self._queue if item[0] is execution]
        for item in mine:
            self._queue.remove(item)
        return [Emptied(0, execution.number, generation.number) for _, generation in mine]

    def close(self, execution: Execution) -> None:
        """Close the run's counters."""
        for generation in execution.generations:
            generation.tickets.close()

    def prepare(self, call: Function) -> Function:
        """Nothing needs to travel."""
        self._initialize()
        return call

    def free(self) -> int | None:
        """One task at a time."""
        return 0 if self._task is None else None

    def call(self, worker: int, number: int, prepared: Function) -> None:
        """Keep it for the next call of :meth:`wait`."""
        self._task = number, prepared

    def kill(self, worker: int, run: int) -> None:
        """The worker is this thread, which has just reported and so is idle."""

    def replace(self, worker: int) -> None:
        """The worker is this thread, which never dies alone."""

    def wait(self, timeout: float | None) -> None:
        """Work on what is queued first, here and now, for about a tick."""
        if self._events:
            return
        if self._task is not None:
            (number, call), self._task = self._task, None
            with allowed():
                self._events.append(called(number, call))
            return
        if not self._queue:
            return
        execution, generation = item = self._queue.popleft()
        until = time.monotonic() + TICK_SECONDS
        tell = self._events.append
        channel = LocalChannel(execution, tell, until=until, interruptible=True)
        exhausted = True
        try:
            with allowed():
                assignment = bound(execution, generation, 0, self.workers)
                exhausted = work(Chunks(assignment), channel)
        finally:
            # Also when it was interrupted: then the run is being cancelled.
            if exhausted:
                tell(Emptied(0, execution.number, generation.number))
            else:
                self._queue.appendleft(item)

    def events(self) -> list[Event]:
        """What the work has come to."""
        events = list(self._events)
        self._events.clear()
        return events

    def wake(self) -> None:
        """Nobody waits."""

    def shutdown(self) -> None:
        """There is nothing to end."""
        self._queue.clear()
