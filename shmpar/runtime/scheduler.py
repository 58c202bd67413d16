"""What a scheduler wants done.

Imports nothing of the package.

What a scheduler is told.

Imports nothing of the package.

The scheduler: what to do next in one run, as a pure state machine: events in, commands out.

Imports the events and commands beside it.  Two rules that a reviewer can enforce:

1. Everything that decides on retries, on giving up and on the end of a run is in this file.
2. This file knows no clock, no process, no memory, and no chunk by anything but its number.

How it works
------------
A *generation* is a list of chunks with a counter of tickets of its own; generation 0 is the whole
grid. Workers draw tickets by themselves, so the scheduler hears little: that a worker joined, has
found a generation *drained* (its counter is at the end), died, or that a chunk failed. What a dead
worker held becomes a new generation at once. When no worker has anything outstanding, an *audit*
asks the ledger what is still pending: tickets that a worker took with it between claiming them and
saying so. They become a new generation too; if there are none, the run is over.

A worker that reports a generation as drained says how many of its tickets it has had. Once the
reports account for every ticket that was handed out, nobody else can have one, and the run is over
without waiting for workers that have not come to it yet: they may be busy with another run.

============  ==========================================  ============
phase         event                                       next phase
============  ==========================================  ============
RUNNING       a chunk failed and the run is fail-fast     STOPPING
RUNNING       cancelled, refused, too many barren deaths  STOPPING
RUNNING       every ticket is accounted for               OVER
RUNNING       audited, nothing pending                    OVER
STOPPING      every ticket is accounted for               OVER
STOPPING      no worker has anything outstanding          OVER
============  ==========================================  ============

Guarantees
----------
- A chunk is in at most one generation that still has tickets, so it is computed by one worker at
  a time.
- Each chunk ends done or failed, or the run ends stopped; in no phase can it wait for nothing.
- A chunk is blamed for at most ``retries + 1`` deaths; deaths that no chunk is to blame for are
  bounded too, as long as nothing else happens between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

__all__ = [
    "Assign",
    "Audit",
    "Audited",
    "Cancelled",
    "ChunkFailed",
    "Command",
    "Died",
    "Drained",
    "Event",
    "Expired",
    "Fail",
    "Finish",
    "GiveUp",
    "Joined",
    "Kill",
    "Open",
    "Phase",
    "Refused",
    "Replace",
    "Scheduler",
    "Stop",
    "Stopped",
    "TimedOut",
]


class Open(NamedTuple):
    """Make the counter of a generation; `todo` None is the whole grid."""

    generation: int
    todo: tuple[int, ...] | None


class Assign(NamedTuple):
    """Give a generation to a worker."""

    worker: int
    generation: int


class Stop(NamedTuple):
    """Hand out no more tickets; take back what was not sent; answer with :class:`Stopped`."""


class Kill(NamedTuple):
    """End a worker; its death is reported as any other."""

    worker: int


class Replace(NamedTuple):
    """Start a successor of a worker that died."""

    worker: int


class Fail(NamedTuple):
    """Record a chunk as failed, since its workers died or took too long."""

    chunk: int
    timed_out: bool


class GiveUp(NamedTuple):
    """Record that workers die before they take a chunk."""


class Audit(NamedTuple):
    """Ask the ledger what is pending; answer with :class:`Audited`."""


class Finish(NamedTuple):
    """The run is over: no worker has a ticket of it, or will get one."""


Command = Open | Assign | Stop | Kill | Replace | Fail | GiveUp | Audit | Finish


class Joined(NamedTuple):
    """A worker is ready."""

    worker: int


class Drained(NamedTuple):
    """A worker found no tickets left in a generation, or ends and takes no more; it holds none.

    Attributes
    ----------
    claimed : int
        Tickets that it has had; 0 if it does not say.
    handed : int or None
        Tickets that all workers had had when this one stopped the counter; None if it did not.
    leaves : bool
        There may be tickets left: the worker is about to end.
    """

    worker: int
    generation: int
    claimed: int = 0
    handed: int | None = None
    leaves: bool = False


class ChunkFailed(NamedTuple):
    """The function raised, or returned what does not fit; the worker goes on."""

    chunk: int


class Died(NamedTuple):
    """A worker is gone.

    Attributes
    ----------
    worker : int
        Which one; its successor has the same number.
    blamed : int or None
        The chunk that it was computing.
    unfinished : tuple of int
        Chunks that it held and had not begun.
    barren : bool
        It died without a chunk in any run, and had not said that it would: while it started, or
        while it loaded the plan.
    """

    worker: int
    blamed: int | None = None
    unfinished: tuple[int, ...] = ()
    barren: bool = False


class Refused(NamedTuple):
    """A worker could not load the plan, or there is no memory for its outputs."""


class TimedOut(NamedTuple):
    """A worker has been computing this chunk for longer than it may."""

    worker: int
    chunk: int


class Audited(NamedTuple):
    """The ledger's answer: chunks that are neither done nor failed."""

    pending: Sequence[int]


class Cancelled(NamedTuple):
    """The user wants no more of it."""


class Stopped(NamedTuple):
    """No more tickets are handed out.

    Attributes
    ----------
    handed : sequence of int
        Tickets that were, of each generation.
    """

    handed: Sequence[int]


class Expired(NamedTuple):
    """The grace for chunks in progress is over."""


Event = (
    Joined
    | Drained
    | ChunkFailed
    | Died
    | Refused
    | TimedOut
    | Audited
    | Cancelled
    | Stopped
    | Expired
)


Commands = Iterator[Command]


class Phase(Enum):
    """Where a run stands."""

    RUNNING = "running"
    STOPPING = "stopping"
    OVER = "over"


@dataclass(eq=False, slots=True)
class Scheduler:
    """The state of one run.

    Attributes
    ----------
    retries : int
        How often a chunk whose worker died is computed again.
    fail_fast : bool
        The first failure stops the run.
    chunks : int
        How many the grid has.
    in_place : bool
        A chunk that was begun cannot be computed again: it has overwritten its input.
    patience : int
        How many workers in a row may die without a chunk before the run gives up.
    phase : Phase
        Where it stands.
    workers : set of int
        Those that are ready.
    outstanding : dict of int to set of int
        The generations that each worker has been given and not reported as drained.
    spent : set of int
        Generations that have no tickets left, or whose chunks are in a later one.
    generations : int
        How many have been opened.
    tickets : dict of int to int
        How many of each generation there are to be handed out, or were.
    claimed : int
        How many of these the workers have accounted for.
    deaths : dict of int to int
        How many workers died over each chunk.
    failed : set of int
        Chunks that failed.
    overdue : dict of int to int
        Workers that were told to end, with the chunk that took too long.
    expired : set of int
        Workers that were told to end since the grace was over; no chunk is blamed for that.
    barren : int
        Workers that died in a row without a chunk.
    """

    retries: int
    fail_fast: bool
    chunks: int
    in_place: bool = False
    patience: int = 6
    phase: Phase = Phase.RUNNING
    workers: set[int] = field(default_factory=set)
    outstanding: dict[int, set[int]] = field(default_factory=dict)
    spent: set[int] = field(default_factory=set)
    generations: int = 0
    tickets: dict[int, int] = field(default_factory=dict)
    claimed: int = 0
    deaths: dict[int, int] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    overdue: dict[int, int] = field(default_factory=dict)
    expired: set[int] = field(default_factory=set)
    barren: int = 0

    def start(self, workers: Sequence[int], todo: tuple[int, ...] | None = None) -> list[Command]:
        """Begin with the workers that are ready, on `todo` or the whole grid."""
        self.workers.update(workers)
        nothing = self.chunks == 0 if todo is None else not todo
        return list(self._finish() if nothing else self._open(todo))

    def handle(self, event: Event) -> list[Command]:
        """Take one event; say what is to be done."""
        if self.phase is Phase.OVER:
            return []
        return list(self._dispatch(event))

    def _dispatch(self, event: Event) -> Commands:  # noqa: PLR0911 - one a kind of event
        match event:
            case Drained():
                return self._drained(event)
            case Joined(worker):
                return self._joined(worker)
            case ChunkFailed(chunk):
                return self._chunk_failed(chunk)
            case Died():
                return self._died(event)
            case Refused() | Cancelled():
                return self._stop()
            case TimedOut(worker, chunk):
                return self._timed_out(worker, chunk)
            case Audited(pending):
                return self._audited(pending)
            case Stopped(handed):
                return self._stopped(handed)
            case Expired():
                return self._expired()

    # What each event does

    def _joined(self, worker: int) -> Commands:
        self.workers.add(worker)
        if self.phase is Phase.RUNNING:
            for generation in range(self.generations):
                if generation not in self.spent:
                    yield self._assign(worker, generation)

    def _drained(self, event: Drained) -> Commands:
        if not event.leaves:
            # A later worker need not be given what one has found empty.
            self.spent.add(event.generation)
            self.outstanding.get(event.worker, set()).discard(event.generation)
        self.barren = 0
        self.claimed += event.claimed
        if event.handed is not None:
            self._ended(event.generation, event.handed)
        yield from self._if_idle()

    def _stopped(self, handed: Sequence[int]) -> Commands:
        for generation, tickets in enumerate(handed):
            self._ended(generation, tickets)
        yield from self._if_idle()

    def _ended(self, generation: int, handed: int) -> None:
        """No more tickets are handed out; who stops a counter that is stopped counts too many."""
        self.tickets[generation] = min(self.tickets[generation], handed)

    def _chunk_failed(self, chunk: int) -> Commands:
        self.barren = 0
        self.failed.add(chunk)
        if self.fail_fast:
            yield from self._stop()

    def _died(self, event: Died) -> Commands:
        self.workers.discard(event.worker)
        had = self.outstanding.pop(event.worker, set())
        overdue = self.overdue.pop(event.worker, None)
        self.barren = self.barren + 1 if event.barren else 0
        again = [chunk for chunk in event.unfinished if chunk not in self.failed]
        blameless = event.worker in self.expired or event.blamed in self.failed
        if event.blamed is not None and not blameless:
            timed_out = overdue == event.blamed
            # A worker that has moved on before it was ended has died for another chunk's fault.
            innocent = overdue is not None and not timed_out and not self.in_place
            if innocent or self._may_retry(event.blamed):
                again.insert(0, event.blamed)
            else:
                self.failed.add(event.blamed)
                yield Fail(event.blamed, timed_out)
                if self.fail_fast:
                    yield from self._stop()
        if self.barren > self.patience and self.phase is Phase.RUNNING:
            yield GiveUp()
            yield from self._stop()
        if self.phase is Phase.RUNNING:
            yield Replace(event.worker)
            if again:
                yield from self._open(tuple(again))
        if had:
            yield from self._if_idle()

    def _may_retry(self, chunk: int) -> bool:
        self.deaths[chunk] = self.deaths.get(chunk, 0) + 1
        return not self.in_place and self.deaths[chunk] <= self.retries

    def _timed_out(self, worker: int, chunk: int) -> Commands:
        if worker in self.workers and worker not in self.overdue:
            self.overdue[worker] = chunk
            yield Kill(worker)

    def _expired(self) -> Commands:
        for worker, has in self.outstanding.items():
            if has:
                self.expired.add(worker)
                yield Kill(worker)

    def _audited(self, pending: Sequence[int]) -> Commands:
        if any(self.outstanding.values()):
            return  # somebody has joined since it was asked; another audit follows him
        lost = tuple(chunk for chunk in pending if chunk not in self.failed)
        if lost:
            # Nobody has anything outstanding, so no ticket of an older counter is in use.
            self.spent.update(range(self.generations))
            yield from self._open(lost)
        else:
            yield from self._finish()

    # Parts of the above

    def _open(self, todo: tuple[int, ...] | None) -> Commands:
        generation, self.generations = self.generations, self.generations + 1
        self.tickets[generation] = self.chunks if todo is None else len(todo)
        yield Open(generation, todo)
        for worker in sorted(self.workers):
            yield self._assign(worker, generation)

    def _assign(self, worker: int, generation: int) -> Assign:
        self.outstanding.setdefault(worker, set()).add(generation)
        return Assign(worker, generation)

    def _stop(self) -> Commands:
        if self.phase is Phase.RUNNING:
            self.phase = Phase.STOPPING
            yield Stop()
            yield from self._if_idle()

    def _if_idle(self) -> Commands:
        if self._accounted_for:
            # What is outstanding at others is an empty counter, which they may find so later.
            yield from self._finish()
        elif any(self.outstanding.values()):
            return
        elif self.phase is Phase.STOPPING:
            yield from self._finish()
        elif self.phase is Phase.RUNNING:
            yield Audit()

    @property
    def _accounted_for(self) -> bool:
        """Whether the workers have reported on every ticket that was handed out."""
        return self.claimed == sum(self.tickets.values())

    def _finish(self) -> Commands:
        if self.phase is not Phase.OVER:
            self.phase = Phase.OVER
            yield Finish()

    def check_invariants(self) -> None:
        """Assert what must hold between any two events."""
        assert set(self.outstanding) <= self.workers, "who is gone has nothing outstanding"
        assert self.spent <= set(range(self.generations)), "only opened generations are spent"
        for chunk, deaths in self.deaths.items():
            assert deaths <= self.retries + 1 or chunk in self.failed
        if self.phase is Phase.OVER:
            idle = not any(self.outstanding.values())
            assert idle or self._accounted_for, "the last writer is idle"
