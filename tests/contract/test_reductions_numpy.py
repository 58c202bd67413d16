"""Reductions at NumPy's edges: every dtype, empty shapes, values beyond all bounds, its errors.

Values are compared with NumPy's where those are exact, and with the sum of fractions where they
are rounded, since NumPy's own last digits depend on the memory order.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import shmpar
from tests.contract.comparison import axes, outcome

pytestmark = pytest.mark.usefixtures("numpy_may_warn")
quick = settings(
    max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
brief = settings(quick, max_examples=30)

WHOLE = ["?", "i1", "u1", ">i2", "u2", "i4", "u4", "i8", "u8"]
FLOAT = ["f2", ">f2", "f4", ">f4", "f8", ">f8"]
COMPLEX = ["c8", "c16", ">c16"]
PLAIN = [*WHOLE, *FLOAT, *COMPLEX]
NAMES = ["sum", "mean", "var", "std", "min", "max"]
#: No sum of squares of so many of them leaves the dtype.
LARGEST = {2: 10.0, 4: 1e9, 8: 1e100, 16: 1e100}

Case = tuple[np.ndarray, Any, Any]


def elements(dtype: str, *, finite: bool) -> st.SearchStrategy[Any]:
    """Draw values of a dtype: any integers, floats without overflow, perhaps NaN and inf."""
    kind, size = np.dtype(dtype).kind, np.dtype(dtype).itemsize
    if kind in "biu":
        return hnp.from_dtype(np.dtype(dtype))
    if kind in "mM":
        time = np.dtype(dtype).type
        return st.sampled_from(["NaT", -9, 0, 10**6]).map(lambda ticks: time(ticks, "s"))
    width = 8 * size // (2 if kind == "c" else 1)
    bound = LARGEST[width // 8]
    floats = st.floats(-bound, bound, width=width, allow_subnormal=False).map(
        lambda value: value if abs(value) > 1 / bound else 0.0
    )
    if not finite:
        floats |= st.sampled_from([math.nan, math.inf, -math.inf])
    return st.builds(complex, floats, floats) if kind == "c" else floats


@st.composite
def cases(
    draw: st.DrawFn, dtypes: list[str] = PLAIN, *, least: int = 0, finite: bool = False
) -> Case:
    """Draw an array, an axis in any form and chunks, also without axes or elements."""
    shape = draw(hnp.array_shapes(min_dims=min(least, 1), max_dims=3, min_side=least, max_side=7))
    dtype = draw(st.sampled_from(dtypes))
    array = draw(hnp.arrays(dtype, shape, elements=elements(dtype, finite=finite)))
    if draw(st.booleans()):
        array = array.copy("F")
    chunks = tuple(draw(st.integers(1, 8)) for _ in shape)
    return array, draw(axes(shape)), draw(st.sampled_from([chunks, "auto", 2]))


def same_form(got: Any, expected: Any) -> None:
    """Type, dtype, shape and errors equal those of NumPy."""
    assert type(got) is type(expected)
    if isinstance(expected, tuple):
        assert got == expected
    assert np.asarray(got).dtype == np.asarray(expected).dtype
    assert np.shape(got) == np.shape(expected)


@quick
@given(
    case=cases(),
    name=st.sampled_from(NAMES),
    keepdims=st.booleans(),
    ddof=st.sampled_from([0, 1, 2.5, 9]),
)
def test_the_form_is_numpys_whatever_the_values(
    serial: shmpar.Pool, case: Case, name: str, keepdims: bool, ddof: float
) -> None:
    """Type, dtype and shape, for empty arrays and those without axes too; errors are the same."""
    array, axis, chunks = case
    keywords: dict[str, Any] = {"axis": axis, "keepdims": keepdims}
    if name in {"var", "std"}:
        keywords["ddof"] = ddof
    expected = outcome(getattr(np, name), array, **keywords)
    got = outcome(getattr(serial, name), array, chunks=chunks, **keywords)
    same_form(got, expected)
    if not isinstance(expected, tuple):  # infinities and NaN have the same positions
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))


@quick
@given(case=cases([*WHOLE, "m8[s]"]), name=st.sampled_from(["sum", "min", "max"]))
def test_sums_of_integers_are_exact(serial: shmpar.Pool, case: Case, name: str) -> None:
    """Sums of integers wrap as in NumPy."""
    array, axis, chunks = case
    expected = outcome(getattr(np, name), array, axis=axis)
    got = outcome(getattr(serial, name), array, axis=axis, chunks=chunks)
    same_form(got, expected)
    np.testing.assert_array_equal(got, expected)


@quick
@given(case=cases([*FLOAT, *COMPLEX, "M8[s]"]), name=st.sampled_from(["min", "max"]))
def test_the_smallest_and_the_largest_are_exact(serial: shmpar.Pool, case: Case, name: str) -> None:
    """A single NaN or NaT decides, and infinity is the largest value."""
    array, axis, chunks = case
    expected = outcome(getattr(np, name), array, axis=axis)
    got = outcome(getattr(serial, name), array, axis=axis, chunks=chunks)
    same_form(got, expected)
    np.testing.assert_array_equal(got, expected)


def lines(array: np.ndarray, axis: Any) -> np.ndarray:
    """Return the elements at full precision, with one row per element of the result."""
    axes = range(array.ndim) if axis is None else np.atleast_1d(axis).astype(int) % array.ndim
    kept = [number for number in range(array.ndim) if number not in set(axes)]
    moved = np.transpose(array, [*kept, *axes])
    return moved.reshape(math.prod(moved.shape[: len(kept)]), -1)


def ulp(array: np.ndarray) -> float:
    """Distance of 1 to the next number of the dtype in which a reduction is rounded."""
    kind = array.dtype.type if array.dtype.kind in "fc" else np.float64
    return float(np.finfo(kind).eps)


@quick
@given(
    case=cases([*FLOAT, *COMPLEX, *WHOLE[1:]], least=1, finite=True),
    name=st.sampled_from(["sum", "mean"]),
)
def test_sums_and_means_are_within_a_few_ulps(serial: shmpar.Pool, case: Case, name: str) -> None:
    """The error is bounded by the sum of magnitudes; fsum gives the exact sum."""
    array, axis, chunks = case
    if name == "sum" and array.dtype.kind in "iu":
        array = array.astype("f8")
    got = np.ravel(getattr(serial, name)(array, axis=axis, chunks=chunks))
    for value, row in zip(got, lines(array, axis), strict=True):
        count = row.size if name == "mean" else 1
        for part in (np.real, np.imag):
            values = [float(one) for one in part(row)]
            exact = math.fsum(values) / count
            # Why 24: NumPy adds up to 128 numbers in eight sums of 16. That is at most 20 roundings
            # of half an ulp, once inside the blocks and once over them.
            bound = 24 * ulp(array) * math.fsum(map(abs, values)) / count
            assert abs(float(part(value)) - exact) <= bound


@quick
@given(
    case=cases([*FLOAT, *COMPLEX, *WHOLE], least=1, finite=True), ddof=st.sampled_from([0, 1, 0.5])
)
def test_variances_are_within_a_few_ulps(serial: shmpar.Pool, case: Case, ddof: float) -> None:
    """The error is bounded by the variance and the rounding of the mean."""
    array, axis, chunks = case
    got = np.ravel(serial.var(array, axis=axis, ddof=ddof, chunks=chunks))
    roots = np.ravel(serial.std(array, axis=axis, ddof=ddof, chunks=chunks))
    np.testing.assert_array_equal(roots, np.sqrt(got))
    for value, row in zip(got, lines(array, axis), strict=True):
        if row.size <= ddof:
            assert not np.isfinite(value)
            continue
        exact = scale = 0.0
        for part in (np.real, np.imag):
            values = [float(one) for one in part(row)]
            mean = math.fsum(values) / len(values)
            exact += math.fsum((one - mean) ** 2 for one in values)
            scale += math.fsum(abs(one) for one in values) / len(values)
        rounded = ulp(array) * scale  # bound of the error of the mean
        # The deviation of each value is off by as much.
        bound = 16 * ulp(array) * exact + 16 * rounded * (
            math.sqrt(exact * row.size) + rounded * row.size
        )
        assert abs(float(value) - exact / (row.size - ddof)) <= bound / (row.size - ddof)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("given_dtype", ["?", "u1", "i8", "f2", "f4", "f8", "c16"])
def test_a_dtype_is_the_results(serial: shmpar.Pool, given_dtype: str, dtype: str) -> None:
    """The result has the dtype of NumPy, and agrees to the digits of that dtype."""
    array = np.random.default_rng(1).integers(0, 9, (7, 5)).astype(given_dtype)
    for name, axis in itertools.product(["sum", "mean", "var", "std"], [None, 0]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
            expected = getattr(np, name)(array, axis, dtype)
            got = getattr(serial, name)(array, axis, dtype, chunks=(2, 3))
        same_form(got, expected)
        np.testing.assert_allclose(got, expected, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["?", "i4", "u1"])
def test_a_mean_may_be_cut_to_an_integer_and_a_variance_not(
    serial: shmpar.Pool, dtype: str
) -> None:
    """NumPy truncates the mean at the end; a variance would truncate deviations."""
    array = np.arange(7)
    same_form(serial.mean(array, dtype=dtype, chunks=2), np.mean(array, dtype=dtype))
    assert serial.mean(array[:6], dtype=dtype, chunks=2) == np.mean(array[:6], dtype=dtype)
    for name in ("var", "std"):
        with pytest.raises(TypeError, match="pass a float dtype"):
            getattr(serial, name)(array, dtype=dtype, chunks=2)


def test_half_precision_has_room_between_the_chunks(serial: shmpar.Pool) -> None:
    """A sum that float16 holds is found, though those of its chunks do not fit."""
    array = np.array([60_000, 60_000, -60_000, -60_000, 1], np.float16)
    assert serial.sum(array, chunks=2) == 1
    assert serial.sum(array.astype(">f2"), chunks=2) == 1
    assert serial.mean(np.full(2**17, 0.25, "f2"), dtype="f2", chunks=2**14) == 0.25
    assert np.isinf(serial.sum(array[:2], chunks=1))


def test_a_time_has_a_mean(serial: shmpar.Pool) -> None:
    """As in NumPy, timedelta64 has a mean and datetime64 has none."""
    array = np.arange(7).astype("m8[s]")
    same_form(serial.mean(array, chunks=2), np.mean(array))
    assert serial.mean(array, chunks=2) == np.mean(array)
    with pytest.raises(TypeError, match="M8"):
        serial.mean(array.astype("M8[s]"), chunks=2)


@pytest.mark.skipif(np.finfo("g").eps == np.finfo("f8").eps, reason="no longer doubles here")
def test_long_doubles_keep_their_digits(serial: shmpar.Pool) -> None:
    """No part of the result was a double."""
    array = np.arange(7, dtype="g") / 3
    for name in NAMES:
        expected, got = getattr(np, name)(array), getattr(serial, name)(array, chunks=2)
        same_form(got, expected)
        assert abs(got - expected) <= 4 * np.finfo("g").eps * abs(expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("array", "keywords"),
    [
        (np.ones((3, 4)), {"axis": 2}),
        (np.ones((3, 4)), {"axis": -3}),
        (np.ones((3, 4)), {"axis": (0, 2)}),
        (np.ones((3, 4)), {"axis": (0, -2)}),
        (np.ones((0, 4)), {"axis": 2}),
        (np.ones(()), {"axis": 1}),
        (np.ones((3, 4)), {"axis": 0.5}),
        (np.ones((3, 4)), {"axis": "rows"}),
        (np.array(["a", "b"]), {}),
        (np.zeros(3, "i4,f8"), {}),
    ],
    ids=str,
)
def test_errors_of_numpy_come_before_anything_starts(
    serial: shmpar.Pool, name: str, array: np.ndarray, keywords: Any
) -> None:
    """The error equals that of NumPy, and no chunk is computed."""
    with pytest.raises((ValueError, TypeError)) as expected:
        getattr(np, name)(array, **keywords)
    with pytest.raises(type(expected.value)) as got:
        getattr(serial, name)(array, chunks=1, **keywords)
    assert str(got.value) == str(expected.value)
    assert serial.last_run is None


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("name", ["min", "max"])
def test_nothing_has_no_smallest_element(serial: shmpar.Pool, name: str, shape: Any) -> None:
    """NumPy's error; along an axis with elements there is none."""
    empty = np.empty(shape)
    with pytest.raises(ValueError, match="zero-size array to reduction operation"):
        getattr(serial, name)(empty)
    axis = shape.index(0)
    with pytest.raises(ValueError, match="zero-size array to reduction operation"):
        getattr(serial, name)(empty, axis=axis)
    if len(shape) > 1:
        assert getattr(serial, name)(empty, axis=1 - axis).shape == (0,)


def test_means_and_variances_of_nothing_warn_as_numpys(serial: shmpar.Pool) -> None:
    """The warnings of NumPy: mean of empty slice, degrees of freedom."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("default")
        with pytest.warns(RuntimeWarning, match="Mean of empty slice"):
            assert np.isnan(serial.mean(np.empty(0)))
        with pytest.warns(RuntimeWarning, match="Degrees of freedom <= 0"):
            assert np.isnan(serial.var(np.ones(1), ddof=1))
        with pytest.warns(RuntimeWarning, match="Degrees of freedom <= 0") as caught:
            assert serial.std(np.arange(3.0), ddof=3, chunks=1) == np.inf
        assert caught[0].filename == __file__


@pytest.mark.parametrize("name", [*NAMES, "histogram"])
@pytest.mark.parametrize("array", [np.ones(3), np.empty(0), np.array(1.0)], ids=np.shape)
def test_options_are_checked_whatever_there_is_to_reduce(
    serial: shmpar.Pool, name: str, array: np.ndarray
) -> None:
    """A misspelt keyword names the reduction; none of them has wait=False."""
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected .* 'sigma'"):
        getattr(serial, name)(array, sigma=3)
    with pytest.raises(TypeError, match=f"^{name}: a reduction always waits"):
        getattr(serial, name)(array, wait=False)
    assert serial.last_run is None


# Histograms


edges = st.lists(st.integers(-20, 20), min_size=1, max_size=6).map(sorted)
ranges = st.tuples(st.integers(-20, 0), st.integers(0, 20)) | st.just((0.25, 30.5))


def same_histogram(got: Any, expected: Any) -> None:
    """Counts and edges to the last bit, and of the same dtypes."""
    for mine, numpys in zip(got, expected, strict=True):
        same_form(mine, numpys)
        np.testing.assert_array_equal(mine, numpys)


@quick
@given(
    case=cases([*WHOLE, *FLOAT], finite=True),
    bins=st.integers(1, 9) | edges,
    limits=st.none() | ranges,
    density=st.booleans(),
)
def test_histograms_are_numpys(
    serial: shmpar.Pool, case: Case, bins: Any, limits: Any, density: bool
) -> None:
    """Any shape and dtype; bins by number, edges or range; also values beyond the range."""
    array, _, chunks = case
    expected = outcome(np.histogram, array, bins, limits, density=density)
    got = outcome(serial.histogram, array, bins, limits, density=density, chunks=chunks)
    if isinstance(expected[0], type):
        assert got == expected
    else:
        same_histogram(got, expected)


@quick
@given(
    values=hnp.arrays(
        "f8", st.integers(0, 30), elements=elements("f8", finite=False) | st.floats(-30, 30)
    ),
    bins=edges,
)
def test_values_that_are_not_finite_are_counted_as_in_numpy(
    serial: shmpar.Pool, values: np.ndarray, bins: Any
) -> None:
    """NaN and infinities lie in no bin, or in the last one that is open to them."""
    for last in (30, np.inf):
        expected = np.histogram(values, [*bins, last])
        same_histogram(serial.histogram(values, [*bins, last], chunks=4), expected)


@pytest.mark.parametrize(
    "keywords",
    [
        {"bins": 0},
        {"bins": 2.5},
        {"bins": None},
        {"bins": [3, 1]},
        {"bins": [[1, 2]]},
        {"range": (3, 1)},
        {"range": (0, np.nan)},
        {"range": 5},
    ],
    ids=str,
)
def test_bins_that_make_no_sense_are_numpys_error(serial: shmpar.Pool, keywords: Any) -> None:
    """The errors equal those of NumPy, and come before anything starts."""
    with pytest.raises((ValueError, TypeError)) as expected:
        np.histogram(np.arange(9.0), **keywords)
    with pytest.raises(type(expected.value)) as got:
        serial.histogram(np.arange(9.0), chunks=2, **keywords)
    assert str(got.value) == str(expected.value)
    assert serial.last_run is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_range_that_is_not_finite_is_an_error(serial: shmpar.Pool, value: float) -> None:
    """As in NumPy, infinite values leave bins without edges."""
    with pytest.raises(ValueError, match="is not finite"):
        serial.histogram(np.array([1.0, value, 3.0]), chunks=1)


# A sample of all that on every engine


@brief
@given(case=cases(least=1, finite=True), name=st.sampled_from(NAMES))
def test_every_engine_gives_the_same_bytes(
    pool: shmpar.Pool, serial: shmpar.Pool, case: Case, name: str
) -> None:
    """A reduction does not depend on which workers compute its chunks."""
    array, axis, chunks = case
    one = getattr(serial, name)(array, axis=axis, chunks=chunks)
    other = getattr(pool, name)(array, axis=axis, chunks=chunks)
    same_form(other, one)
    assert np.asarray(other).tobytes() == np.asarray(one).tobytes()
