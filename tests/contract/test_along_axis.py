"""apply_along_axis equals the function of NumPy, on every engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import shmpar

FUNCTIONS = {
    "scalar": np.ptp,
    "line": np.sort,
    "longer": lambda line: np.concatenate([line, line]),
    "matrix": lambda line: np.outer(line[:3], line[:2]),
    "keywords": lambda line, q, scale=1: np.quantile(line, q) * scale,
    "tuple": lambda line: (line.min(), line.max()),
}


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_equals_numpys(pool: shmpar.Pool, name: str, axis: int) -> None:
    """Axes of the result take the place of the axis; all keywords go to the function."""
    array = np.random.default_rng(3).normal(size=(7, 5, 6))
    args, kwargs = ((0.25,), {"scale": 2}) if name == "keywords" else ((), {})
    expected = np.apply_along_axis(FUNCTIONS[name], axis, array, *args, **kwargs)
    got = pool.apply_along_axis(FUNCTIONS[name], axis, array, *args, **kwargs)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def test_many_chunks_are_put_together(pool: shmpar.Pool) -> None:
    """An array large enough for several chunks."""
    array = np.random.default_rng(3).normal(size=(300, 900))
    np.testing.assert_array_equal(pool.apply_along_axis(np.sort, 0, array), np.sort(array, 0))
    np.testing.assert_array_equal(pool.apply_along_axis(np.sum, 1, array), array.sum(1))
    assert pool.last_run.report.chunks > 1


def test_errors_are_numpys(pool: shmpar.Pool, image: Any) -> None:
    """NumPy raises the error for a missing axis and for empty lines."""
    with pytest.raises(np.exceptions.AxisError):
        pool.apply_along_axis(np.sum, 2, image)
    with pytest.raises(ValueError, match="iteration dimensions are 0"):
        pool.apply_along_axis(np.sum, 0, np.empty((3, 0)))
