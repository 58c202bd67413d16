"""`Pool.map` with ``buffersize=``: input that is read as its results are taken."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar
from tests.work.lazy_map import Item, pid_after, square

BOUND = 60


class Counted:
    """An iterator without end that counts the items that were read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.read += 1
        return self.read - 1


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("buffersize", [1, 4, np.int64(2)])
def test_an_infinite_input_is_read_as_far_as_the_buffer(
    any_pool: shmpar.Pool, buffersize: Any, chunksize: int
) -> None:
    """At most `buffersize` tasks are read ahead of the results that were taken."""
    source = Counted()
    results = any_pool.map(square, source, buffersize=buffersize, chunksize=chunksize)
    assert source.read == buffersize * chunksize
    for number in range(20):
        assert next(results) == number * number
        assert source.read == (buffersize + 1 + number // chunksize) * chunksize
    results.close()
    assert list(results) == []
    assert any_pool.submit(square, 3).result(BOUND) == 9


def test_a_finite_input_gives_all_results(any_pool: shmpar.Pool) -> None:
    """The result is that of map without a buffer, also for buffers that are larger."""
    for buffersize, chunksize in itertools.product([None, 1, 3, 100], [1, 4, 50]):
        found = any_pool.map(
            pow, range(23), itertools.repeat(2), buffersize=buffersize, chunksize=chunksize
        )
        assert list(found) == [n * n for n in range(23)]
    assert list(any_pool.map(square, [], buffersize=2)) == []


def test_an_exception_of_the_input_comes_to_the_caller(any_pool: shmpar.Pool) -> None:
    """It comes when the item is read; the calls that were not begun are cancelled."""

    def broken(good: int) -> Iterator[int]:
        yield from range(good)
        raise LookupError("no further item")

    results = any_pool.map(square, broken(4), buffersize=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(LookupError, match="no further item"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    with pytest.raises(LookupError, match="no further item"):
        any_pool.map(square, broken(1), buffersize=2)
    with pytest.raises(LookupError, match="no further item"):
        any_pool.map(square, broken(1))


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("buffersize", [None, 6])
def test_closing_the_iterator_cancels_the_rest(
    tmp_path: Path, begun: bool, buffersize: int | None
) -> None:
    """Calls that no worker has begun are never made, whether or not a result was taken."""
    fifos = [str(tmp_path / f"{number}") for number in range(6)]
    for fifo in fifos:
        os.mkfifo(fifo)
    with shmpar.Pool(1) as pool:
        first = pool.submit(os.getpid).result(BOUND)
        results = pool.map(pid_after, fifos, range(6), buffersize=buffersize)
        opened = [os.open(fifos[0], os.O_WRONLY)]  # the worker has the first call
        if begun:
            os.close(opened.pop())
            assert next(results) == first
            opened = [os.open(fifos[1], os.O_WRONLY)]
        results.close()
        os.close(opened.pop())
        # Why: the pool waits for all calls; one that was not cancelled would wait for ever.
        assert pool.submit(os.getpid).result(BOUND) == first


def test_the_memory_of_an_infinite_input_is_bounded(any_pool: shmpar.Pool) -> None:
    """No item and no result is kept after it was given out."""

    def source() -> Iterator[Any]:
        for number in itertools.count():
            item = np.full(4, number).view(Item)
            with Item.lock:
                Item.alive.add(id(item))
            yield item

    most = 0
    results = any_pool.map(np.sum, source(), buffersize=3)
    for number, total in enumerate(itertools.islice(results, 100)):
        assert total == 4 * number
        with Item.lock:
            most = max(most, len(Item.alive))
    results.close()
    assert most <= 10


@pytest.mark.parametrize("value", [0, -1])
def test_a_buffer_of_nothing_is_refused(any_pool: shmpar.Pool, value: int) -> None:
    """The errors are those of concurrent.futures: a ValueError; a TypeError for no int."""
    source = Counted()
    with pytest.raises(ValueError, match="buffersize"):
        any_pool.map(square, source, buffersize=value)
    for wrong in ("2", 2.0, True, np.nan):
        with pytest.raises(TypeError, match="buffersize"):
            any_pool.map(square, source, buffersize=wrong)
        with pytest.raises(TypeError, match="chunksize"):
            any_pool.map(square, source, chunksize=wrong)
    assert source.read == 0


def test_a_closed_pool_ends_the_iterator_with_an_error(any_pool: shmpar.Pool) -> None:
    """An iterator that would have to submit more says that the pool is closed."""
    with shmpar.Pool(1, engine=any_pool.engine) as pool:
        results = pool.map(square, Counted(), buffersize=2)
        assert next(results) == 0
    with pytest.raises(RuntimeError, match="closed"):
        next(results)
