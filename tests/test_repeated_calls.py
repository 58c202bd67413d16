"""A repeated call uses cached plans, and its result is that of the present call."""

from __future__ import annotations

import gc
import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.pools import drop_caches, warm

MEGABYTES = 8


@pytest.fixture(scope="module")
def one_worker() -> Iterator[shmpar.Pool]:
    with warm("processes", workers=1) as pool:
        yield pool


@pytest.fixture
def pool(one_worker: shmpar.Pool, nothing_left: None) -> Iterator[shmpar.Pool]:
    """A pool of one worker, which computes every chunk."""
    yield one_worker
    drop_caches(one_worker)


def total(block: Any) -> Any:
    return block.sum()


def test_a_repeated_call_reads_the_present_values(pool: shmpar.Pool) -> None:
    array = pool.array(np.arange(6.0))
    for step in range(4):
        array += step
        assert np.array_equal(pool.map_blocks(np.negative, array, chunks=2), -array)


def test_earlier_results_stay_valid(pool: shmpar.Pool) -> None:
    array = pool.array(np.zeros(4))
    results = []
    for number in range(3):
        array[:] = number
        results.append(pool.map_blocks(np.negative, array, chunks=2))
    assert [one.tolist() for one in results] == [[-number] * 4 for number in range(3)]


def test_calls_of_other_numbers_of_chunks_share_the_memory_of_a_ledger(pool: shmpar.Pool) -> None:
    """What an earlier call has left there is no chunk that is done, and no result."""
    array, keys = pool.array(np.arange(4000.0)), set[int]()

    def mean(block: Any) -> Any:
        return block.mean()

    for chunks in (4, 1000, 1, 40, 2000, 4, 1000):
        size = 4000 // chunks
        sums = pool.block_reduce(mean, array, chunks=size)
        assert np.array_equal(sums, array.reshape(chunks, size).mean(axis=1))
        assert np.array_equal(pool.map_blocks(np.negative, array, chunks=size), -array)
        assert pool.last_run.report.computed == chunks
        (kept,) = pool._loop.engine._ledgers._free
        keys.add(pool._loop.engine._ledgers.segment(kept).key)
    assert len(keys) == 1


@pytest.mark.parametrize("size", [1000, 10_000])
@pytest.mark.parametrize(("before", "chunks"), [(4, 4), (4, 5), (50, 10)])
def test_no_value_of_an_earlier_call_shows_in_the_output_of_a_failed_one(
    pool: shmpar.Pool, size: int, before: int, chunks: int
) -> None:
    """Windows without a result are zeros, as in new memory."""
    pool.map_blocks(lambda block: block + 41, np.ones(size), chunks=size // before)
    array, work = np.zeros(size), size // chunks
    array[work] = 7

    def fail(block: Any) -> Any:
        if block[0] == 7:
            raise ValueError("seven")
        return block + 1

    with pytest.raises(shmpar.ChunkError) as caught:
        pool.map_blocks(fail, array, chunks=work)
    out = caught.value.run.out
    assert (out[:work] == 1).all()
    assert not out[work:].any()
    array[work] = 0
    assert (caught.value.run.resume().result()[2 * work :] == 1).all()


def test_a_failed_call_leaves_nothing_to_one_of_more_chunks(pool: shmpar.Pool) -> None:
    """Failed and pending chunks of a ledger are not those of the next one in its memory."""
    array = pool.array(np.arange(300.0))

    def work(block: Any) -> Any:
        if block[0] == 7:
            raise ValueError("seven")
        return block * 2

    for chunks in (300, 20, 5, 100):
        size = 300 // chunks
        with pytest.raises(shmpar.ChunkError, match="seven"):
            pool.map_blocks(work, array + 7 - size, chunks=size)
        result = pool.map_blocks(work, array + 8, chunks=3)
        assert np.array_equal(result, 2 * (array + 8))


def test_the_first_result_of_each_call_determines_the_output(pool: shmpar.Pool) -> None:
    """Calls of a function may differ in dtype, shape and number of the results."""
    array = pool.array(np.zeros(4))

    def by_value(block: Any) -> Any:
        match int(block[0]):
            case 0:
                return block
            case 1:
                return block.astype("i4")
            case 2:
                return block, block.astype("f4")
            case 3:
                return (block,)
        return np.concatenate([block, block])

    for number in (0, 0, 1, 0, 2, 2, 3, 0, 4, 4, 0, 1):
        array[:] = number
        got = pool.map_blocks(by_value, array, chunks=4)
        expected = by_value(array)
        assert isinstance(got, tuple) == isinstance(expected, tuple)
        for one, other in zip(np.atleast_1d(got), np.atleast_1d(expected), strict=True):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)


def test_calls_alternate_between_arrays_and_functions(pool: shmpar.Pool) -> None:
    arrays = [pool.array(np.arange(6.0) + number) for number in range(3)]
    out = pool.zeros(6)
    for number in range(12):
        array, func = arrays[number % 3], (np.negative, np.square)[number % 2]
        assert np.array_equal(pool.map_blocks(func, array, chunks=2), func(array))
        assert pool.map_blocks(func, array, chunks=2, out=out) is out
        assert np.array_equal(out, func(array))


def test_a_call_may_be_repeated_after_a_failure(pool: shmpar.Pool) -> None:
    array = pool.array(np.ones(4))

    def inverse(block: Any) -> Any:
        if not block.all():
            raise ZeroDivisionError
        return 1 / block

    for bad in (False, True, True, False, True, False):
        array[3] = not bad
        if bad:
            with pytest.raises(shmpar.ChunkError, match="chunk 1"):
                pool.map_blocks(inverse, array, chunks=2)
        else:
            assert pool.map_blocks(inverse, array, chunks=2).tolist() == [1.0] * 4


def test_the_metadata_of_a_dtype_is_that_of_the_present_call(pool: shmpar.Pool) -> None:
    """Dtypes that differ only in metadata compare equal, but are not confused."""
    array = pool.array(np.zeros(4))

    def noted(block: Any) -> Any:
        import numpy as np

        return block.astype(np.dtype("i1", metadata={"of": int(block[0])}))

    for number in (1, 2, 2, 1):
        array[:] = number
        assert pool.map_blocks(noted, array, chunks=2).dtype.metadata == {"of": number}


def test_a_reshaped_input_has_its_shape_again_in_the_next_call(pool: shmpar.Pool) -> None:
    array = pool.array(np.float64(3))

    def longer(value: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy 2.5
            value.shape = (1, *value.shape)
        return value + 1

    for _ in range(3):
        assert pool.block_reduce(longer, array).shape == (1,)


def test_a_repeated_call_collects_its_own_objects(pool: shmpar.Pool) -> None:
    array = pool.array(np.arange(4))
    for _ in range(3):
        got = pool.block_reduce(lambda block: {"of": block.tolist()}, array, chunks=2, dtype=object)
        assert got.tolist() == [{"of": [0, 1]}, {"of": [2, 3]}]


def test_a_worker_that_dies_in_a_repeated_call_is_replaced() -> None:
    with shmpar.Pool(1) as pool:
        array, flag = pool.array(np.zeros(4)), pool.array(np.zeros(1))

        def dies(block: Any, flag: Any) -> Any:
            if flag[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return block + 1

        for _ in range(2):
            assert pool.map_blocks(dies, array, flag, chunks=2).tolist() == [1.0] * 4
        flag[0] = 1
        with pytest.raises(shmpar.WorkerDied):
            pool.map_blocks(dies, array, flag, chunks=2)
        flag[0] = 0
        assert pool.map_blocks(dies, array, flag, chunks=2).tolist() == [1.0] * 4


def test_a_worker_unmaps_a_deleted_array(pool: shmpar.Pool) -> None:
    array = pool.array(np.ones(MEGABYTES << 17))
    for _ in range(2):
        pool.block_reduce(total, array, chunks=MEGABYTES << 15)
    (pid,) = pool._loop.engine.pids()
    assert _mapped(pid) >= MEGABYTES << 20
    del array
    pool._last_run = None
    pool.submit(int).result()  # Why: the worker has then read all earlier messages
    assert _mapped(pid) < MEGABYTES << 20


def test_a_worker_unmaps_a_deleted_array_after_a_refused_plan(pool: shmpar.Pool) -> None:
    """A worker that has refused a plan keeps no memory of its input."""
    array = pool.array(np.ones(MEGABYTES << 17))
    for _ in range(2):
        pool.block_reduce(total, array, chunks=MEGABYTES << 15)

    class Refused:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    (pid,) = pool._loop.engine.pids()
    with pytest.raises(shmpar.PlanError, match="no number"):
        pool.block_reduce(
            lambda block, held: 0, array, chunks=MEGABYTES << 15, kwargs={"held": Refused()}
        )
    del array
    pool._last_run = None
    gc.collect()  # Why: the traceback of the error holds the run
    deadline = time.monotonic() + 20
    while _mapped(pid) >= MEGABYTES << 20:  # the worker gets only the message to forget it
        assert time.monotonic() < deadline


def _mapped(pid: int) -> int:
    """Return the bytes of shared memory that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if "/dev/shm" in line or "memfd" in line]
    return sum(int(end, 16) - int(begin, 16) for begin, end in spans)
