"""The ledger: at any moment of a worker's death, its slot says which tickets it held."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpar.grid import Grid
from shmpar.ipc import ledger as ledgers
from shmpar.ipc.ledger import (
    CURSOR,
    DONE,
    FAILED,
    FINGERPRINT,
    FIRST,
    GENERATION,
    JOINED,
    LAST,
    PENDING,
    SINCE,
    WAITED,
    Ledger,
)
from shmpar.plan import Function, PerItem, Plan
from shmpar.worker.compute import Assignment
from shmpar.worker.loop import _WHOLE, _each, _run_claim


def new_ledger(workers: int, chunks: int, scratch: int = 0) -> Ledger:
    """Make a ledger in plain memory, with this many bytes of scratch."""
    size = Ledger.nbytes(workers=workers, chunks=chunks) + scratch
    return Ledger(bytearray(size), workers=workers, chunks=chunks)


class TestLayout:
    """Slots, then statuses, then scratch."""

    @given(workers=st.integers(1, 9), chunks=st.integers(0, 300))
    def test_every_number_and_status_has_bytes_of_its_own(self, workers: int, chunks: int) -> None:
        """A write to a slot, a time or a status changes no other one."""
        buffer = bytearray(Ledger.nbytes(workers=workers, chunks=chunks))
        assert len(buffer) == 64 * workers + 11 * chunks
        ledger = Ledger(buffer, workers=workers, chunks=chunks)
        for worker in range(workers):
            slot = ledger.slot(worker)
            for number in range(len(slot)):
                slot[number] = worker * 100 + number
        ledger.times.seconds[:] = np.arange(chunks)
        ledger.times.begin[:] = np.arange(chunks) + 7
        ledger.times.claimant[:] = np.arange(chunks) + 9
        ledger.status[:] = np.arange(chunks) % 3
        numbers = np.frombuffer(buffer, np.int64, workers * 8).reshape(workers, 8)
        expected = np.arange(workers)[:, None] * 100 + np.arange(8)
        np.testing.assert_array_equal(numbers, expected)
        again = Ledger(buffer, workers=workers, chunks=chunks)
        assert again.times.seconds.tolist() == list(range(chunks))
        assert again.times.begin.tolist() == list(range(7, 7 + chunks))
        assert again.times.claimant.tolist() == list(range(9, 9 + chunks))
        assert again.status.tolist() == [chunk % 3 for chunk in range(chunks)]

    def test_two_views_of_one_buffer_are_one_ledger(self) -> None:
        """A worker sees the writes of the parent, and the parent sees those of the worker."""
        buffer = bytearray(Ledger.nbytes(workers=2, chunks=4))
        one = Ledger(buffer, workers=2, chunks=4)
        other = Ledger(memoryview(buffer), workers=2, chunks=4)
        one.status[2] = FAILED
        one.slot(1)[LAST] = 7
        assert other.status.tolist() == [0, 0, FAILED, 0]
        assert other.held(1) == (0, 0, 0, 7, 0)

    def test_a_read_only_buffer_is_refused_when_it_is_written(self) -> None:
        """A ledger that is only read cannot be written by mistake."""
        ledger = Ledger(bytes(Ledger.nbytes(workers=1, chunks=2)), workers=1, chunks=2)
        with pytest.raises(ValueError, match="read-only"):
            ledger.status[0] = DONE
        with pytest.raises(TypeError, match="read-only"):
            ledger.slot(0)[LAST] = 1

    def test_the_names_of_the_numbers_fit_a_slot(self) -> None:
        """A slot is a cache line, so that workers do not slow each other down."""
        numbers = {GENERATION, FIRST, LAST, CURSOR, SINCE, FINGERPRINT, JOINED, WAITED}
        assert len(numbers) == 8
        assert max(numbers) < ledgers.SLOT_BYTES // 8


class TestStatuses:
    """Pending, done and failed chunks."""

    @given(st.lists(st.sampled_from([PENDING, DONE, FAILED]), max_size=50))
    def test_statuses_are_counted_and_listed(self, statuses: list[int]) -> None:
        """A count over a plain list gives the same numbers."""
        ledger = new_ledger(3, len(statuses))
        ledger.status[:] = statuses
        assert ledger.done == statuses.count(DONE)
        assert ledger.settled == statuses.count(DONE) + statuses.count(FAILED)
        assert ledger.pending() == [i for i, one in enumerate(statuses) if one == PENDING]
        ledger.check_invariants()

    def test_finished_chunks_of_a_dead_worker_are_done_unless_they_failed(self) -> None:
        """A failed chunk stays failed after its worker went on and died."""
        ledger = new_ledger(1, 6)
        ledger.status[3] = FAILED
        ledger.mark_done([1, 3, 5])
        assert ledger.status.tolist() == [PENDING, DONE, PENDING, FAILED, PENDING, DONE]
        ledger.mark_done([])
        assert ledger.done == 2

    def test_a_cleared_ledger_is_as_a_new_one(self) -> None:
        """The next run finds no state of this one."""
        ledger = new_ledger(2, 3)
        ledger.status[:] = DONE
        for worker in range(2):
            ledger.slot(worker)[LAST] = 3
        ledger.clear()
        assert ledger.pending() == [0, 1, 2]
        assert ledger.held(0) is ledger.held(1) is None

    def test_an_unknown_status_breaks_the_invariant(self) -> None:
        """check_invariants() notices a byte that is no status."""
        ledger = new_ledger(1, 2)
        ledger.status[1] = 9
        with pytest.raises(AssertionError, match="one of three"):
            ledger.check_invariants()


class TestTimes:
    """Claimant, begin and duration of chunks."""

    @given(
        workers=st.integers(1, 130),
        data=st.data(),
        seconds=st.floats(0, 20 * 86_400),
    )
    def test_claims_of_any_worker_at_any_time_are_read_back(
        self, workers: int, data: st.DataObject, seconds: float
    ) -> None:
        """The time is exact to the microsecond, in runs of weeks."""
        worker = data.draw(st.integers(0, workers - 1))
        ledger = new_ledger(workers, 7)
        ledger.note_claim(slice(2, 5), worker, seconds)
        found, begins = ledger.claims(slice(2, 5))
        assert found.tolist() == [worker] * 3
        assert begins == pytest.approx([seconds] * 3, abs=1.1e-6, rel=1e-12)
        assert ledger.times.begin.tolist()[5:] == [0, 0]
        ledger.note_chunk(6, worker, seconds, 0.25)
        assert [field[6] for field in ledger.times] == [
            0.25,
            *[field[4] for field in ledger.times[1:]],
        ]
        assert ledger.times.seconds.tolist()[:6] == [0] * 6

    def test_a_run_of_a_thousand_years_does_not_overflow(self) -> None:
        """The claimant is lost so late, but nothing fails."""
        ledger = new_ledger(8, 1)
        ledger.note_claim(0, 7, 3e10)
        assert ledger.times.claimant[0] == 65_535
        ledger.note_chunk(0, 6, 3e10, 0.5)
        assert ledger.times.claimant[0] == 65_535

    def test_a_copy_does_not_change(self) -> None:
        """The next run may reuse the ledger; the copy is read-only."""
        ledger = new_ledger(2, 3, 100)
        ledger.status[1], ledger.times.seconds[1], ledger.slot(1)[WAITED] = DONE, 0.5, 9
        copy = Ledger(ledger.copy(), workers=2, chunks=3)
        ledger.clear()
        assert copy.status.tolist() == [PENDING, DONE, PENDING]
        assert copy.times.seconds.tolist() == [0, 0.5, 0]
        assert copy.slot(1)[WAITED] == 9
        assert not ledger.times.seconds.any()
        with pytest.raises(ValueError, match="read-only"):
            copy.status[0] = DONE


class TestSlots:
    """The tickets that a worker holds."""

    def test_a_worker_holds_tickets_while_its_cursor_is_before_the_end(self) -> None:
        """At the end of its claim, or after a reset, it holds none."""
        ledger = new_ledger(2, 9)
        slot = ledger.slot(1)
        slot[GENERATION], slot[FIRST], slot[CURSOR], slot[LAST], slot[SINCE] = 2, 4, 5, 7, 99
        assert ledger.held(1) == ledgers.Held(2, 4, 5, 7, 99)
        assert ledger.held(0) is None
        slot[CURSOR] = 7
        assert ledger.held(1) is None
        slot[CURSOR] = 6
        ledger.reset_slot(1)
        assert ledger.held(1) is None

    def test_a_cursor_before_its_claim_breaks_the_invariant(self) -> None:
        """check_invariants() notices the cursor."""
        ledger = new_ledger(1, 9)
        slot = ledger.slot(0)
        slot[FIRST], slot[CURSOR], slot[LAST] = 4, 3, 7
        with pytest.raises(AssertionError, match="cursor"):
            ledger.check_invariants()


dtypes = st.sampled_from(["u1", "f8", "c16", "S3", "M8[s]", "f2"]).map(np.dtype)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


class TestScratch:
    """Small outputs behind the statuses."""

    @given(
        chunks=st.integers(0, 130),
        scratch=st.integers(0, 2_000),
        outputs=st.lists(st.tuples(shapes, dtypes), max_size=4),
    )
    def test_arrays_lie_apart_and_aligned_if_they_fit(
        self, chunks: int, scratch: int, outputs: list[tuple[Any, Any]]
    ) -> None:
        """Each array has bytes of its own in the scratch, or none is made."""
        ledger = new_ledger(2, chunks, scratch)
        arrays = ledger.carve(outputs)
        head = 128 + 11 * chunks
        start = -(-head // 64) * 64
        end = start
        for shape, dtype in outputs:
            end = -(-end // 64) * 64 + int(np.prod(shape)) * dtype.itemsize
        assert (arrays is not None) == (end <= max(head + scratch, start))
        if arrays is None:
            return
        assert [(array.shape, array.dtype) for array in arrays] == outputs
        for number, array in enumerate(arrays):
            array.view(f"V{array.itemsize}")[...] = np.void(bytes([number + 1]) * array.itemsize)
        for number, array in enumerate(arrays):
            assert set(array.tobytes()) <= {number + 1}
            assert not np.shares_memory(array, ledger.status)
        assert ledger.pending() == list(range(chunks))
        assert ledger.held(0) is ledger.held(1) is None

    def test_workers_that_carve_alike_share_the_arrays(self) -> None:
        """The same outputs lie in the same bytes for every process."""
        buffer = bytearray(Ledger.nbytes(workers=1, chunks=3) + 500)
        outputs = [((3,), np.dtype("i4")), ((2, 2), np.dtype("f8"))]
        ledger = Ledger(buffer, workers=1, chunks=3)
        mine = ledger.carve(outputs)
        theirs = Ledger(buffer, workers=1, chunks=3).carve(outputs)
        mine[1][1, 0] = 2.5
        assert theirs[1].tolist() == [[0, 0], [2.5, 0]]

    def test_outputs_that_do_not_fit_are_refused(self) -> None:
        """A ledger without scratch has room for no element."""
        ledger = new_ledger(1, 64)
        assert ledger.carve([((1,), np.dtype("u1"))]) is None
        assert ledger.carve([]) == []


# A worker is killed between any two of its writes.


class Recorder:
    """Passes writes on to its target, and records the memory after each of them."""

    def __init__(self, target: Any, note: Any) -> None:
        self._target, self._note = target, note

    def __setitem__(self, where: Any, value: Any) -> None:
        self._target[where] = value
        self._note()

    def __getitem__(self, where: Any) -> Any:
        return self._target[where]


class Moment(NamedTuple):
    """The memory between two writes, and the chunks that were computed or reported before."""

    memory: bytes
    computed: tuple[int, ...]
    reported: tuple[int, ...]


class Statuses(NamedTuple):
    """The part of a ledger that a claim writes, besides its slot and the times."""

    status: Recorder


class Claim:
    """A claim of a worker, and each moment at which the worker could be killed."""

    def __init__(
        self, first: int, last: int, bad: set[int], todo: tuple[int, ...] | None, options: Any
    ) -> None:
        self.chunks = 12
        self.buffer = bytearray(Ledger.nbytes(workers=2, chunks=self.chunks))
        self.ledger = Ledger(self.buffer, workers=2, chunks=self.chunks)
        slot = self.ledger.slot(1)
        # the claim before: of an earlier generation, and finished
        slot[GENERATION], slot[FIRST], slot[LAST], slot[CURSOR], slot[SINCE] = 6, 0, 9, 9, 5
        self.computed: list[int] = []
        self.reported: list[int] = []
        self.moments: list[Moment] = []
        self.note()
        plan = Plan(
            verb="test",
            grid=Grid.cut((self.chunks,), 1),
            arguments=(),
            placement=PerItem(),
            **options,
        )
        assignment = Assignment(
            plan=plan,
            function=Function(len, {}, ()),
            arrays=(),
            outputs=None,
            is_tuple=None,
            tickets=self,
            todo=todo,
            generation=7,
            ledger=Statuses(Recorder(self.ledger.status, self.note)),
            worker=1,
            slot=Recorder(slot, self.note),
            workers=2,
        )

        def compute(chunk: int) -> None:
            if chunk in bad:
                raise ValueError(chunk)
            self.computed.append(chunk)
            self.note()

        _run_claim(assignment, self, _each(assignment, compute), first, last, _WHOLE)

    def note(self) -> None:
        """Record this moment."""
        self.moments.append(Moment(bytes(self.buffer), tuple(self.computed), tuple(self.reported)))

    # as a channel, and as tickets

    interruptible = False

    def failed(self, chunk: int, error: BaseException, shape: Any) -> None:
        self.reported.append(chunk)
        self.note()

    def flush(self) -> None:
        self.note()

    def stop(self, end: int) -> int:
        return end


@st.composite
def claims(draw: st.DrawFn) -> Claim:
    """Make claims of any part of a generation, with chunks that fail."""
    todo = draw(st.none() | st.permutations(range(12)).map(lambda order: tuple(order[:8])))
    count = 12 if todo is None else 8
    first = draw(st.integers(0, count - 1))
    last = draw(st.integers(first + 1, count))
    bad = draw(st.sets(st.integers(0, 11), max_size=4))
    options = {name: draw(st.booleans()) for name in ("fail_fast", "timed", "returns_objects")}
    made = Claim(first, last, bad, todo, options)
    made.tickets = [ticket if todo is None else todo[ticket] for ticket in range(first, last)]
    made.span, made.bad, made.options = (first, last), bad, options
    return made


@given(claims())
def test_a_slot_holds_the_old_claim_or_none_or_the_whole_new_claim(claim: Claim) -> None:
    """The slot of a dead worker is right at every moment."""
    first, last = claim.span
    seen = []
    for moment in claim.moments:
        ledger = Ledger(bytearray(moment.memory), workers=2, chunks=claim.chunks)
        ledger.check_invariants()
        assert ledger.held(0) is None
        held = ledger.held(1)
        seen.append(held)
        if held is None:
            continue
        assert (held.generation, held.first, held.last) == (7, first, last)
        assert first <= held.cursor < last
        assert (held.since > 5) or not claim.options["timed"]
        finished = claim.tickets[: held.cursor - first]
        assert set(finished) <= {*moment.computed, *moment.reported}
        begun = {*moment.computed, *moment.reported} - set(finished)
        assert begun <= {claim.tickets[held.cursor - first]}
    assert seen[0] is None
    assert seen[-1] is None
    holding = [held is not None for held in seen]
    assert holding == [*sorted(holding[:-1]), False], "held once, in one piece"
    cursors = [held.cursor for held in seen if held is not None]
    assert cursors == sorted(cursors)


@given(claims())
def test_only_computed_chunks_are_done_and_only_failed_chunks_are_failed(claim: Claim) -> None:
    """A status is done after the write of the result, and failed before the report."""
    for moment in claim.moments:
        status = Ledger(moment.memory, workers=2, chunks=claim.chunks).status
        assert set(np.flatnonzero(status == DONE).tolist()) <= set(moment.computed)
        assert set(np.flatnonzero(status == FAILED).tolist()) <= claim.bad
        assert set(moment.reported) <= set(np.flatnonzero(status == FAILED).tolist())


@given(claims())
def test_the_chunks_of_a_dead_worker_get_the_right_status(claim: Claim) -> None:
    """Finished chunks become done, reported chunks stay failed, and all others are pending."""
    first, _ = claim.span
    for moment in claim.moments:
        ledger = Ledger(bytearray(moment.memory), workers=2, chunks=claim.chunks)
        held = ledger.held(1)
        if held is not None:
            ledger.mark_done(claim.tickets[: held.cursor - first])
        done = set(np.flatnonzero(ledger.status == DONE).tolist())
        failed = set(np.flatnonzero(ledger.status == FAILED).tolist())
        assert done <= set(moment.computed)
        assert set(moment.reported) <= failed <= claim.bad
        if held is not None:
            assert {*moment.computed, *moment.reported} - done - failed <= {
                claim.tickets[held.cursor - first]
            }


@given(claims())
def test_the_statuses_show_a_finished_claim(claim: Claim) -> None:
    """Computed chunks are done, failed chunks are failed, and all others are pending."""
    expected = [PENDING] * claim.chunks
    for chunk in claim.tickets:
        if chunk in claim.bad:
            expected[chunk] = FAILED
            if claim.options["fail_fast"]:
                break
        else:
            expected[chunk] = DONE
    assert claim.ledger.status.tolist() == expected
    assert claim.reported == [chunk for chunk in claim.tickets if expected[chunk] == FAILED]
