"""The scheduler: what to do next in one run, as a pure state machine: events in, commands out.

Imports nothing of the package.  Two rules that a reviewer can enforce:

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

============  ==========================================  ============
phase         event                                       next phase
============  ==========================================  ============
RUNNING       a chunk failed and the run is fail-fast     STOPPING
RUNNING       cancelled, refused, too many barren deaths  STOPPING
RUNNING       audited, nothing pending                    OVER
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
    "TimedOut",
]


class Phase(Enum):
    """Where a run stands."""

    RUNNING = "running"
    STOPPING = "stopping"
    OVER = "over"


# Events


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is ready."""

    worker: int


@dataclass(frozen=True, slots=True)
class Drained:
    """A worker found no tickets left in a generation, and holds none."""

    worker: int
    generation: int


@dataclass(frozen=True, slots=True)
class ChunkFailed:
    """The function raised, or returned what does not fit; the worker goes on."""

    chunk: int


@dataclass(frozen=True, slots=True)
class Died:
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
        It died without a chunk in any run: while it started, or while it loaded the plan.
    """

    worker: int
    blamed: int | None = None
    unfinished: tuple[int, ...] = ()
    barren: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker could not load the plan, or there is no memory for its outputs."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """A worker has been computing this chunk for longer than it may."""

    worker: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Audited:
    """The ledger's answer: chunks that are neither done nor failed."""

    pending: Sequence[int]


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The user wants no more of it."""


@dataclass(frozen=True, slots=True)
class Expired:
    """The grace for chunks in progress is over."""


Event = Joined | Drained | ChunkFailed | Died | Refused | TimedOut | Audited | Cancelled | Expired


# Commands


@dataclass(frozen=True, slots=True)
class Open:
    """Make the counter of a generation; `todo` None is the whole grid."""

    generation: int
    todo: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a generation to a worker."""

    worker: int
    generation: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Hand out no more tickets; take back what no worker has begun to read."""


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker; its death is reported as any other."""

    worker: int


@dataclass(frozen=True, slots=True)
class Replace:
    """Start a successor of a worker that died."""

    worker: int


@dataclass(frozen=True, slots=True)
class Fail:
    """Record a chunk as failed, since its workers died or took too long."""

    chunk: int
    timed_out: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Record that workers die before they take a chunk."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Ask the ledger what is pending; answer with :class:`Audited`."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over: no worker has anything of it."""


Command = Open | Assign | Stop | Kill | Replace | Fail | GiveUp | Audit | Finish
Commands = Iterator[Command]


@dataclass(slots=True)
class Scheduler:
    """The state of one run.

    Attributes
    ----------
    retries : int
        How often a chunk whose worker died is computed again.
    fail_fast : bool
        The first failure stops the run.
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
    in_place: bool = False
    patience: int = 6
    phase: Phase = Phase.RUNNING
    workers: set[int] = field(default_factory=set)
    outstanding: dict[int, set[int]] = field(default_factory=dict)
    spent: set[int] = field(default_factory=set)
    generations: int = 0
    deaths: dict[int, int] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    overdue: dict[int, int] = field(default_factory=dict)
    expired: set[int] = field(default_factory=set)
    barren: int = 0

    def start(self, workers: Sequence[int], todo: tuple[int, ...] | None = None) -> list[Command]:
        """Begin with the workers that are ready, on `todo` or the whole grid."""
        self.workers.update(workers)
        return list(self._open(todo))

    def handle(self, event: Event) -> list[Command]:
        """Take one event; say what is to be done."""
        if self.phase is Phase.OVER:
            return []
        return list(self._dispatch(event))

    def _dispatch(self, event: Event) -> Commands:  # noqa: PLR0911 - one a kind of event
        match event:
            case Joined(worker):
                return self._joined(worker)
            case Drained(worker, generation):
                return self._drained(worker, generation)
            case ChunkFailed(chunk):
                return self._chunk_failed(chunk)
            case Died():
                return self._died(event)
            case Refused():
                return self._stop()
            case TimedOut(worker, chunk):
                return self._timed_out(worker, chunk)
            case Audited(pending):
                return self._audited(pending)
            case Cancelled():
                return self._stop()
            case Expired():
                return self._expired()

    # What each event does

    def _joined(self, worker: int) -> Commands:
        self.workers.add(worker)
        if self.phase is Phase.RUNNING:
            for generation in range(self.generations):
                if generation not in self.spent:
                    yield self._assign(worker, generation)

    def _drained(self, worker: int, generation: int) -> Commands:
        # A later worker need not be given what one has found empty.
        self.spent.add(generation)
        self.barren = 0
        self.outstanding.get(worker, set()).discard(generation)
        yield from self._if_idle()

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
        if any(self.outstanding.values()):
            return
        if self.phase is Phase.STOPPING:
            yield from self._finish()
        elif self.phase is Phase.RUNNING:
            yield Audit()

    def _finish(self) -> Commands:
        self.phase = Phase.OVER
        yield Finish()

    def check_invariants(self) -> None:
        """Assert what must hold between any two events."""
        assert set(self.outstanding) <= self.workers, "who is gone has nothing outstanding"
        assert self.spent <= set(range(self.generations)), "only opened generations are spent"
        for chunk, deaths in self.deaths.items():
            assert deaths <= self.retries + 1 or chunk in self.failed
        if self.phase is Phase.OVER:
            assert not any(self.outstanding.values()), "the last writer is idle"
