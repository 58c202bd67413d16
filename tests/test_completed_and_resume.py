"""Runs that are followed chunk by chunk, and runs that are resumed."""

from __future__ import annotations

import concurrent.futures
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar

X = np.arange(600.0).reshape(30, 20)


def covered(run: shmpar.Run, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """How often each element was in a region, each of which was finished when it came."""
    count = np.zeros(shape, int)
    for region in run.completed():
        count[region] += 1
        assert (run.out[region] != 0).all()
    return count


def test_regions_come_once_and_are_there(pool: shmpar.Pool) -> None:
    """Whatever the verb."""
    run = pool.map_blocks(lambda block: block + 1, X, chunks=(4, 7), wait=False)
    assert (covered(run, X.shape) == 1).all()
    run = pool.block_reduce(lambda block: block.sum() + 1, X, chunks=(4, 7), wait=False)
    assert (covered(run, (8, 3)) == 1).all()
    run = pool.parallel_map(lambda row: row + 1, X, wait=False)
    assert (covered(run, X.shape) == 1).all()


def test_a_run_that_was_waited_for_tells_at_the_end(pool: shmpar.Pool) -> None:
    """All its regions at once."""
    result = pool.map_blocks(lambda block: block + 1, X, chunks=(4, 7))
    regions = list(pool.last_run.completed())
    assert len(regions) == 24
    assert result.shape == X.shape


def test_following_ends_as_the_result_does(pool: shmpar.Pool) -> None:
    """With the error, after the regions of what is done."""

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


def test_several_follow_one_run(pool: shmpar.Pool) -> None:
    """Each from the beginning."""
    run = pool.map_blocks(lambda block: block + 1, X, chunks=(4, 7), wait=False)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        counts = [threads.submit(lambda: len(list(run.completed()))) for _ in range(3)]
        assert [one.result(timeout=60) for one in counts] == [24] * 3
    assert len(list(run.completed())) == 24


def test_a_dead_worker_costs_no_region(tmp_path: Path) -> None:
    """Nor gives one twice."""
    once = tmp_path / "once"

    def work(block: Any, block_id: tuple[int, int]) -> Any:
        if block_id == (3, 1) and not once.exists():
            once.touch()
            os._exit(1)
        return block + 1

    with shmpar.Pool(2) as pool:
        run = pool.map_blocks(work, X, chunks=(4, 7), wait=False)
        assert (covered(run, X.shape) == 1).all()


# Resuming


class Gatekeeper:
    """Fails on some chunks until it is let through; counts calls in a file."""

    def __init__(self, folder: Path, fails: set[int]) -> None:
        self.open, self.calls, self.fails = folder / "open", folder / "calls", fails

    def __call__(self, row: Any) -> Any:
        number = int(row[0]) // 20
        with self.calls.open("a") as file:
            file.write(f"{number}\n")
        if number in self.fails and not self.open.exists():
            raise OSError(f"row {number} is not ready")
        return row.sum()

    def called(self) -> list[int]:
        """Rows that it was called for since it was asked last, in order."""
        found = sorted(int(line) for line in self.calls.read_text().split())
        self.calls.write_text("")
        return found


@pytest.mark.parametrize("on_error", ["raise", "collect", "fill"])
def test_a_resumed_run_computes_what_is_missing(
    pool: shmpar.Pool, tmp_path: Path, on_error: str
) -> None:
    """And no more; the result is that of the whole."""
    work = Gatekeeper(tmp_path, {7, 21})
    options: dict[str, Any] = {"on_error": on_error, "wait": False}
    if on_error == "fill":
        with warnings.catch_warnings(record=True) as said:  # by whichever thread ends it
            warnings.simplefilter("always")
            run = pool.parallel_map(work, X, **options)
            assert np.isnan(run.result(timeout=60)).sum() == 2
        assert [one.category for one in said] == [RuntimeWarning]
    else:
        run = pool.parallel_map(work, X, **options)
        with pytest.raises((shmpar.ChunkError, ExceptionGroup)):
            run.result(timeout=60)
    first = work.called()
    work.open.touch()
    again = run.resume()
    assert pool.last_run is again
    assert np.array_equal(again.result(timeout=60), X.sum(axis=1))
    assert again.progress == (30, 30)
    second = work.called()
    assert {7, 21} <= set(second)
    done_before = set(first) - {7, 21}
    if on_error != "raise":  # else some of these had not been written yet
        assert not done_before & set(second)
    assert set(first) | set(second) == set(range(30))


def test_a_call_that_was_waited_for_is_resumed_from_its_error(
    pool: shmpar.Pool, tmp_path: Path
) -> None:
    """`error.run` is the run; a second failure is resumed again."""
    work = Gatekeeper(tmp_path, {7})
    with pytest.raises(shmpar.ChunkError) as caught:
        pool.parallel_map(work, X)
    with pytest.raises(shmpar.ChunkError) as again:
        caught.value.run.resume().result(timeout=60)
    work.open.touch()
    assert np.array_equal(again.value.run.resume().result(timeout=60), X.sum(axis=1))


def test_a_cancelled_run_goes_on_into_the_same_output(pool: shmpar.Pool, tmp_path: Path) -> None:
    """The user's own array."""
    path, out = tmp_path / "gate", np.zeros(X.shape)
    os.mkfifo(path)

    def one_at_the_gate(block: Any) -> Any:
        with path.open("rb", buffering=0) as file:
            assert file.read(1) == b"!"
        return block + 1

    with path.open("r+b", buffering=0) as gate:
        run = pool.map_blocks(one_at_the_gate, X, out=out, chunks=(1, 2), wait=False)
        gate.write(b"!" * 10)  # of 300
        run.cancel()
        gate.write(b"!" * 1000)
        concurrent.futures.wait([run], timeout=60)
        assert run.cancelled()
        assert run.resume().result(timeout=60) is out
    assert np.array_equal(out, X + 1)


def test_nothing_to_resume(pool: shmpar.Pool) -> None:
    """Each with its reason."""
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


def test_a_closed_pool_resumes_nothing() -> None:
    """It says so."""
    with shmpar.Pool(1) as pool, pytest.raises(shmpar.ChunkError) as caught:
        pool.parallel_map(lambda x: 1 / x, [0])
    with pytest.raises(RuntimeError, match=r"closed|gone"):
        caught.value.run.resume()
