"""Run.completed() yields each finished region once, and resume() computes missing chunks."""

from __future__ import annotations

import concurrent.futures
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.work.completed import FailsUntilReady, Gate

X = np.arange(600.0).reshape(30, 20)


def coverage(run: shmpar.Run, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Count the regions of each element, and check that each region is finished."""
    count = np.zeros(shape, int)
    for region in run.completed():
        count[region] += 1
        assert (run.out[region] != 0).all()
    return count


def test_each_region_is_yielded_once_and_finished(pool: shmpar.Pool) -> None:
    """The regions cover the output of every verb."""
    run = pool.map_blocks(lambda block: block + 1, X, chunks=(4, 7), wait=False)
    assert (coverage(run, X.shape) == 1).all()
    run = pool.block_reduce(lambda block: block.sum() + 1, X, chunks=(4, 7), wait=False)
    assert (coverage(run, (8, 3)) == 1).all()
    run = pool.parallel_map(lambda row: row + 1, X, wait=False)
    assert (coverage(run, X.shape) == 1).all()


def test_a_finished_run_yields_all_regions(pool: shmpar.Pool) -> None:
    """completed() may be called after the end of the run."""
    result = pool.map_blocks(lambda block: block + 1, X, chunks=(4, 7))
    regions = list(pool.last_run.completed())
    assert len(regions) == 24
    assert result.shape == X.shape


def test_completed_raises_the_error_of_the_run(pool: shmpar.Pool) -> None:
    """The error comes after the regions of the chunks that are done."""

    def fail_at_nine(row: Any) -> Any:
        if row[0] == X[9, 0]:
            raise ValueError("nine")
        return row + 1

    run = pool.parallel_map(fail_at_nine, X, on_error="collect", wait=False)
    seen, regions = np.zeros(30, int), run.completed()
    for _ in range(29):
        seen[next(regions)] += 1
    with pytest.raises(ExceptionGroup):
        next(regions)
    assert seen.tolist() == [int(row != 9) for row in range(30)]


def test_several_threads_follow_a_run(pool: shmpar.Pool) -> None:
    """Each call of completed() yields all regions."""
    run = pool.map_blocks(lambda block: block + 1, X, chunks=(4, 7), wait=False)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        counts = [threads.submit(lambda: len(list(run.completed()))) for _ in range(3)]
        assert [one.result(timeout=60) for one in counts] == [24] * 3
    assert len(list(run.completed())) == 24


def test_a_dead_worker_loses_no_region(tmp_path: Path) -> None:
    """No region is missing, and none is yielded twice."""
    once = tmp_path / "once"

    def work(block: Any, block_id: tuple[int, int]) -> Any:
        if block_id == (3, 1) and not once.exists():
            once.touch()
            os._exit(1)
        return block + 1

    with shmpar.Pool(2) as pool:
        run = pool.map_blocks(work, X, chunks=(4, 7), wait=False)
        assert (coverage(run, X.shape) == 1).all()


# Resume


@pytest.mark.parametrize("on_error", ["raise", "collect", "fill"])
def test_a_resumed_run_computes_the_missing_chunks(
    pool: shmpar.Pool, tmp_path: Path, on_error: str
) -> None:
    """No other chunk is computed again, and the result is complete."""
    work = FailsUntilReady(tmp_path, {7, 21})
    options: dict[str, Any] = {"on_error": on_error, "wait": False}
    if on_error == "fill":
        with warnings.catch_warnings(record=True) as caught:  # Why: any thread may finish the run
            warnings.simplefilter("always")
            run = pool.parallel_map(work, X, **options)
            assert np.isnan(run.result(timeout=60)).sum() == 2
        assert [one.category for one in caught] == [RuntimeWarning]
    else:
        run = pool.parallel_map(work, X, **options)
        with pytest.raises((shmpar.ChunkError, ExceptionGroup)):
            run.result(timeout=60)
    first = work.called()
    work.ready.touch()
    again = run.resume()
    assert pool.last_run is again
    assert np.array_equal(again.result(timeout=60), X.sum(axis=1))
    assert again.progress == (30, 30)
    second = work.called()
    assert {7, 21} <= set(second)
    done_before = set(first) - {7, 21}
    if on_error != "raise":  # Why: with "raise" some of these chunks were not written yet
        assert not done_before & set(second)
    assert set(first) | set(second) == set(range(30))


def test_a_failed_call_is_resumed_from_its_error(pool: shmpar.Pool, tmp_path: Path) -> None:
    """`error.run` is the failed run, and a run that fails again is resumed again."""
    work = FailsUntilReady(tmp_path, {7})
    with pytest.raises(shmpar.ChunkError) as caught:
        pool.parallel_map(work, X)
    with pytest.raises(shmpar.ChunkError) as again:
        caught.value.run.resume().result(timeout=60)
    work.ready.touch()
    assert np.array_equal(again.value.run.resume().result(timeout=60), X.sum(axis=1))


def test_a_cancelled_run_resumes_into_the_same_output(pool: shmpar.Pool, tmp_path: Path) -> None:
    """The output is the array of the user."""
    path, out = tmp_path / "gate", np.zeros(X.shape)
    os.mkfifo(path)

    def wait_for_byte(block: Any) -> Any:
        with path.open("rb", buffering=0) as file:
            assert file.read(1) == b"!"
        return block + 1

    with path.open("r+b", buffering=0) as gate:
        run = pool.map_blocks(wait_for_byte, X, out=out, chunks=(1, 2), wait=False)
        gate.write(b"!" * 10)  # of 300
        run.cancel()
        gate.write(b"!" * 1000)
        concurrent.futures.wait([run], timeout=60)
        assert run.cancelled()
        assert run.resume().result(timeout=60) is out
    assert np.array_equal(out, X + 1)


@pytest.mark.parametrize("changed", [True, False])
def test_a_checked_run_is_resumed(tmp_path: Path, changed: bool) -> None:
    """The check knows the chunks of the first run, and still finds a change of theirs."""
    work = FailsUntilReady(tmp_path, {7})
    with shmpar.Pool(2, check=True) as pool:
        run = pool.parallel_map(work, X, on_error="collect", wait=False)
        with pytest.raises(ExceptionGroup):
            run.result(timeout=60)
        work.ready.touch()
        if changed:
            run.out[3] = -1
            with pytest.raises(shmpar.ChunkError, match="another writer"):
                run.resume().result(timeout=60)
        else:
            assert np.array_equal(run.resume().result(timeout=60), X.sum(axis=1))


@pytest.mark.parametrize("kinds", [["given", "objects", "waits"], ["checked"]], ids=str)
def test_a_run_cancelled_after_its_last_chunk_gives_its_result(
    tmp_path: Path, kinds: list[str]
) -> None:
    """The resumed run is complete at once, computes nothing and has the whole output."""
    with shmpar.Pool(2, check=kinds == ["checked"]) as pool:
        for kind in kinds:
            (tmp_path / kind).mkdir()
            cancel_after_the_last_chunk(pool, Gate(tmp_path / kind), kind)


def cancel_after_the_last_chunk(pool: shmpar.Pool, work: Gate, kind: str) -> None:
    """Cancel a run whose chunks have all begun, and resume it."""
    rows = np.array([[0.0, 3.0], [1.0, 4.0]])
    out = np.zeros(rows.shape) if kind in {"given", "checked"} else None
    with (
        work.path.open("r+b", buffering=0) as gate,
        concurrent.futures.ThreadPoolExecutor(1) as threads,
    ):
        if kind == "waits":
            call = threads.submit(pool.parallel_map, work, rows)
        elif kind == "objects":
            pool.parallel_map(work, rows, dtype=object, wait=False)
        else:
            pool.map_blocks(work, rows, chunks=(1, 2), dtype=float, out=out, wait=False)
        work.wait_for(2)
        run = pool.last_run
        assert run.cancel()
        gate.write(b"!!")
        with pytest.raises(concurrent.futures.CancelledError):
            run.result(timeout=60)
        if kind == "waits":
            assert isinstance(call.exception(timeout=60), concurrent.futures.CancelledError)
        assert run.progress == (2, 2)
        again = run.resume()
        result = again.result(timeout=60)
        assert again.progress == (2, 2)
        assert again.report.computed == 0
        assert np.array_equal(np.stack(result), rows + 1)
        assert out is None or result is out
        with pytest.raises(RuntimeError, match="nothing to resume"):
            again.resume()


def test_a_run_cancelled_after_its_last_chunk_has_no_result_without_an_output(
    tmp_path: Path,
) -> None:
    """Results that did not fit ``out=`` count as not computed: the resumed run says so again."""
    rows, work, out = np.array([[0.0, 3.0], [1.0, 4.0]]), Gate(tmp_path), np.zeros((2, 3))
    with (
        shmpar.Pool(2) as pool,
        work.path.open("r+b", buffering=0) as gate,
        concurrent.futures.ThreadPoolExecutor(1) as threads,
    ):
        call = threads.submit(pool.parallel_map, work, rows, out=out)
        work.wait_for(2)
        run = pool.last_run
        run.cancel()
        gate.write(b"!!!!")
        assert isinstance(call.exception(timeout=60), concurrent.futures.CancelledError)
        with pytest.raises(shmpar.ShmparError, match="shape"):
            run.resume().result(timeout=60)


@pytest.mark.parametrize(("rows", "text"), [(1, "1 item of"), (2, "2 items of")])
def test_the_group_of_errors_counts_its_items(pool: shmpar.Pool, rows: int, text: str) -> None:
    """A single item is no plural."""
    with pytest.raises(ExceptionGroup, match=f"^{text} parallel_map failed"):
        pool.parallel_map(lambda x: 1 / x, [0] * rows, on_error="collect")


def test_a_run_that_cannot_be_resumed_is_an_error(pool: shmpar.Pool) -> None:
    """The message states the reason."""
    pool.map_blocks(np.negative, X)
    with pytest.raises(RuntimeError, match="nothing to resume"):
        pool.last_run.resume()
    array = pool.array(X)

    def fail(block: Any) -> Any:
        raise ValueError

    with pytest.raises(shmpar.ChunkError) as caught:
        pool.map_blocks(fail, array, out=array)
    with pytest.raises(RuntimeError, match="in place"):
        caught.value.run.resume()
    with pytest.raises(shmpar.ChunkError) as caught:
        pool.map_blocks(fail, X)
    with pytest.raises(TypeError, match=r"takes a Pool, not str$"):
        caught.value.run.resume("processes")


def test_a_closed_pool_cannot_resume() -> None:
    """resume() raises RuntimeError."""
    with shmpar.Pool(1) as pool, pytest.raises(shmpar.ChunkError) as caught:
        pool.parallel_map(lambda x: 1 / x, [0])
    with pytest.raises(RuntimeError, match=r"closed|gone"):
        caught.value.run.resume()
