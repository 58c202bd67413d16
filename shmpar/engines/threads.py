"""The threads engine: workers are threads of this process.

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
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shmpar.engines.protocol import Emptied, Event, Execution, Generation, Ready, Rejected, Returned
from shmpar.engines.serial import LocalChannel, bound, called
from shmpar.interrupts import allowed
from shmpar.ledger import Ledger
from shmpar.plan import Function
from shmpar.segment import Slab
from shmpar.tickets import LockTickets, OffsetTickets, new_tickets
from shmpar.worker.chunks import Chunks
from shmpar.worker.loop import work

__all__ = ["ThreadsEngine"]

Array = np.ndarray[Any, Any]

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
            from shmpar.engines.incoming import initializer_failed

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
