"""Rows of DataFrames and Series, and their index on the results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import shmpar

pd = pytest.importorskip("pandas")


@pytest.fixture
def frame() -> Any:
    values = np.random.default_rng(1).random((6, 3))
    return pd.DataFrame(values, index=list("uvwxyz"), columns=["a", "b", "c"])


def test_a_value_per_row_is_a_series_as_with_apply(any_pool: shmpar.Pool, frame: Any) -> None:
    found = any_pool.parallel_map(np.sum, frame)
    pd.testing.assert_series_equal(found, frame.apply(np.sum, axis=1, raw=True))


def test_several_values_per_row_are_a_frame_as_with_apply(
    any_pool: shmpar.Pool, frame: Any
) -> None:
    found = any_pool.parallel_map(lambda row: row / row.sum(), frame)
    expected = frame.apply(lambda row: row / row.sum(), axis=1, raw=True)
    pd.testing.assert_frame_equal(found, expected)
    two = any_pool.parallel_map(lambda row: row[:2], frame)
    assert two.index.equals(frame.index)
    assert list(two.columns) == [0, 1]
    np.testing.assert_array_equal(two, frame.to_numpy()[:, :2])


def test_columns_are_rows_along_axis_1(any_pool: shmpar.Pool, frame: Any) -> None:
    found = any_pool.parallel_map(np.max, frame, axis=1)
    pd.testing.assert_series_equal(found, frame.max())
    doubled = any_pool.parallel_map(lambda column: column * 2, frame, axis=1)
    pd.testing.assert_frame_equal(doubled, (frame * 2).T)


def test_a_series_keeps_its_index_and_name(any_pool: shmpar.Pool) -> None:
    days = pd.date_range("2026-01-01", periods=4)
    series = pd.Series([1.0, 4.0, 9.0, 16.0], days, name="area")
    pd.testing.assert_series_equal(any_pool.parallel_map(np.sqrt, series), np.sqrt(series))


def test_rows_of_mixed_columns_are_arrays_of_objects(any_pool: shmpar.Pool) -> None:
    frame = pd.DataFrame({"name": ["a", "bc"], "count": [2, 3]}, index=[10, 20])
    found = any_pool.parallel_map(lambda row: row[0] * row[1], frame, dtype=object)
    assert list(found) == ["aa", "bcbcbc"]
    assert list(found.index) == [10, 20]
    sizes = any_pool.parallel_map(lambda row: len(row[0]), frame, dtype=int)
    pd.testing.assert_series_equal(sizes, pd.Series([1, 2], [10, 20]))
    columns = any_pool.parallel_map(len, frame, axis=1, dtype=int)
    assert list(columns.index) == ["name", "count"]
    assert list(columns) == [2, 2]


def test_several_outputs_none_and_more_axes(any_pool: shmpar.Pool, frame: Any) -> None:
    low, high = any_pool.parallel_map(lambda row: (row.min(), row.max()), frame)
    pd.testing.assert_series_equal(low, frame.min(axis=1))
    pd.testing.assert_series_equal(high, frame.max(axis=1))
    assert any_pool.parallel_map(lambda row: None, frame) is None
    cube = any_pool.parallel_map(lambda row: np.outer(row, row), frame)
    assert type(cube) is np.ndarray
    assert cube.shape == (6, 3, 3)
    out = np.empty(6)
    assert any_pool.parallel_map(np.sum, frame, out=out) is out
    np.testing.assert_array_equal(out, frame.to_numpy().sum(axis=1))


def test_a_run_gives_the_index_too(any_pool: shmpar.Pool, frame: Any) -> None:
    run = any_pool.parallel_map(np.sum, frame, wait=False)
    pd.testing.assert_series_equal(run.result(), frame.sum(axis=1))


def test_empty_tables(any_pool: shmpar.Pool, frame: Any) -> None:
    found = any_pool.parallel_map(np.sum, frame.iloc[:0], dtype=float)
    pd.testing.assert_series_equal(found, pd.Series([], frame.index[:0], dtype=float))


def test_arguments_with_different_indexes_are_refused(any_pool: shmpar.Pool, frame: Any) -> None:
    def add(row: Any, other: Any) -> Any:
        return row.sum() + other

    both = any_pool.parallel_map(add, frame, frame["a"])
    pd.testing.assert_series_equal(both, frame.sum(axis=1) + frame["a"])
    mixed = any_pool.parallel_map(add, np.ones((6, 2)), frame["a"])
    pd.testing.assert_series_equal(mixed, frame["a"] + 2)
    with pytest.raises(
        ValueError, match="the indexes of the arguments differ, and rows are passed"
    ):
        any_pool.parallel_map(add, frame, frame["a"].iloc[::-1])
