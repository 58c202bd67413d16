"""Further reductions of NumPy: products, truth, and those that leave out NaN."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import shmpar
from tests.contract.comparison import axes, outcome, same

pytestmark = pytest.mark.usefixtures("numpy_may_warn")
quick = settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)

NAMES = ["prod", "any", "all", "nansum", "nanmin", "nanmax"]
DTYPES = ["?", "i1", ">i2", "u4", "i8", "f2", ">f4", "f8", "g", "c8", "c16", "m8[s]", "M8[s]", "U3"]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Any, Any]:
    """Draw an array with few values, also NaN and infinities, an axis in any form, and chunks."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
    few: list[Any] = [0, 1, 1, 2, 3]
    if dtype.kind in "fc":
        few += [math.nan, math.nan, -1, -0.5, math.inf]
    if dtype.kind in "mM":
        few += ["NaT"]
    array = np.array(draw(hnp.arrays(object, shape, elements=st.sampled_from(few))).tolist())
    if dtype.kind in "mM":
        values = [np.array(one, dtype) for one in draw(st.just(array.ravel().tolist()))]
        array = np.array(values, dtype).reshape(shape)
    else:
        array = array.reshape(shape).astype(dtype)
    return array, draw(axes(shape)), draw(st.sampled_from([1, 2, 3, "auto"]))


@quick
@given(case=cases(), name=st.sampled_from(NAMES), keepdims=st.booleans())
def test_they_are_numpys(serial: shmpar.Pool, case: Any, name: str, keepdims: bool) -> None:
    """Every dtype, axis and shape, empty ones too, for any chunks; errors are of the same class."""
    array, axis, chunks = case
    keywords: dict[str, Any] = {"axis": axis, "keepdims": keepdims}
    due = outcome(getattr(np, name), array, **keywords)
    got = outcome(getattr(serial, name), array, chunks=chunks, **keywords)
    wide = array.dtype.kind in "fc" and name in {"prod", "nansum"}
    same(got, due, within=3e-3 if array.dtype == np.float16 else 1e-6 * wide)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("axis", [None, 0, (0, 2)])
def test_they_are_numpys_on_every_engine(pool: shmpar.Pool, name: str, axis: Any) -> None:
    """A larger array with NaN, also as the module's function gives it."""
    array = np.random.default_rng(3).normal(1, 0.2, (40, 30, 20))
    array[array < 0.9] = np.nan if name.startswith("nan") else 0
    due = getattr(np, name)(array, axis=axis)
    rounded = 1e-12 * (name in {"prod", "nansum"})
    same(getattr(pool, name)(array, axis=axis, chunks=17), due, within=rounded)
    assert getattr(shmpar, name).__doc__ == getattr(shmpar.Pool, name).__doc__


@pytest.mark.parametrize("name", ["prod", "nansum"])
@pytest.mark.parametrize("dtype", ["i8", "f4", "f8", "c16", "f2"])
def test_the_dtype_of_the_result(pool: shmpar.Pool, name: str, dtype: str) -> None:
    """dtype= is that of the result and of the partial results, as in NumPy."""
    array = np.arange(1, 9).reshape(2, 4)
    for values in (array, array.astype("f4")):
        due = outcome(getattr(np, name), values, 1, dtype)
        same(outcome(getattr(pool, name), values, 1, dtype, chunks=1), due)


@pytest.mark.parametrize("name", ["nanmin", "nanmax"])
def test_a_slice_of_nan_alone_warns_once(pool: shmpar.Pool, name: str) -> None:
    """A block of NaN beside others is silent; a slice without any number warns, as in NumPy."""
    array = np.array([[1.0, np.nan], [np.nan, np.nan]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert getattr(pool, name)(array, chunks=1) == 1
    with pytest.warns(RuntimeWarning, match="All-NaN") as caught:
        got = getattr(pool, name)(array, axis=1, chunks=1)
    assert len(caught) == 1
    same(got, np.array([1, np.nan]))


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_numpys_errors(pool: shmpar.Pool, name: str) -> None:
    """They come before anything starts."""
    before, call = pool.last_run, getattr(pool, name)
    for keywords in ({"axis": 2}, {"axis": (0, 0)}, {"axis": 0.5}, {"axis": "x"}):
        with pytest.raises((ValueError, TypeError)):
            call(np.ones((2, 3)), **keywords)
    with pytest.raises(TypeError, match="masked"):
        call(np.ma.masked_less(np.arange(3), 1))
    with pytest.raises(TypeError, match="did you mean keepdims="):
        call(np.arange(3), keep_dims=True)
    assert pool.last_run is before
