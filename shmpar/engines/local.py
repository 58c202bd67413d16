"""The serial engine: the calling thread is the only worker.

Imports the protocol and worker.  Plans take the same way as on the other engines, so that a
debugger can follow it; the user's function runs in the thread that waits for the result.

The threads engine: workers are threads of this process.

Imports the protocol, serial's channel and worker.

Guarantees
----------
- Inputs are not copied at all; the function is not pickled.
- A thread cannot be ended from outside: `kill` does nothing, and ``task_timeout`` is not enforced.
"""

from __future__ import annotations

import importlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shmpar.engines.engine import (
    TICK_SECONDS,
    Emptied,
    Event,
    Execution,
    Failed,
    Finished,
    Generation,
    Ready,
    Rejected,
    Returned,
    Values,
)
from shmpar.ipc.ledger import Ledger
from shmpar.ipc.tickets import LockTickets, OffsetTickets, new_tickets
from shmpar.memory.segment import Slab
from shmpar.plan import Announcement, Failure, Function
from shmpar.runtime.interrupts import allowed
from shmpar.worker.compute import Abandoned, Assignment, Chunks
from shmpar.worker.context import entered
from shmpar.worker.loop import work

__all__ = ["LocalChannel", "SerialEngine", "ThreadsEngine", "bound", "called"]

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
        return execution.outputs or (), bool(execution.is_tuple)

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
        is_tuple=execution.is_tuple,
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
                from shmpar.engines.messages import initializer_failed

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


_Job = list[tuple[Execution, Generation]]  # emptied when its run is over
_Inbox = queue.SimpleQueue[_Job | tuple[int, Function] | None]


def _capped(threads: int | None) -> Callable[[], object]:
    """Cap the thread pools of libraries, if that can be done; return what lifts the cap."""
    if threads is None:
        return lambda: None
    try:
        threadpoolctl = importlib.import_module("threadpoolctl")
    except ImportError:
        return lambda: None
    lift: Callable[[], object] = threadpoolctl.threadpool_limits(threads).restore_original_limits
    return lift


class ThreadsEngine:
    """Workers that are threads.

    Parameters
    ----------
    workers : int
        How many.
    initializer : callable, optional
        Called in each thread before its first chunk.
    blas_threads : int
        Cap on the threads of BLAS and OpenMP in this process as long as the engine is there, where
        threadpoolctl is installed.
    """

    name = "threads"
    slab: Slab | None = None
    holds_results = False

    def __init__(
        self,
        workers: int,
        initializer: Callable[[], object] | None = None,
        blas_threads: int | None = None,
    ) -> None:
        self._uncap = _capped(blas_threads)
        self.workers = workers
        self._initializer = initializer
        self._events: deque[Event] = deque()
        self._signal = threading.Event()
        self._ready: set[int] = set()
        self._given = [0] * workers  # plans and tasks that have not been reported on
        self._calling: dict[int, int] = {}  # which worker has a task
        self._jobs: dict[int, list[_Job]] = {}
        self._inboxes: list[_Inbox] = [queue.SimpleQueue() for _ in range(workers)]
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), name=f"shmpar-{worker}", daemon=True)
            for worker in range(workers)
        ]
        for thread in self._threads:
            thread.start()

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
        """Nothing needs to travel."""
        self._jobs[execution.number] = []
        return sorted(self._ready)

    def assign(self, worker: int, execution: Execution, generation: Generation) -> None:
        """Queue it for the worker's thread."""
        self._given[worker] += 1
        job = [(execution, generation)]
        self._jobs[execution.number].append(job)
        self._inboxes[worker].put(job)

    def stop(self, execution: Execution) -> list[Emptied]:
        """What is queued has no tickets left when a thread comes to it."""
        execution.stopped = True
        return []

    def close(self, execution: Execution) -> None:
        """Empty the inboxes of it; its counters go with the last thread that looks at them."""
        for job in self._jobs.pop(execution.number, ()):
            job.clear()

    def prepare(self, call: Function) -> Function:
        """Nothing needs to travel."""
        return call

    def free(self) -> int | None:
        """The thread that has least to do, if it has no task."""
        busy = set(self._calling.values())
        free = [worker for worker in range(self.workers) if worker not in busy]
        return min(free, key=self._given.__getitem__, default=None)

    def call(self, worker: int, number: int, prepared: Function) -> None:
        """Queue it for the worker's thread."""
        self._given[worker] += 1
        self._calling[number] = worker
        self._inboxes[worker].put((number, prepared))

    def kill(self, worker: int, run: int) -> None:
        """A thread cannot be ended."""

    def replace(self, worker: int) -> None:
        """A thread never dies alone."""

    def wait(self, timeout: float | None) -> None:
        """Block until a thread has said something; nothing is taken, so nothing can be lost."""
        with allowed():
            self._signal.wait(timeout)

    def events(self) -> list[Event]:
        """What the threads have said."""
        self._signal.clear()
        events = []
        while self._events:
            events.append(self._events.popleft())
        for event in events:
            self._note(event)
        return events

    def _note(self, event: Event) -> None:
        match event:
            case Ready(worker):
                self._ready.add(worker)
            case Emptied(worker):
                self._given[worker] -= 1
            case Returned(number):
                self._given[self._calling.pop(number)] -= 1

    def wake(self) -> None:
        """End another thread's `wait`."""
        self._signal.set()

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._signal.set()

    def shutdown(self) -> None:
        """End the threads, each after the chunk that it computes."""
        for inbox in self._inboxes:
            inbox.put(None)
        with allowed():
            for thread in self._threads:
                thread.join()
        self._uncap()

    def _run(self, worker: int) -> None:
        prepare, tell, inbox = self._initializer, self._tell, self._inboxes[worker]
        broken: BaseException | None = None
        try:
            if prepare is not None:
                prepare()
        except BaseException as error:  # noqa: BLE001 - each run is told
            from shmpar.engines.messages import initializer_failed

            broken = initializer_failed(error)
        tell(Ready(worker))
        while (job := inbox.get()) is not None:
            if isinstance(job, tuple):
                number, call = job
                tell(called(number, call) if broken is None else Returned(number, None, broken))
                del job, call
                continue
            for execution, generation in job:  # none, if its run is over
                if broken is None:
                    self._work(worker, execution, generation)
                else:
                    tell(Rejected(execution.number, broken))
                    tell(Emptied(worker, execution.number, generation.number))
                del execution, generation
            del job

    def _work(self, worker: int, execution: Execution, generation: Generation) -> None:
        assignment = bound(execution, generation, worker, self.workers)
        work(Chunks(assignment), LocalChannel(execution, self._tell))
        # A run that is alone waits for all threads: they are about to let go of its memory.
        alone = len(self._jobs) == 1
        had = (0, None) if alone else (assignment.claimed, assignment.handed)
        del assignment
        self._tell(Emptied(worker, execution.number, generation.number, *had))
