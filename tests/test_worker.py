"""The worker claims, calls, checks and stores, without a process or a pool."""

from __future__ import annotations

import fcntl
import itertools
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpar.grid import Axis, Grid
from shmpar.ipc import tickets
from shmpar.ipc.ledger import DONE, FAILED, PENDING, Ledger
from shmpar.ipc.protocol import ChunkFailed
from shmpar.plan import (
    Announcement,
    Function,
    InBlocks,
    Output,
    PerChunk,
    PerItem,
    Plan,
    ResultError,
)
from shmpar.verbs.arguments import blocks, items
from shmpar.worker import compute, loop
from shmpar.worker import store as storing
from shmpar.worker.compute import Abandoned, Assignment, Band
from shmpar.worker.environment import in_worker
from shmpar.worker.loop import work

Array = np.ndarray[Any, Any]


@dataclass
class Recording:
    """A channel that allocates plain arrays and records all calls."""

    interruptible: bool = False
    claims: int | None = None  # stop after this many
    gone: bool = False  # the run is over
    outputs: list[Array] | None = None
    said: list[Announcement] = field(default_factory=list)
    failures: list[ChunkFailed] = field(default_factory=list)
    collected: list[tuple[int, Any]] = field(default_factory=list)
    flushes: int = 0

    def enough(self) -> bool:
        if self.claims is not None:
            self.claims -= 1
        return self.claims == 0

    def allocate(self, announcement: Announcement) -> tuple[Sequence[Array], bool]:
        self.said.append(announcement)
        if self.gone:
            raise Abandoned
        self.outputs = [np.zeros(shape, dtype) for shape, dtype in announcement.outputs]
        return self.outputs, announcement.is_tuple

    def failed(self, chunk: int, error: BaseException, shape: tuple[int, ...] | None) -> None:
        self.failures.append(ChunkFailed(0, chunk, error, shape))

    def values(self, values: Sequence[tuple[int, Any]]) -> None:
        self.collected += values

    def flush(self) -> None:
        self.flushes += 1


class Counter:
    """Tickets that record the size of each claim."""

    kind = "offset"

    def __init__(self) -> None:
        self.next = 0
        self.claims: list[tuple[int, int]] = []
        self.stops: list[int] = []

    def claim(self, count: int) -> int:
        first, self.next = self.next, self.next + count
        self.claims.append((first, count))
        return first

    def stop(self, end: int) -> int:
        self.stops.append(end)
        return self.claim(end)


class Worker:
    """A worker with a ledger of its own and a recording channel."""

    def __init__(
        self,
        func: Callable[..., Any],
        *given: Any,
        chunks: Any = 1,
        rows: bool = False,
        placement: Any = None,
        todo: Sequence[int] | None = None,
        outputs: Sequence[Array] | None = None,
        keywords: dict[str, Any] | None = None,
        workers: int = 2,
        depth: Any = 0,
        boundary: Any = "none",
        **options: Any,
    ) -> None:
        inputs = items("test", given, 0) if rows else blocks("test", given)
        halo = None if rows else inputs.add_halos("test", depth, boundary)
        grid = Grid.cut(inputs.shape, 1 if rows else chunks)
        if placement is None:
            placement = PerItem() if rows else InBlocks.like(grid)
        self.plan = Plan("test", grid, tuple(inputs.arguments), placement, halo, **options)
        size = Ledger.nbytes(workers=workers, chunks=grid.size)
        self.ledger = Ledger(bytearray(size), workers=workers, chunks=grid.size)
        self.counter = Counter()
        self.channel = Recording()
        self.assignment = Assignment(
            plan=self.plan,
            function=Function(func, keywords or {}, tuple(inputs.values)),
            arrays=inputs.arrays,
            outputs=outputs,
            is_tuple=None if outputs is None else len(outputs) > 1,
            tickets=self.counter,
            todo=todo,
            generation=3,
            ledger=self.ledger,
            worker=workers - 1,
            slot=self.ledger.slot(workers - 1),
            workers=workers,
        )

    def work(self) -> Worker:
        assert work(self.assignment, self.channel)
        return self

    @property
    def out(self) -> Array:
        """The only output."""
        (array,) = self.channel.outputs or ()
        return array

    @property
    def errors(self) -> dict[int, BaseException]:
        return {failure.chunk: failure.error for failure in self.channel.failures}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Replace the clock of the loop by a number of seconds that functions advance."""
    now = [0.0]
    monkeypatch.setattr(loop, "perf_counter", lambda: now[0])
    return now


class TestClaims:
    """The number of tickets per claim."""

    def test_claims_of_fast_chunks_grow_and_shrink_towards_the_end(self, clock: Any) -> None:
        """A claim is at most eight times the one before, and at most a fair share of the rest."""
        worker = Worker(
            lambda row: clock.__setitem__(0, clock[0] + 1e-5) or 0, range(5_000), rows=True
        )
        worker.work()
        claims = worker.counter.claims
        assert [size for _, size in claims[:4]] == [1, 8, 64, 512]
        for (_, before), (first, size) in itertools.pairwise(claims):
            assert size <= max(1, min(8 * before, (5_000 - first) // (4 * 2)))
        assert claims[-2][1] == 1
        assert worker.ledger.done == 5_000

    def test_claims_of_slow_chunks_are_single(self, clock: Any) -> None:
        """A chunk of more than 8 ms is claimed alone."""
        worker = Worker(
            lambda row: clock.__setitem__(0, clock[0] + 9e-3) or 0, range(99), rows=True
        )
        worker.work()
        assert {size for _, size in worker.counter.claims} == {1}

    def test_claims_take_about_eight_milliseconds(self, clock: Any) -> None:
        """Chunks of 0.8 ms are claimed ten at a time."""
        worker = Worker(
            lambda row: clock.__setitem__(0, clock[0] + 8e-4) or 0, range(999), rows=True
        )
        worker.work()
        assert {size for _, size in worker.counter.claims[2:30]} <= {9, 10}

    @pytest.mark.parametrize(("workers", "todo"), [(2, None), (2, range(999)), (1, None)])
    def test_a_worker_leaves_the_rest_of_a_claim_of_slow_chunks(
        self, clock: Any, workers: int, todo: Any
    ) -> None:
        """Chunk 240 takes long: it ends its part of the claim, and the rest is not begun."""
        computed = []

        def wait(row: int) -> int:
            computed.append(row)
            clock[0] += 0.1 if row == 240 else 1e-4
            return row

        worker = Worker(wait, range(999), rows=True, workers=workers, todo=todo)
        worker.work()
        first, size = next(claim for claim in worker.counter.claims if sum(claim) > 240)
        left, done = worker.assignment.left, worker.ledger.status == DONE
        if workers == 1:
            assert left == []
            assert done.all()
            return
        assert size > 30
        assert 240 < left[0] <= 240 + size // 4
        assert left == [*range(left[0], first + size)]
        assert done[computed].all()
        assert sorted([*computed, *left]) == [*range(999)]
        assert worker.ledger.held(1) is None
        assert worker.assignment.claimed == 999
        assert not worker.ledger.times.seconds[left].any()

    @given(
        size=st.integers(1, 10**6),
        seconds=st.floats(0, 10),
        remaining=st.integers(0, 10**9),
        workers=st.integers(1, 512),
    )
    def test_the_next_claim_keeps_its_bounds(
        self, size: int, seconds: float, remaining: int, workers: int
    ) -> None:
        """A claim is limited by time, by the last claim and by the remaining tickets."""
        following = loop._next_size(size, seconds, remaining, workers)
        assert following >= 1
        assert following <= max(1, 8 * size)
        assert following <= max(1, remaining // (4 * workers))
        assert following == 1 or following * seconds <= 8.0001e-3

    @given(
        size=st.integers(1, 10**3),
        seconds=st.floats(0, 1),
        remaining=st.integers(0, 10**4),
        workers=st.integers(1, 64),
        bands=st.lists(st.builds(Band, st.integers(1, 10**3), st.floats(0, 1)), max_size=3),
    )
    def test_a_claim_fills_the_largest_band_of_quick_chunks(
        self, size: int, seconds: float, remaining: int, workers: int, bands: list[Band]
    ) -> None:
        """A band counts if its chunks are quick, and if each worker can have one."""
        plain = loop._next_size(size, seconds, remaining, workers)
        quick = [one.chunks for one in bands if one.chunks * seconds <= one.seconds]
        fitting = [chunks for chunks in quick if chunks * workers <= remaining]
        found = loop._next_size(size, seconds, remaining, workers, bands)
        assert found == max([plain, *fitting])

    def test_the_time_to_make_pages_does_not_make_claims_smaller(
        self, clock: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise the workers of a busy machine, where it is long, would make the same pages."""

        def wait(seconds: float) -> None:
            clock[0] += seconds

        def work(_: Any) -> int:
            wait(1e-3)
            return 0

        monkeypatch.setattr(compute, "band_of_pages", lambda *_: 8)
        monkeypatch.setattr(compute, "reserver", lambda *_: lambda _: wait(0.07))
        worker = Worker(work, range(99), rows=True)
        worker.work()
        assert [size for _, size in worker.counter.claims[2:10]] == [8] * 8

    def test_a_todo_lists_the_chunks(self) -> None:
        """Tickets are indices into the list of chunks, and no other chunk is computed."""
        worker = Worker(lambda block: block + 1, np.arange(9), todo=(7, 2, 4)).work()
        assert worker.out.tolist() == [0, 0, 3, 0, 5, 0, 0, 8, 0]
        assert np.flatnonzero(worker.ledger.status == DONE).tolist() == [2, 4, 7]

    def test_nothing_is_held_at_the_end(self) -> None:
        """A later death of this worker blames no chunk."""
        worker = Worker(lambda block: block, np.arange(9)).work()
        assert worker.ledger.held(1) is None
        worker.ledger.check_invariants()

    def test_work_returns_between_claims_if_the_channel_stops_it(self) -> None:
        """The result of work() is False while tickets are left."""
        worker = Worker(lambda block: block, np.arange(9))
        worker.channel.claims = 2
        assert not work(worker.assignment, worker.channel)
        assert worker.ledger.done == 2
        worker.channel.claims = None
        assert work(worker.assignment, worker.channel)
        assert worker.ledger.done == 9

    def test_the_function_knows_that_it_runs_in_a_worker(self) -> None:
        """No other code does."""
        worker = Worker(lambda block: np.full(1, in_worker()), np.arange(3)).work()
        assert worker.out.all()
        assert not in_worker()

    def test_chunks_are_timed_where_the_plan_says_so(self) -> None:
        """The slot holds the begin of the chunk that is being computed."""
        seen = []

        def look(block: Array) -> Array:
            seen.append(worker.ledger.held(1))
            return block

        worker = Worker(look, np.arange(9), timed=True)
        worker.work()
        assert [held.cursor for held in seen] == list(range(9))
        sinces = [held.since for held in seen]
        assert sinces == sorted(sinces)
        assert sinces[0] > 0
        worker = Worker(look, np.arange(9))
        worker.work()
        sinces = [held.since for held in seen[9:]]
        assert 0 < sinces[0] <= sinces[-1], "else since when in its claim"


def fails_on(*bad: int, error: BaseException) -> Callable[[Any], Any]:
    """A function of an item that raises on some."""

    def func(item: int) -> int:
        if item in bad:
            raise error
        return item * 2

    return func


ERRORS = [ValueError("boom"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError()]


class TestExceptions:
    """The outcome of a chunk with a function that raises."""

    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    def test_other_chunks_are_computed_if_failures_are_collected(
        self, error: BaseException
    ) -> None:
        """Any exception is the failure of its chunk, and all other chunks are done."""
        func = fails_on(0, 3, 4, 19, error=error)
        worker = Worker(func, range(20), rows=True, fail_fast=False).work()
        assert worker.errors == dict.fromkeys((0, 3, 4, 19), error)
        failed = [FAILED if chunk in (0, 3, 4, 19) else DONE for chunk in range(20)]
        assert worker.ledger.status.tolist() == failed
        assert worker.out[1:3].tolist() == [2, 4]
        assert worker.counter.stops == []

    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    def test_a_fail_fast_run_is_stopped(self, error: BaseException, clock: Any) -> None:
        """No more tickets are handed out, and chunks that were not begun stay pending."""
        func = fails_on(5, error=error)
        worker = Worker(func, range(200), rows=True).work()
        assert worker.errors == {5: error}
        expected = [DONE] * 5 + [FAILED] + [PENDING] * 194
        assert worker.ledger.status.tolist() == expected
        assert worker.counter.stops == [200]
        assert worker.ledger.held(1) is None

    def test_a_failure_names_the_block_s_shape(self) -> None:
        """The message needs it; it is None without an array."""
        worker = Worker(len, np.zeros((4, 6)), chunks=(2, 3), keywords={"no": 1}).work()
        assert worker.channel.failures[0].shape == (2, 3)
        worker = Worker(fails_on(0, error=ValueError()), range(3), rows=True).work()
        assert worker.channel.failures[0].shape is None

    @pytest.mark.parametrize("kind", [LookupError, SystemExit, KeyboardInterrupt])
    def test_a_failing_item_is_a_failure_of_its_chunk(self, kind: type[BaseException]) -> None:
        """Items come from the user's sequence, which may raise."""

        class Sequence_(list[int]):  # noqa: N801
            def __getitem__(self, item: Any) -> Any:
                raise kind(item)

        worker = Worker(abs, range(3), rows=True, fail_fast=False)
        worker.assignment.function = Function(abs, {}, (Sequence_([1, 2, 3]),))
        worker.work()
        assert [type(error) for error in worker.errors.values()] == [kind] * 3
        assert worker.channel.failures[0].shape is None

    def test_an_interrupt_of_the_user_s_ends_the_work(self) -> None:
        """The chunk in progress is not marked; the slot tells which chunks before it are done."""
        func = fails_on(12, error=KeyboardInterrupt())
        worker = Worker(func, range(100), rows=True, fail_fast=False)
        worker.channel.interruptible = True
        with pytest.raises(KeyboardInterrupt):
            work(worker.assignment, worker.channel)
        held = worker.ledger.held(1)
        assert held is not None
        assert (held.generation, held.cursor) == (3, 12)
        assert worker.ledger.status[12] == PENDING
        assert worker.channel.failures == []
        assert not in_worker()

    def test_a_run_that_is_over_is_left(self) -> None:
        """The worker does not wait for outputs; it is idle and holds no ticket."""
        worker = Worker(abs, range(5), rows=True)
        worker.channel.gone = True
        worker.work()
        assert len(worker.channel.said) == 1
        assert worker.ledger.pending() == [0, 1, 2, 3, 4]
        assert worker.ledger.held(1) is None

    def test_read_only_blocks_stay_read_only(self) -> None:
        """A read-only input stays read-only: writing to it fails the chunk."""
        array = np.arange(4.0)
        array.flags.writeable = False
        worker = Worker(lambda block: np.negative(block, out=block), array, fail_fast=False).work()
        assert len(worker.errors) == 4
        assert all("read-only" in str(error) for error in worker.errors.values())


class TestAnnouncements:
    """The outputs that the first result announces."""

    @pytest.mark.parametrize(
        ("func", "placement", "outputs", "is_tuple"),
        [
            pytest.param(lambda b: b, None, [((6, 4), "f8")], False, id="blocks"),
            pytest.param(lambda b: b.mean(), PerChunk(), [((2, 2), "f8")], False, id="scalars"),
            pytest.param(lambda b: b[0, :2], PerChunk(), [((2, 2, 2), "f8")], False, id="vectors"),
            pytest.param(lambda b: [1, 2, 3], PerChunk(), [((2, 2, 3), "i8")], False, id="lists"),
            pytest.param(
                lambda b: (b.astype("f4"), b > 0),
                None,
                [((6, 4), "f4"), ((6, 4), "?")],
                True,
                id="two",
            ),
            pytest.param(lambda b: (b,), None, [((6, 4), "f8")], True, id="tuple-of-one"),
            pytest.param(lambda b: "ab", PerChunk(), [((2, 2), "U2")], False, id="strings"),
        ],
    )
    def test_the_announcement_has_shapes_and_dtypes(
        self, func: Any, placement: Any, outputs: Any, is_tuple: bool
    ) -> None:
        """A single result determines all outputs, which are announced once."""
        worker = Worker(func, np.zeros((6, 4)), chunks=(3, 2), placement=placement).work()
        (said,) = worker.channel.said
        assert said.outputs == tuple(Output(shape, np.dtype(dtype)) for shape, dtype in outputs)
        assert (said.is_tuple, said.chunk) == (is_tuple, 0)
        assert worker.errors == {}
        assert Announcement.unpack(said.pack()) == said

    def test_none_is_no_output(self) -> None:
        """A function may be called for its effect; any other result later is a failure."""
        worker = Worker(lambda item: None, range(9), rows=True).work()
        assert worker.channel.said == [Announcement((), is_tuple=False, chunk=0)]
        assert worker.ledger.done == 9
        worker = Worker(
            lambda i: i if i == 5 else None, range(9), rows=True, fail_fast=False
        ).work()
        assert str(worker.errors[5]) == "the function returned int here but None for another chunk"

    def test_a_chunk_that_fails_announces_nothing(self) -> None:
        """The first result does, and it is stored without another call."""
        calls = []

        def func(item: int) -> int:
            calls.append(item)
            return 1 // item

        worker = Worker(func, range(5), rows=True, fail_fast=False).work()
        assert [said.chunk for said in worker.channel.said] == [1]
        assert calls == [0, 1, 2, 3, 4]
        assert worker.out.tolist() == [0, 1, 0, 0, 0]

    def test_declared_dtypes_replace_those_of_the_result(self) -> None:
        """The dtypes may be declared for some outputs only."""
        worker = Worker(lambda b: (b, b), np.arange(4), dtypes=(np.dtype("f4"), None)).work()
        assert [output.dtype for output in worker.channel.said[0].outputs] == ["f4", "i8"]
        assert worker.errors == {}

    def test_several_outputs_are_stored_side_by_side(self) -> None:
        """Each result lies at the place of its chunk."""
        worker = Worker(lambda b: (b * 2, b.sum()), np.arange(6), chunks=2, placement=PerChunk())
        doubled, sums = worker.work().channel.outputs
        assert doubled.tolist() == [[0, 2], [4, 6], [8, 10]]
        assert sums.tolist() == [1, 5, 9]

    @pytest.mark.parametrize(
        ("second", "message"),
        [
            (Announcement((), is_tuple=False), "another kind of result"),
            (Announcement((Output((3,), np.dtype("f8")),), is_tuple=True), "another kind"),
            (
                Announcement((Output((3,), np.dtype("f4")),), is_tuple=False),
                "dtype float32 here but",
            ),
            (Announcement((Output((4,), np.dtype("f8")),), is_tuple=False), r"\(4,\), but \(3,\)"),
        ],
        ids=["none", "tuple", "dtype", "shape"],
    )
    def test_announcements_that_disagree_name_the_difference(
        self, second: Any, message: str
    ) -> None:
        """Announcements of different chunks agree without an error."""
        first = Announcement((Output((3,), np.dtype("f8")),), is_tuple=False)
        assert first._replace(chunk=8).disagrees(first) is None
        with pytest.raises(ResultError, match=message):
            raise ResultError(second.disagrees(first))

    def test_announcements_of_other_numbers_of_outputs_say_so(self) -> None:
        """The common outputs agree."""
        one = Output((3,), np.dtype("f8"))
        said = Announcement((one, one, one), is_tuple=True).disagrees(Announcement((one,), True))
        assert said == "the function returned 3 outputs here but 1 for another chunk"


def by_block(first: Any, then: Any) -> Callable[[Any], Any]:
    """A function that returns another kind of result for all but the first block."""
    return lambda block: first if block.flat[0] == 0 else then


def stacked(first: Any, then: Any) -> Worker:
    """Stack results of this kind."""
    func = by_block(first, then)
    worker = Worker(func, np.arange(2.0), placement=PerChunk(), fail_fast=False)
    return worker.work()


class TestMismatches:
    """Results that differ from the first one."""

    @pytest.mark.parametrize(
        ("first", "then", "message"),
        [
            (1.0, 1, "returned dtype int64 here but float64 for another chunk; pass dtype="),
            (1, 1.0, "returned dtype float64 here but int64 for another chunk; pass dtype="),
            (True, 1, "returned dtype int64 here but bool"),
            ("ab", "abc", "returned dtype <U3 here but <U2"),
            (np.float32(1), 1.0, "returned dtype float64 here but float32"),
            (1.0, np.zeros(1), r"returned shape \(1,\) where \(\) is due; every chunk"),
            (np.zeros(2), np.zeros(3), r"returned shape \(3,\) where \(2,\) is due; every chunk"),
            (np.zeros(2), 1.0, r"returned shape \(\) where \(2,\) is due"),
            (1.0, None, "returned None where a value is due"),
            (1.0, (1.0, 2.0), "returned a tuple of 2 where one output is declared"),
            ((1, 2), (1, 2, 3), "returned 3 outputs here but 2 for another chunk"),
            ((1, 2), 1, "returned int where a tuple of outputs is due"),
            ((1, 2), (1, 2.5), "returned dtype float64 here but int64"),
            (
                1.0,
                {"a": 1},
                "returned dict, which is no array of plain values; for any objects pass",
            ),
            (1.0, [[1], [2, 3]], "returned no array of values"),
            (1.0, 2**70, "returned int, which is no array of plain values"),
            (1, 2**70, "returned int, which is no array of plain values"),
            (1.0, np.ma.array([1.0]), "returned a masked array, whose mask would be lost"),
            (np.zeros(2, "f4,i4"), np.zeros(2, "i4,f4"), "returned dtype .* here but"),
        ],
    )
    def test_a_result_unlike_the_first_fails_its_chunk(
        self, first: Any, then: Any, message: str
    ) -> None:
        """The message names both and the remedy; the first one is stored."""
        worker = stacked(first, then)
        assert list(worker.errors) == [1]
        with pytest.raises(ResultError, match=message):
            raise worker.errors[1]
        assert worker.ledger.status.tolist() == [DONE, FAILED]

    @pytest.mark.parametrize(
        ("func", "message"),
        [
            (lambda b: b.sum(), "a scalar where a block is due; use block_reduce"),
            (lambda b: b.sum(0), "with 2 axes; name the axes that it drops in drop_axis"),
            (lambda b: b[None], "with 2 axes; name the axes that it adds in new_axis"),
            (lambda b: b[1:], r"shape \(1, 2\) where \(2, 2\) is due; for blocks that change"),
            (np.ma.array, "a masked array"),
            (lambda b: b.astype(object), "no array of plain values"),
        ],
        ids=["scalar", "drops", "adds", "shorter", "masked", "objects"],
    )
    def test_the_error_for_a_result_that_is_no_block_names_a_keyword(
        self, func: Any, message: str
    ) -> None:
        """The first result must be a block too."""
        worker = Worker(func, np.zeros((4, 4)), chunks=2).work()
        with pytest.raises(ResultError, match=message):
            raise worker.errors[0]

    def test_nothing_is_broadcast_into_a_window(self) -> None:
        """A result that could be stretched is an error."""
        out = np.zeros((4, 4))
        for result in (np.zeros((1, 2)), np.zeros((2, 1)), np.zeros(2), 0.0):
            worker = Worker(lambda b, r=result: r, np.zeros((4, 4)), chunks=2, outputs=[out]).work()
            assert isinstance(worker.errors[0], ResultError)

    def test_a_block_of_another_size_may_be_declared(self) -> None:
        """The placement is that of out_chunks."""
        placement = InBlocks((0,), (Axis.explicit([1, 3]),))
        func = lambda b: np.arange(1 if b[0] == 0 else 3)
        worker = Worker(func, np.arange(4), chunks=2, placement=placement).work()
        assert worker.out.tolist() == [0, 0, 1, 2]


def stored(
    value: Any, dtype: Any, *, declared: bool = True, slow: bool = False, out: Any = None
) -> Any:
    """Return the repr of a value in an output of this dtype, or the message of its error."""
    output = np.zeros(3, dtype) if out is None else out
    plan = Plan(
        "test", Grid.cut((3,), 1), (), PerItem(), dtypes=(output.dtype,) if declared else None
    )
    if slow:
        store = storing._store_array(plan, output, declared)
    else:
        store, _ = storing.storer(plan, [output], is_tuple=False)
    try:
        with np.errstate(all="ignore"):
            store(1, value)
    except ResultError as error:
        return str(error)
    assert output[0] == output[2] == np.zeros((), output.dtype)[()]
    return repr(output[1])


def stored_twice(value: Any, dtype: Any, *, declared: bool) -> Any:
    """Do the same for the second of two outputs; the first one takes a number."""
    outputs = [np.zeros(3), np.zeros(3, dtype)]
    dtypes = tuple(output.dtype for output in outputs)
    plan = Plan("test", Grid.cut((3,), 1), (), PerItem(), dtypes=dtypes if declared else None)
    try:
        with np.errstate(all="ignore"):
            storing.storer(plan, outputs, is_tuple=True)[0](1, (0.5, value))
    except ResultError as error:
        return str(error)
    assert outputs[0].tolist() == [0, 0.5, 0]
    return repr(outputs[1][1])


NUMERIC = [
    order + char
    for char in "?bBhHiIlLqQefdgFDG"
    for order in "=>"
    if order == "=" or char not in "?bB"
]
VALUES = [
    0, 1, -1, 255, 256, 2**31, 2**70, -(2**63), True, False, 0.0, 1.5, -2.5, 1e300, float("nan"),
    1j, 2.5 + 1j, np.True_, np.int8(-3), np.uint8(200), np.int64(2**40), np.uint64(2**63),
    np.float16(1.5), np.float32(0.1), np.float64(0.1), np.complex64(1 + 2j), np.longlong(5),
    np.array(3), np.array(2.5), np.array([1]), "12", b"1", None, (1,), [1], [], {},
]  # fmt: skip


class TestDtypes:
    """The rules for casts of results."""

    @pytest.mark.parametrize("declared", [True, False], ids=["declared", "first-result"])
    @pytest.mark.parametrize("dtype", NUMERIC)
    def test_the_fast_path_stores_the_same_as_the_slow_path(
        self, dtype: str, declared: bool
    ) -> None:
        """The results are equal for every numeric dtype, byte order, stride and kind of value."""
        own = [np.dtype(dtype).type(1), np.ones((), dtype)[()], np.ones((), dtype)]
        for value in VALUES + own:
            fast = stored(value, dtype, declared=declared)
            assert fast == stored(value, dtype, declared=declared, slow=True), repr(value)
            strided = np.zeros((3, 2), dtype)[:, 1]
            assert fast == stored(value, dtype, declared=declared, out=strided), repr(value)
            backwards = np.zeros(3, dtype)[::-1]
            assert fast == stored(value, dtype, declared=declared, out=backwards), repr(value)
            assert fast == stored_twice(value, dtype, declared=declared), repr(value)

    @pytest.mark.parametrize(
        ("value", "dtype"),
        [
            pytest.param(np.datetime64("2020-01-02"), "M8[D]", id="date"),
            pytest.param(np.timedelta64(5, "ms"), "m8[ms]", id="duration"),
            pytest.param(np.array((1, 2.5), "i4,f8")[()], "i4,f8", id="record"),
            pytest.param(
                np.array(((1, 2),), [("a", "u1", 2)])[()], [("a", "u1", 2)], id="subarray"
            ),
            pytest.param("abc", "U3", id="string"),
            pytest.param(b"abc", "S3", id="bytes"),
            pytest.param(np.void(b"abc"), "V3", id="void"),
        ],
    )
    @pytest.mark.parametrize("declared", [True, False], ids=["declared", "first-result"])
    def test_other_scalars_are_stored_as_they_are(
        self, value: Any, dtype: Any, declared: bool
    ) -> None:
        """Dates, records and strings of exactly the dtype of the output are stored."""
        assert stored(value, dtype, declared=declared) == repr(np.array(value, dtype)[()])

    @pytest.mark.parametrize("grid_shape", [(4,), (2, 3), ()])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_scalars_of_grids_of_any_number_of_axes_lie_at_their_index(
        self, grid_shape: Any, order: str
    ) -> None:
        """The output may have either memory order."""
        count = int(np.prod(grid_shape))
        out = np.zeros(grid_shape, order=order)
        array = np.arange(float(count)).reshape(grid_shape)
        worker = Worker(lambda b: float(b.sum()), array, placement=PerChunk(), outputs=[out]).work()
        assert worker.errors == {}
        np.testing.assert_array_equal(out, array)

    @pytest.mark.parametrize(
        ("value", "dtype", "expected"),
        [
            pytest.param(np.float64(2.5), "f4", 2.5, id="float-narrower"),
            pytest.param(np.int64(3), "i1", 3, id="int-narrower"),
            pytest.param(np.int64(3), "f4", 3.0, id="int-to-float"),
            pytest.param(np.float64(2), "c8", 2, id="float-to-complex"),
            pytest.param(np.True_, "u1", 1, id="bool-to-int"),
            pytest.param(np.uint8(3), "i8", 3, id="unsigned-to-signed"),
            pytest.param(
                np.datetime64("2020-01-02T03", "h"), "M8[D]", "2020-01-02", id="date-coarser"
            ),
            pytest.param(np.timedelta64(2, "s"), "m8[ms]", 2000, id="duration-finer"),
            pytest.param("ab", "U5", "ab", id="string-wider"),
            pytest.param(b"ab", "U5", "ab", id="bytes-to-string"),
            pytest.param(np.uint8(7), "U3", "7", id="digits-that-fit"),
            pytest.param([1, 2][0], ">f4", 1, id="python-int-big-endian"),
        ],
    )
    def test_a_declared_dtype_takes_values_of_the_same_kind(
        self, value: Any, dtype: str, expected: Any
    ) -> None:
        """The cast is that of a ufunc into out."""
        assert stored(value, dtype) == repr(np.array(expected, dtype)[()])

    @pytest.mark.parametrize(
        ("value", "dtype"),
        [
            pytest.param(np.float64(2), "i8", id="float-to-int"),
            pytest.param(1.0, "i8", id="python-float-to-int"),
            pytest.param(np.complex128(1), "f8", id="complex-to-float"),
            pytest.param(1j, "f8", id="python-complex-to-float"),
            pytest.param(np.int8(1), "u8", id="signed-to-unsigned"),
            pytest.param(1, "?", id="python-int-to-bool"),
            pytest.param(np.datetime64("2020"), "i8", id="date-to-int"),
            pytest.param("12", "i8", id="string-to-int"),
            pytest.param("abc", "U2", id="string-shortened"),
            pytest.param(b"abc", "S2", id="bytes-shortened"),
            pytest.param(b"abc", "U2", id="bytes-to-shorter-string"),
            pytest.param("a", "S4", id="string-to-bytes"),
            pytest.param(123456, "S5", id="digits-shortened"),
            pytest.param(np.float64(0.1), "U3", id="float-digits-shortened"),
            pytest.param(np.array((1, 2), "i4,i4")[()], "f8", id="record-to-float"),
        ],
    )
    def test_a_declared_dtype_refuses_lossy_values(self, value: Any, dtype: str) -> None:
        """Another kind or a part of a string is refused, and the message names the remedy."""
        said = stored(value, dtype)
        assert "cannot be cast to" in said
        assert "pass another dtype= or out=" in said

    @pytest.mark.parametrize(
        ("value", "dtype"), [(256, "u1"), (-1, "u1"), (2**63, "i8"), (2**70, ">i4")]
    )
    def test_a_python_int_out_of_bounds_is_refused(self, value: int, dtype: str) -> None:
        """The value is never wrapped around."""
        said = stored(value, dtype)
        assert f"returned {value}, out of bounds" in said

    def test_blocks_are_cast_as_scalars_are(self) -> None:
        """A block is cast to a declared dtype of the same kind only."""
        dtypes = (np.dtype(">f4"),)
        worker = Worker(lambda b: b * 2, np.arange(4), chunks=2, dtypes=dtypes).work()
        assert worker.out.dtype == ">f4"
        assert worker.out.tolist() == [0, 2, 4, 6]
        worker = Worker(lambda b: b / 2, np.arange(4), chunks=2, dtypes=(np.dtype("i4"),)).work()
        assert "cannot be cast to int32" in str(worker.errors[0])

    def test_subclasses_are_stored_by_their_values(self) -> None:
        """A matrix or a memmap is an array."""
        worker = Worker(np.asmatrix, np.zeros((2, 2)) + 3, chunks=1)
        with pytest.warns(PendingDeprecationWarning):
            worker.work()
        assert worker.out.tolist() == [[3, 3], [3, 3]]


class TestArguments:
    """The arguments of the function."""

    def test_blocks_broadcast_and_constants_pass(self) -> None:
        """Axes of length one and missing axes arrive whole."""
        image, row, column = np.zeros((4, 6)), np.arange(6), np.arange(4).reshape(4, 1)
        seen = {}

        def func(a: Array, b: Array, c: Array, d: int, e: str) -> Array:
            seen[a.shape] = (b.tolist(), c.shape, d, e)
            return a + b + c

        worker = Worker(func, image, row, column, 7, "text", chunks=(2, 4)).work()
        assert seen == {
            (2, 4): ([0, 1, 2, 3], (2, 1), 7, "text"),
            (2, 2): ([4, 5], (2, 1), 7, "text"),
        }
        np.testing.assert_array_equal(worker.out, image + row + column)

    def test_rows_and_items_come_in_step(self) -> None:
        """Rows of arrays are views; items of sequences are passed on."""
        array = np.arange(6).reshape(3, 2)
        seen = []

        def func(row: Array, name: str, *, scale: int) -> int:
            seen.append((np.shares_memory(row, array), name))
            return int(row.sum()) * scale

        worker = Worker(func, array, ["a", "b", "c"], rows=True, keywords={"scale": 10}).work()
        assert worker.out.tolist() == [10, 50, 90]
        assert seen == [(True, "a"), (True, "b"), (True, "c")]

    def test_block_id_and_block_info_describe_the_chunk(self) -> None:
        """As in Dask, the window is under the number of each input, the core under None."""
        got = {}

        def func(a: Array, b: Array, block_id: Any, block_info: Any) -> Array:
            got[block_id] = block_info
            return a[1:-1] if block_id[0] > 0 else a[:-1]

        worker = Worker(
            func,
            np.zeros((6, 4), "f4"),
            np.zeros((1, 4)),
            chunks=(3, 2),
            depth={0: 1},
            trim=False,
            special_parameters=frozenset({"block_id", "block_info"}),
            fail_fast=False,
        )
        work(worker.assignment, worker.channel)
        assert sorted(got) == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert got[1, 1] == {
            0: {
                "shape": (6, 4),
                "num-chunks": (2, 2),
                "chunk-location": (1, 1),
                "array-location": [(2, 6), (2, 4)],
                "dtype": np.dtype("f4"),
            },
            1: {
                "shape": (1, 4),
                "num-chunks": (1, 2),
                "chunk-location": (0, 1),
                "array-location": [(0, 1), (2, 4)],
                "dtype": np.dtype("f8"),
            },
            None: {
                "shape": (6, 4),
                "num-chunks": (2, 2),
                "chunk-location": (1, 1),
                "array-location": [(3, 6), (2, 4)],
                "chunk-shape": (3, 2),
                "dtype": None,
            },
        }

    @pytest.mark.parametrize("dtypes", [None, (np.dtype("f4"),)], ids=["first-result", "declared"])
    def test_block_info_does_not_depend_on_which_chunk_came_first(self, dtypes: Any) -> None:
        """block_info has the declared dtype, before and after the outputs exist."""
        seen = []

        def func(block: Array, block_info: Any) -> Array:
            seen.append(block_info[None]["dtype"])
            return block

        options = {"dtypes": dtypes, "special_parameters": frozenset({"block_info"})}
        Worker(func, np.zeros(2, "f4"), **options).work()
        Worker(func, np.zeros(2, "f4"), outputs=[np.zeros(2, "f4")], **options).work()
        assert len(set(seen)) == 1

    @given(seed=st.integers(0, 2**64) | st.lists(st.integers(0, 9), min_size=1, max_size=3))
    def test_random_streams_depend_on_seed_and_chunk_alone(self, seed: Any) -> None:
        """Order, earlier chunks and the worker do not matter."""
        func = lambda block, rng: rng.random()
        options = {"placement": PerChunk(), "special_parameters": frozenset({"rng"}), "seed": seed}
        whole = Worker(func, np.zeros(6), **options).work().out
        children = np.random.SeedSequence(seed).spawn(6)
        assert whole.tolist() == [np.random.default_rng(child).random() for child in children]
        part = Worker(func, np.zeros(6), todo=(4, 1), outputs=[np.zeros(6)], **options)
        part.work()
        assert part.assignment.outputs[0][[1, 4]].tolist() == whole[[1, 4]].tolist()

    def test_a_halo_is_cut_off_the_result(self) -> None:
        """The halo is cut off each output; a result of another shape than the window is refused."""
        halo = {"depth": 1, "boundary": "nearest"}
        array = np.arange(7.0)
        worker = Worker(lambda w: (w * 2, w + 1), array, chunks=3, **halo).work()
        doubled, more = worker.channel.outputs
        assert doubled.tolist() == (array * 2).tolist()
        assert more.tolist() == (array + 1).tolist()
        worker = Worker(lambda w: w[1:], array, chunks=3, **halo).work()
        with pytest.raises(ResultError, match=r"shape \(4,\) for a window of shape \(5,\)"):
            raise worker.errors[0]


class TestWindows:
    """Functions that write into their window, and results that are objects."""

    def test_a_function_may_be_passed_its_window(self) -> None:
        """The function fills the window that it gets as out=; its result is ignored."""
        out = np.zeros((4, 4))
        array = np.arange(16.0).reshape(4, 4)
        worker = Worker(np.negative, array, chunks=(2, 3), outputs=[out], pass_out=True).work()
        assert worker.errors == {}
        np.testing.assert_array_equal(out, -array)

    def test_a_function_may_be_passed_a_window_without_axes(self) -> None:
        """The window is a view of one element of each output."""

        def func(block: Array, out: Any, scale: int) -> None:
            total, count = out
            total[...], count[...] = block.sum() * scale, block.size

        outputs = [np.zeros(3), np.zeros(3, int)]
        options = {
            "chunks": 2,
            "placement": PerChunk(),
            "keywords": {"scale": 10},
            "pass_out": True,
        }
        Worker(func, np.arange(5), outputs=outputs, **options).work()
        assert [output.tolist() for output in outputs] == [[10, 50, 40], [2, 2, 1]]

    def test_a_function_that_returns_nothing_has_no_declared_dtype(self) -> None:
        """A declared result is due, as with an array for the results."""
        options = {"rows": True, "dtypes": (np.dtype("f8"),), "fail_fast": False}
        worker = Worker(lambda row: None, np.zeros((9, 2)), **options).work()
        assert len(worker.errors) == 9
        assert "None where a value is due" in str(worker.errors[0])
        worker = Worker(lambda row: None, np.zeros((9, 2)), rows=True).work()
        assert worker.channel.outputs == []
        assert worker.ledger.done == 9

    def test_rows_that_do_not_broadcast_are_failures_of_their_chunks(self) -> None:
        """A ufunc raises on each chunk; the worker goes on."""
        given = np.zeros((2_000, 3)), np.zeros((2_000, 4))
        options = {"rows": True, "outputs": [np.zeros((2_000, 3))], "fail_fast": False}
        worker = Worker(np.add, *given, **options).work()
        assert len(worker.errors) == 2_000
        assert isinstance(worker.errors[0], ValueError)

    def test_objects_are_handed_over_a_claim_at_a_time(self) -> None:
        """Each has its chunk's number, and is flushed before the claim is marked."""
        statuses = []
        worker = Worker(
            lambda item: {"item": item}, range(50), rows=True, returns_objects=True, todo=(9, 4, 40)
        )
        worker.channel.flush = lambda: statuses.append(worker.ledger.done)
        worker.work()
        expected = [(chunk, {"item": chunk}) for chunk in (9, 4, 40)]
        assert worker.channel.collected == expected
        assert statuses == [0, 1, 2]
        assert worker.ledger.done == 3
        assert worker.channel.said == []

    def test_an_object_that_cannot_be_handed_over_fails_its_chunk(self) -> None:
        """The channel raises the error."""
        worker = Worker(
            lambda item: item, range(5), rows=True, returns_objects=True, fail_fast=False
        )
        take = worker.channel.values

        def values(values: Any) -> None:
            if values[0][0] == 2:
                raise ResultError("does not pickle")
            take(values)

        worker.channel.values = values
        worker.work()
        assert list(worker.errors) == [2]
        assert [chunk for chunk, _ in worker.channel.collected] == [0, 1, 3, 4]


def test_two_workers_share_the_tickets() -> None:
    """With one counter, ledger and set of outputs, each chunk is computed by one worker."""
    calls = []
    array = np.arange(40)
    first = Worker(lambda b: calls.append(b[0]) or b + 1, array)
    second = Worker(lambda b: calls.append(b[0]) or b + 1, array)
    counter = tickets.new_tickets()
    out = np.zeros(40, int)
    for worker in (first, second):
        worker.assignment.tickets = counter
        worker.assignment.outputs, worker.assignment.is_tuple = [out], False
        worker.assignment.ledger = first.ledger
    first.channel.claims = 2
    work(first.assignment, first.channel)
    second.work()
    assert sorted(calls) == list(range(40))
    assert out.tolist() == (array + 1).tolist()
    assert first.ledger.done == 40
    counter.close()


def test_the_watch_of_the_parent_starts_before_numpy_is_imported() -> None:
    """A worker whose parent exits early must not spend its time on imports."""
    code = (
        "import sys; import shmpar.worker.parent_watch; "
        "sys.exit([name for name in sys.modules if name.partition('.')[0] == 'numpy'] or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("signals", [True, False])
def test_a_process_exits_when_the_pipe_of_its_parent_closes(signals: bool) -> None:
    """Without signals of a descriptor, a thread waits for the end of the pipe."""
    code = f"""
import fcntl, os, time
if not {signals} and hasattr(fcntl, "F_SETSIG"):
    del fcntl.F_SETSIG
from shmpar.worker.parent_watch import exit_with_parent
read, write = os.pipe()
exit_with_parent(read)
os.close(write)
time.sleep(60)
"""
    end = subprocess.run([sys.executable, "-c", code], check=False, timeout=30)
    expected = {-signal.SIGKILL} if signals and hasattr(fcntl, "F_SETSIG") else {1}
    assert {end.returncode} == expected
