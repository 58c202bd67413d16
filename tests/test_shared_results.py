"""Shared arrays that come back from workers, and results that lie in a common segment."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar


def test_a_shared_array_that_comes_back_is_the_same_memory(any_pool: shmpar.Pool) -> None:
    """NumPy sees that both overlap, and the memory is counted once."""
    array = any_pool.array(np.arange(1000.0))
    back = any_pool.submit(lambda one: one[1:], array).result()
    (again,) = any_pool.parallel_map(lambda _: array, [1])
    assert type(back) is type(again) is shmpar.SharedArray
    assert np.shares_memory(array, back)
    assert np.shares_memory(array, again)
    array[:-1] = back[::1]
    back[:] = again[:-1]
    assert array[:4].tolist() == [1, 1, 2, 3]
    assert sum(one.nbytes == 8000 for one in any_pool.memory) == 1
    array.close()
    assert back.closed
    assert back[0] == 1


def test_arrays_that_a_worker_makes_are_other_memory(pool: shmpar.Pool) -> None:
    """The key of a segment of a worker may be that of a segment of this process."""
    mine = [pool.array(np.full(100, number)) for number in range(30)]
    assert all(pool.submit(np.sum, one).result() == 100 * n for n, one in enumerate(mine))
    theirs = [pool.submit(shmpar.full, 100, -number).result() for number in range(30)]
    assert [one[0] for one in theirs] == [-number for number in range(30)]
    assert [one[0] for one in mine] == list(range(30))
    assert not any(np.shares_memory(one, other) for one, other in zip(mine, theirs, strict=True))


def test_an_array_over_a_file_keeps_its_path(any_pool: shmpar.Pool, tmp_path: Path) -> None:
    """A worker, and the caller that gets it back, pickle it as an address of the file."""
    path = tmp_path / "values.npy"
    np.save(path, np.arange(20_000.0))
    shared = shmpar.asarray(np.load(path, mmap_mode="r+"))
    body = any_pool.submit(pickle.dumps, shared).result()
    there = pickle.loads(body)
    back = any_pool.submit(lambda one: one[5:], shared).result()
    found = pickle.loads(pickle.dumps(back))
    there[7] = found[0] = -1
    assert shared[5] == shared[7] == -1
    assert back.address["name"] == str(path)
    assert str(path) in back._repr_html_()


def test_small_results_have_locks_and_names_of_their_own(pool: shmpar.Pool) -> None:
    """Small results lie in one segment; each is an array for itself."""
    one, two = (pool.asarray(pool.map_blocks(np.negative, np.full(9, n))) for n in (1.0, 2.0))
    with one.lock:
        assert two.lock.acquire(timeout=20)
        two.lock.release()
    view = pool.asarray(np.asarray(two)[3::-1])
    assert view.lock is two.lock
    assert pool.asarray(np.asarray(one)[2:]).lock is one.lock
    for array, value in ((one, -1), (two, -2)):
        found = shmpar.attach(array.name, array.shape, array.dtype)
        assert found.tolist() == [value] * 9


def test_more_shared_arrays_than_a_message_carries(nothing_left: None) -> None:
    """A result of many shared arrays is refused with a reason; views of one are no limit."""
    with shmpar.Pool(1) as pool:
        made = pool.submit(lambda: [shmpar.full(9, number) for number in range(200)]).result()
        assert [one[0] for one in made] == list(range(200))
        with pytest.raises(shmpar.PlanError, match="more than 200 shared arrays: return copies"):
            pool.submit(lambda: [shmpar.full(9, number) for number in range(201)]).result()
        views = pool.submit(lambda: [*shmpar.array(np.arange(300))[:, None]]).result()
        assert [one[0] for one in views] == list(range(300))
        plain = pool.submit(lambda: [np.full(20_000, number) for number in range(201)]).result()
        assert [one[0] for one in plain] == list(range(201))
        del made, views, plain


def test_an_input_of_a_worker_and_its_array_are_one_memory(any_pool: shmpar.Pool) -> None:
    """A worker maps an input twice; addresses, and outputs of its own calls, fit all the same."""
    array = any_pool.array(np.arange(6.0))

    def places(block: np.ndarray, held: shmpar.SharedArray) -> list[int]:
        views = np.broadcast_arrays(held, block)
        return [one.address["offset"] for one in views if type(one) is shmpar.SharedArray]

    def smooth(block: np.ndarray, held: shmpar.SharedArray) -> str:
        try:
            shmpar.map_overlap(lambda x: x * 2, block, depth=1, chunks=2, out=held)
        except ValueError as error:
            return str(error)
        return ""

    def turn(block: np.ndarray, held: shmpar.SharedArray) -> None:
        shmpar.map_blocks(lambda x: x[::-1], block, chunks=-1, out=held)

    def call(function: Any) -> Any:
        return any_pool.block_reduce(
            function, array, chunks=-1, kwargs={"held": array}, dtype=object
        ).item()

    assert set(call(places)) == {0}
    assert "shares memory with an input" in call(smooth)
    call(turn)
    assert array.tolist() == [5, 4, 3, 2, 1, 0]
