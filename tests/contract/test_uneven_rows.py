"""Rows that are suddenly slow: workers leave a part of their claims, and no row is lost."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

import shmpar


def work(row: np.ndarray) -> float:
    """Sleep for as long as the row says; a negative number is an error."""
    number, seconds = row
    if seconds:
        time.sleep(seconds)
    if number < 0:
        raise ValueError(number)
    return number * 2


def as_text(row: np.ndarray) -> str:
    return str(work(row))


def uneven(seed: int, rows: int = 1500) -> np.ndarray:
    """Numbered rows of a microsecond; some, one behind the other, take 20 ms."""
    rng = np.random.default_rng(seed)
    table = np.zeros((rows, 2))
    table[:, 0] = range(rows)
    for begin in rng.integers(0, rows, 3):
        table[begin : begin + 3, 1] = 0.02
    return table


@pytest.mark.parametrize("seed", range(3))
def test_each_row_has_its_result(any_pool: shmpar.Pool, seed: int) -> None:
    """Numbers and objects; the report counts each row once."""
    table = uneven(seed)
    for func, dtype in ((work, None), (as_text, object)):
        result = any_pool.parallel_map(func, table, dtype=dtype)
        assert result.tolist() == [func((number, 0)) for number in table[:, 0]]
        run: Any = any_pool.last_run
        assert run.report.computed == 1500


def test_rows_fail_one_by_one(any_pool: shmpar.Pool) -> None:
    """A claim that ends early has failed rows before and behind its end."""
    table = uneven(7)
    bad = [*range(5, 1500, 97)]
    table[bad, 0] *= -1
    with pytest.raises(ExceptionGroup) as caught:
        any_pool.parallel_map(work, table, on_error="collect")
    assert sorted(error.chunk for error in caught.value.exceptions) == bad
    out: Any = caught.value.run.out
    good = np.setdiff1d(range(1500), bad)
    assert np.array_equal(out[good], 2 * good)
    assert not out[bad].any()


def test_rows_that_were_left_are_those_of_a_cancelled_run(any_pool: shmpar.Pool) -> None:
    """They are unfinished, and a later run computes them."""
    table = uneven(3)
    table[200:300, 1] = 0.003
    run = any_pool.parallel_map(work, table, wait=False)
    for _ in run.completed():
        break
    run.cancel()
    with pytest.raises(CancelledError):
        run.result()
    table[:, 1] = 0
    rest = run.resume() if run.cancelled() else run
    assert np.array_equal(rest.result(), 2 * table[:, 0])
