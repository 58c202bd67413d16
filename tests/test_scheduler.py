"""Under every order of events, the scheduler completes or reports each chunk exactly once."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shmpar.ipc.protocol import (
    ChunkFailed,
    CounterExhausted,
    PlanRejected,
    WorkerLost,
    WorkerReady,
)
from shmpar.runtime.scheduler import (
    Assign,
    ChunkTimedOut,
    CountersStopped,
    Fail,
    Finish,
    GiveUp,
    GraceExpired,
    Kill,
    Open,
    Phase,
    Reconcile,
    Reconciled,
    Replace,
    RunCancelled,
    Scheduler,
    Stop,
)

WORKERS = 3


def exhausted(
    worker: int,
    generation: int,
    claimed: int = 0,
    handed_out: int | None = None,
    *,
    left: Sequence[int] = (),
    exiting: bool = False,
) -> CounterExhausted:
    """Return the event for run 0."""
    return CounterExhausted(worker, 0, generation, claimed, handed_out, left=left, exiting=exiting)


def chunk_failed(chunk: int) -> ChunkFailed:
    """Return the event for run 0."""
    return ChunkFailed(0, chunk)


def rejected() -> PlanRejected:
    """Return the event for run 0."""
    return PlanRejected(0)


def lost(
    worker: int,
    blamed: int | None = None,
    unfinished: tuple[int, ...] = (),
    *,
    at_startup: bool = False,
) -> WorkerLost:
    """Return the event with the fields that the run fills in."""
    return WorkerLost(worker, blamed=blamed, unfinished=unfinished, at_startup=at_startup)


@dataclass
class Claim:
    """Tickets that a worker holds; `first`, `cursor` and `last` are indexes of its chunks."""

    generation: int
    first: int
    cursor: int
    last: int
    reported: bool = False  # the failure of the chunk at the cursor was sent


@dataclass
class Worker:
    """A simulated worker process: its assignments, its claim and its unread messages."""

    assigned: list[int] = field(default_factory=list)
    claim: Claim | None = None
    claimed: dict[int, int] = field(default_factory=dict)  # number of tickets by generation
    handed_out: dict[int, int] = field(default_factory=dict)  # counters that it stopped
    left: dict[int, tuple[int, ...]] = field(default_factory=dict)  # chunks that it did not begin
    mail: deque[Any] = field(default_factory=deque)
    alive: bool = True
    killed: bool = False  # a signal was sent and has not arrived

    @property
    def can_work(self) -> bool:
        return self.alive and bool(self.assigned)


class Simulation(RuleBasedStateMachine):
    """Simulated workers, counters, ledger and messages that drive a scheduler.

    A worker goes on until a signal arrives, and may die at any moment: between two chunks, between
    claiming tickets and recording them, or after a failure whose message is unread. Its messages
    are read in order, and its death is the last. A reconciliation is answered late.
    """

    @initialize(
        chunks=st.integers(1, 9),
        retries=st.integers(0, 2),
        fail_fast=st.booleans(),
        in_place=st.booleans(),
        collects=st.booleans(),
        ready=st.sets(st.integers(0, WORKERS - 1)),
    )
    def begin(
        self,
        chunks: int,
        retries: int,
        fail_fast: bool,
        in_place: bool,
        collects: bool,
        ready: set[int],
    ) -> None:
        self.chunks = chunks
        self.collects = collects and not in_place
        self.scheduler = Scheduler(
            retries, fail_fast, chunks, in_place=in_place, max_startup_failures=4
        )
        self.workers = {number: Worker() for number in ready}
        self.starting = set(range(WORKERS)) - ready
        self.counters: list[int] = []
        self.todo: list[tuple[int, ...]] = []
        self.status: dict[int, str] = {}
        self.done: dict[int, int] = {}
        self.failed: dict[int, int] = {}
        self.blamed: dict[int, int] = {}
        self.reconciliations = 0
        self.stopped = self.finished = self.gave_up = False
        self.execute(self.scheduler.start(sorted(ready)))

    # The parent

    def send(self, event: Any) -> None:
        self.execute(self.scheduler.handle(event))

    def execute(self, commands: list[Any]) -> None:  # noqa: C901, PLR0912 - a case per command
        withdrawn, answers = [], []
        for command in commands:
            assert not self.finished, "a finished run has no command"
            match command:
                case Open(number, todo):
                    assert number == len(self.todo)
                    assert self.scheduler.phase is Phase.RUNNING
                    self.todo.append(tuple(range(self.chunks)) if todo is None else todo)
                    self.counters.append(0)
                case Assign(number, generation):
                    self.workers[number].assigned.append(generation)
                case Stop():
                    assert not self.stopped
                    self.stopped = True
                    answers.append(CountersStopped(tuple(self.counters)))
                    self.counters = [count + 99 for count in self.counters]
                    for number, worker in self.workers.items():
                        if worker.alive:  # assignments that were not sent are withdrawn
                            withdrawn += [(number, one) for one in worker.assigned[2:]]
                            del worker.assigned[2:]
                case Kill(number):
                    self.workers[number].killed = True
                case Replace(number):
                    assert number not in self.workers
                    self.starting.add(number)
                case Fail(chunk, _):
                    self.settle(chunk, "failed")
                case GiveUp():
                    self.gave_up = True
                case Finish():
                    self.finished = True
                    claims = [one.claim for one in self.workers.values() if one.alive]
                    assert not any(claims), "a run may finish only when no worker writes"
                case Reconcile():
                    self.reconciliations += 1
        for answer in answers:
            self.send(answer)
        for number, generation in withdrawn:
            self.send(exhausted(number, generation))

    def settle(self, chunk: int, status: str) -> None:
        """Record the state of a chunk in the ledger."""
        counts = self.failed if status == "failed" else self.done
        counts[chunk] = counts.get(chunk, 0) + 1
        self.status[chunk] = status

    @precondition(lambda self: self.reconciliations and not self.finished)
    @rule()
    def reconcile(self) -> None:
        """Read the ledger, and send the unfinished chunks."""
        self.reconciliations -= 1
        self.send(Reconciled([chunk for chunk in range(self.chunks) if chunk not in self.status]))

    @precondition(lambda self: any(worker.mail for worker in self.workers.values()))
    @rule(data=st.data())
    def read_message(self, data: st.DataObject) -> None:
        senders = sorted(number for number, worker in self.workers.items() if worker.mail)
        self.read_message_of(data.draw(st.sampled_from(senders)))

    def read_message_of(self, number: int) -> None:
        event = self.workers[number].mail.popleft()
        if isinstance(event, WorkerLost):
            dead = self.workers.pop(number)
            assert not dead.mail, "a death is the last message"
            if event.blamed is not None:
                self.blamed[event.blamed] = self.blamed.get(event.blamed, 0) + 1
        self.send(event)

    # Rules for workers

    @precondition(lambda self: not self.finished and self.starting)
    @rule(data=st.data())
    def start_worker(self, data: st.DataObject) -> None:
        self.start_worker_number(data.draw(st.sampled_from(sorted(self.starting))))

    def start_worker_number(self, number: int) -> None:
        self.starting.discard(number)
        self.workers[number] = Worker()
        self.send(WorkerReady(number))

    @precondition(lambda self: any(worker.can_work for worker in self.workers.values()))
    @rule(data=st.data(), size=st.integers(1, 3), fails=st.integers(0, 3))
    def step(self, data: st.DataObject, size: int, fails: int) -> None:
        """A worker claims tickets, finishes a chunk, or finds its counter exhausted."""
        busy = sorted(number for number, one in self.workers.items() if one.can_work)
        worker = data.draw(st.sampled_from(busy))
        self.go_on(worker, size, fails=fails == 0)

    def go_on(self, number: int, size: int, *, fails: bool = False) -> None:
        worker = self.workers[number]
        claim = worker.claim
        if claim is None:
            self.claim(number, worker, size)
        elif claim.reported:
            self.next_chunk(worker, claim)
        elif fails:
            chunk = self.todo[claim.generation][claim.cursor]
            if self.scheduler.fail_fast:
                worker.handed_out.setdefault(claim.generation, self.counters[claim.generation])
                self.counters[claim.generation] += 99
            self.settle(chunk, "failed")
            claim.reported = True
            worker.mail.append(chunk_failed(chunk))
        else:
            if not self.collects:
                self.settle(self.todo[claim.generation][claim.cursor], "done")
            self.next_chunk(worker, claim)

    def claim(self, number: int, worker: Worker, size: int) -> None:
        generation = worker.assigned[0]
        first, count = self.counters[generation], len(self.todo[generation])
        self.counters[generation] += size
        if first >= count:
            worker.assigned.pop(0)
            self.report(number, worker, generation)
        else:
            last = min(first + size, count)
            worker.claim = Claim(generation, first, first, last)
            worker.claimed[generation] = worker.claimed.get(generation, 0) + last - first

    def report(
        self, number: int, worker: Worker, generation: int, *, exiting: bool = False
    ) -> None:
        counts = worker.claimed.get(generation, 0), worker.handed_out.get(generation)
        left = worker.left.get(generation, ())
        worker.mail.append(exhausted(number, generation, *counts, left=left, exiting=exiting))

    @precondition(lambda self: any(one.can_work and one.claim for one in self.workers.values()))
    @rule(data=st.data())
    def leave_the_rest(self, data: st.DataObject) -> None:
        """A worker that has found its chunks slow leaves those that it has not begun."""
        busy = [n for n, one in self.workers.items() if one.can_work and one.claim]
        worker = self.workers[data.draw(st.sampled_from(sorted(busy)))]
        claim = worker.claim
        if claim is not None and claim.first < claim.cursor and not claim.reported:
            rest = self.todo[claim.generation][claim.cursor : claim.last]
            worker.left[claim.generation] = worker.left.get(claim.generation, ()) + rest
            claim.last = claim.cursor
            self.end_claim(worker, claim)

    def next_chunk(self, worker: Worker, claim: Claim) -> None:
        if claim.reported and self.scheduler.fail_fast:
            claim.last = claim.cursor + 1
        claim.cursor, claim.reported = claim.cursor + 1, False
        if claim.cursor == claim.last:
            self.end_claim(worker, claim)

    def end_claim(self, worker: Worker, claim: Claim) -> None:
        if self.collects:
            for chunk in self.todo[claim.generation][claim.first : claim.last]:
                if self.status.get(chunk) != "failed":
                    self.settle(chunk, "done")
        worker.claim = None

    @precondition(lambda self: any(worker.can_work for worker in self.workers.values()))
    @rule(data=st.data(), size=st.integers(1, 3))
    def lose_tickets(self, data: st.DataObject, size: int) -> None:
        """A worker dies before it records its claim, so nobody knows its tickets."""
        idle = [n for n, one in self.workers.items() if one.can_work and one.claim is None]
        if idle:
            number = data.draw(st.sampled_from(sorted(idle)))
            self.counters[self.workers[number].assigned[0]] += size
            self.die(number)

    @precondition(lambda self: any(worker.can_work for worker in self.workers.values()))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A worker that has computed its number of tasks exits between two claims."""
        idle = [n for n, one in self.workers.items() if one.can_work and one.claim is None]
        if idle:
            number = data.draw(st.sampled_from(sorted(idle)))
            worker = self.workers[number]
            worker.alive = False
            self.report(number, worker, worker.assigned[0], exiting=True)
            worker.mail.append(lost(number))

    @precondition(lambda self: not self.finished and self.workers)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.die(data.draw(st.sampled_from(sorted(self.workers))))

    @precondition(lambda self: any(one.killed and one.alive for one in self.workers.values()))
    @rule(data=st.data())
    def deliver_signal(self, data: st.DataObject) -> None:
        killed = [number for number, one in self.workers.items() if one.killed and one.alive]
        self.die(data.draw(st.sampled_from(sorted(killed))))

    def die(self, number: int) -> None:
        worker = self.workers[number]
        if not worker.alive:
            return
        worker.alive, claim = False, worker.claim
        blamed, unfinished = None, ()
        if claim is not None:
            todo = self.todo[claim.generation]
            blamed = todo[claim.cursor]
            unfinished = todo[claim.cursor + 1 : claim.last]
            if self.collects:  # objects that were not sent are lost
                unfinished = todo[claim.first : claim.cursor] + unfinished
        worker.mail.append(lost(number, blamed, unfinished, at_startup=claim is None))

    @precondition(lambda self: not self.finished and self.starting)
    @rule(data=st.data())
    def die_during_start(self, data: st.DataObject) -> None:
        """A worker dies while it starts."""
        number = data.draw(st.sampled_from(sorted(self.starting)))
        self.starting.discard(number)
        self.send(lost(number, at_startup=True))

    # Rules for timeouts, cancellation and refused plans

    @precondition(lambda self: not self.finished)
    @rule(data=st.data())
    def time_out(self, data: st.DataObject) -> None:
        """The parent finds a long claim, whose worker may be dead or may have gone on."""
        holding = sorted(number for number, one in self.workers.items() if one.claim)
        if holding:
            number = data.draw(st.sampled_from(holding))
            claim = self.workers[number].claim
            assert claim is not None
            self.send(ChunkTimedOut(number, self.todo[claim.generation][claim.cursor]))

    @precondition(lambda self: not self.finished)
    @rule(often=st.integers(0, 9))
    def cancel(self, often: int) -> None:
        if often == 0:
            self.send(RunCancelled())

    @precondition(lambda self: not self.finished and self.stopped)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        """The grace is over; some of the workers without a claim are in other work."""
        without = sorted(number for number, one in self.workers.items() if one.claim is None)
        elsewhere = data.draw(st.sets(st.sampled_from(without))) if without else ()
        self.send(GraceExpired(elsewhere))

    @precondition(lambda self: not self.finished)
    @rule(data=st.data(), often=st.integers(0, 9))
    def refuse(self, data: st.DataObject, often: int) -> None:
        """A worker cannot load the plan, or has no memory for outputs."""
        idle = [n for n, one in self.workers.items() if one.can_work and one.claim is None]
        if often == 0 and idle:
            number = data.draw(st.sampled_from(sorted(idle)))
            worker = self.workers[number]
            worker.mail += [rejected(), exhausted(number, worker.assigned.pop(0))]

    @rule()
    def nothing(self) -> None:
        """Time passes, also when the run is over."""

    # Invariants

    @invariant()
    def the_invariants_of_the_scheduler_hold(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_invariants()

    @invariant()
    def no_chunk_can_be_computed_twice(self) -> None:
        """A chunk is held or can be claimed only once, and only if it is not done."""
        if not hasattr(self, "scheduler") or self.finished:
            return
        chances = []
        for worker in self.workers.values():
            claim = worker.claim
            if claim is not None and worker.alive:
                start = claim.first if self.collects else claim.cursor
                chances += self.todo[claim.generation][start : claim.last]
        for generation, todo in enumerate(self.todo):
            given = any(generation in worker.assigned for worker in self.workers.values())
            if given or generation not in self.scheduler.spent:
                chances += todo[self.counters[generation] :]
        assert len(chances) == len(set(chances)), "two workers could compute the same chunk"
        settled = {chunk for chunk, status in self.status.items() if status == "done"}
        assert not settled & set(chances), "a finished chunk could be computed again"

    @invariant()
    def each_chunk_is_settled_once(self) -> None:
        if hasattr(self, "scheduler"):
            assert all(count == 1 for count in self.done.values())
            assert all(count == 1 for count in self.failed.values())
            assert not set(self.done) & set(self.failed)
            most = 1 if self.scheduler.in_place else self.scheduler.retries + 1
            assert all(deaths <= most for deaths in self.scheduler.deaths.values())
            assert all(self.blamed[chunk] >= n for chunk, n in self.scheduler.deaths.items())

    @invariant()
    def an_unfinished_run_waits_for_an_event(self) -> None:
        """Until a run is over, another event will arrive."""
        if not hasattr(self, "scheduler") or self.finished:
            return
        unread = any(worker.mail for worker in self.workers.values())
        working = any(worker.can_work for worker in self.workers.values())
        starting = self.starting and self.scheduler.phase is Phase.RUNNING
        assert unread or working or starting or self.reconciliations

    def teardown(self) -> None:
        """Let all workers finish, and check that the run ends with every chunk settled."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(500):
            if not self.finished:
                self.advance_all()
        assert self.finished, "the run never finishes"
        assert self.scheduler.phase is Phase.OVER
        assert self.scheduler.failed <= set(self.failed)
        if not self.stopped:
            assert set(self.status) == set(range(self.chunks))
        elif not self.gave_up:
            assert self.scheduler.handle(WorkerReady(0)) == []

    def advance_all(self) -> None:
        """Each worker takes a step; a worker dies only from a signal."""
        if self.reconciliations:
            self.reconcile()
        for number in sorted(self.starting):
            self.start_worker_number(number)
        for number, worker in sorted(self.workers.items()):
            if worker.killed:
                self.die(number)
            elif worker.can_work:
                self.go_on(number, 1)
            if worker.mail and not self.finished:
                self.read_message_of(number)


TestSimulation = Simulation.TestCase


# Single transitions


def assert_commands(commands: list[Any], *expected: Any) -> None:
    """Compare by repr, since named tuples of different types may be equal."""
    assert list(map(repr, commands)) == list(map(repr, expected))


def started(*events: Any, workers: int = 2, **options: Any) -> Scheduler:
    """Return a scheduler whose workers have generation 0, after these events."""
    made = Scheduler(**{"retries": 1, "fail_fast": True, "chunks": 9, **options})
    numbers = list(range(workers))
    assert_commands(made.start(numbers), Open(0, None), *(Assign(number, 0) for number in numbers))
    for event in events:
        made.handle(event)
    return made


COLLECT = {"fail_fast": False}
BOTH_EXHAUSTED = (exhausted(0, 0), exhausted(1, 0))

TRANSITIONS = {
    # name: (options, earlier events, event, commands)
    "exhausted-not-the-last": ({}, (), exhausted(0, 0), []),
    "exhausted-not-all-accounted-for": ({}, (), exhausted(0, 0, 8), []),
    "exhausted-all-accounted-for": ({}, (), exhausted(0, 0, 9), [Finish()]),
    "exhausted-the-rest": ({}, (exhausted(0, 0, 4),), exhausted(1, 0, 5), [Finish()]),
    "exhausted-with-a-chunk-to-compute-again": (
        {},
        (lost(0, blamed=3),),
        exhausted(1, 0, 8),
        [],
    ),
    "exhausted-all-of-a-counter-that-it-stopped": (
        {},
        (chunk_failed(1),),
        exhausted(0, 0, 3, 3),
        [Finish()],
    ),
    "exhausted-all-of-its-own-of-a-counter-that-it-stopped": (
        {},
        (chunk_failed(1),),
        exhausted(0, 0, 3, 5),
        [],
    ),
    "stopped-with-no-ticket-claimed": ({}, (RunCancelled(),), CountersStopped([0]), [Finish()]),
    "stopped-while-some-compute": ({}, (RunCancelled(),), CountersStopped([4]), []),
    "stopped-and-all-accounted-for": (
        {},
        (RunCancelled(), CountersStopped([4])),
        exhausted(1, 0, 4),
        [Finish()],
    ),
    "exhausted-the-last": ({}, (exhausted(0, 0),), exhausted(1, 0), [Reconcile()]),
    "reconciled-nothing-pending": ({}, BOTH_EXHAUSTED, Reconciled([]), [Finish()]),
    "reconciled-lost-tickets": (
        {},
        BOTH_EXHAUSTED,
        Reconciled([3, 5]),
        [Open(1, (3, 5)), Assign(0, 1), Assign(1, 1)],
    ),
    "reconciled-a-failed-chunk-is-not-lost": (
        COLLECT,
        (chunk_failed(3), *BOTH_EXHAUSTED),
        Reconciled([3]),
        [Finish()],
    ),
    "reconciled-but-a-worker-was-replaced": (
        {},
        (lost(0, 4), lost(1, at_startup=True), WorkerReady(1)),
        Reconciled([4, 5]),
        [],
    ),
    "reconciled-with-no-worker-left": (
        {"workers": 1},
        (lost(0),),
        Reconciled([0, 1]),
        [Open(1, (0, 1))],
    ),
    "ready-gets-a-counter-with-tickets": ({}, (), WorkerReady(2), [Assign(2, 0)]),
    "ready-late-gets-nothing": ({}, (exhausted(0, 0),), WorkerReady(2), []),
    "ready-gets-each-generation": (
        {},
        (lost(0, 4, (5,)),),
        WorkerReady(0),
        [Assign(0, 0), Assign(0, 1)],
    ),
    "ready-a-stopping-run": ({}, (RunCancelled(),), WorkerReady(2), []),
    "failed-fail-fast": ({}, (), chunk_failed(3), [Stop()]),
    "failed-twice-fail-fast": ({}, (chunk_failed(3),), chunk_failed(4), []),
    "failed-and-the-run-goes-on": (COLLECT, (), chunk_failed(3), []),
    "died-with-a-claim": (
        {},
        (),
        lost(0, blamed=4, unfinished=(5, 6)),
        [Replace(0), Open(1, (4, 5, 6)), Assign(1, 1)],
    ),
    "died-without-a-claim": ({}, (), lost(0), [Replace(0)]),
    "died-idle": ({}, (exhausted(0, 0),), lost(0), [Replace(0)]),
    "died-the-last-with-an-assignment": (
        {},
        (exhausted(0, 0),),
        lost(1),
        [Replace(1), Reconcile()],
    ),
    "died-in-a-chunk-too-often": (
        {},
        (lost(0, 4),),
        lost(1, blamed=4),
        [Fail(4, timed_out=False), Stop(), Finish()],
    ),
    "died-too-often-and-the-run-goes-on": (
        {"retries": 0, **COLLECT},
        (),
        lost(0, blamed=4, unfinished=(5,)),
        [Fail(4, timed_out=False), Replace(0), Open(1, (5,)), Assign(1, 1)],
    ),
    "died-in-place": (
        {"in_place": True, "retries": 9, **COLLECT},
        (),
        lost(0, blamed=4, unfinished=(5,)),
        [Fail(4, timed_out=False), Replace(0), Open(1, (5,)), Assign(1, 1)],
    ),
    "died-in-a-failed-chunk": (
        COLLECT,
        (chunk_failed(4),),
        lost(0, blamed=4, unfinished=(5,)),
        [Replace(0), Open(1, (5,)), Assign(1, 1)],
    ),
    "died-and-a-failed-chunk-is-not-computed-again": (
        COLLECT,
        (chunk_failed(4),),
        lost(0, blamed=6, unfinished=(4, 5)),
        [Replace(0), Open(1, (6, 5)), Assign(1, 1)],
    ),
    "died-in-a-stopping-run": ({}, (RunCancelled(),), lost(0, blamed=4), []),
    "died-last-in-a-stopping-run": ({}, (RunCancelled(), exhausted(1, 0)), lost(0, 4), [Finish()]),
    "timed-out": ({}, (), ChunkTimedOut(0, 4), [Kill(0)]),
    "timed-out-twice": ({}, (ChunkTimedOut(0, 4),), ChunkTimedOut(0, 4), []),
    "timed-out-but-the-worker-is-gone": ({}, (lost(0),), ChunkTimedOut(0, 4), []),
    "timed-out-and-retried": (
        {},
        (ChunkTimedOut(0, 4),),
        lost(0, blamed=4),
        [Replace(0), Open(1, (4,)), Assign(1, 1)],
    ),
    "timed-out-too-often": (
        {"retries": 0},
        (ChunkTimedOut(0, 4),),
        lost(0, blamed=4),
        [Fail(4, timed_out=True), Stop()],
    ),
    "timed-out-but-the-worker-had-moved-on": (
        {"retries": 0},
        (ChunkTimedOut(0, 4),),
        lost(0, blamed=5),
        [Replace(0), Open(1, (5,)), Assign(1, 1)],
    ),
    "timed-out-but-the-worker-had-moved-on-in-place": (
        {"retries": 0, "in_place": True},
        (ChunkTimedOut(0, 4),),
        lost(0, blamed=5),
        [Fail(5, timed_out=False), Stop()],
    ),
    "startup-failure-below-the-limit": (
        {"max_startup_failures": 1},
        (),
        lost(0, at_startup=True),
        [Replace(0)],
    ),
    "startup-failure-too-often": (
        {"max_startup_failures": 1},
        (lost(0, at_startup=True),),
        lost(0, at_startup=True),
        [GiveUp(), Stop()],
    ),
    "startup-failure-but-others-work": (
        {"max_startup_failures": 1},
        (lost(0, at_startup=True), exhausted(1, 0)),
        lost(0, at_startup=True),
        [Replace(0)],
    ),
    "startup-failure-between-deaths-of-other-runs": (
        {"max_startup_failures": 1},
        (lost(0, at_startup=True), lost(1)),
        lost(0, at_startup=True),
        [GiveUp(), Stop(), Finish()],
    ),
    "plan-rejected": ({}, (), rejected(), [Stop()]),
    "cancelled": ({}, (), RunCancelled(), [Stop()]),
    "cancelled-twice": ({}, (RunCancelled(),), RunCancelled(), []),
    "cancelled-with-no-worker": ({"workers": 0}, (), RunCancelled(), [Stop(), Finish()]),
    "grace-expired": ({}, (RunCancelled(), exhausted(0, 0)), GraceExpired(), [Kill(1)]),
    "grace-expired-and-a-worker-is-elsewhere": (
        {},
        (RunCancelled(),),
        GraceExpired({0}),
        [Kill(1)],
    ),
    "grace-expired-and-all-are-elsewhere": (
        {},
        (RunCancelled(),),
        GraceExpired({0, 1}),
        [Finish()],
    ),
    "grace-expired-and-the-others-were-elsewhere": (
        {},
        (RunCancelled(), GraceExpired({0})),
        lost(1, blamed=4),
        [Finish()],
    ),
    "grace-expired-blames-no-chunk": (
        {"retries": 0},
        (RunCancelled(), exhausted(0, 0), GraceExpired()),
        lost(1, blamed=4),
        [Finish()],
    ),
    "chunks-that-a-worker-left-are-a-new-generation": (
        {},
        (),
        exhausted(0, 0, 5, left=(3, 4)),
        [Open(1, (3, 4)), Assign(0, 1), Assign(1, 1)],
    ),
    "chunks-that-are-left-in-a-stopped-run-stay": (
        {},
        (RunCancelled(),),
        exhausted(0, 0, 5, left=(3, 4)),
        [],
    ),
    "after-the-end": ({}, (*BOTH_EXHAUSTED, Reconciled([])), lost(0, blamed=1), []),
}


@pytest.mark.parametrize("name", TRANSITIONS)
def test_an_event_leads_to_commands(name: str) -> None:
    """In each situation of the table, the scheduler returns the listed commands."""
    options, before, event, commands = TRANSITIONS[name]
    made = started(*before, **options)
    assert made.handle(event) == commands
    made.check_invariants()


def test_a_fatal_chunk_is_retried_as_often_as_allowed() -> None:
    """Each death opens a generation with the chunk, until the last death fails the chunk."""
    made = started(retries=3)
    for generation in range(1, 4):
        assert repr(Open(generation, (4,))) in map(repr, made.handle(lost(0, blamed=4)))
        made.handle(WorkerReady(0))
    assert_commands(made.handle(lost(0, blamed=4)), Fail(4, timed_out=False), Stop())


def test_a_run_may_start_with_some_of_its_chunks() -> None:
    """The given chunks are generation 0, which each new worker gets."""
    made = Scheduler(retries=0, fail_fast=True, chunks=9)
    assert_commands(made.start([], (7, 8)), Open(0, (7, 8)))
    assert_commands(made.handle(WorkerReady(1)), Assign(1, 0))


@pytest.mark.parametrize(("chunks", "todo"), [(0, None), (9, ())])
def test_a_run_without_chunks_is_over_at_once(chunks: int, todo: Any) -> None:
    """A run without chunks finishes without any assignment."""
    made = Scheduler(retries=0, fail_fast=True, chunks=chunks)
    assert_commands(made.start([0, 1], todo), Finish())
    assert made.phase is Phase.OVER
    assert made.handle(WorkerReady(2)) == []
