"""Filters of scipy.ndimage under map_overlap equal the filter on the whole array.

Order filters and integers exactly. Floats to the last digits: a running sum, as uniform_filter's,
starts elsewhere in a window than in the array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import shmpar
from tests.pools import drop_caches

ndimage = pytest.importorskip("scipy.ndimage")

quick = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)

MODES = ["reflect", "mirror", "nearest", "wrap", "constant"]
ALIASES = {"grid-mirror": "reflect", "grid-wrap": "wrap", "grid-constant": "constant"}
DTYPES = ["u1", "f4", "i2", "f8", "i4"]
CVAL = 7


@dataclass(frozen=True)
class Filter:
    """A filter, its reach on both sides, and its arithmetic.

    Attributes
    ----------
    func : callable
        Maps an array and a mode to an array.
    reach : (int, int)
        Elements before and after each element on which its value depends, along each axis.
    order : bool
        The filter selects elements, so nothing is rounded.
    flat : bool
        The filter maps a constant array to itself, exactly. So a border of constants may be
        padded once, or again before each axis is filtered.
    ulps : int
        Largest distance of two results: a running sum is rounded once per element.
    """

    func: Callable[..., np.ndarray]
    reach: tuple[int, int]
    order: bool = False
    flat: bool = False
    ulps: int = 4


FILTERS = {
    "gaussian": Filter(partial(ndimage.gaussian_filter, sigma=1.0, truncate=2.0), (2, 2)),
    "wide gaussian": Filter(partial(ndimage.gaussian_filter, sigma=3.0), (12, 12)),
    "median": Filter(partial(ndimage.median_filter, size=3), (1, 1), order=True, flat=True),
    "even median": Filter(partial(ndimage.median_filter, size=4), (2, 1), order=True, flat=True),
    "wide median": Filter(partial(ndimage.median_filter, size=9), (4, 4), order=True, flat=True),
    "sobel": Filter(partial(ndimage.sobel, axis=0), (1, 1)),
    "sobel along the last axis": Filter(partial(ndimage.sobel, axis=-1), (1, 1)),
    "dilation": Filter(partial(ndimage.grey_dilation, size=5), (2, 2), order=True, flat=True),
    "even dilation": Filter(partial(ndimage.grey_dilation, size=4), (1, 2), order=True, flat=True),
    "uniform": Filter(partial(ndimage.uniform_filter, size=5), (2, 2), flat=True, ulps=64),
    "wide uniform": Filter(partial(ndimage.uniform_filter, size=41), (20, 20), flat=True, ulps=64),
}

#: Shapes with chunks that do not divide them, are longer, or are of a single element.
CUTS: list[tuple[tuple[int, ...], Any]] = [
    ((31,), 7),
    ((5,), 1),
    ((17, 13), (5, 4)),
    ((9, 3), (1, 8)),
    ((7, 5, 6), (3, 2, 4)),
    ((1, 9, 2), (1, 4, 1)),
]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[shmpar.Pool]:
    """A pool without workers, for the module."""
    with shmpar.Pool(1, engine="serial") as made:
        yield made


@pytest.fixture
def serial(one_thread: shmpar.Pool, nothing_left: None) -> Iterator[shmpar.Pool]:
    """Windows do not depend on the engine."""
    yield one_thread
    drop_caches(one_thread)


def sample(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Values that fill the dtype's range without overflow of a sobel."""
    values = np.random.default_rng(len(shape)).integers(0, 101, shape)
    return (values if np.dtype(dtype).kind in "iu" else values * np.pi).astype(dtype)


def samples(name: str, mode: str) -> Iterator[tuple[np.ndarray, Any]]:
    """Half of the shapes with their chunks, and several dtypes among them.

    Under all modes together, a filter has each shape; under all filters, a mode has each shape. All
    tests together have each shape with each dtype.
    """
    first = list(FILTERS).index(name) + MODES.index(mode)
    for number in range(first % 2, len(CUTS), 2):
        shape, chunks = CUTS[number]
        yield sample(shape, DTYPES[(number + first) % len(DTYPES)]), chunks


def just(tested: Filter, ndim: int) -> Any:
    """The filter's reach as depth=."""
    return (tested.reach,) * ndim


def both(tested: Filter) -> int:
    """The longer reach of the filter, which it needs to mirror an array at both ends."""
    return max(tested.reach)


def check(got: np.ndarray, expected: np.ndarray, tested: Filter) -> None:
    """Equal bit by bit, or to a few units in the last place of the largest values."""
    assert got.dtype == expected.dtype
    if tested.order or expected.dtype.kind in "iu":
        np.testing.assert_array_equal(got, expected)
    else:
        ulp = np.finfo(expected.dtype).eps * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(got, expected, rtol=0, atol=tested.ulps * ulp)


def constant_of(tested: Filter) -> int:
    """Return the constant boundary: 0 unless the filter keeps a constant array unchanged."""
    return CVAL if tested.flat else 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FILTERS)
def test_the_filters_own_mode_treats_the_arrays_border(
    serial: shmpar.Pool, name: str, mode: str
) -> None:
    """Without a boundary windows end with the array, so that the filter finds its border there.

    All but "wrap", which needs the other end of the array: of the axis that it wraps.
    """
    tested = FILTERS[name]
    run = partial(tested.func, mode=mode, cval=CVAL)
    for array, chunks in samples(name, mode):
        cut = -1 if mode == "wrap" else chunks
        got = serial.map_overlap(run, array, depth=both(tested), chunks=cut)
        check(got, run(array), tested)


@pytest.mark.parametrize("name", ["gaussian", "median", "sobel", "uniform"])
def test_a_filter_that_wraps_needs_a_boundary(serial: shmpar.Pool, name: str) -> None:
    """In a window that ends with the array it wraps round the window; the docs warn of it."""
    tested, array = FILTERS[name], sample((17, 13), "f8")
    run, depth = partial(tested.func, mode="wrap"), both(tested)
    alone = serial.map_overlap(run, array, depth=depth, chunks=(5, 4))
    assert not np.allclose(alone, run(array))
    got = serial.map_overlap(run, array, depth=depth, boundary="wrap", chunks=(5, 4))
    check(got, run(array), tested)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FILTERS)
def test_a_boundary_stands_for_the_filters_mode(serial: shmpar.Pool, name: str, mode: str) -> None:
    """The window contains the padding, and trimming removes the effect of the filter's mode."""
    tested = FILTERS[name]
    constant = constant_of(tested)
    boundary = constant if mode == "constant" and constant else mode
    for number, (array, chunks) in enumerate(samples(name, mode), list(FILTERS).index(name)):
        run = partial(tested.func, mode=MODES[number % len(MODES)], cval=99)
        depth = just(tested, array.ndim)
        got = serial.map_overlap(run, array, depth=depth, boundary=boundary, chunks=chunks)
        check(got, tested.func(array, mode=mode, cval=constant), tested)


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("name", ["gaussian", "median", "uniform"])
def test_other_names_mean_the_same(serial: shmpar.Pool, name: str, alias: str) -> None:
    """A name has the same meaning in SciPy's filters and as a boundary."""
    tested = FILTERS[name]
    array = sample((17, 13), "f8")
    expected = tested.func(array, mode=ALIASES[alias])
    got = serial.map_overlap(tested.func, array, depth=2, boundary=alias, chunks=(5, 4))
    check(got, expected, tested)
    cut = -1 if alias == "grid-wrap" else (5, 4)
    got = serial.map_overlap(partial(tested.func, mode=alias), array, depth=2, chunks=cut)
    check(got, expected, tested)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_constant_that_is_rounded_is_so_to_the_last_digits(
    serial: shmpar.Pool, dtype: str
) -> None:
    """A gaussian's weights do not sum to 1 exactly, which is all the difference."""
    array = sample((17, 13), dtype)
    run = partial(ndimage.gaussian_filter, sigma=1.0, truncate=2.0)
    got = serial.map_overlap(run, array, depth=2, boundary=2.5, chunks=(5, 4))
    check(got, run(array, mode="constant", cval=2.5), FILTERS["gaussian"])


def test_a_mode_an_axis_is_a_boundary_an_axis(serial: shmpar.Pool) -> None:
    """Each axis has its own boundary."""
    array = sample((17, 13), "i4")
    modes = ("wrap", "mirror")
    expected = ndimage.uniform_filter(array, 5, mode=modes)
    run = partial(ndimage.uniform_filter, size=5)
    got = serial.map_overlap(run, array, depth=2, boundary=modes, chunks=(5, 4))
    np.testing.assert_array_equal(got, expected)
    wrapped = partial(ndimage.uniform_filter, size=5, mode=modes)
    got = serial.map_overlap(wrapped, array, depth=2, boundary=("wrap", "none"), chunks=(5, 4))
    np.testing.assert_array_equal(got, expected)


def test_a_filter_of_one_axis_needs_a_halo_there_alone(serial: shmpar.Pool) -> None:
    """Along the other axes blocks may be anything."""
    array = sample((7, 5, 6), "f8")
    run = partial(ndimage.gaussian_filter1d, sigma=1.0, truncate=3.0, axis=1, mode="mirror")
    got = serial.map_overlap(run, array, depth={1: 3}, chunks=(3, 2, 4))
    check(got, run(array), FILTERS["gaussian"])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    """An array of odd and even sizes, chunks, a size of filter that may be wider than both."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    chunks = tuple(draw(st.integers(1, 10)) for _ in shape)
    sizes = tuple(draw(st.integers(1, 14)) for _ in shape)
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(-99, 100, shape)
    return values.astype(draw(st.sampled_from(["i1", "i8", "f4", "f8"]))), chunks, sizes


ORDER = {
    "median": ndimage.median_filter,
    "rank": partial(ndimage.rank_filter, rank=0),
    "maximum": ndimage.maximum_filter,
}


@quick
@given(
    case=cases(),
    name=st.sampled_from(sorted(ORDER)),
    mode=st.sampled_from(MODES),
    padded=st.booleans(),
    more=st.integers(0, 3),
)
def test_order_filters_of_any_size_are_exact(
    serial: shmpar.Pool, case: Any, name: str, mode: str, padded: bool, more: int
) -> None:
    """Both ways to say the border agree with SciPy, with just enough halo and with more."""
    array, chunks, sizes = case
    # SciPy's own median of one axis is wrong where it is wider than the array (1.17).
    assume(array.ndim > 1 or sizes[0] // 2 < array.size)
    run = partial(ORDER[name], size=sizes, mode=mode, cval=CVAL)
    # The element whose value is computed lies at size // 2.
    depth: Any = tuple((size // 2 + more, size - size // 2 - 1 + more) for size in sizes)
    if padded:
        boundary: Any = CVAL if mode == "constant" else mode
    else:
        boundary, depth = "none", tuple(size // 2 + more for size in sizes)
        chunks = -1 if mode == "wrap" else chunks
    got = serial.map_overlap(run, array, depth=depth, boundary=boundary, chunks=chunks)
    np.testing.assert_array_equal(got, run(array))


SOME = ["gaussian", "median", "sobel", "dilation", "uniform"]
# Why: each filter and each mode twice is enough, since windows do not depend on the engine.
PAIRS = [(name, MODES[(first + step) % 5]) for first, name in enumerate(SOME) for step in (0, 3)]


@pytest.mark.parametrize(("name", "mode"), PAIRS)
def test_every_engine_filters_alike(pool: shmpar.Pool, name: str, mode: str) -> None:
    """A sample of the above, and an array large enough that "auto" cuts it."""
    tested = FILTERS[name]
    small, large = sample((17, 13), "i4"), sample((301, 199), "f4")
    for array, chunks in ((small, (5, 4)), (large, "auto")):
        expected = tested.func(array, mode=mode, cval=constant_of(tested))
        boundary = CVAL if mode == "constant" and tested.flat else mode
        keywords: dict[str, Any] = {"depth": both(tested), "chunks": chunks}
        check(pool.map_overlap(tested.func, array, boundary=boundary, **keywords), expected, tested)
        assert pool.last_run.report.chunks > 1
        if mode != "wrap":
            run = partial(tested.func, mode=mode, cval=constant_of(tested))
            check(pool.map_overlap(run, array, **keywords), expected, tested)
