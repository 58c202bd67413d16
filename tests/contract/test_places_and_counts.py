"""Moments without NaN, places of extremes, and counts of integers: those of NumPy."""

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
from tests.contract.comparison import axes, failed, outcome, same

pytestmark = pytest.mark.usefixtures("numpy_may_warn")
quick = settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)

MOMENTS = ["nanmean", "nanvar", "nanstd"]
PLACES = ["argmin", "argmax"]
DTYPES = ["?", "i1", ">i2", "u4", "i8", "f2", ">f4", "f8", "g", "c8", "c16", "m8[s]", "M8[s]", "U3"]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Any, Any]:
    """Draw an array with many ties, NaN and infinities, an axis in any form, and chunks."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values, empty = rng.integers(0, 5, shape), rng.random(shape) < draw(st.sampled_from([0, 0.5]))
    if dtype.kind in "mM":
        array = np.where(empty, np.array("NaT", dtype), values.astype(dtype))
    elif dtype.kind in "fc":
        array = np.where(empty, dtype.type(math.nan), (values / 3).astype(dtype))
        array = np.where(values * draw(st.booleans()) == 4, dtype.type(math.inf), array)
    else:
        array = values.astype(dtype)
    array = array.astype(dtype)
    if draw(st.booleans()):
        array = array.copy("F")
    return array, draw(axes(shape)), draw(st.sampled_from([1, 2, 3, "auto"]))


@quick
@given(
    case=cases(),
    name=st.sampled_from(MOMENTS),
    keepdims=st.booleans(),
    ddof=st.sampled_from([0, 1, 2.5]),
)
def test_moments_are_numpys(
    serial: shmpar.Pool, case: Any, name: str, keepdims: bool, ddof: float
) -> None:
    """Every dtype, axis and shape, also slices of NaN alone; errors are of the same kind."""
    array, axis, chunks = case
    keywords: dict[str, Any] = {"axis": axis, "keepdims": keepdims}
    if name != "nanmean":
        keywords["ddof"] = ddof
    due = outcome(getattr(np, name), array, **keywords)
    got = outcome(getattr(serial, name), array, chunks=chunks, **keywords)
    if failed(due) or array.dtype.kind not in "fc":
        exact = array.dtype.kind not in "?biuf"
        same(got, due, within=0 if exact or failed(due) else 1e-12)
        return
    assert type(got) is type(due)
    assert (np.asarray(got).dtype, np.shape(got)) == (np.asarray(due).dtype, np.shape(due))
    tolerance = 64 * float(np.finfo(array.dtype).eps)
    np.testing.assert_allclose(got, due, rtol=tolerance, atol=tolerance)


@quick
@given(case=cases(), name=st.sampled_from(PLACES), keepdims=st.booleans())
def test_places_are_numpys(serial: shmpar.Pool, case: Any, name: str, keepdims: bool) -> None:
    """The first of equal elements, and the first NaN, for any chunks, axis and memory order."""
    array, axis, chunks = case
    keywords = {"axis": axis, "keepdims": keepdims}
    due = outcome(getattr(np, name), array, **keywords)
    same(outcome(getattr(serial, name), array, chunks=chunks, **keywords), due)


@pytest.mark.parametrize("dtype", ["U3", "S3"])
def test_the_place_of_a_text(serial: shmpar.Pool, dtype: str) -> None:
    """Text of different lengths lies in different blocks."""
    array = np.array([["b", "ab"], ["a", "abc"]], dtype)
    for name in PLACES:
        for axis in (None, 0, 1):
            due = getattr(np, name)(array, axis=axis)
            same(getattr(serial, name)(array, axis=axis, chunks=1), due)


@pytest.mark.parametrize("name", [*MOMENTS, *PLACES])
@pytest.mark.parametrize("axis", [None, 0, -1])
def test_they_are_numpys_on_every_engine(pool: shmpar.Pool, name: str, axis: Any) -> None:
    """A larger array with NaN, also as the module's function gives it."""
    array = np.random.default_rng(3).normal(1, 0.2, (40, 30, 20))
    if name in MOMENTS:
        array[array < 0.9] = np.nan
    due = getattr(np, name)(array, axis=axis)
    same(getattr(pool, name)(array, axis=axis, chunks=17), due, within=1e-12 * (name in MOMENTS))
    assert getattr(shmpar, name).__doc__ == getattr(shmpar.Pool, name).__doc__


@pytest.mark.parametrize("name", MOMENTS)
@pytest.mark.parametrize("dtype", ["f4", "f8", "c16", "f2"])
def test_the_dtype_of_the_result(pool: shmpar.Pool, name: str, dtype: str) -> None:
    """dtype= is that of the result, as in NumPy; an integer one is refused."""
    array = np.array([[1, 2, np.nan, 4], [5, 6, 7, 8]], "f4")
    due = getattr(np, name)(array, 1, dtype)
    same(
        getattr(pool, name)(array, 1, dtype, chunks=1), due, within=1e-2 if dtype == "f2" else 1e-6
    )
    with pytest.raises(TypeError):
        getattr(pool, name)(array, 1, int)


def test_moments_of_nothing_warn_as_numpys(pool: shmpar.Pool) -> None:
    """A block of NaN beside others is silent; a slice without any number warns once."""
    array = np.array([[1.0, np.nan], [np.nan, np.nan]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pool.nanmean(array, chunks=1) == 1
        assert pool.nanvar(array, chunks=1) == 0
    for name, text in (("nanmean", "Mean of empty"), ("nanvar", "freedom"), ("nanstd", "freedom")):
        with pytest.warns(RuntimeWarning, match=text) as caught:
            got = getattr(pool, name)(array, axis=1, chunks=1)
        assert [one.filename for one in caught] == [__file__]
        np.testing.assert_array_equal(np.isnan(got), [False, True])


def test_a_variance_without_nan_is_stable(pool: shmpar.Pool) -> None:
    """Far from zero, the squares of deviations are summed, not those of values."""
    array = 1e9 + np.random.default_rng(0).normal(size=(50, 40))
    array[::3, 5] = np.nan
    for axis in (None, 0):
        got, due = pool.nanvar(array, axis, chunks=7), np.nanvar(array, axis)
        np.testing.assert_allclose(got, due, rtol=1e-12)


def test_a_block_of_nan_beside_large_values(serial: shmpar.Pool) -> None:
    """Its mean has no square that could be too large."""
    array = np.array([1e200, np.nan, 1e200])
    for name in ("nanvar", "nanstd"):
        for axis in (None, 0):
            same(getattr(serial, name)(array, axis, chunks=1), getattr(np, name)(array, axis))


integers = st.sampled_from(["?", "i1", "u1", ">i2", "u4", "i8", "u8"])


@quick
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(0, 60),
    dtype=integers,
    weight_type=st.sampled_from([None, "?", "i4", "f4", "f8", "U1", "c8"]),
    minlength=st.sampled_from([0, 3, 200, -1]),
    chunks=st.sampled_from([1, 7, "auto"]),
)
def test_counts_of_integers_are_numpys(serial: shmpar.Pool, seed: int, **drawn: Any) -> None:
    """Any integers, weights and least lengths; errors are of the same kind."""
    rng, size, kind = np.random.default_rng(seed), drawn["size"], drawn["weight_type"]
    values = rng.integers(0, 9, size).astype(drawn["dtype"])
    if values.dtype.kind == "i" and seed % 7 == 0 and kind not in {"U1", "c8"}:
        values[size // 2 :] = -1
    weights = None if kind is None else rng.integers(0, 9, size).astype(kind)
    due = outcome(np.bincount, values, weights, drawn["minlength"])
    call = serial.bincount, values, weights, drawn["minlength"]
    same(outcome(*call, chunks=drawn["chunks"]), due)


def test_counts_on_every_engine(pool: shmpar.Pool) -> None:
    """A large range takes large blocks; shared input, weights and errors."""
    rng = np.random.default_rng(1)
    labels, weights = rng.integers(0, 50_000, 400_000), rng.random(400_000)
    same(pool.bincount(pool.array(labels)), np.bincount(labels))
    same(pool.bincount(labels, weights), np.bincount(labels, weights), within=1e-12)
    for wrong in (np.array([0.5]), [[1]], [1, -2], np.array(["a"])):
        due = outcome(np.bincount, wrong)
        assert failed(due)
        assert outcome(pool.bincount, wrong) == due
    assert outcome(pool.bincount, [1, 2], [1]) == outcome(np.bincount, [1, 2], [1])
    same(pool.bincount([]), np.bincount([]))


def test_the_counts_of_all_blocks_are_few(serial: shmpar.Pool) -> None:
    """A block has at least 16 elements per count, of a bin too."""
    values = np.zeros(400_000, int)
    for count in (
        lambda: serial.bincount(values, minlength=1_000),
        lambda: serial.histogram(values, 1_000, (0, 1)),
    ):
        count()
        assert serial.last_run is not None
        assert 1 < serial.last_run.report.chunks <= len(values) / (16 * 1_000)


@quick
@given(case=cases(), return_counts=st.booleans())
def test_unique_elements_are_numpys(serial: shmpar.Pool, case: Any, return_counts: bool) -> None:
    """Every dtype and shape; a single NaN."""
    array, _, chunks = case
    due = np.unique(array, return_counts=return_counts)
    got = serial.unique(array, return_counts=return_counts, chunks=chunks)
    pairs = zip(got, due, strict=True) if return_counts else [(got, due)]
    for one, other in pairs:
        same(one, other)


def test_unique_elements_on_every_engine(pool: shmpar.Pool) -> None:
    """Many values with counts, on workers."""
    array = np.random.default_rng(1).integers(0, 500, (300, 200))
    got = pool.unique(array, return_counts=True, chunks=40)
    for one, other in zip(got, np.unique(array, return_counts=True), strict=True):
        same(one, other)
    assert got[1].sum() == array.size


@pytest.mark.parametrize("name", [*MOMENTS, *PLACES, "bincount", "unique"])
def test_bad_arguments_are_errors_before_anything_starts(pool: shmpar.Pool, name: str) -> None:
    """The errors of NumPy, and those of options."""
    before, call = pool.last_run, getattr(pool, name)
    if name not in {"bincount", "unique"}:
        for axis in (2, (0, 0), 0.5, "x"):
            due = outcome(getattr(np, name), np.ones((2, 3)), axis=axis)
            assert outcome(call, np.ones((2, 3)), axis=axis) == due
    with pytest.raises(TypeError, match="masked"):
        call(np.ma.masked_less(np.arange(3), 1))
    with pytest.raises(TypeError, match="a reduction always waits"):
        call(np.arange(3), wait=False)
    with pytest.raises(TypeError, match="did you mean chunks="):
        call(np.arange(3), chunksize=2)
    assert pool.last_run is before
