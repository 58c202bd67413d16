"""A small call that is made again: the worker has it at hand, and the result is of this call."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import types
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
def lone(one_worker: shmpar.Pool, nothing_left: None) -> Iterator[shmpar.Pool]:
    """A pool of one worker, which has every chunk."""
    yield one_worker
    drop_caches(one_worker)


def total(block: Any) -> Any:
    return block.sum()


def test_it_is_of_what_the_array_holds_now(lone: shmpar.Pool) -> None:
    array = lone.array(np.arange(6.0))
    for step in range(4):
        array += step
        assert np.array_equal(lone.map_blocks(np.negative, array, chunks=2), -array)


def test_results_stay_when_the_call_is_made_again(lone: shmpar.Pool) -> None:
    array = lone.array(np.zeros(4))
    results = []
    for number in range(3):
        array[:] = number
        results.append(lone.map_blocks(np.negative, array, chunks=2))
    assert [one.tolist() for one in results] == [[-number] * 4 for number in range(3)]


def test_the_first_result_says_anew_what_the_output_is(lone: shmpar.Pool) -> None:
    """The function is the same; the dtype, the shape and the number of its results are not."""
    array = lone.array(np.zeros(4))

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
        got = lone.map_blocks(by_value, array, chunks=4)
        due = by_value(array)
        assert isinstance(got, tuple) == isinstance(due, tuple)
        for one, other in zip(np.atleast_1d(got), np.atleast_1d(due), strict=True):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)


def test_arrays_and_functions_in_turn(lone: shmpar.Pool) -> None:
    arrays = [lone.array(np.arange(6.0) + number) for number in range(3)]
    out = lone.zeros(6)
    for number in range(12):
        array, func = arrays[number % 3], (np.negative, np.square)[number % 2]
        assert np.array_equal(lone.map_blocks(func, array, chunks=2), func(array))
        assert lone.map_blocks(func, array, chunks=2, out=out) is out
        assert np.array_equal(out, func(array))


def test_a_call_that_failed_is_made_again(lone: shmpar.Pool) -> None:
    array = lone.array(np.ones(4))

    def inverse(block: Any) -> Any:
        if not block.all():
            raise ZeroDivisionError
        return 1 / block

    for bad in (False, True, True, False, True, False):
        array[3] = not bad
        if bad:
            with pytest.raises(shmpar.ChunkError, match="chunk 1"):
                lone.map_blocks(inverse, array, chunks=2)
        else:
            assert lone.map_blocks(inverse, array, chunks=2).tolist() == [1.0] * 4


def test_metadata_of_a_dtype_is_of_this_call(lone: shmpar.Pool) -> None:
    """Dtypes that differ in nothing else are equal."""
    array = lone.array(np.zeros(4))

    def noted(block: Any) -> Any:
        import numpy as np

        return block.astype(np.dtype("i1", metadata={"of": int(block[0])}))

    for number in (1, 2, 2, 1):
        array[:] = number
        assert lone.map_blocks(noted, array, chunks=2).dtype.metadata == {"of": number}


def test_a_function_that_reshapes_its_input_reshapes_that_of_one_call(lone: shmpar.Pool) -> None:
    array = lone.array(np.float64(3))

    def longer(value: Any) -> Any:
        value.shape = (1, *value.shape)
        return value + 1

    for _ in range(3):
        assert lone.block_reduce(longer, array).shape == (1,)


def test_objects_are_collected_by_the_run_that_asks(lone: shmpar.Pool) -> None:
    array = lone.array(np.arange(4))
    for _ in range(3):
        got = lone.block_reduce(lambda block: {"of": block.tolist()}, array, chunks=2, dtype=object)
        assert got.tolist() == [{"of": [0, 1]}, {"of": [2, 3]}]


def test_a_worker_that_dies_in_it_is_replaced() -> None:
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


def test_the_worker_lets_go_of_an_array_that_is_gone(lone: shmpar.Pool) -> None:
    array = lone.array(np.ones(MEGABYTES << 17))
    for _ in range(2):
        lone.block_reduce(total, array, chunks=MEGABYTES << 15)
    (pid,) = lone._loop.engine.pids()
    assert _mapped(pid) >= MEGABYTES << 20
    del array
    lone._last_run = None
    lone.submit(int).result()  # it has read all messages before this one
    assert _mapped(pid) < MEGABYTES << 20


def test_a_call_that_was_refused_lets_go_too(lone: shmpar.Pool) -> None:
    """The error is kept until what it is about has changed; the memory is not."""
    array = lone.array(np.ones(MEGABYTES << 17))
    for _ in range(2):
        lone.block_reduce(total, array, chunks=MEGABYTES << 15)
    missing = type("Missing", (UserWarning,), {"__module__": "shmpar_missing"})
    made = types.ModuleType("shmpar_missing")
    made.Missing = missing
    (pid,) = lone._loop.engine.pids()
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, made.__name__, made)
        warnings.simplefilter("ignore", missing)
        with pytest.raises(shmpar.PlanError, match="warning filters"):
            lone.block_reduce(total, array, chunks=MEGABYTES << 15)
        del array
        lone._last_run = None
        gc.collect()  # the error's traceback holds the run
        until = time.monotonic() + 5
        while _mapped(pid) >= MEGABYTES << 20:  # nothing but the message to forget it is sent
            assert time.monotonic() < until


def _mapped(pid: int) -> int:
    """Bytes of shared memory that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if "/dev/shm" in line or "memfd" in line]
    return sum(int(end, 16) - int(begin, 16) for begin, end in spans)
