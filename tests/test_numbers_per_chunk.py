"""Runs whose results are a number per chunk: no worker waits for the output of some thousand."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import shmpar
from shmpar.plan import Announcement
from shmpar.runtime.execution import Execution

pytestmark = pytest.mark.parametrize("warm_pool", ["processes"], indirect=True)


@pytest.mark.parametrize("chunks", [2_000, 2_200, 54_000, 55_000, 60_000])
def test_each_number_is_right(pool: shmpar.Pool, chunks: int) -> None:
    """The numbers are right whether they fit beside the ledger or not, and at either edge."""
    rows = np.arange(2.0 * chunks).reshape(chunks, 2)
    for _ in range(2):  # the second run has the ledger of the first, if it was kept
        found = pool.parallel_map(np.sum, rows)
        assert np.array_equal(found, rows.sum(axis=1))
        assert not np.shares_memory(found, rows)


@pytest.mark.parametrize("given", ["?", "i1", "u2", "i8", "u8", "f2", "f4", "f8", "c8", "c16"])
def test_numbers_of_another_dtype_than_the_declared_one(pool: shmpar.Pool, given: str) -> None:
    """A number is cast as a whole array is, or refused by its dtype, for each pair of dtypes."""
    with np.errstate(all="ignore"):
        row = np.array([0, 1, 200, -3, 70_000, 1 << 40]).astype(given)
    for declared in ("?", "i1", "i4", ">i8", "u1", "f4", ">f8", "c8"):
        call = functools.partial(pool.parallel_map, lambda number: number, row, dtype=declared)
        if np.can_cast(given, declared, "same_kind"):
            with np.errstate(all="ignore"):
                found = call()
                assert np.array_equal(found, row.astype(declared))
            assert found.dtype == declared
        else:
            with pytest.raises(shmpar.ChunkError, match="cannot be cast"):
                call()


def test_an_earlier_result_keeps_its_numbers(pool: shmpar.Pool) -> None:
    """A result is no view of the ledger, which later runs overwrite."""
    one = pool.parallel_map(abs, np.arange(-9_000, 0))
    other = pool.parallel_map(abs, np.arange(9_000))
    assert one.tolist() == list(range(9_000, 0, -1))
    assert other.tolist() == list(range(9_000))


def test_workers_do_not_wait_for_the_memory_of_numbers(
    pool: shmpar.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker asks for the output of 10,000 numbers; that of 60,000 has to be made for them."""
    asked = []

    def record(run: Execution, announcement: Announcement) -> None:
        asked.append(run.plan.chunks)
        allocate(run, announcement)

    allocate = Execution._allocate
    monkeypatch.setattr(Execution, "_allocate", record)
    for chunks in (10_000, 60_000):
        assert pool.parallel_map(np.sum, np.ones((chunks, 1))).sum() == chunks
    assert asked[:1] == [60_000]


def test_rows_that_fail_among_thousands(pool: shmpar.Pool) -> None:
    """The error has the row; the next run over the same ledger has all numbers."""

    def refuse(row: np.ndarray, bad: int) -> float:
        if row[0] == bad:
            raise ValueError("bad row")
        return float(row[0])

    rows = np.arange(10_000.0)[:, None]
    with pytest.raises(shmpar.ChunkError, match="bad row") as caught:
        pool.parallel_map(refuse, rows, kwargs={"bad": 7_000})
    assert caught.value.chunk == 7_000
    assert np.array_equal(pool.parallel_map(refuse, rows, kwargs={"bad": -1}), rows[:, 0])
