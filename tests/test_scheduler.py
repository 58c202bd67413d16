"""The scheduler: every history ends with each chunk done once, or reported once."""

from __future__ import annotations

from collections import deque
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
    exiting: bool = False,
) -> CounterExhausted:
    """The event, of the only run."""
    return CounterExhausted(worker, 0, generation, claimed, handed_out, exiting=exiting)


def chunk_failed(chunk: int) -> ChunkFailed:
    """The event, of the only run."""
    return ChunkFailed(0, chunk)


def rejected() -> PlanRejected:
    """The event, of the only run."""
    return PlanRejected(0)


def lost(
    worker: int,
    blamed: int | None = None,
    unfinished: tuple[int, ...] = (),
    *,
    at_startup: bool = False,
) -> WorkerLost:
    """The event, as the run completes it."""
    return WorkerLost(worker, blamed=blamed, unfinished=unfinished, at_startup=at_startup)


@dataclass
class Claim:
    """Tickets that a worker holds; all but `generation` are places in its list of chunks."""

    generation: int
    first: int
    cursor: int
    last: int
    reported: bool = False  # the chunk under the cursor has failed, and the parent was told


@dataclass
class Worker:
    """A worker process: what it was given, what it holds, and what it said and nobody read."""

    assigned: list[int] = field(default_factory=list)
    claim: Claim | None = None
    claimed: dict[int, int] = field(default_factory=dict)  # tickets it has had, by generation
    handed: dict[int, int] = field(default_factory=dict)  # when it stopped the counter
    mail: deque[Any] = field(default_factory=deque)
    alive: bool = True
    doomed: bool = False  # a signal is on its way

    @property
    def can_work(self) -> bool:
        return self.alive and bool(self.assigned)


class World(RuleBasedStateMachine):
    """Workers, counters, a ledger and messages as they are, without processes.

    A worker goes on until a signal reaches it, and dies at any moment: between two chunks, between
    claiming tickets and saying so, when it has reported a failure that nobody has read yet. What it
    said is heard in order, its death last. Audits are answered late.
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
        self.audits = 0
        self.stopped = self.finished = self.gave_up = False
        self.obey(self.scheduler.start(sorted(ready)))

    # The parent

    def tell(self, event: Any) -> None:
        self.obey(self.scheduler.handle(event))

    def obey(self, commands: list[Any]) -> None:  # noqa: C901, PLR0912 - one case a command
        taken_back, answers = [], []
        for command in commands:
            assert not self.finished, "nothing happens after the end"
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
                    self.counters = [had + 99 for had in self.counters]
                    for number, worker in self.workers.items():
                        if worker.alive:  # what no worker was sent is taken back
                            taken_back += [(number, one) for one in worker.assigned[2:]]
                            del worker.assigned[2:]
                case Kill(number):
                    self.workers[number].doomed = True
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
                    assert not any(claims), "a run is done when its last writer is idle"
                case Reconcile():
                    self.audits += 1
        for answer in answers:
            self.tell(answer)
        for number, generation in taken_back:
            self.tell(exhausted(number, generation))

    def settle(self, chunk: int, status: str) -> None:
        """Write the ledger."""
        book = self.failed if status == "failed" else self.done
        book[chunk] = book.get(chunk, 0) + 1
        self.status[chunk] = status

    @precondition(lambda self: self.audits and not self.finished)
    @rule()
    def answer(self) -> None:
        """The ledger is read, and what it says is told."""
        self.audits -= 1
        self.tell(Reconciled([chunk for chunk in range(self.chunks) if chunk not in self.status]))

    @precondition(lambda self: any(worker.mail for worker in self.workers.values()))
    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        talking = sorted(number for number, worker in self.workers.items() if worker.mail)
        self.hear_from(data.draw(st.sampled_from(talking)))

    def hear_from(self, number: int) -> None:
        event = self.workers[number].mail.popleft()
        if isinstance(event, WorkerLost):
            dead = self.workers.pop(number)
            assert not dead.mail, "a death is the last that is heard"
            if event.blamed is not None:
                self.blamed[event.blamed] = self.blamed.get(event.blamed, 0) + 1
        self.tell(event)

    # What workers do

    @precondition(lambda self: not self.finished and self.starting)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        self.join_as(data.draw(st.sampled_from(sorted(self.starting))))

    def join_as(self, number: int) -> None:
        self.starting.discard(number)
        self.workers[number] = Worker()
        self.tell(WorkerReady(number))

    @precondition(lambda self: any(worker.can_work for worker in self.workers.values()))
    @rule(data=st.data(), size=st.integers(1, 3), fails=st.integers(0, 3))
    def step(self, data: st.DataObject, size: int, fails: int) -> None:
        """A worker goes on: claims, finishes a chunk, or finds its generation drained."""
        busy = sorted(number for number, one in self.workers.items() if one.can_work)
        worker = data.draw(st.sampled_from(busy))
        self.go_on(worker, size, fails=fails == 0)

    def go_on(self, number: int, size: int, *, fails: bool = False) -> None:
        worker = self.workers[number]
        claim = worker.claim
        if claim is None:
            self.claim(number, worker, size)
        elif claim.reported:
            self.move_on(worker, claim)
        elif fails:
            chunk = self.todo[claim.generation][claim.cursor]
            if self.scheduler.fail_fast:
                worker.handed.setdefault(claim.generation, self.counters[claim.generation])
                self.counters[claim.generation] += 99
            self.settle(chunk, "failed")
            claim.reported = True
            worker.mail.append(chunk_failed(chunk))
        else:
            if not self.collects:
                self.settle(self.todo[claim.generation][claim.cursor], "done")
            self.move_on(worker, claim)

    def claim(self, number: int, worker: Worker, size: int) -> None:
        generation = worker.assigned[0]
        first, count = self.counters[generation], len(self.todo[generation])
        self.counters[generation] += size
        if first >= count:
            worker.assigned.pop(0)
            had = worker.claimed.get(generation, 0), worker.handed.get(generation)
            worker.mail.append(exhausted(number, generation, *had))
        else:
            last = min(first + size, count)
            worker.claim = Claim(generation, first, first, last)
            worker.claimed[generation] = worker.claimed.get(generation, 0) + last - first

    def move_on(self, worker: Worker, claim: Claim) -> None:
        if claim.reported and self.scheduler.fail_fast:
            claim.last = claim.cursor + 1
        claim.cursor, claim.reported = claim.cursor + 1, False
        if claim.cursor == claim.last:
            if self.collects:
                for chunk in self.todo[claim.generation][claim.first : claim.last]:
                    if self.status.get(chunk) != "failed":
                        self.settle(chunk, "done")
            worker.claim = None

    @precondition(lambda self: any(worker.can_work for worker in self.workers.values()))
    @rule(data=st.data(), size=st.integers(1, 3))
    def lose_tickets(self, data: st.DataObject, size: int) -> None:
        """A worker dies between the claim and the slot: nobody can name what it took."""
        idle = [n for n, one in self.workers.items() if one.can_work and one.claim is None]
        if idle:
            number = data.draw(st.sampled_from(sorted(idle)))
            self.counters[self.workers[number].assigned[0]] += size
            self.die(number)

    @precondition(lambda self: any(worker.can_work for worker in self.workers.values()))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A worker that has done enough says so between two claims, and ends."""
        idle = [n for n, one in self.workers.items() if one.can_work and one.claim is None]
        if idle:
            number = data.draw(st.sampled_from(sorted(idle)))
            worker = self.workers[number]
            generation = worker.assigned[0]
            had = worker.claimed.get(generation, 0), worker.handed.get(generation)
            worker.alive = False
            worker.mail.append(exhausted(number, generation, *had, exiting=True))
            worker.mail.append(lost(number))

    @precondition(lambda self: not self.finished and self.workers)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.die(data.draw(st.sampled_from(sorted(self.workers))))

    @precondition(lambda self: any(one.doomed and one.alive for one in self.workers.values()))
    @rule(data=st.data())
    def perish(self, data: st.DataObject) -> None:
        doomed = [number for number, one in self.workers.items() if one.doomed and one.alive]
        self.die(data.draw(st.sampled_from(sorted(doomed))))

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
            if self.collects:  # what was not flushed is gone
                unfinished = todo[claim.first : claim.cursor] + unfinished
        worker.mail.append(lost(number, blamed, unfinished, at_startup=claim is None))

    @precondition(lambda self: not self.finished and self.starting)
    @rule(data=st.data())
    def die_young(self, data: st.DataObject) -> None:
        """A worker dies while it starts."""
        number = data.draw(st.sampled_from(sorted(self.starting)))
        self.starting.discard(number)
        self.tell(lost(number, at_startup=True))

    # What else happens

    @precondition(lambda self: not self.finished)
    @rule(data=st.data())
    def time_out(self, data: st.DataObject) -> None:
        """The parent sees a claim that lasts; its worker may be dead, or go on meanwhile."""
        holding = sorted(number for number, one in self.workers.items() if one.claim)
        if holding:
            number = data.draw(st.sampled_from(holding))
            claim = self.workers[number].claim
            assert claim is not None
            self.tell(ChunkTimedOut(number, self.todo[claim.generation][claim.cursor]))

    @precondition(lambda self: not self.finished)
    @rule(often=st.integers(0, 9))
    def cancel(self, often: int) -> None:
        if often == 0:
            self.tell(RunCancelled())

    @precondition(lambda self: not self.finished and self.stopped)
    @rule()
    def expire(self) -> None:
        self.tell(GraceExpired())

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

    # What holds at any time

    @invariant()
    def its_own_invariants_hold(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_invariants()

    @invariant()
    def each_ticket_is_of_one_generation_and_one_worker(self) -> None:
        """Chunks that are held, or can still be claimed, are so once, and are not settled."""
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
        assert not settled & set(chances), "what is done is not computed again"

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
    def it_waits_for_something(self) -> None:
        """Until a run is over, somebody will say something that carries it on."""
        if not hasattr(self, "scheduler") or self.finished:
            return
        heard = any(worker.mail for worker in self.workers.values())
        working = any(worker.can_work for worker in self.workers.values())
        coming = self.starting and self.scheduler.phase is Phase.RUNNING
        assert heard or working or coming or self.audits

    def teardown(self) -> None:
        """Let everybody finish in peace: the run ends, and everything is accounted for."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(500):
            if not self.finished:
                self.let_go_on()
        assert self.finished, "the run waits for nothing"
        assert self.scheduler.phase is Phase.OVER
        assert self.scheduler.failed <= set(self.failed)
        if not self.stopped:
            assert set(self.status) == set(range(self.chunks))
        elif not self.gave_up:
            assert self.scheduler.handle(WorkerReady(0)) == []

    def let_go_on(self) -> None:
        """Everybody does one thing, and nobody dies but of a signal."""
        if self.audits:
            self.answer()
        for number in sorted(self.starting):
            self.join_as(number)
        for number, worker in sorted(self.workers.items()):
            if worker.doomed:
                self.die(number)
            elif worker.can_work:
                self.go_on(number, 1)
            if worker.mail and not self.finished:
                self.hear_from(number)


TestWorld = World.TestCase


# Single transitions


def assert_said(commands: list[Any], *due: Any) -> None:
    """Exactly these; as tuples, two of different types may be equal."""
    assert list(map(repr, commands)) == list(map(repr, due))


def started(*events: Any, workers: int = 2, **options: Any) -> Scheduler:
    """A scheduler whose workers have generation 0, after these events."""
    made = Scheduler(**{"retries": 1, "fail_fast": True, "chunks": 9, **options})
    numbers = list(range(workers))
    assert_said(made.start(numbers), Open(0, None), *(Assign(number, 0) for number in numbers))
    for event in events:
        made.handle(event)
    return made


SLOW = {"fail_fast": False}
BOTH_DRAINED = (exhausted(0, 0), exhausted(1, 0))

TRANSITIONS = {
    # name: (options, what happened before, event, commands)
    "drained-not-the-last": ({}, (), exhausted(0, 0), []),
    "drained-not-all-accounted-for": ({}, (), exhausted(0, 0, 8), []),
    "drained-all-accounted-for": ({}, (), exhausted(0, 0, 9), [Finish()]),
    "drained-the-rest": ({}, (exhausted(0, 0, 4),), exhausted(1, 0, 5), [Finish()]),
    "drained-with-a-chunk-to-compute-again": (
        {},
        (lost(0, blamed=3),),
        exhausted(1, 0, 8),
        [],
    ),
    "drained-all-of-a-counter-that-it-stopped": (
        {},
        (chunk_failed(1),),
        exhausted(0, 0, 3, 3),
        [Finish()],
    ),
    "drained-all-of-its-own-of-a-counter-that-it-stopped": (
        {},
        (chunk_failed(1),),
        exhausted(0, 0, 3, 5),
        [],
    ),
    "stopped-and-nobody-had-a-ticket": ({}, (RunCancelled(),), CountersStopped([0]), [Finish()]),
    "stopped-while-some-compute": ({}, (RunCancelled(),), CountersStopped([4]), []),
    "stopped-and-all-accounted-for": (
        {},
        (RunCancelled(), CountersStopped([4])),
        exhausted(1, 0, 4),
        [Finish()],
    ),
    "drained-the-last": ({}, (exhausted(0, 0),), exhausted(1, 0), [Reconcile()]),
    "audited-nothing-pending": ({}, BOTH_DRAINED, Reconciled([]), [Finish()]),
    "audited-lost-tickets": (
        {},
        BOTH_DRAINED,
        Reconciled([3, 5]),
        [Open(1, (3, 5)), Assign(0, 1), Assign(1, 1)],
    ),
    "audited-what-has-failed-is-not-lost": (
        SLOW,
        (chunk_failed(3), *BOTH_DRAINED),
        Reconciled([3]),
        [Finish()],
    ),
    "audited-but-somebody-has-joined": (
        {},
        (lost(0, 4), lost(1, at_startup=True), WorkerReady(1)),
        Reconciled([4, 5]),
        [],
    ),
    "audited-with-no-worker-left": (
        {"workers": 1},
        (lost(0),),
        Reconciled([0, 1]),
        [Open(1, (0, 1))],
    ),
    "joined-gets-what-has-tickets": ({}, (), WorkerReady(2), [Assign(2, 0)]),
    "joined-late-gets-nothing": ({}, (exhausted(0, 0),), WorkerReady(2), []),
    "joined-gets-each-generation": (
        {},
        (lost(0, 4, (5,)),),
        WorkerReady(0),
        [Assign(0, 0), Assign(0, 1)],
    ),
    "joined-a-stopping-run": ({}, (RunCancelled(),), WorkerReady(2), []),
    "failed-fail-fast": ({}, (), chunk_failed(3), [Stop()]),
    "failed-twice-fail-fast": ({}, (chunk_failed(3),), chunk_failed(4), []),
    "failed-and-it-goes-on": (SLOW, (), chunk_failed(3), []),
    "died-with-a-claim": (
        {},
        (),
        lost(0, blamed=4, unfinished=(5, 6)),
        [Replace(0), Open(1, (4, 5, 6)), Assign(1, 1)],
    ),
    "died-without-a-claim": ({}, (), lost(0), [Replace(0)]),
    "died-idle": ({}, (exhausted(0, 0),), lost(0), [Replace(0)]),
    "died-the-last-that-had-anything": (
        {},
        (exhausted(0, 0),),
        lost(1),
        [Replace(1), Reconcile()],
    ),
    "died-over-a-chunk-too-often": (
        {},
        (lost(0, 4),),
        lost(1, blamed=4),
        [Fail(4, timed_out=False), Stop(), Finish()],
    ),
    "died-too-often-and-it-goes-on": (
        {"retries": 0, **SLOW},
        (),
        lost(0, blamed=4, unfinished=(5,)),
        [Fail(4, timed_out=False), Replace(0), Open(1, (5,)), Assign(1, 1)],
    ),
    "died-in-place": (
        {"in_place": True, "retries": 9, **SLOW},
        (),
        lost(0, blamed=4, unfinished=(5,)),
        [Fail(4, timed_out=False), Replace(0), Open(1, (5,)), Assign(1, 1)],
    ),
    "died-over-what-had-failed": (
        SLOW,
        (chunk_failed(4),),
        lost(0, blamed=4, unfinished=(5,)),
        [Replace(0), Open(1, (5,)), Assign(1, 1)],
    ),
    "died-and-what-had-failed-is-not-begun-again": (
        SLOW,
        (chunk_failed(4),),
        lost(0, blamed=6, unfinished=(4, 5)),
        [Replace(0), Open(1, (6, 5)), Assign(1, 1)],
    ),
    "died-in-a-stopping-run": ({}, (RunCancelled(),), lost(0, blamed=4), []),
    "died-last-in-a-stopping-run": ({}, (RunCancelled(), exhausted(1, 0)), lost(0, 4), [Finish()]),
    "timed-out": ({}, (), ChunkTimedOut(0, 4), [Kill(0)]),
    "timed-out-twice": ({}, (ChunkTimedOut(0, 4),), ChunkTimedOut(0, 4), []),
    "timed-out-who-is-gone": ({}, (lost(0),), ChunkTimedOut(0, 4), []),
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
    "timed-out-but-it-had-moved-on": (
        {"retries": 0},
        (ChunkTimedOut(0, 4),),
        lost(0, blamed=5),
        [Replace(0), Open(1, (5,)), Assign(1, 1)],
    ),
    "timed-out-had-moved-on-in-place": (
        {"retries": 0, "in_place": True},
        (ChunkTimedOut(0, 4),),
        lost(0, blamed=5),
        [Fail(5, timed_out=False), Stop()],
    ),
    "barren-and-patient": ({"max_startup_failures": 1}, (), lost(0, at_startup=True), [Replace(0)]),
    "barren-too-often": (
        {"max_startup_failures": 1},
        (lost(0, at_startup=True),),
        lost(0, at_startup=True),
        [GiveUp(), Stop()],
    ),
    "barren-but-others-work": (
        {"max_startup_failures": 1},
        (lost(0, at_startup=True), exhausted(1, 0)),
        lost(0, at_startup=True),
        [Replace(0)],
    ),
    "refused": ({}, (), rejected(), [Stop()]),
    "cancelled": ({}, (), RunCancelled(), [Stop()]),
    "cancelled-twice": ({}, (RunCancelled(),), RunCancelled(), []),
    "cancelled-with-no-worker": ({"workers": 0}, (), RunCancelled(), [Stop(), Finish()]),
    "expired": ({}, (RunCancelled(), exhausted(0, 0)), GraceExpired(), [Kill(1)]),
    "expired-blames-nobody": (
        {"retries": 0},
        (RunCancelled(), exhausted(0, 0), GraceExpired()),
        lost(1, blamed=4),
        [Finish()],
    ),
    "over": ({}, (*BOTH_DRAINED, Reconciled([])), lost(0, blamed=1), []),
}


@pytest.mark.parametrize("name", TRANSITIONS)
def test_an_event_leads_to_commands(name: str) -> None:
    """The table says, for each situation, what is to be done."""
    options, before, event, commands = TRANSITIONS[name]
    made = started(*before, **options)
    assert made.handle(event) == commands
    made.check_invariants()


def test_a_chunk_may_die_as_often_as_retries_say() -> None:
    """Each death makes a generation of it, until the last one is reported."""
    made = started(retries=3)
    for generation in range(1, 4):
        assert repr(Open(generation, (4,))) in map(repr, made.handle(lost(0, blamed=4)))
        made.handle(WorkerReady(0))
    assert_said(made.handle(lost(0, blamed=4)), Fail(4, timed_out=False), Stop())


def test_a_run_may_begin_with_chunks_of_its_own() -> None:
    """A todo is generation 0, and whoever joins gets it."""
    made = Scheduler(retries=0, fail_fast=True, chunks=9)
    assert_said(made.start([], (7, 8)), Open(0, (7, 8)))
    assert_said(made.handle(WorkerReady(1)), Assign(1, 0))


@pytest.mark.parametrize(("chunks", "todo"), [(0, None), (9, ())])
def test_a_run_without_chunks_is_over_at_once(chunks: int, todo: Any) -> None:
    """There is nothing to wait for, and no worker hears of it."""
    made = Scheduler(retries=0, fail_fast=True, chunks=chunks)
    assert_said(made.start([0, 1], todo), Finish())
    assert made.phase is Phase.OVER
    assert made.handle(WorkerReady(2)) == []
