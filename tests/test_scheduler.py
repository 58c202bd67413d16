"""The scheduler: every history ends with each chunk done once, or reported once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shmpar import scheduler
from shmpar.scheduler import (
    Assign,
    Audit,
    Audited,
    Cancelled,
    ChunkFailed,
    Died,
    Drained,
    Expired,
    Fail,
    Finish,
    GiveUp,
    Joined,
    Kill,
    Open,
    Phase,
    Refused,
    Replace,
    Scheduler,
    Stop,
    TimedOut,
)

WORKERS = 3


class World(RuleBasedStateMachine):
    """Workers, counters and a ledger as they are, without processes.

    A worker has a list of assigned generations, and holds a claim: tickets of one generation, with
    a cursor. Between claiming and saying so it holds tickets that nobody can name.
    """

    @initialize(
        chunks=st.integers(1, 9),
        retries=st.integers(0, 2),
        fail_fast=st.booleans(),
        in_place=st.booleans(),
        ready=st.sets(st.integers(0, WORKERS - 1)),
    )
    def begin(
        self, chunks: int, retries: int, fail_fast: bool, in_place: bool, ready: set[int]
    ) -> None:
        self.chunks = chunks
        self.scheduler = Scheduler(retries, fail_fast, in_place=in_place, patience=4)
        self.up = set(ready)
        self.starting = set(range(WORKERS)) - self.up
        self.assigned: dict[int, list[int]] = {worker: [] for worker in range(WORKERS)}
        self.claims: dict[int, tuple[int, int, int]] = {}  # worker: generation, cursor, last
        self.counters: list[int] = []
        self.todo: list[tuple[int, ...]] = []
        self.done: dict[int, int] = {}
        self.failed: dict[int, int] = {}
        self.stopped = self.finished = self.gave_up = False
        self.obey(self.scheduler.start(sorted(self.up)))

    def tell(self, event: Any) -> None:
        self.obey(self.scheduler.handle(event))

    def obey(self, commands: list[Any]) -> None:  # noqa: C901 - one case a command
        later = []
        for command in commands:
            match command:
                case Open(_, todo):
                    self.todo.append(tuple(range(self.chunks)) if todo is None else todo)
                    self.counters.append(0)
                case Assign(worker, generation):
                    assert worker in self.up
                    self.assigned[worker].append(generation)
                case Stop():
                    self.stopped = True
                    self.counters = [99 for _ in self.counters]
                case Kill(worker):
                    later.append(worker)
                case Replace(worker):
                    self.starting.add(worker)
                case Fail(chunk, _):
                    self.failed[chunk] = self.failed.get(chunk, 0) + 1
                case GiveUp():
                    self.gave_up = True
                case Finish():
                    assert not self.finished
                    self.finished = True
                    assert not self.claims, "a run is done when its last writer is idle"
                case Audit():
                    settled = {*self.done, *self.failed}
                    pending = [chunk for chunk in range(self.chunks) if chunk not in settled]
                    assert not self.claims
                    self.tell(Audited(pending))
        for worker in later:
            if worker in self.up:
                self.die(worker)

    def computing(self, worker: int) -> int:
        generation, cursor, _ = self.claims[worker]
        return self.todo[generation][cursor]

    # What workers do

    @precondition(lambda self: not self.finished and self.starting)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.starting)))
        self.starting.discard(worker)
        self.up.add(worker)
        self.tell(Joined(worker))

    @precondition(lambda self: any(self.assigned[worker] for worker in self.up))
    @rule(data=st.data(), size=st.integers(1, 3), lost=st.integers(0, 9))
    def step(self, data: st.DataObject, size: int, lost: int) -> None:
        """A worker goes on: claims, finishes a chunk, or finds its generation drained."""
        busy = sorted(worker for worker in self.up if self.assigned[worker])
        worker = data.draw(st.sampled_from(busy))
        if worker in self.claims:
            self.finish_chunk(worker, data.draw(st.booleans()) and data.draw(st.booleans()))
            return
        generation = self.assigned[worker][0]
        first, count = self.counters[generation], len(self.todo[generation])
        self.counters[generation] += size
        if first >= count:
            self.assigned[worker].pop(0)
            self.tell(Drained(worker, generation))
        elif lost == 0:
            self.die(worker)  # between the claim and the slot
        else:
            self.claims[worker] = generation, first, min(first + size, count)

    def finish_chunk(self, worker: int, fails: bool) -> None:
        generation, cursor, last = self.claims[worker]
        chunk = self.computing(worker)
        book = self.failed if fails else self.done
        book[chunk] = book.get(chunk, 0) + 1
        if cursor + 1 < last and not (fails and self.scheduler.fail_fast):
            self.claims[worker] = generation, cursor + 1, last
        else:
            del self.claims[worker]
        if fails:
            self.tell(ChunkFailed(chunk))

    @precondition(lambda self: not self.finished and (self.up or self.starting))
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.die(data.draw(st.sampled_from(sorted(self.up | self.starting))))

    def die(self, worker: int) -> None:
        self.up.discard(worker)
        self.starting.discard(worker)
        self.assigned[worker] = []
        blamed, unfinished = None, ()
        if worker in self.claims:
            generation, cursor, last = self.claims.pop(worker)
            blamed = self.todo[generation][cursor]
            unfinished = self.todo[generation][cursor + 1 : last]
        self.tell(Died(worker, blamed, unfinished, barren=blamed is None))

    # What else happens

    @precondition(lambda self: self.claims and not self.finished)
    @rule(data=st.data())
    def time_out(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.claims)))
        self.tell(TimedOut(worker, self.computing(worker)))

    @precondition(lambda self: not self.finished)
    @rule(often=st.integers(0, 9))
    def cancel(self, often: int) -> None:
        if often == 0:
            self.tell(Cancelled())

    @precondition(lambda self: not self.finished and self.stopped)
    @rule()
    def expire(self) -> None:
        self.tell(Expired())

    @precondition(lambda self: not self.finished and any(self.assigned[w] for w in self.up))
    @rule(data=st.data(), often=st.integers(0, 9))
    def refuse(self, data: st.DataObject, often: int) -> None:
        free = [w for w in sorted(self.up) if self.assigned[w] and w not in self.claims]
        if often == 0 and free:
            worker = data.draw(st.sampled_from(free))
            generation = self.assigned[worker].pop(0)
            self.tell(Refused())
            self.tell(Drained(worker, generation))

    @rule()
    def nothing(self) -> None:
        """Time passes, also when the run is over."""

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_invariants()
        held = [
            chunk
            for generation, cursor, last in self.claims.values()
            for chunk in self.todo[generation][cursor:last]
        ]
        assert len(held) == len(set(held)), "a chunk is held by one worker at a time"
        assert not set(held) & set(self.done), "what is done is not computed again"
        assert all(count == 1 for count in self.done.values())
        assert all(count == 1 for count in self.failed.values())

    def teardown(self) -> None:
        """Let everybody finish in peace: the run ends, and everything is accounted for."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(1_000):
            if self.finished:
                break
            for worker in sorted(self.starting):
                self.starting.discard(worker)
                self.up.add(worker)
                self.tell(Joined(worker))
            for worker in sorted(self.up):
                if worker in self.claims:
                    self.finish_chunk(worker, fails=False)
                elif self.assigned[worker]:
                    generation = self.assigned[worker][0]
                    first = self.counters[generation]
                    self.counters[generation] += 1
                    if first < len(self.todo[generation]):
                        self.claims[worker] = generation, first, first + 1
                    else:
                        self.assigned[worker].pop(0)
                        self.tell(Drained(worker, generation))
        assert self.finished, "the run waits for nothing"
        assert self.scheduler.phase is Phase.OVER
        assert not set(self.done) & set(self.failed)
        if not self.stopped:
            assert {*self.done, *self.failed} == set(range(self.chunks))


TestWorld = World.TestCase


def started(**options: Any) -> Scheduler:
    """A scheduler with two workers that have generation 0."""
    made = Scheduler(**{"retries": 1, "fail_fast": True, **options})
    assert made.start([0, 1]) == [Open(0, None), Assign(0, 0), Assign(1, 0)]
    return made


def test_a_run_is_over_when_all_have_drained_and_nothing_is_pending() -> None:
    """The audit comes when the last one has, not before."""
    made = started()
    assert made.handle(Drained(0, 0)) == []
    assert made.handle(Drained(1, 0)) == [Audit()]
    assert made.handle(Audited([])) == [Finish()]


def test_lost_tickets_become_a_generation() -> None:
    """What nobody holds and nobody did is handed out anew."""
    made = started()
    made.handle(Drained(0, 0))
    made.handle(Drained(1, 0))
    assert made.handle(Audited([3, 5])) == [Open(1, (3, 5)), Assign(0, 1), Assign(1, 1)]


def test_what_a_dead_worker_held_is_computed_again_at_once() -> None:
    """The chunk that it computed first, which is blamed."""
    made = started()
    assert made.handle(Died(0, blamed=4, unfinished=(5, 6))) == [
        Replace(0),
        Open(1, (4, 5, 6)),
        Assign(1, 1),
    ]
    assert made.handle(Joined(0)) == [Assign(0, 0), Assign(0, 1)]


def test_a_chunk_is_blamed_for_retries_and_no_more() -> None:
    """Then it is reported, and a fail-fast run stops."""
    made = started()
    made.handle(Died(0, blamed=4))
    assert made.handle(Died(1, blamed=4)) == [Fail(4, timed_out=False), Stop(), Finish()]


def test_a_chunk_in_place_is_never_computed_again() -> None:
    """But what its worker had not begun is."""
    made = started(in_place=True, fail_fast=False)
    assert made.handle(Died(0, blamed=4, unfinished=(5,))) == [
        Fail(4, timed_out=False),
        Replace(0),
        Open(1, (5,)),
        Assign(1, 1),
    ]


def test_a_timed_out_chunk_is_reported_as_such() -> None:
    """The worker is ended once, and its death is the chunk's time-out."""
    made = started(retries=0)
    assert made.handle(TimedOut(0, 4)) == [Kill(0)]
    assert made.handle(TimedOut(0, 4)) == []
    assert made.handle(Died(0, blamed=4)) == [Fail(4, timed_out=True), Stop()]
    assert made.handle(Drained(1, 0)) == [Finish()]


def test_workers_that_die_without_a_chunk_are_not_replaced_for_ever() -> None:
    """After `patience` of them in a row the run gives up."""
    made = started(patience=2)
    assert made.handle(Died(0, barren=True)) == [Replace(0)]
    assert made.handle(Died(0, barren=True)) == [Replace(0)]
    assert made.handle(Died(0, barren=True)) == [GiveUp(), Stop()]
    assert made.handle(Drained(1, 0)) == [Finish()]


def test_a_cancelled_run_waits_for_its_last_writer() -> None:
    """And ends workers only when the grace is over."""
    made = started()
    assert made.handle(Cancelled()) == [Stop()]
    assert made.handle(Cancelled()) == []
    assert made.handle(Drained(0, 0)) == []
    assert made.handle(Expired()) == [Kill(1)]
    assert made.handle(Died(1)) == [Finish()]
    assert made.handle(Joined(1)) == []


@pytest.mark.parametrize("name", scheduler.__all__)
def test_all_names_exist(name: str) -> None:
    """What the module says that it has."""
    assert hasattr(scheduler, name)
