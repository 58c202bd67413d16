"""The scheduler of one run: a pure state machine, events in, commands out.

Two rules that a reviewer can enforce:

1. Every decision on retries, on giving up and on the end of a run is in this file.
2. This file knows no clock, no process, no memory, and a chunk only by its number.

How it works
------------
A *generation* is a list of chunks with a ticket counter of its own; generation 0 is the whole
grid. Workers claim tickets by themselves, so the scheduler hears little: a worker is ready, has
found a counter *exhausted*, or is lost, or a chunk failed. The chunks that a lost worker held
become a new generation at once, and so do those that a worker left since others took too long.
When no worker has anything outstanding, the scheduler *reconciles*: it asks the ledger which
chunks are still pending. These are tickets that a worker took with it between claiming and
publishing them. They become a new generation too; if there are none, the run is over.

A worker that reports a counter as exhausted says how many of its tickets it has had. Once the
reports account for every ticket that was handed out, no other worker can have one. Then the run
is over without waiting for workers that have not come to it yet: they may be busy with another run.

============  ==============================================  ============
phase         event                                           next phase
============  ==============================================  ============
RUNNING       a chunk failed and the run is fail-fast         STOPPING
RUNNING       cancelled, rejected, too many startup failures  STOPPING
RUNNING       every ticket is accounted for                   OVER
RUNNING       reconciled, nothing pending                     OVER
STOPPING      every ticket is accounted for                   OVER
STOPPING      no worker has anything outstanding              OVER
============  ==============================================  ============

Guarantees
----------
- A chunk is in at most one generation that still has tickets, so one worker at a time computes it.
- Each chunk ends done or failed, or the run ends stopped; no phase waits for nothing.
- A chunk is blamed for at most ``retries + 1`` deaths. Deaths without a chunk are bounded too, as
  long as nothing else happens between them.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from shmpar.ipc.protocol import ChunkFailed, CounterExhausted, PlanRejected, WorkerLost, WorkerReady

# Events of the pool thread; those of workers are in shmpar.ipc.protocol.


class ChunkTimedOut(NamedTuple):
    """A worker has computed this chunk for longer than it may."""

    worker: int
    chunk: int


class Reconciled(NamedTuple):
    """The ledger's answer to :class:`Reconcile`: chunks that are neither done nor failed."""

    pending: Sequence[int]


class RunCancelled(NamedTuple):
    """The user cancelled the run."""


class CountersStopped(NamedTuple):
    """No more tickets are handed out; `handed_out` has how many were, for each generation."""

    handed_out: Sequence[int]


class GraceExpired(NamedTuple):
    """The time that a cancelled run has for the chunks in progress is over.

    Attributes
    ----------
    elsewhere : collection of int
        Workers that have been seen in other work since the counters were stopped. They hold no
        ticket of this run, and will get none.
    """

    elsewhere: Collection[int] = ()


WorkerEvent = WorkerReady | CounterExhausted | ChunkFailed | WorkerLost | PlanRejected
LoopEvent = ChunkTimedOut | Reconciled | RunCancelled | CountersStopped | GraceExpired
SchedulerEvent = WorkerEvent | LoopEvent

# Commands


class Open(NamedTuple):
    """Make the counter of a generation; `todo` None is the whole grid."""

    generation: int
    todo: tuple[int, ...] | None


class Assign(NamedTuple):
    """Give a generation to a worker."""

    worker: int
    generation: int


class Stop(NamedTuple):
    """Hand out no more tickets; take back plans not sent; answer with `CountersStopped`."""


class Kill(NamedTuple):
    """Kill a worker; its death is reported as any other."""

    worker: int


class Replace(NamedTuple):
    """Start a successor of a lost worker."""

    worker: int


class Fail(NamedTuple):
    """Record a chunk as failed, since its workers died or took too long."""

    chunk: int
    timed_out: bool


class GiveUp(NamedTuple):
    """Record that workers die before they take a chunk."""


class Reconcile(NamedTuple):
    """Ask the ledger which chunks are pending; answer with :class:`Reconciled`."""


class Finish(NamedTuple):
    """The run is over: no worker has a ticket of it, or will get one."""


Command = Open | Assign | Stop | Kill | Replace | Fail | GiveUp | Reconcile | Finish
Commands = Iterator[Command]


class Phase(Enum):
    """The state of a run."""

    RUNNING = "running"
    STOPPING = "stopping"
    OVER = "over"


@dataclass(eq=False, repr=False, slots=True)
class Scheduler:
    """The state of one run.

    Attributes
    ----------
    retries : int
        How often a chunk whose worker died is computed again.
    fail_fast : bool
        The first failure stops the run.
    chunks : int
        Chunks of the grid.
    in_place : bool
        A chunk that was begun cannot be computed again: it has overwritten its input.
    max_startup_failures : int
        Workers in a row that may die without a chunk before the run gives up.
    phase : Phase
        The state.
    outstanding : dict of int to set of int
        Generations that each ready worker has been given and not reported as exhausted.
    spent : set of int
        Generations that have no tickets left, or whose chunks are in a later one.
    tickets : list of int
        Tickets of each opened generation that are to be handed out, or were.
    claimed : int
        Tickets that the workers have accounted for.
    deaths : dict of int to int
        Workers that died in each chunk.
    failed : set of int
        Chunks that failed.
    overdue : dict of int to int
        Workers that were killed, with the chunk that took too long.
    expired : set of int
        Workers that were killed after the grace; no chunk is blamed for that.
    startup_failures : int
        Workers that died in a row at their start, or as they loaded the plan.
    """

    retries: int
    fail_fast: bool
    chunks: int
    in_place: bool = False
    max_startup_failures: int = 6
    phase: Phase = Phase.RUNNING
    outstanding: dict[int, set[int]] = field(default_factory=dict)
    spent: set[int] = field(default_factory=set)
    tickets: list[int] = field(default_factory=list)
    claimed: int = 0
    deaths: dict[int, int] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    overdue: dict[int, int] = field(default_factory=dict)
    expired: set[int] = field(default_factory=set)
    startup_failures: int = 0

    def start(self, workers: Sequence[int], todo: tuple[int, ...] | None = None) -> list[Command]:
        """Begin with the workers that are ready, on `todo` or the whole grid."""
        self.outstanding = {worker: set() for worker in workers}
        nothing = self.chunks == 0 if todo is None else not todo
        return list(self._finish() if nothing else self._open(todo))

    def handle(self, event: SchedulerEvent) -> list[Command]:
        """Take one event; return the commands that follow from it."""
        return [] if self.phase is Phase.OVER else list(self._dispatch(event))

    def _dispatch(self, event: SchedulerEvent) -> Commands:  # noqa: PLR0911 - one per kind of event
        match event:
            case CounterExhausted():
                return self._exhausted(event)
            case WorkerReady():
                return self._ready(event.worker)
            case ChunkFailed():
                return self._chunk_failed(event.chunk)
            case WorkerLost():
                return self._lost(event)
            case PlanRejected() | RunCancelled():
                return self._stop()
            case ChunkTimedOut(worker, chunk):
                return self._timed_out(worker, chunk)
            case Reconciled(pending):
                return self._reconciled(pending)
            case CountersStopped(handed_out):
                return self._counters_stopped(handed_out)
            case GraceExpired(elsewhere):
                return self._expired(elsewhere)

    def _ready(self, worker: int) -> Commands:
        self.outstanding.setdefault(worker, set())
        if self.phase is Phase.RUNNING:
            for generation in range(len(self.tickets)):
                if generation not in self.spent:
                    yield self._assign(worker, generation)

    def _exhausted(self, event: CounterExhausted) -> Commands:
        if not event.exiting:
            # Why: a later worker need not be given a counter that one has found empty.
            self.spent.add(event.generation)
            self.outstanding.get(event.worker, set()).discard(event.generation)
        self.startup_failures = 0
        self.claimed += event.claimed
        if event.handed_out is not None:
            self._limit_tickets(event.generation, event.handed_out)
        if event.left and self.phase is Phase.RUNNING:
            yield from self._open(tuple(event.left))
        yield from self._if_idle()

    def _counters_stopped(self, handed_out: Sequence[int]) -> Commands:
        for generation, tickets in enumerate(handed_out):
            self._limit_tickets(generation, tickets)
        yield from self._if_idle()

    def _limit_tickets(self, generation: int, handed_out: int) -> None:
        # Why min: a second stop of a counter counts the first one's tickets as handed out.
        self.tickets[generation] = min(self.tickets[generation], handed_out)

    def _chunk_failed(self, chunk: int) -> Commands:
        self.startup_failures = 0
        self.failed.add(chunk)
        if self.fail_fast:
            yield from self._stop()

    def _lost(self, event: WorkerLost) -> Commands:
        had = self.outstanding.pop(event.worker, set())
        overdue = self.overdue.pop(event.worker, None)
        if event.at_startup:
            self.startup_failures += 1
        elif event.blamed is not None or event.unfinished:
            self.startup_failures = 0  # Why not after any death: it may be that of another run.
        again = [chunk for chunk in event.unfinished if chunk not in self.failed]
        blameless = event.worker in self.expired or event.blamed in self.failed
        if event.blamed is not None and not blameless:
            timed_out = overdue == event.blamed
            # Why: a worker that moved on before it was killed died for another chunk's fault.
            innocent = overdue is not None and not timed_out and not self.in_place
            if innocent or self._may_retry(event.blamed):
                again.insert(0, event.blamed)
            else:
                self.failed.add(event.blamed)
                yield Fail(event.blamed, timed_out)
                if self.fail_fast:
                    yield from self._stop()
        if self.startup_failures > self.max_startup_failures and self.phase is Phase.RUNNING:
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
        if worker in self.outstanding and worker not in self.overdue:
            self.overdue[worker] = chunk
            yield Kill(worker)

    def _expired(self, elsewhere: Collection[int]) -> Commands:
        for worker, has in self.outstanding.items():
            if worker in elsewhere:
                has.clear()
            elif has:
                self.expired.add(worker)
                yield Kill(worker)
        yield from self._if_idle()

    def _reconciled(self, pending: Sequence[int]) -> Commands:
        if any(self.outstanding.values()):
            return  # Why: a worker became ready meanwhile; another reconciliation follows it.
        lost = tuple(chunk for chunk in pending if chunk not in self.failed)
        if lost:
            # Invariant: no worker has anything outstanding, so no older counter is in use.
            self.spent.update(range(len(self.tickets)))
            yield from self._open(lost)
        else:
            yield from self._finish()

    def _open(self, todo: tuple[int, ...] | None) -> Commands:
        generation = len(self.tickets)
        self.tickets.append(self.chunks if todo is None else len(todo))
        yield Open(generation, todo)
        for worker in sorted(self.outstanding):
            yield self._assign(worker, generation)

    def _assign(self, worker: int, generation: int) -> Assign:
        self.outstanding[worker].add(generation)
        return Assign(worker, generation)

    def _stop(self) -> Commands:
        if self.phase is Phase.RUNNING:
            self.phase = Phase.STOPPING
            yield Stop()
            yield from self._if_idle()

    def _if_idle(self) -> Commands:
        if self._accounted_for:
            # Invariant: an outstanding generation of another worker is an empty counter now.
            yield from self._finish()
        elif any(self.outstanding.values()):
            return
        elif self.phase is Phase.STOPPING:
            yield from self._finish()
        elif self.phase is Phase.RUNNING:
            yield Reconcile()

    @property
    def _accounted_for(self) -> bool:
        """True if the workers have reported on every ticket that was handed out."""
        return self.claimed == sum(self.tickets)

    def _finish(self) -> Commands:
        if self.phase is not Phase.OVER:
            self.phase = Phase.OVER
            yield Finish()

    def check_invariants(self) -> None:
        """Assert the conditions that hold between any two events."""
        assert self.spent <= set(range(len(self.tickets))), "only opened generations are spent"
        for chunk, deaths in self.deaths.items():
            assert deaths <= self.retries + 1 or chunk in self.failed
        if self.phase is Phase.OVER:
            idle = not any(self.outstanding.values())
            assert idle or self._accounted_for, "the last writer is idle"
