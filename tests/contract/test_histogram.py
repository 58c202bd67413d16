"""Histograms with weights, with rules for the number of bins, and as densities: NumPy's."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import shmpar
from shmpar.verbs.quantiles import Selection
from tests.contract.comparison import failed, outcome, same_class

pytestmark = pytest.mark.usefixtures("numpy_may_warn")
quick = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)

RULES = ["auto", "doane", "fd", "rice", "scott", "sqrt", "stone", "sturges"]
# Why: older versions have other rules for integers, and for "auto".
new_rules = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.4.0", reason="the rules are those of NumPy 2.4"
)


def same(got: Any, due: Any, *, within: float = 0) -> None:
    """Counts and edges have the dtypes, shapes and values of NumPy's."""
    for one, other in zip(got, due, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
    assert np.array_equal(got[1], due[1])
    assert np.allclose(got[0], due[0], rtol=within, atol=0, equal_nan=True)


@st.composite
def arrays(draw: st.DrawFn, dtypes: tuple[str, ...]) -> np.ndarray:
    """Draw an array of up to three axes, with repeated and with rounded values."""
    shape = draw(hnp.array_shapes(max_dims=3, max_side=9))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    seed, kind = draw(st.integers(0, 2**32)), draw(st.sampled_from(["many", "few", "wide"]))
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape) * {"many": 40, "few": 2, "wide": 10}[kind]
    if kind == "few":
        values = np.round(values)
    if dtype.kind == "f" and kind == "wide" and dtype.itemsize > 2:
        values = np.exp(values / 3) * np.sign(values)
    if dtype.kind == "u":
        values = abs(values)
    return values.astype(dtype)


@new_rules
@quick
@given(
    array=arrays(("i1", "u1", ">i2", "u4", "i8", "f2", "f4", ">f8", "f8", "g")),
    rule=st.sampled_from(RULES),
    limits=st.sampled_from([None, (-3, 3), (0, 0), (-1.5, 2.5), (500, 600)]),
    chunks=st.sampled_from([1, 2, 5, "auto"]),
    density=st.booleans(),
)
def test_the_rules_are_numpys(
    serial: shmpar.Pool, array: Any, rule: str, limits: Any, chunks: Any, density: bool
) -> None:
    """A rule gives NumPy's number of bins, of every dtype, within a range and for any chunks.

    The sums of squares of two rules may differ in their last digits. NumPy's overflow in float16.
    """
    assume(array.dtype != np.float16 or rule not in {"scott", "doane"})
    due = outcome(np.histogram, array, rule, limits, density=density)
    if rule == "stone" and array.size > 50:
        chunks = "auto"
    got = outcome(serial.histogram, array, rule, limits, density=density, chunks=chunks)
    if not failed(due) and rule in {"scott", "doane"} and len(got[0]) != len(due[0]):
        assert abs(len(got[0]) - len(due[0])) == 1
        due = np.histogram(array, len(got[0]), limits, density=density)
    if failed(due):
        same_class(got, due)
    else:
        same(got, due)


# Why one dtype: a rule on an engine is the same code for all dtypes, which the test above draws.
@new_rules
@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        ("auto", "i4"),
        ("auto", "f8"),
        ("doane", "f4"),
        ("fd", "u1"),
        ("fd", "f4"),
        ("rice", "i4"),
        ("scott", "f8"),
        ("sqrt", "u1"),
        ("sturges", "f8"),
    ],
)
def test_the_rules_on_every_engine(pool: shmpar.Pool, rule: str, dtype: str) -> None:
    """Many values, on workers: the number of bins, the counts and the edges are NumPy's."""
    values = (np.random.default_rng(7).normal(120, 20, (300, 400)).clip(0, 255)).astype(dtype)
    same(pool.histogram(values, rule, chunks=101), np.histogram(values, rule))
    limits = (100.0, 130.0)
    got, due = pool.histogram(values, rule, limits, chunks=101), np.histogram(values, rule, limits)
    same(got, due)


@new_rules
def test_the_rule_of_stone_on_every_engine(pool: shmpar.Pool) -> None:
    """The candidates are compared by exact counts, and the warning is NumPy's."""
    values = np.random.default_rng(7).normal(size=200)
    same(pool.histogram(values, "stone", chunks=90), np.histogram(values, "stone"))
    spikes = np.repeat([0.0, 1.0, 50.0], 30)
    with pytest.warns(RuntimeWarning, match="may be suboptimal"):
        due = np.histogram(spikes, "stone")
    with pytest.warns(RuntimeWarning, match="may be suboptimal") as caught:
        same(pool.histogram(spikes, "stone", chunks=50), due)
    assert caught[0].filename == __file__


@new_rules
@pytest.mark.parametrize(
    ("rule", "value"),
    [(rule, value) for n, rule in enumerate(RULES) for value in (0.0, (-3.0, 7.5)[n % 2])],
)
def test_equal_values(serial: shmpar.Pool, rule: str, value: float) -> None:
    """All values in one bin, as in NumPy; outliers and repeated values too."""
    for array in (np.full(9, value), np.full(1, value), np.r_[np.full(30, value), value + 100]):
        same(serial.histogram(array, rule, chunks=4), np.histogram(array, rule))


@quick
@given(
    array=hnp.arrays("f8", st.integers(1, 60), elements=st.floats(-1e300, 1e300)),
    data=st.data(),
    chunks=st.integers(1, 60),
)
def test_the_selection_is_exact(
    serial: shmpar.Pool, array: Any, data: st.DataObject, chunks: int
) -> None:
    """The elements of any ranks are those of the sorted array, also of subnormal numbers."""
    dtype = data.draw(st.sampled_from(["f8", "f4", "f2", "i8", "u8", "i1"]))
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        numbers = st.integers(int(info.min), int(info.max))
        array = data.draw(hnp.arrays(dtype, len(array), elements=numbers))
    else:
        array = array.clip(*[getattr(np.finfo(dtype), end) for end in ("min", "max")]).astype(dtype)
    ranks = data.draw(st.lists(st.integers(0, len(array) - 1), min_size=1, max_size=4))
    call = serial._reduction("histogram", np.histogram, array, {})
    got = Selection(partial(serial._collect, call, call.inputs.cut(chunks))).at(ranks)
    assert got.dtype == array.dtype
    assert np.array_equal(got, np.sort(array)[ranks])


WEIGHTS = ("?", "i1", "u2", "i8", "u8", "f2", "f4", "f8", "g", "c8", "c16")


@quick
@given(
    array=arrays(("i1", "u4", "f4", "f8")),
    dtype=st.sampled_from(WEIGHTS),
    bins=st.sampled_from([1, 4, [-2, -1, 0, 3.5], [0.0, 1.0], [1.0]]),
    limits=st.sampled_from([None, (-3, 3), (0, 0)]),
    chunks=st.sampled_from([1, 2, 5, "auto"]),
    seed=st.integers(0, 99),
    density=st.booleans(),
)
def test_weights_are_added_as_numpy_does(serial: shmpar.Pool, **drawn: Any) -> None:
    """Weights of any dtype: the sums have their dtype, whole ones are exact; errors agree."""
    array, bins, limits = drawn["array"], drawn["bins"], drawn["limits"]
    weights = np.random.default_rng(drawn["seed"]).integers(0, 9, array.shape)
    keywords = {"density": drawn["density"], "weights": weights.astype(drawn["dtype"])}
    due = outcome(np.histogram, array, bins, limits, **keywords)
    got = outcome(serial.histogram, array, bins, limits, chunks=drawn["chunks"], **keywords)
    if failed(due):
        same_class(got, due)
    else:
        same(got, due)


@pytest.mark.parametrize("weight_type", ["f4", "f8", "c16"])
@pytest.mark.parametrize("bins", [12, [-2.0, -1.0, 0.5, 3.0]])
def test_weights_on_every_engine(pool: shmpar.Pool, weight_type: str, bins: Any) -> None:
    """Rounded sums are equal up to the order of additions; an out-of-range weight is not added."""
    rng = np.random.default_rng(5)
    values, weights = rng.normal(size=(300, 200)), rng.random((300, 200)).astype(weight_type)
    tolerance = 1e-5 if weight_type == "f4" else 1e-12
    for density in (False, True):
        keywords: dict[str, Any] = {"weights": weights, "density": density}
        got = pool.histogram(values, bins, (-2, 2), chunks=77, **keywords)
        same(got, np.histogram(values, bins, (-2, 2), **keywords), within=tolerance)
    shared = pool.array(weights)
    same(
        pool.histogram(values, bins, weights=shared), pool.histogram(values, bins, weights=weights)
    )
    listed = pool.histogram([1, 2, 2], 2, weights=[1, 2, 3])
    same(listed, np.histogram([1, 2, 2], 2, weights=[1, 2, 3]))


@pytest.mark.parametrize(
    ("bins", "keywords", "error"),
    [
        (3, {"weights": np.ones(4)}, ValueError),
        (3, {"weights": np.ones((5, 1))}, ValueError),
        (3, {"weights": 2.0}, ValueError),
        ("auto", {"weights": np.ones(5)}, TypeError),
        ("automatic", {}, ValueError),
        ("auto", {"range": (1, math.inf)}, ValueError),
        ([0, 2, 3], {"weights": np.ones(5, bool)}, TypeError),
        (3, {"weights": np.ones(5, object)}, TypeError),
        (3, {"weights": np.ma.masked_less(np.arange(5), 2)}, TypeError),
        (3, {"weights": np.array(["a"] * 5)}, TypeError),
    ],
)
def test_bad_weights_and_rules_are_refused(
    pool: shmpar.Pool, bins: Any, keywords: Any, error: Any
) -> None:
    """The errors are NumPy's, and come before anything starts."""
    before = pool.last_run
    with pytest.raises(error):
        pool.histogram(np.arange(5.0), bins, **keywords)
    assert pool.last_run is before


@pytest.mark.parametrize("rule", RULES)
def test_a_range_that_is_not_finite_is_refused(serial: shmpar.Pool, rule: str) -> None:
    """NaN without a range is an error; with a range it is counted nowhere."""
    values = np.array([1.0, math.nan, 3.0, 2.0])
    with pytest.raises(ValueError, match="is not finite"):
        serial.histogram(values, rule, chunks=2)
    same(serial.histogram(values, rule, (0, 4), chunks=1), np.histogram(values, rule, (0, 4)))


@pytest.mark.parametrize("dtype", ["g", "f8", "f4", "f2", "i4", "?"])
@pytest.mark.parametrize("bins", [3, [0.0, 0.5, 2.0], np.array([0, 1, 2], "g")])
def test_a_density_has_the_dtype_of_numpys(pool: shmpar.Pool, dtype: str, bins: Any) -> None:
    """Also of long double, whose density is a float64."""
    values = np.arange(6).astype(dtype)
    for density in (False, True):
        same(
            pool.histogram(values, bins, density=density, chunks=2),
            np.histogram(values, bins, density=density),
        )


@pytest.mark.parametrize("dtype", [">i2", ">f8", "m8[s]"])
def test_weights_in_another_byte_order_or_of_time(serial: shmpar.Pool, dtype: str) -> None:
    """The sums keep the dtype, although no ufunc adds in it."""
    values, weights = np.array([1, 2, 2, 5.0]), np.array([1, 2, 3, 250]).astype(dtype)
    due = np.histogram(values, 2, weights=weights)
    got = serial.histogram(values, 2, weights=weights, chunks=1)
    assert got[0].dtype == due[0].dtype
    assert got[0].tolist() == due[0].tolist()


def test_nothing_with_weights_that_no_element_could_have(serial: shmpar.Pool) -> None:
    """NumPy counts no elements with weights that it refuses for a single one."""
    empty = np.empty(0, bool)
    same(serial.histogram([], [0, 1, 2], weights=empty), np.histogram([], [0, 1, 2], weights=empty))


def test_a_fill_value_is_no_end_of_the_range(serial: shmpar.Pool) -> None:
    """With `range` a block that cannot be read counts as filled; without it there is no range."""

    class Damaged:
        shape, ndim, dtype = (6,), 1, np.dtype("f8")

        def __getitem__(self, window: Any) -> Any:
            if window[0].start == 0:
                raise OSError("damaged")
            return 100 + np.arange(6.0)[window]

    store = shmpar.opened(Damaged)
    keywords: dict[str, Any] = {"chunks": 2, "on_error": "fill", "fill_value": 0, "io_retries": 0}
    with pytest.warns(RuntimeWarning, match="filled"):
        counts, _ = serial.histogram(store, 2, (100, 106), **keywords)
    assert counts.tolist() == [1, 3]
    for bins in (2, "sqrt"):
        with pytest.raises(shmpar.ChunkError, match="damaged"):
            serial.histogram(store, bins, **keywords)


def test_several_passes_copy_the_array_once(process_pool: shmpar.Pool) -> None:
    """A plain array is shared before the first pass, and a broadcast one stays small."""
    values, sizes = np.broadcast_to(7, 90_000), list[int]()

    def look(*_: int) -> None:
        sizes.extend(one.nbytes for one in process_pool.memory if one.purpose == "copy of an input")

    for count in (process_pool.histogram, process_pool.bincount, process_pool.median):
        count(values, chunks=9_000, progress=look)
        assert process_pool.last_run is not None
        assert [kind for kind, _ in process_pool.last_run.report.inputs] == ["shm"]
    assert set(sizes) == {values.itemsize}
    closed = shmpar.Pool(1)
    closed.shutdown()
    with pytest.raises(RuntimeError, match="this pool is closed, make a new one"):
        closed.histogram(np.arange(5))
