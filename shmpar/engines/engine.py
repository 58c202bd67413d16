"""The contract between the pool thread and an engine, and how worker processes end.

Threads
-------
:meth:`Engine.prepare`, :meth:`Engine.prepare_call`, :meth:`Engine.wake`, :meth:`Engine.pids` and
:meth:`Engine.segments` may be called from any thread. Every other method belongs to the one thread
that owns the engine (:mod:`shmpar.runtime.loop`).

Guarantees
----------
- An engine does as it is told and reports events; it decides nothing.
- The events of a worker come in the order in which they happened, its loss last.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from shmpar.ipc.ledger import CURSOR, FAILED, GENERATION, PENDING, Ledger
from shmpar.ipc.protocol import SOCKET_LOST, CounterExhausted, Event
from shmpar.ipc.tickets import Tickets
from shmpar.memory.segment import Segment, Slab
from shmpar.plan import Announcement, Function, Plan

Array = np.ndarray[Any, Any]

_SMALLER = "try smaller chunks or fewer workers"
_ADVICE = {
    signal.SIGKILL: "sent by another process, or by the kernel for lack of memory, although no "
    f"out-of-memory kill is counted here: look at dmesg; if memory ran out, {_SMALLER}",
    signal.SIGSEGV: "a fault in compiled code, which may be that it wrote to its read-only input: "
    "run the chunk on a copy of its block, with engine='serial', in a debugger",
    signal.SIGBUS: "a mapped file was truncated, or its disk is full",
    signal.SIGABRT: "compiled code gave up: its message is on standard error",
    signal.SIGILL: "compiled code for another processor",
    signal.SIGFPE: "a fault in compiled arithmetic",
}


_LOST = (
    "its function closed the socket of the worker, or opened another file in its place: a function "
    "may close only the descriptors that it has opened"
)
_PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_MAX_FRAMES = 20


class Exit(NamedTuple):
    """The end of a worker process.

    Attributes
    ----------
    code : int or None
        As in :class:`subprocess.Popen`; None if it is not known.
    out_of_memory : bool
        The kernel has killed processes for lack of memory meanwhile.
    stack : str
        The text that :mod:`faulthandler` has written at a fatal signal.
    text : str
        The end of a worker on another machine, whose code is not known.
    """

    code: int | None
    out_of_memory: bool = False
    stack: str = ""
    text: str = ""

    def describe(self) -> str:
        """Describe the end, with advice on its cause.

        Examples
        --------
        >>> Exit(3).describe()
        'exited with status 3'
        >>> Exit(-11).describe()[:28]
        'was killed by signal SIGSEGV'
        """
        code = self.code
        if code is None:
            unknown = "ended; its status is unknown, since this process ignores or handles SIGCHLD"
            return self.text or unknown
        if code == SOCKET_LOST:
            return f"exited with status {code} ({_LOST})"
        if code >= 0:
            return f"exited with status {code}"
        try:
            name = signal.Signals(-code)
        except ValueError:
            return f"was killed by signal {-code}"
        if name == signal.SIGKILL and self.out_of_memory:
            return f"was killed by the kernel for lack of memory (an OOM kill): {_SMALLER}"
        advice = _ADVICE.get(name)
        return f"was killed by signal {name.name}" + (f" ({advice})" if advice else "")

    def frames(self) -> str:
        """Return the user's frames of the thread that had the fatal signal."""
        if self.code is None or -self.code not in _ADVICE:
            return ""  # Why: a child that the function forked may have written the text.
        _, _, text = self.stack.partition("(most recent call first):\n")
        lines = text.partition("\n\n")[0].splitlines()
        own = (_PACKAGE, 'File "<string>", line')  # Why: the first lines of a worker have no file.
        lines = [line for line in lines if not any(name in line for name in own)][:_MAX_FRAMES]
        if not lines:
            return ""
        return "\n".join(["\nPython stack of the worker, most recent call first:", *lines])


@dataclass(eq=False, slots=True)
class HostTraffic:
    """The numbers of one host in one run, for the report.

    Attributes
    ----------
    name : str
        Name of the host.
    spans : int
        Spans that it was sent.
    bytes_out, bytes_in : int
        Bytes of inputs that were sent to it, and bytes of results that it has returned. Inputs that
        it opens or maps itself, and outputs that it writes itself, are not counted.
    computing : float
        Seconds in which its workers computed, divided by their number.
    transport : float
        Seconds in which its spans were on their way, or waited there for one another.
    deaths : int
        Its workers that died in a chunk.
    lost : str
        Reason of its loss; empty if it was not lost.
    """

    name: str
    spans: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    computing: float = 0.0
    transport: float = 0.0
    deaths: int = 0
    lost: str = ""


class Generation(NamedTuple):
    """Chunks that one ticket counter hands out.

    Attributes
    ----------
    number : int
        Its place among the generations of the run.
    todo : tuple of int or None
        Its chunks; None is the whole grid.
    tickets : Tickets
        Its counter.
    """

    number: int
    todo: tuple[int, ...] | None
    tickets: Tickets

    def chunk(self, ticket: int) -> int:
        """Return the chunk of a ticket."""
        return ticket if self.todo is None else self.todo[ticket]


@dataclass(eq=False, repr=False, slots=True)
class ActivePlan:
    """A plan that is being executed, with its memory.

    Attributes
    ----------
    number : int
        Number of the run, unique in this interpreter.
    plan, function : Plan, Function
        The work.
    arrays : list of ndarray
        The inputs.
    prepared : object
        Result of :meth:`Engine.prepare`.
    ledger : Ledger
        The state of each chunk.
    origin : float
        When the run began, by :func:`time.perf_counter`.
    allocate : callable
        Takes the first announcement and sets `outputs` and `is_tuple`; raises `SegmentFull`.
    outputs : list of ndarray or None
        None until they are known.
    is_tuple : bool or None
        Whether the function returns a tuple.
    generations : list of Generation
        Those opened so far.
    small_outputs : bool
        Outputs that are not known may go into the ledger's spare memory.
    reports : bool
        Workers report each claim that they have finished.
    stopped : bool
        No more tickets are handed out.
    checksums : ndarray of uint32 or None
        Array for the checksum of each chunk's output.
    retries : int
        How often a chunk whose worker died is computed again.
    task_timeout : float or None
        Seconds that a chunk may take.
    in_place : bool
        An output is an input.
    hosts : dict of str to HostTraffic
        The numbers of each host.
    interrupted : bool
        The run was cancelled with a grace, after which no worker may hang in it.
    """

    number: int
    plan: Plan
    function: Function
    arrays: list[Array]
    prepared: Any
    ledger: Ledger
    origin: float
    allocate: Callable[[Announcement], None]
    outputs: list[Array] | None = None
    is_tuple: bool | None = None
    generations: list[Generation] = field(default_factory=list)
    small_outputs: bool = False
    reports: bool = False
    stopped: bool = False
    checksums: Array | None = None
    retries: int = 0
    task_timeout: float | None = None
    in_place: bool = False
    hosts: dict[str, HostTraffic] = field(default_factory=dict)
    interrupted: bool = False

    def begun_before(self, moment: int) -> Iterator[tuple[int, int]]:
        """Yield (worker, chunk) of the chunks begun before `moment`, in monotonic nanoseconds."""
        for worker in range(self.ledger.workers):
            held = self.ledger.held(worker)
            if held and held.since and held.since < moment:
                yield worker, self.generations[held.generation].chunk(held.cursor)

    def settle_lost(
        self,
        worker: int,
        reported: Container[int],
        arrived: Container[int],
        *,
        innocent: bool,
        cut_off: bool,
    ) -> tuple[int | None, tuple[int, ...]]:
        """Mark the chunks that a lost worker had finished as done.

        Parameters
        ----------
        reported : container of int
            Chunks whose failure has arrived.
        arrived : container of int
            Chunks whose result, an object, has arrived.
        innocent : bool
            No chunk is to blame; the one in progress counts as not begun.
        cut_off : bool
            The worker could not tell its results, since its function closed its socket.

        Returns
        -------
        blamed : int or None
            The chunk that the worker computed, or the last one if it was cut off.
        unfinished : tuple of int
            Chunks that it held and had not begun.
        """
        held = self.ledger.held(worker)
        if held is None and cut_off:
            slot = self.ledger.slot(worker)
            last = self.generations[slot[GENERATION]].chunk(slot[CURSOR] - 1)
            if self.ledger.status[last] != FAILED:
                self.ledger.status[last] = PENDING
            return last, ()
        if held is None:
            return None, ()
        chunk = self.generations[held.generation].chunk
        in_progress, status = chunk(held.cursor), self.ledger.status
        if status[in_progress] == FAILED and in_progress not in reported:
            status[in_progress] = PENDING  # Why: the worker died before it sent the exception.
        finished = [chunk(ticket) for ticket in range(held.first, held.cursor)]
        rest = [chunk(ticket) for ticket in range(held.cursor + 1, held.last)]
        if self.plan.returns_objects:
            # Why: results not sent have died with the worker.
            rest = [*(one for one in finished if one not in arrived), *rest]
            finished = [one for one in (*finished, in_progress) if one in arrived]
        self.ledger.mark_done(finished)
        if in_progress in arrived:  # Why: the worker died before it moved on.
            return None, tuple(rest)
        if innocent:
            return None, (in_progress, *rest)
        return in_progress, tuple(rest)


class Engine(Protocol):
    """Runs plans on its workers; the defaults are those of an engine without processes here.

    Attributes
    ----------
    name : str
        As a pool's ``engine=``.
    workers : int
        Number of workers.
    slab : Slab or None
        Memory for small outputs; None if its workers do not use the ledger's spare memory.
    remote : bool
        Workers are in other processes of which this one owns none: outputs are written here.
    """

    name: str
    workers: int
    slab: Slab | None = None
    remote: bool = False

    def pids(self) -> list[int]:
        """Return the process ids of the workers that are up; none for threads and hosts."""
        return []

    def prepare(self, plan: Plan, function: Function, arrays: list[Array], *, frozen: bool) -> Any:
        """Make a run ready to be sent: pickle the function, copy inputs into shared memory.

        Parameters
        ----------
        frozen : bool
            The caller does not wait, or another array is written: plain arrays that the function
            holds are copied, also from shared memory.

        Raises
        ------
        PlanError
            If the function cannot be pickled.
        SegmentFull
            If there is no room for a copy of an input.
        """

    def prepare_call(self, call: Function) -> Any:
        """Make a call ready to be sent; raises `PlanError` if it cannot be pickled."""

    def segments(self) -> list[Segment]:
        """Return the segments that other processes map; hosts have copies of their own."""
        return []

    def wake(self) -> None:
        """End the owner's :meth:`wait`."""

    def bytes_to_copy(self, arrays: Sequence[Array]) -> list[int]:
        """Return the bytes of each input that :meth:`prepare` copies; hosts make their copies."""
        return []

    def ledger(self, chunks: int) -> Ledger:
        """Return a zeroed ledger that all workers can write: in plain memory if they are here."""
        buffer = bytearray(Ledger.nbytes(workers=self.workers, chunks=chunks))
        return Ledger(buffer, workers=self.workers, chunks=chunks)

    def tickets(self) -> Tickets:
        """Return a counter at 0 from which all workers can claim."""

    def order(self, plan: Plan, todo: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return the chunks of a run in the order of their tickets; None is the whole grid."""
        return todo  # Why: to workers on this machine, all chunks are equally near.

    def end_idle(self) -> None:
        """Note that a run or a call comes after a time without any."""
        return

    def open(self, active: ActivePlan) -> list[int]:
        """Make ready for a run; return the workers that are up."""

    def assign(self, worker: int, active: ActivePlan, generation: Generation) -> None:
        """Give a generation to a worker."""

    def stop(self, active: ActivePlan) -> list[CounterExhausted]:
        """Hand out no more tickets; take back the plans that no worker has been sent."""

    def close(self, active: ActivePlan) -> None:
        """Release the memory of a run of which no worker has a ticket any more.

        A worker may still come to a plan that it was sent, and finds the counter exhausted.
        """

    def free_worker(self) -> int | None:
        """Return a worker that can be given a call now, None if there is none."""

    def worker_ahead(self, prepared: Any, without: Container[int | None]) -> int | None:
        """Return a worker with a call that can be given this one next, None if there is none."""
        return None  # Why: a thread is soon free, and a host keeps no call for later.

    def has_plan(self, worker: int) -> bool:
        """Return whether a call waits at a worker for a plan, and can be withdrawn meanwhile."""
        return False

    def in_calls(self) -> list[int]:
        """Return the workers that have begun a call, and so compute for no run."""
        return []  # Why: a thread is not killed, and a lane is killed for its own span alone.

    def call(self, worker: int, number: int, prepared: Any, more: tuple[Any, ...] = ()) -> None:
        """Give a call to a free worker, or its next one; `CallFinished` reports its end.

        Parameters
        ----------
        more : tuple
            Further arguments of the function.
        """

    def withdraw(self, worker: int, *, stop: bool = False) -> list[int]:
        """Take back the calls that a worker has not begun; return their numbers.

        Parameters
        ----------
        stop : bool
            End a call over items before its next items, if the worker is a process.
        """
        return []

    def kill(self, worker: int, run: int) -> None:
        """Kill a worker for a run; a thread cannot be killed."""
        return

    def restart(self) -> None:
        """Replace worker processes when they have done the work that they have."""
        return

    def replace(self, worker: int) -> None:
        """Start a successor of a lost worker; a thread is never lost, and hosts come unasked."""
        return

    def wait(self, timeout: float | None) -> list[Event]:
        """Wait for events, for :meth:`wake`, or for `timeout` seconds; return the events."""

    def shutdown(self) -> None:
        """End all workers; nothing is left when it returns."""


def take_back(queue: deque[tuple[ActivePlan, Generation]], active: ActivePlan) -> list[Generation]:
    """Take the generations of a run off a queue; return them."""
    mine = [item for item in queue if item[0] is active]
    for item in mine:
        queue.remove(item)
    return [generation for _, generation in mine]
