"""The report: its numbers match the run."""

from __future__ import annotations

import dataclasses
import functools
import html
import io
import itertools
import json
import os
import pathlib
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmpar
from shmpar.display import format_bytes, format_rate, format_seconds
from shmpar.grid import Grid, Halo
from shmpar.ipc.ledger import DONE, FAILED, JOINED, WAITED, Ledger, LostClaim
from shmpar.plan import Blocks, InBlocks, Plan
from shmpar.report import Report, views
from shmpar.report import report as report_module
from shmpar.report.report import bytes_read
from shmpar.report.timings import Timings, trace_events
from tests.pools import wait_for_workers
from tests.work.reports import spin

ENGINES = ["serial", "threads", "processes"]


@pytest.fixture(scope="module", autouse=True)
def fonts() -> None:
    """Let matplotlib open its fonts, which it keeps open, outside of the tests."""
    from matplotlib.figure import Figure  # Why here: each worker imports this module

    figure = Figure()
    figure.suptitle("x")
    figure.savefig(io.BytesIO())


@pytest.fixture
def processes(process_pool: shmpar.Pool) -> shmpar.Pool:
    """A pool of two processes without the runs of earlier tests."""
    return process_pool


def consistent(report: Report) -> None:
    """Assert the invariants of the report of a run that is over."""
    times = report.worker_times
    assert len(times) == report.workers
    for one in times:
        assert one.user + one.waiting + one.overhead == pytest.approx(report.seconds)
        assert min(one.user, one.waiting, one.overhead) >= -1e-9
    assert sum(one.claims for one in times) == report.claims
    lost = sum(one.end - one.begin for one in report.timings.attempts)
    assert sum(one.user for one in times) == pytest.approx(report.serial_seconds + lost, rel=1e-3)
    known = ~np.isnan(report.durations)
    assert report.durations[known].sum() == pytest.approx(report.serial_seconds, rel=1e-3)
    for before, after in itertools.pairwise(report.timings.claims):
        if before.worker == after.worker:
            assert before.end <= after.begin + 2e-6, "a worker has one claim at a time"


class TestTimes:
    """Durations of chunks, and the rest of the time."""

    def test_each_long_chunk_has_its_duration(self, pool: shmpar.Pool) -> None:
        """The duration is the time that the function measured, and hardly more."""
        durations = np.array([0.004, 0.001, 0.0, 0.008, 0.0002, 0.0002, 0.0002, 0.003])
        spent = pool.parallel_map(spin, durations)
        report = pool.last_run.report
        consistent(report)
        assert report.chunks == report.done == report.computed == 8
        assert (report.durations >= spent - 1e-5).all()
        assert report.serial_seconds >= spent.sum()
        assert report.slowest(1)[0].seconds >= 0.008
        assert report.seconds >= max(one.user for one in report.worker_times)

    def test_long_chunks_of_one_claim_have_their_own_durations(self, processes) -> None:
        """A chunk of 2 ms stands out from chunks of 100 us in the same claim."""
        durations = np.full(400, 1e-4)
        durations[::40] = 2e-3
        processes.parallel_map(spin, durations)
        report = processes.last_run.report
        consistent(report)
        assert report.claims < 300
        assert (report.durations[::40] >= 2e-3).all()
        assert np.median(report.durations) < 1e-3

    def test_short_chunks_have_the_mean_of_their_claim(self, pool: shmpar.Pool) -> None:
        """Every chunk has a duration, and the durations add up to the time of the workers."""
        pool.parallel_map(lambda row: row[0], np.zeros((5_000, 2)))
        report = pool.last_run.report
        consistent(report)
        assert report.computed == 5_000
        assert report.claims < 1_000
        assert len(np.unique(report.durations)) < 2_000
        assert not np.isnan(report.durations).any()

    def test_the_wait_for_outputs_belongs_to_no_chunk(self, processes: shmpar.Pool) -> None:
        """The allocation of the output is no part of a worker's first chunk."""
        big = processes.parallel_map(lambda i: np.zeros(4_000_000, "u1"), range(4), dtype="u1")
        report = processes.last_run.report
        consistent(report)
        assert big.nbytes == report.bytes_written
        assert max(one.waiting for one in report.worker_times) > 0

    def test_a_run_in_flight_shows_done_and_pending_chunks(self, tmp_path) -> None:
        """Two chunks are done, and two are in progress."""
        gate = tmp_path / "gate"

        def work(item: int) -> int:
            while item > 1 and not gate.exists():
                pass
            return item

        with shmpar.Pool(2) as pool:
            wait_for_workers(pool)
            run = pool.parallel_map(work, range(4), wait=False)
            while run.progress[0] < 2 or len(run.report.timings.attempts) < 2:
                pass
            report = run.report
            gate.touch()
            run.result()
            assert (report.done, report.complete, report.advice) == (2, False, "")
            assert not any(one.died for one in report.timings.attempts)
            for one in report.worker_times:
                total = one.user + one.waiting + one.overhead
                assert total == pytest.approx(report.seconds)
            assert "2 pending" in str(report)
            consistent(run.report)

    def test_a_report_keeps_its_numbers_when_the_ledger_is_reused(self, processes) -> None:
        """Both the run and an early report have their own copy."""
        processes.parallel_map(spin, np.full(6, 3e-3))
        run = processes.last_run
        early = run.report
        for _ in range(4):
            processes.parallel_map(spin, np.zeros(6))
        for report in (early, run.report):
            assert (report.durations >= 3e-3 - 1e-5).all()
            consistent(report)

    def test_a_resumed_run_counts_only_its_own_chunks(self, tmp_path) -> None:
        """Chunks that were done before are named as such."""
        ready = tmp_path / "ready"

        def work(item: int) -> float:
            if item == 5 and not ready.exists():
                raise OSError("not yet")
            return spin(1e-3)

        with shmpar.Pool(2) as pool:
            with pytest.raises(shmpar.ChunkError) as caught:
                pool.parallel_map(work, range(9), dtype=float)
            first = caught.value.run.report
            ready.touch()
            run = caught.value.run.resume()
            run.result()
            report = run.report
        assert first.failed == 1
        assert first.advice == ""
        assert report.done == 9
        assert 1 <= report.computed < 9
        assert first.done + report.computed == 9
        assert report.bytes_written == report.computed * 8
        assert f"{first.done} of them before this run" in str(report)
        consistent(report)


class TestDeaths:
    """Claims that ended with the death of a worker."""

    @pytest.mark.parametrize("limit", [None, 60.0])
    def test_the_time_of_a_dead_worker_is_counted(self, tmp_path: Any, limit: Any) -> None:
        """The lost claim has its chunk, and the chunk has the duration of its last attempt."""
        died = tmp_path / "died"

        def work(item: int) -> int:
            spin(2e-3)
            if item == 3 and not died.exists():
                died.touch()
                spin(0.05)
                os._exit(1)
            return item

        with shmpar.Pool(2) as pool:
            wait_for_workers(pool)
            assert pool.parallel_map(work, range(8), task_timeout=limit) == [*range(8)]
            report = pool.last_run.report
        consistent(report)
        assert (report.deaths, report.retries) == (1, 1)
        (attempt,) = report.timings.attempts
        assert attempt.chunk == 3
        assert attempt.end - attempt.begin >= 0.05
        # Why the end of the run: a busy machine may delay the last attempt.
        assert report.durations[3] <= report.seconds - attempt.end
        assert report.computed == 8
        assert "1 worker died in chunk 3; " in str(report)
        assert [event for event in slices(report) if event["name"] == "died in chunk 3"]

    def test_the_first_attempt_of_a_chunk_is_no_retry(self) -> None:
        """A chunk that kills three workers was retried twice."""

        def work(item: int) -> int:
            if item == 3:
                os._exit(1)
            return item

        with shmpar.Pool(2) as pool, pytest.raises(shmpar.WorkerDied):
            pool.parallel_map(work, range(8), retries=2)
        report = pool.last_run.report
        assert (report.deaths, report.retries) == (3, 2)
        assert re.search(r"retries +2$", str(report), re.MULTILINE)
        assert "before this run" not in str(report)


class TestNumbers:
    """Bytes, rates and other attributes."""

    def test_memory_by_kind_and_private_memory_per_worker(self, processes: shmpar.Pool) -> None:
        """The private memory of workers matches the kernel's numbers."""
        shared = processes.array(np.ones((60, 40)))
        processes.map_blocks(np.add, shared, np.ones(40), chunks=20)
        report = processes.last_run.report
        kind = report.memory[0]
        assert report.array_bytes == {kind: 2 * shared.nbytes, "private": 40 * 8}
        assert len(report.worker_bytes) == 2
        for pid, nbytes in zip(processes._loop.engine.pids(), report.worker_bytes, strict=True):
            assert nbytes == pytest.approx(psutil.Process(pid).memory_full_info().uss, rel=0.4)
        assert f"37.5 KiB in {kind}, 320 B in private; up to " in str(report)

    @pytest.mark.parametrize("engine", ["serial", "threads"])
    def test_workers_that_are_no_processes_have_no_private_memory(self, engine: str) -> None:
        """All memory belongs to this process."""
        with shmpar.Pool(2, engine=engine) as pool:
            pool.map_blocks(np.sqrt, np.ones(4), chunks=2)
            assert pool.last_run.report.worker_bytes == ()

    def test_bytes_are_the_sum_over_the_chunks(self, pool: shmpar.Pool) -> None:
        """Halos count in each chunk that has them, and so do broadcast inputs."""
        image = np.ones((60, 40))
        pool.map_overlap(lambda b: b * 2, image, depth=2, chunks=20)
        report = pool.last_run.report
        seen = (22 + 24 + 22) * (22 + 22)
        assert (report.bytes_read, report.bytes_written) == (seen * 8, 60 * 40 * 8)
        pool.map_blocks(np.add, image, np.ones((1, 40), "f4"), chunks=20)
        report = pool.last_run.report
        assert report.bytes_read == 60 * 40 * 8 + 3 * 40 * 4
        assert report.gb_per_second == pytest.approx(
            (report.bytes_read + report.bytes_written) / report.seconds / 1e9
        )
        pool.parallel_map(len, ["a", "bb"])
        assert pool.last_run.report.bytes_read == 0

    def test_the_bandwidth_is_measured_once_and_only_on_request(self, processes) -> None:
        """A call does not measure it, and the text of a small report does not either."""
        report_module.measure_bandwidth.cache_clear()
        processes.map_blocks(np.negative, np.ones(100), chunks=10)
        report = processes.last_run.report
        assert str(report)
        assert report_module.measure_bandwidth.cache_info().misses == 0
        assert 0.1 < report.ceiling < 10_000
        assert report.ceiling == report.ceiling
        assert report_module.measure_bandwidth.cache_info().misses == 1

    def test_basic_attributes(self, pool: shmpar.Pool) -> None:
        """Verb, engine, function, seed and counts match the call."""

        def noise(block: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return block + rng.normal(size=block.shape)

        pool.map_blocks(noise, pool.array(np.ones(8)), chunks=2, seed=3)
        report = pool.last_run.report
        assert (report.verb, report.engine) == ("map_blocks", pool.engine)
        assert report.workers == (1 if pool.engine == "serial" else 2)
        assert (report.chunks, report.done, report.failed, report.deaths) == (4, 4, 0, 0)
        assert report.function == "noise"
        assert len(report.memory) == 2
        assert report.seed == 3

    @pytest.mark.parametrize(
        ("bad", "line"),
        [(1, "1 chunk failed and was filled"), (2, "2 chunks failed and were filled")],
    )
    def test_failed_chunks_that_were_filled(self, pool: shmpar.Pool, bad: int, line: str) -> None:
        """The text counts them, in the singular and in the plural."""

        def work(item: int) -> float:
            if item < bad:
                raise ValueError("bad")
            return 1.0

        with pytest.warns(RuntimeWarning):
            pool.parallel_map(work, range(4), on_error="fill", dtype=float)
        report = pool.last_run.report
        assert (report.done, report.failed, report.filled) == (4 - bad, bad, True)
        assert line in str(report)
        with pytest.raises(ExceptionGroup):
            pool.parallel_map(work, range(-1, 4), on_error="collect", dtype=float)
        report = pool.last_run.report
        assert not report.filled
        assert f"{report.failed} chunk{'s' if report.failed > 1 else ''} failed\n" in str(report)

    def test_a_run_without_chunks_has_a_report(self, pool: shmpar.Pool) -> None:
        """All numbers are zero, and nothing divides by them."""
        pool.map_blocks(np.negative, np.zeros((0, 3)), dtype=float)
        report = pool.last_run.report
        assert (report.chunks, report.claims, report.serial_seconds) == (0, 0, 0.0)
        assert report.advice == ""
        assert report.slowest() == []
        assert str(report)
        assert report._repr_html_()


def advised(pool: shmpar.Pool, words: str, call: Callable[[], object], tries: int = 30) -> bool:
    """Return True if the advice for a call has these words; retry on a busy machine."""
    for _ in range(tries):
        call()
        if words in pool.last_run.report.advice:
            return True
    return False


def fastest(pool: shmpar.Pool, call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of a few runs."""
    seconds = []
    for _ in range(5):
        call()
        seconds.append(pool.last_run.report.seconds)
    return min(seconds)


def faster(pool: shmpar.Pool, one: Callable[[], object], other: Callable[[], object]) -> bool:
    """Return True if a call is faster than another one; retry on a busy machine."""
    return any(fastest(pool, one) < fastest(pool, other) for _ in range(10))


def spared(pool: shmpar.Pool, words: str, call: Callable[[], object]) -> bool:
    """Return True if the advice for a call lacks these words; retry on a busy machine."""
    return any(not advised(pool, words, call, 1) for _ in range(10))


class TestAdvice:
    """Each rule, in a run where it applies and in a run where it does not."""

    def test_a_cold_pool(self) -> None:
        """The first call waits for the workers, the second does not."""
        with shmpar.Pool(1) as pool:
            pool.parallel_map(spin, np.full(4, 1e-3))
            report = pool.last_run.report
            assert report.cold
            assert "starting" in report.advice
            pool.parallel_map(spin, np.full(4, 1e-3))
            assert not pool.last_run.report.cold
            assert "starting" not in pool.last_run.report.advice

    def test_an_input_that_is_copied_by_each_call(self, processes: shmpar.Pool) -> None:
        """A plain array is copied, an array of pool.array is not."""
        plain = np.ones((40, 200_000))
        shared = processes.array(plain)
        look = lambda block: block[0, 0]
        for array, expected in ((plain, True), (shared, False)):
            call = functools.partial(processes.block_reduce, look, array, chunks=(1, -1))
            assert (advised if expected else spared)(processes, "pool.array", call)

    def test_an_output_that_is_allocated_by_each_call(self, processes: shmpar.Pool) -> None:
        """An existing output gets no advice."""
        shared = processes.array(np.ones((80, 200_000)))
        out = processes.zeros(shared.shape)
        fresh = lambda: processes.map_blocks(np.negative, shared, chunks=(10, -1))
        given = functools.partial(processes.map_blocks, chunks=(10, -1), out=out)
        assert advised(processes, "out= writes", fresh)
        assert spared(processes, "out= writes", lambda: given(np.negative, shared))

    def test_fewer_chunks_than_workers(self, processes: shmpar.Pool) -> None:
        """A single chunk keeps one worker busy; the suggested chunks keep both."""
        work = lambda block: spin(0.005 + 0.0005 * len(block)) and block
        array = processes.array(np.ones((60, 4)))
        call = lambda: processes.map_blocks(work, array, chunks=-1)
        assert advised(processes, "1 chunk keeps 1 of 2 workers busy", call)
        hint = processes.last_run.report.advice
        suggested = eval(hint.rpartition("chunks=")[2])  # noqa: S307 - the user would type it
        better = lambda: processes.map_blocks(work, array, chunks=suggested)
        assert spared(processes, "busy", better)
        assert processes.last_run.report.chunks >= 8

    def test_one_chunk_that_dominates(self, processes: shmpar.Pool) -> None:
        """The other worker waits for it; chunks of equal cost get no advice."""
        array = processes.array(np.ones((40, 4)))
        array[-10:] = 20

        def work(block: np.ndarray) -> np.ndarray:
            spin(0.0004 * block[:, 0].sum())
            return block

        call = lambda: processes.map_blocks(work, array, chunks=(10, -1))
        assert advised(processes, "waited for chunk 3", call)
        hint = processes.last_run.report.advice
        suggested = eval(hint.rpartition("chunks=")[2])  # noqa: S307 - the user would type it
        uneven = processes.last_run.report.seconds

        def even() -> float:
            processes.map_blocks(work, array, chunks=suggested)
            return processes.last_run.report.seconds

        assert any(even() < uneven for _ in range(10))  # once, whatever else the machine does
        array[:] = 5
        assert spared(processes, "waited for chunk", call)

    def test_a_slow_item_that_comes_last(self, processes: shmpar.Pool) -> None:
        """If it comes first, the other items are computed meanwhile."""
        durations = np.full(21, 2e-3)
        durations[-1] = 0.04
        last = lambda: processes.parallel_map(spin, durations)
        first = lambda: processes.parallel_map(spin, durations[::-1])
        assert advised(processes, "slow items first", last)
        assert spared(processes, "first", first)
        assert faster(processes, first, last)

    def test_chunks_that_are_too_small(self, processes: shmpar.Pool) -> None:
        """Larger chunks are suggested, and are faster."""
        array = processes.array(np.ones((3_000, 40)))
        call = lambda: processes.map_blocks(np.negative, array, chunks=(3, 4))
        assert advised(processes, "hardly more than handing it out", call)
        hint = processes.last_run.report.advice
        suggested = eval(hint.rpartition("chunks=")[2])  # noqa: S307 - the user would type it
        better = lambda: processes.map_blocks(np.negative, array, chunks=suggested)
        assert spared(processes, "handing it out", better)
        assert faster(processes, better, call)

    def test_items_that_are_too_small(self, processes: shmpar.Pool) -> None:
        """A function of a block of items is faster."""
        rows = processes.array(np.ones((30_000, 8)))
        call = lambda: processes.parallel_map(len, rows)
        assert advised(processes, "map_blocks", call)
        better = lambda: processes.map_blocks(lambda b: np.full(len(b), 8), rows, drop_axis=1)
        assert faster(processes, better, call)
        slow = lambda: processes.parallel_map(spin, np.full(50, 1e-3))
        assert spared(processes, "map_blocks", slow)

    def test_work_that_is_not_worth_a_pool(self, processes: shmpar.Pool) -> None:
        """A few microseconds of work get the advice, a few milliseconds do not."""
        call = lambda: processes.map_blocks(np.negative, np.ones(4), chunks=2)
        assert advised(processes, "a plain loop is faster", call)
        slow = lambda: processes.parallel_map(spin, np.full(8, 3e-3))
        assert spared(processes, "plain loop", slow)

    def test_chunks_of_unknown_duration(self, processes: shmpar.Pool) -> None:
        """Without any duration there is no advice, and nothing divides by zero."""
        processes.map_blocks(np.negative, np.ones(4), chunks=2)
        ledger = Ledger(bytearray(Ledger.nbytes(workers=2, chunks=2)), workers=2, chunks=2)
        ledger.note_claim(slice(0, 2), 1, 0.001)
        ledger.status[:] = DONE
        report = dataclasses.replace(processes.last_run.report, ledger=ledger)
        assert (report.computed, report.advice) == (2, "")
        assert "2 done" in str(report)

    @pytest.mark.alone
    def test_a_function_that_is_bound_by_memory_bandwidth(self, processes: shmpar.Pool) -> None:
        """A function that only reads gets the advice, a function that computes does not."""
        array = processes.array(np.ones(40_000_000, "f4"))

        def call() -> None:
            report_module.measure_bandwidth.cache_clear()  # for the load of this moment
            processes.block_reduce(np.max, array, chunks=4_000_000)

        assert advised(processes, "bound by memory", call, 60)
        busy = lambda: processes.block_reduce(lambda b: np.sin(b).max(), array, chunks=4_000_000)
        assert spared(processes, "bound by memory", busy)

    def test_a_function_that_reads_a_part_of_its_block(self, processes: shmpar.Pool) -> None:
        """It is faster than the memory, so that does not bind it, and the table says so."""
        array = np.broadcast_to(processes.zeros(1), 1 << 36)
        processes.block_reduce(lambda block: block[0], array, chunks=1 << 33)
        report = processes.last_run.report
        assert "bound by memory" not in report.advice
        assert re.search(r"data .*; \d+ GB/s, more than the [\d.]+ GB/s memory band", str(report))

    @given(
        shape=st.lists(st.integers(1, 200), min_size=1, max_size=3).map(tuple),
        data=st.data(),
        factor=st.floats(1, 1e4),
    )
    def test_suggested_chunks_fit_the_array(self, shape, data, factor) -> None:
        """The suggestions are valid chunk lengths, and larger or smaller by the factor."""
        chunks = tuple(data.draw(st.integers(1, size)) for size in shape)
        grid = Grid.cut(shape, chunks)
        larger, smaller = views.coarser(grid, factor), views.finer(grid, factor)
        if larger is not None:
            made = Grid.cut(shape, larger)
            assert made.size < grid.size or grid.size == 1
            assert grid.size <= made.size * (factor + 1) * 2 ** len(shape)
        if smaller is not None:
            assert Grid.cut(shape, smaller).size > grid.size


def slices(report: Report) -> list[dict[str, Any]]:
    """Return the slices of a report's trace, as a viewer reads them."""
    events = json.loads(json.dumps([*trace_events(report)]))
    return [event for event in events if event["ph"] == "X"]


class TestTrace:
    """The trace for Perfetto."""

    def test_a_trace_has_a_track_per_worker_and_a_slice_per_chunk(
        self, processes, tmp_path
    ) -> None:
        """Slices of a track are in order, and nested or disjoint."""
        durations = np.full(60, 1e-4)
        durations[:4] = 2e-3
        processes.parallel_map(spin, durations)
        report = processes.last_run.report
        path = tmp_path / "trace.json"
        path.write_text("before")
        report.to_perfetto(path)
        trace = json.loads(path.read_text())
        names = {
            event["tid"]: event["args"]["name"]
            for event in trace["traceEvents"]
            if event["name"] == "thread_name"
        }
        assert names == {0: "worker 0", 1: "worker 1"}
        found = [event for event in trace["traceEvents"] if event["ph"] == "X"]
        chunks = [event["name"] for event in found if event["name"].startswith("chunk ")]
        assert len(chunks) == len(set(chunks))
        for worker in names:
            check_nesting([event for event in found if event["tid"] == worker])
        assert all(event["ts"] + event["dur"] <= report.seconds * 1e6 + 1 for event in found)
        (slow,) = [event for event in found if event["name"] == "chunk 0"]
        assert slow["dur"] >= 2_000
        assert slow["args"] == {"region": "[0:1]"}

    def test_a_claim_of_short_chunks_is_one_slice(self, processes: shmpar.Pool) -> None:
        """The chunks of the claim have no slices, since only their mean is known."""
        processes.parallel_map(lambda row: 0, np.zeros((20_000, 2)))
        report = processes.last_run.report
        assert report.claims <= len(slices(report)) < 2_000

    def test_a_trace_that_cannot_be_written_leaves_no_file(self, processes, tmp_path) -> None:
        """The file appears whole or not at all."""
        processes.parallel_map(abs, range(3))
        with pytest.raises(FileNotFoundError):
            processes.last_run.report.to_perfetto(tmp_path / "missing" / "trace.json")
        assert list(tmp_path.iterdir()) == []


def check_nesting(events: list[dict[str, Any]]) -> None:
    """Assert that events are sorted by begin, and that no two events cross."""
    stack: list[float] = []
    for before, after in itertools.pairwise(events):
        assert before["ts"] <= after["ts"] + 1e-3
    for event in events:
        begin, end = event["ts"], event["ts"] + event["dur"]
        assert event["dur"] >= 0
        while stack and stack[-1] <= begin + 2:  # begins of claims are in microseconds
            stack.pop()
        if stack:
            assert end <= stack[-1] + 1e-2
        stack.append(end)


class TestShown:
    """The report in terminals, notebooks and pictures."""

    def test_a_terminal_shows_a_table(self, processes: shmpar.Pool) -> None:
        """The table is less than 100 characters wide and has a line per worker."""
        processes.map_blocks(lambda b: spin(1e-3) and b, np.ones((40, 30)), chunks=10)
        report = processes.last_run.report
        lines = str(report).splitlines()
        assert repr(report) == str(report)
        assert lines[0].startswith("map_blocks(")
        assert "12 chunks in" in lines[0]
        assert max(map(len, lines[:-1])) < 100
        slow = report.slowest(1)[0]
        assert any(line.split()[:1] == [str(slow.chunk)] for line in lines)
        head = next(line for line in lines if "in chunks" in line)
        assert head.split() == ["worker", "chunks", "claims", "in", "chunks", "waiting", "overhead"]

    def test_a_notebook_escapes_names_of_the_user(self, processes: shmpar.Pool) -> None:
        """The name of a function may hold HTML."""

        def work(block: np.ndarray) -> np.ndarray:
            return block

        work.__qualname__ = name = "<script>alert('&')</script>"
        processes.map_blocks(work, np.ones(8), chunks=2)
        shown = processes.last_run.report._repr_html_()
        assert "<script" not in shown
        assert html.escape(name) in shown
        assert shown.count("<tr>") >= 4 + 2
        assert shown.count("<table") == shown.count("</table>") == 3

    def test_names_that_raise_or_are_no_str_are_left_out(self, pool: shmpar.Pool) -> None:
        """An attribute of the user's object may raise."""

        class Odd:
            def __getattr__(self, name: str) -> str:
                if name == "__qualname__":
                    raise RuntimeError(f"no {name}")
                raise AttributeError(name)

            def __reduce__(self) -> Any:
                return Odd, ()

            def __call__(self, row: Any) -> int:
                return 1

        assert pool.parallel_map(Odd(), range(3)) == [1, 1, 1]
        assert pool.last_run.report.function == ""
        assert pool.submit(Odd(), 1).result() == 1

    def test_a_partial_has_the_name_of_its_function(self, pool: shmpar.Pool) -> None:
        """Users make partials of functions to give them arguments."""
        pool.map_blocks(functools.partial(np.multiply, 2), np.ones(3))
        assert pool.last_run.report.function == "multiply"
        assert repr(pool.last_run).startswith("<shmpar.Run: map_blocks(multiply), done")

    def test_a_plot_has_a_box_per_chunk_and_a_map_of_the_array(self, processes, tmp_path) -> None:
        """The map shows the place and the duration of each chunk."""
        processes.map_blocks(lambda b: spin(1e-3) and b, np.ones((40, 30)), chunks=(10, 15))
        report = processes.last_run.report
        figure = report.plot()
        timeline, cost = figure.axes[:2]
        (boxes,) = timeline.collections
        assert len(boxes.get_paths()) == 8
        (mesh,) = cost.collections
        np.testing.assert_allclose(mesh.get_array().ravel(), report.durations, rtol=1e-4)
        assert cost.get_xlim() == (0, 30)
        assert cost.get_ylim() == (40, 0)
        assert timeline.get_ylabel() == "worker"
        figure.savefig(tmp_path / "run.png")
        assert (tmp_path / "run.png").stat().st_size > 5_000

    @pytest.mark.parametrize("shape", [(200,), (20, 6, 4), (1,), (0, 2), (99_000,)])
    def test_a_plot_of_any_grid(self, processes: shmpar.Pool, shape: Any, tmp_path: Any) -> None:
        """A single cut axis gives a curve; three or none give the timeline alone."""
        processes.map_blocks(np.negative, np.ones(shape), chunks=1, dtype=float)
        report, began = processes.last_run.report, time.process_time()
        figure = report.plot()
        figure.savefig(tmp_path / "run.png")
        assert time.process_time() - began < 3, "a picture of many chunks takes no longer"
        panels = [axes for axes in figure.axes if "axis" in axes.get_xlabel()]
        assert len(panels) == (len(shape) == 1 and shape[0] > 1)

    def test_a_plot_of_a_run_that_has_not_begun(
        self, processes: shmpar.Pool, tmp_path: Any
    ) -> None:
        """It is empty, and a run with more chunks than memory has its own error."""
        with pytest.raises(shmpar.SegmentFull):
            processes.map_blocks(abs, np.broadcast_to(1.0, 1 << 50), chunks=1 << 17, dtype=float)
        assert repr(processes.last_run).endswith("failed, 0 of 8,589,934,592 chunks>")
        lock = threading.Lock()
        with pytest.raises(shmpar.PlanError):
            processes.map_blocks(lambda block: lock, np.ones(9), chunks=2)
        processes.last_run.report.plot().savefig(tmp_path / "run.png")

    def test_a_plot_shows_deaths(self, tmp_path: pathlib.Path) -> None:
        """The legend explains the hatched box."""

        def work(item: int) -> int:
            if item == 1 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os._exit(1)
            return item

        with shmpar.Pool(2) as pool:
            pool.parallel_map(work, range(5))
            figure = pool.last_run.report.plot()
        (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
        assert [one.get_text() for one in legend.get_texts()] == ["died"]


@st.composite
def histories(draw: st.DrawFn) -> tuple[Ledger, list[tuple[int, list[int], float, list[float]]]]:
    """A ledger of consecutive claims, and the claims."""
    workers, chunks = draw(st.integers(1, 4)), draw(st.integers(0, 30))
    ledger = Ledger(
        bytearray(Ledger.nbytes(workers=workers, chunks=chunks)), workers=workers, chunks=chunks
    )
    now, first, claims = [0.001] * workers, 0, []
    while first < chunks:
        last = min(chunks, first + draw(st.integers(1, 8)))
        worker = draw(st.integers(0, workers - 1))
        took = [draw(st.integers(1, 10**6)) * 1e-6 for _ in range(first, last)]
        begin = now[worker] + draw(st.integers(0, 10**5)) * 1e-6
        now[worker] = begin + sum(took) + 2e-6
        ledger.note_claim(slice(first, last), worker, begin)
        ledger.times.seconds[first:last] = took
        ledger.status[first:last] = draw(st.sampled_from([DONE, FAILED]))
        claims.append((worker, list(range(first, last)), begin, took))
        first = last
    for worker in range(workers):
        if now[worker] > 0.001:
            ledger.slot(worker)[JOINED] = draw(st.integers(1, 10**6))
            ledger.slot(worker)[WAITED] = draw(st.integers(0, 10**6))
    return ledger, claims


class TestTimings:
    """Times that are read from a ledger."""

    @given(histories())
    def test_claims_are_found_again(self, history: Any) -> None:
        """Workers, chunks, begins and durations match, and the times add up."""
        ledger, claims = history
        seconds = max((begin + sum(took) for _, _, begin, took in claims), default=0.0) + 0.01
        timings = Timings(ledger, 0.0, seconds)
        found = [
            (one.worker, timings.chunks[one.first : one.last].tolist()) for one in timings.claims
        ]
        assert sorted(found) == sorted((worker, chunks) for worker, chunks, _, _ in claims)
        assert timings.computed == ledger.chunks
        assert timings.durations.sum() == pytest.approx(
            sum(sum(took) for *_, took in claims), rel=1e-5
        )
        for one in timings.of_workers():
            assert one.user + one.waiting + one.overhead == pytest.approx(seconds)
            assert min(one.user, one.waiting, one.overhead) >= -1e-9
            mine = sum(sum(took) for worker, _, _, took in claims if worker == one.worker)
            assert one.user == pytest.approx(mine, rel=1e-4, abs=1e-5)

    @given(histories(), st.integers(0, 3), st.floats(0, 2), st.floats(0, 2))
    def test_a_lost_claim_is_time_of_its_worker(self, history, worker, begin, took) -> None:
        """The claim lasts from the end of the last known chunk to the death; the times add up."""
        ledger, _ = history
        worker %= ledger.workers
        seconds = Timings(ledger, 0.0, 0.0).span[1] + begin + took + 0.01
        lost = LostClaim(worker, None, seconds - took, seconds)
        timings = Timings(ledger, 0.0, seconds, [lost])
        one = timings.of_workers()[worker]
        assert one.user + one.waiting + one.overhead == pytest.approx(seconds)
        assert one.user >= took - 1e-6

    def test_a_run_of_days_keeps_its_order(self) -> None:
        """The microseconds in the ledger overflow, and are read correctly."""
        ledger = Ledger(bytearray(Ledger.nbytes(workers=3, chunks=4)), workers=3, chunks=4)
        for chunk in range(4):
            ledger.note_claim(chunk, 2, chunk * 86_400.0)
            ledger.times.seconds[chunk], ledger.status[chunk] = 80_000.0, DONE
        timings = Timings(ledger, 0.0, 4 * 86_400.0)
        assert timings.begins == pytest.approx([0, 86_400, 172_800, 259_200])
        assert timings.of_workers()[2].user == pytest.approx(320_000)


class TestBytesRead:
    """Bytes that are read, by formula and by counting."""

    @given(
        shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
        chunks=st.tuples(st.integers(1, 5), st.integers(1, 5)),
        depth=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    )
    def test_it_is_the_sum_over_the_windows(self, shape, chunks, depth) -> None:
        """The formula agrees with the sum over the windows."""
        grid = Grid.cut(shape, chunks)
        halo = Halo.parse(depth, "nearest", 2)
        plan = Plan("map_overlap", grid, (Blocks(0, (0, 1), halo),), InBlocks.exactly(grid), halo)
        array = np.zeros(shape)
        windows = [halo.window(grid, chunk) for chunk in range(grid.size)]
        naive = sum(
            array[tuple(slice(max(0, start), stop) for start, stop in window)].nbytes
            for window in windows
        )
        assert bytes_read(plan, [array.nbytes]) == naive


@given(st.floats(0, 1e6), st.integers(0, 10**15))
def test_numbers_are_short(seconds: float, nbytes: int) -> None:
    """Any number has at most nine characters with its unit."""
    assert len(format_seconds(seconds)) <= 9
    assert len(format_bytes(nbytes)) <= 8
    assert len(format_rate(nbytes / 1e11)) <= 10
