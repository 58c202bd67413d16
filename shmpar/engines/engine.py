"""The end of a worker process: waiting for it, and what it means.

Imports nothing of the package.

What a run asks of an engine, and what an engine tells a run.

Imports plan, ledger and tickets.

Guarantees
----------
- An engine starts what it is told to, reports what happened, and decides nothing.
- Its events come in the order in which they happened to a worker, its death last.
- `wait` alone may block; it may be called while another thread calls any other method.
"""

from __future__ import annotations

import select
import signal
import subprocess
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from shmpar.ipc.ledger import FAILED, PENDING, Ledger
from shmpar.ipc.tickets import LockTickets, OffsetTickets
from shmpar.memory.segment import Slab
from shmpar.plan import Announcement, Failure, Function, Plan

__all__ = [
    "Emptied",
    "Engine",
    "Event",
    "Execution",
    "Exit",
    "Failed",
    "Finished",
    "Generation",
    "Lost",
    "Ready",
    "Rejected",
    "Returned",
    "Values",
    "await_exit",
]

_SMALLER = "try smaller chunks or fewer workers"
_ADVICE = {
    signal.SIGKILL: "by somebody's kill, or the kernel's for lack of memory, though it does not "
    f"say so here: look at dmesg; if so, {_SMALLER}",
    signal.SIGSEGV: "a fault in compiled code: run the chunk with engine='serial' under "
    "python -X faulthandler",
    signal.SIGBUS: "a mapped file was truncated, or its disk is full",
    signal.SIGABRT: "compiled code gave up: its message is on standard error",
    signal.SIGILL: "compiled code for another processor",
    signal.SIGFPE: "a fault in compiled arithmetic",
}


def await_exit(process: subprocess.Popen[bytes], pidfd: int, deadline: float) -> None:
    """Reap a process; kill it if it has not ended by `deadline`, of the monotonic clock."""
    if pidfd >= 0:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(0.0, 1000 * (deadline - time.monotonic())))
    if process.poll() is None:
        process.kill()
        process.wait()


class Exit(NamedTuple):
    """How a worker process ended.

    Attributes
    ----------
    code : int or None
        As in :class:`subprocess.Popen`; None if it could not be found out.
    out_of_memory : bool
        The kernel has ended processes for lack of memory meanwhile.
    """

    code: int | None
    out_of_memory: bool = False

    def describe(self) -> str:
        """Say how it ended, and what to look at.

        Examples
        --------
        >>> Exit(3).describe()
        'exited with status 3'
        >>> Exit(-11).describe()[:27]
        'was ended by signal SIGSEGV'
        """
        code = self.code
        if code is None:
            return "ended"
        if code >= 0:
            return f"exited with status {code}"
        try:
            name = signal.Signals(-code)
        except ValueError:
            return f"was ended by signal {-code}"
        if name == signal.SIGKILL and self.out_of_memory:
            return f"was ended by the kernel for lack of memory (an OOM kill): {_SMALLER}"
        advice = _ADVICE.get(name)
        return f"was ended by signal {name.name}" + (f" ({advice})" if advice else "")


TICK_SECONDS = 0.1
"""How often a run's observer is told, and overdue chunks are looked for."""


def patience(workers: int) -> int:
    """How many workers may end one after another before they have anything.

    Each of them and one that took its place, and two more: beyond, the cause is not chance.
    """
    return 2 * workers + 2


Array = np.ndarray[Any, Any]


class Generation(NamedTuple):
    """Chunks that are handed out by one counter.

    Attributes
    ----------
    number : int
        Which one of the run's generations it is.
    todo : tuple of int or None
        Its chunks; None: the whole grid.
    tickets : Tickets
        Its counter.
    """

    number: int
    todo: tuple[int, ...] | None
    tickets: OffsetTickets | LockTickets

    def chunk(self, ticket: int) -> int:
        """The chunk that a ticket stands for."""
        return ticket if self.todo is None else self.todo[ticket]


@dataclass(eq=False, slots=True)
class Execution:
    """A plan that is being executed, with its memory.

    Attributes
    ----------
    number : int
        Unique in this interpreter.
    plan, function : Plan, Function
        What to do.
    arrays : list of ndarray
        The inputs.
    ledger : Ledger
        What is known of each chunk.
    origin : float
        When the run began, by :func:`time.perf_counter`.
    allocate : callable
        Given the first announcement, sets `outputs` and `is_tuple`; raises `SegmentFull`.
    outputs : list of ndarray or None
        None until they are known.
    is_tuple : bool or None
        Whether the function returns a tuple.
    generations : list of Generation
        All that have been opened.
    scratch : bool
        Outputs that are not known may go into the ledger's scratch.
    reports : bool
        Workers say which tickets they have finished, claim by claim.
    stopped : bool
        No more tickets are handed out.
    sums : ndarray of uint32 or None
        Where workers write the checksum of what each chunk has put into the outputs.
    """

    number: int
    plan: Plan
    function: Function
    arrays: list[Array]
    ledger: Ledger
    origin: float
    allocate: Callable[[Announcement], None]
    outputs: list[Array] | None = None
    is_tuple: bool | None = None
    generations: list[Generation] = field(default_factory=list)
    scratch: bool = False
    reports: bool = False
    stopped: bool = False
    sums: Array | None = None

    def begun_before(self, moment: int) -> Iterator[tuple[int, int]]:
        """Workers with the chunks that they began before this, in monotonic nanoseconds."""
        for worker in range(self.ledger.workers):
            held = self.ledger.held(worker)
            if held and held.since and held.since < moment:
                yield worker, self.generations[held.generation].chunk(held.cursor)

    def taken_by(
        self, worker: int, told: Container[int] = (), *, innocent: bool = False
    ) -> tuple[int | None, tuple[int, ...]]:
        """Settle what a worker that is gone held: mark what it had finished as done.

        Parameters
        ----------
        told : container of int
            Chunks whose failure has arrived.
        innocent : bool
            No chunk is to blame; the one in progress counts as not begun.

        Returns
        -------
        blamed : int or None
            The chunk that it was computing.
        unfinished : tuple of int
            Chunks that it had not begun.
        """
        held = self.ledger.held(worker)
        if held is None:
            return None, ()
        chunk = self.generations[held.generation].chunk
        in_progress, status = chunk(held.cursor), self.ledger.status
        if status[in_progress] == FAILED and in_progress not in told:
            status[in_progress] = PENDING  # it died on the way to say why
        finished = [chunk(ticket) for ticket in range(held.first, held.cursor)]
        rest = [chunk(ticket) for ticket in range(held.cursor + 1, held.last)]
        if self.plan.returns_objects:  # its results may have died with it
            rest = [*finished, *rest]
        else:
            self.ledger.mark_done(finished)
        if innocent:
            return None, (in_progress, *rest)
        return in_progress, tuple(rest)


class Ready(NamedTuple):
    """A worker is up."""

    worker: int


class Emptied(NamedTuple):
    """A worker found no tickets left in a generation of a run, or ends and takes no more.

    Attributes
    ----------
    claimed : int
        Tickets of it that the worker has had; 0 if it does not say.
    handed : int or None
        Tickets that all had had when this worker stopped the counter; None if it did not.
    said : Announcement or None
        What the outputs are that it has put into the ledger's scratch.
    leaves : bool
        There may be tickets left: the worker ends, since it has had as many as it may.
    """

    worker: int
    run: int
    generation: int
    claimed: int = 0
    handed: int | None = None
    said: Announcement | None = None
    leaves: bool = False


class Finished(NamedTuple):
    """A worker is through with the tickets ``first <= t < last``; done, or failed."""

    run: int
    generation: int
    first: int
    last: int


class Failed(NamedTuple):
    """A chunk of a run failed."""

    run: int
    failure: Failure


class Rejected(NamedTuple):
    """A run cannot go on: a worker cannot load it, or there is no memory for its outputs."""

    run: int
    error: BaseException


class Values(NamedTuple):
    """Results of a run that collects objects, as (chunk, result)."""

    run: int
    values: Sequence[tuple[int, Any]]


class Returned(NamedTuple):
    """A worker is through with a task.

    Attributes
    ----------
    task : int
        Its number.
    value : object
        What the function returned.
    error : BaseException or None
        What it raised.
    """

    task: int
    value: Any = None
    error: BaseException | None = None


class Lost(NamedTuple):
    """A worker is gone.

    Attributes
    ----------
    worker : int
        Which one.
    end : Exit
        How it ended.
    left : bool
        It has ended of its own accord, holding nothing, as it had said it would.
    killed_for : int or None
        The run for whose sake it was killed from here.
    """

    worker: int
    end: Exit
    left: bool = False
    killed_for: int | None = None


Event = Ready | Emptied | Finished | Failed | Rejected | Values | Returned | Lost


class Engine(Protocol):
    """Runs plans on its workers.

    Attributes
    ----------
    name : str
        As a pool's ``engine=``.
    workers : int
        How many it has.
    slab : Slab or None
        Where small outputs may lie; None: its workers do not use the ledger's scratch.
    holds_results : bool
        Whether the result of a task takes no memory of this process until it is asked for.
    """

    name: str
    workers: int
    slab: Slab | None
    holds_results: bool

    def pids(self) -> list[int]:
        """Process ids of the workers that are up; none where they are no processes."""
        ...

    def copied(self, arrays: Sequence[Array]) -> list[int]:
        """Bytes of each of the inputs that it has to copy into shared memory."""
        ...

    def ledger(self, chunks: int) -> Ledger:
        """A zeroed ledger that all workers can write."""
        ...

    def tickets(self) -> OffsetTickets | LockTickets:
        """A counter at 0 that all workers can draw from."""
        ...

    def open(self, execution: Execution) -> list[int]:
        """Make ready for a run; return the workers that are up.

        Raises
        ------
        PlanError
            If the function does not travel.
        """
        ...

    def assign(self, worker: int, execution: Execution, generation: Generation) -> None:
        """Give a generation to a worker."""
        ...

    def stop(self, execution: Execution) -> list[Emptied]:
        """Hand out no more tickets; take back what no worker has been sent."""
        ...

    def close(self, execution: Execution) -> None:
        """The run is over: no worker has a ticket of it. Release what was made for it.

        A worker may still come to what it was given, and will find the counter at its end.
        """
        ...

    def prepare(self, call: Function) -> Any:
        """Make a task ready to travel; what this gives is for :meth:`call`.

        Raises
        ------
        PlanError
            If something in it does not travel.
        """
        ...

    def free(self) -> int | None:
        """A worker that can be given a task now: it has none, and few plans. Else None."""
        ...

    def call(self, worker: int, number: int, prepared: Any) -> None:
        """Give a task to a worker that is free; :class:`Returned` says what came of it."""
        ...

    def kill(self, worker: int, run: int) -> None:
        """End a worker at once, for the sake of a run."""
        ...

    def replace(self, worker: int) -> None:
        """Start a successor of a worker that is gone."""
        ...

    def wait(self, timeout: float | None) -> None:
        """Block until there are events, or for `timeout` seconds; an interrupt ends it."""
        ...

    def events(self) -> list[Event]:
        """What has happened since the last call."""
        ...

    def wake(self) -> None:
        """End another thread's `wait`."""
        ...

    def shutdown(self) -> None:
        """End all workers; nothing is left when it returns."""
        ...
