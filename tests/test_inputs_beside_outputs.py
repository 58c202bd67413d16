"""Inputs and outputs in one segment: what overlaps is seen, and the rest is protected."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.work.protected import COMPILED

LENGTH = 100_000  # elements; a smaller output would lie in spare memory at first


@pytest.mark.parametrize("write", COMPILED)
def test_an_input_beside_its_output_is_protected(write: Any, nothing_left: None) -> None:
    """A stray write to the input ends the worker, also if the output lies in the same segment."""

    def work(block: np.ndarray) -> np.ndarray:
        write(block)
        return block * 2

    with shmpar.Pool(1, retries=0) as pool:
        both = pool.array(np.ones((2, 1000)))
        with pytest.raises(shmpar.WorkerDied, match="read-only input"):
            pool.map_blocks(work, both[0], out=both[1], chunks=-1)
        assert (both == 1).all()
        pool.map_blocks(np.negative, both[0], out=both[1], chunks=100)
        assert both.sum() == 0
        beside = pool.array(np.ones((1000, 2)))
        pool.map_blocks(np.negative, beside[:, 0], out=beside[:, 1], chunks=100)
        assert beside.sum() == 0
        both[1] = np.arange(1000)
        pool.map_blocks(lambda block: block[::-1], both[1], out=both[1], chunks=-1)
        assert np.array_equal(both[1], np.arange(1000)[::-1])


@pytest.mark.parametrize(
    ("function", "first", "second"),
    [
        (lambda block: (block[::-1], block * 2), lambda x: x[::-1], lambda x: x * 2),
        (lambda block: (block + 1, block), lambda x: x + 1, lambda x: x),
    ],
)
def test_in_place_beside_a_new_file(
    function: Any, first: Any, second: Any, any_pool: shmpar.Pool, tmp_path: Path
) -> None:
    """An output in place is seen, although the other output is not known before the first chunk."""
    values = np.arange(float(LENGTH))
    array = any_pool.array(values)
    _, other = any_pool.map_blocks(function, array, out=(array, tmp_path / "x.npy"), chunks=-1)
    assert np.array_equal(array, first(values))
    assert np.array_equal(other, second(values))


def test_two_payloads_that_wait_hold_the_same_file(tmp_path: Path, nothing_left: None) -> None:
    """A call and a run that wait at a busy worker map the same file, each for itself."""
    np.save(tmp_path / "table.npy", np.arange(float(LENGTH)))
    table = np.load(tmp_path / "table.npy", mmap_mode="r")
    began, go = tmp_path / "began", tmp_path / "go"

    def slow(block: np.ndarray) -> np.ndarray:
        began.touch()
        while not go.exists():
            time.sleep(0.001)
        return block + 1

    with shmpar.Pool(1) as pool:
        first = pool.map_blocks(slow, np.zeros(LENGTH), chunks=-1, wait=False)
        while not began.exists():
            time.sleep(0.001)
        (worker,) = pool._loop.engine._handles.values()
        call = pool.submit(lambda n: table[n], 3)
        while not worker.calls:
            time.sleep(0.001)
        second = pool.map_blocks(lambda block: block + table[4], np.zeros(9), wait=False)
        while len(worker.outstanding) < 2:
            time.sleep(0.001)
        go.touch()
        assert first.result(60).sum() == LENGTH
        assert call.result(60) == 3
        assert second.result(60).tolist() == [4] * 9
        del first, call, second, worker
