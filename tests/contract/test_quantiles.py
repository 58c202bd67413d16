"""Medians and quantiles: those of NumPy, selected from blocks."""

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
from shmpar.verbs import quantiles
from tests.contract.comparison import axes, failed, outcome, same

pytestmark = pytest.mark.usefixtures("numpy_may_warn")
quick = settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
# Why: older versions compute places in the dtype of the array.
new_places = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.4.0", reason="the places are those of NumPy 2.4"
)

MEDIANS = ["median", "nanmedian"]
QUANTILES = ["percentile", "nanpercentile", "quantile", "nanquantile"]
NAMES = [*MEDIANS, *QUANTILES]
DTYPES = ["?", "i1", ">i2", "u4", "i8", "f2", ">f4", "f8", "g", "c8", "c16", "m8[s]", "M8[s]", "U3"]
METHODS = list(quantiles._METHODS)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Any, Any]:
    """Draw an array with repeated values, NaN and large ones, an axis, and chunks."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.integers(0, draw(st.sampled_from([2, 10, 100])), shape)
    with_nan = draw(st.sampled_from([0, 0, 0.05, 0.5]))
    if dtype.kind in "mM":
        array = np.where(rng.random(shape) < with_nan, np.array("NaT", dtype), values.astype(dtype))
    else:
        scaled = values / 7 if dtype.kind in "fc" else values
        array = np.asarray(scaled).astype(dtype)
        if dtype.kind in "fc":
            array = np.where(rng.random(shape) < with_nan, dtype.type(math.nan), array)
            array = np.where(rng.random(shape) < with_nan / 4, dtype.type(math.inf), array)
    chunks = draw(st.sampled_from([1, 2, 3, "auto"]))
    return array.astype(dtype), draw(axes(shape)), chunks


shares = st.floats(0, 1) | st.sampled_from([0, 1, 0.25, 0.5, np.float64(0.3), np.float32(0.7)])
many_shares = shares | st.lists(shares, max_size=4)


@quick
@given(case=cases(), name=st.sampled_from(MEDIANS), keepdims=st.booleans())
def test_medians_are_numpys(serial: shmpar.Pool, case: Any, name: str, keepdims: bool) -> None:
    """Every dtype, axis and shape, NaN and empty ones too, for any chunks; errors are the same."""
    array, axis, chunks = case
    keywords = {"axis": axis, "keepdims": keepdims}
    due = outcome(getattr(np, name), array, **keywords)
    same(outcome(getattr(serial, name), array, chunks=chunks, **keywords), due)


@pytest.mark.parametrize("axis", [None, 0, (0, 1)])
@pytest.mark.parametrize("shape", [(1,), (3,), (1, 1), (2, 3)])
@pytest.mark.parametrize("name", MEDIANS)
def test_medians_of_missing_dates_are_numpys(
    serial: shmpar.Pool, name: str, shape: tuple[int, ...], axis: Any
) -> None:
    """NumPy refuses the median of dates, but gives that of NaT alone along all axes."""
    for first in ("NaT", "2026-11-28"):
        dates = np.full(shape, "NaT", "M8[s]")
        dates.flat[0] = first
        due = outcome(getattr(np, name), dates, axis=axis)
        same(outcome(getattr(serial, name), dates, axis=axis, chunks=1), due)


@new_places
@quick
@given(
    case=cases(),
    name=st.sampled_from(QUANTILES),
    q=many_shares,
    method=st.sampled_from(["linear"] * 12 + METHODS),
    keepdims=st.booleans(),
)
def test_quantiles_are_numpys(serial: shmpar.Pool, case: Any, name: str, **drawn: Any) -> None:
    """The same bits, for one or several of any type, by every method."""
    array, axis, chunks = case
    if drawn["method"] == "averaged_inverted_cdf" and array.dtype.kind == "f":
        array = np.where(np.isinf(array), array.dtype.type(1), array)  # NumPy: NaN beside infinity
    if "percentile" in name:
        drawn["q"] = np.multiply(drawn["q"], 100) if np.ndim(drawn["q"]) else drawn["q"] * 100
    due = outcome(getattr(np, name), array, axis=axis, **drawn)
    if array.dtype.kind in "SU" and drawn["keepdims"] and failed(due):
        return  # Why: NumPy takes the text of a single element for an array.
    if not axis and isinstance(axis, tuple) and not failed(due):
        return  # Why: NumPy reduces an axis that it adds.
    same(outcome(getattr(serial, name), array, axis=axis, chunks=chunks, **drawn), due)


@new_places
@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("q", [np.float64(30), [30, 50], np.float32(30), 30.0], ids=repr)
def test_a_line_of_nan_beside_others(
    serial: shmpar.Pool, monkeypatch: pytest.MonkeyPatch, q: Any, long: bool
) -> None:
    """NumPy may give it a result of another dtype, and gives all lines the dtype of the first."""
    monkeypatch.setattr(quantiles, "_LINE_BYTES", 1 if long else 100)
    values = np.array([[0.1428, np.nan, 7, 0.3, np.nan, 9, 2]] * 2, "f4")
    for array in (values, values[:, 1:], values.astype(">f2")):
        for chunks in (1, 3):
            for name in ("percentile", "nanpercentile"):
                due = getattr(np, name)(array, q, axis=0)
                same(getattr(serial, name)(array, q, axis=0, chunks=chunks), due)


@pytest.mark.parametrize("dtype", ["U1", "S1"])
def test_a_single_text_is_its_quantile(serial: shmpar.Pool, dtype: str) -> None:
    """As in NumPy, and also with keepdims=True."""
    text = np.array(["1"], dtype)
    assert serial.quantile(text, 0) == np.quantile(text, 0) == text[0]
    assert serial.quantile(text, 0, method="lower") == text[0]
    assert serial.quantile(text, 0, keepdims=True).tolist() == text.tolist()


@new_places
@pytest.mark.parametrize("name", QUANTILES)
@pytest.mark.parametrize("method", METHODS)
def test_methods_are_numpys(serial: shmpar.Pool, name: str, method: str) -> None:
    """The ends, the places of elements and those between them, by every method."""
    values = np.random.default_rng(2).integers(0, 50, 21) / 4
    q = np.linspace(0, 100 if "percentile" in name else 1, 41)
    for one in (q, q[13], float(q[13]), q.reshape(1, -1)):
        due = getattr(np, name)(values, one, method=method)
        same(getattr(serial, name)(values, one, method=method, chunks=4), due)


@new_places
@pytest.mark.parametrize("method", METHODS)
def test_methods_beside_infinity_and_without_a_share(serial: shmpar.Pool, method: str) -> None:
    """The first element has no neighbour before it, and no quantile has the dtype of some."""
    values = np.array([np.inf, 2, np.inf])
    for q in (0, 0.01):
        due = np.quantile(values, q, method=method)
        same(serial.quantile(values, q, method=method, chunks=1), due)
    for dtype in ("u2", "f4", "f8"):
        two = np.array([3, 2], dtype)
        due = np.quantile(two, [], method=method)
        same(serial.quantile(two, [], method=method, chunks=1), due)


# Why not each pair: the axes are those of all verbs here, and every verb cuts lines and selects.
@pytest.mark.parametrize(
    ("name", "axis"),
    [(name, axis) for n, name in enumerate(NAMES) for axis in (None, (0, (0, 2), -1)[n % 3])],
)
def test_a_larger_array_on_every_engine(pool: shmpar.Pool, name: str, axis: Any) -> None:
    """Also as the function of the module, whose docstring is that of the method."""
    array = np.random.default_rng(3).normal(1, 0.2, (40, 30, 20))
    if name.startswith("nan"):
        array[array < 0.9] = np.nan
    q = {} if "median" in name else {"q": [0.1, 0.75]}
    due = getattr(np, name)(array, axis=axis, **q)
    same(getattr(pool, name)(array, axis=axis, chunks=17, **q), due)
    same(getattr(pool, name)(pool.array(array), axis=axis, chunks=9, **q), due)
    assert getattr(shmpar, name).__doc__ == getattr(shmpar.Pool, name).__doc__


def test_long_lines_are_selected(any_pool: shmpar.Pool) -> None:
    """A line of more than 8 MiB is cut, and each line has a selection of its own."""
    lines = np.random.default_rng(5).integers(0, 1000, (2, 5 << 20)).astype("u2")
    lines[1, ::2] = 0
    shared = any_pool.array(lines)
    same(any_pool.median(shared, axis=1), np.median(lines, axis=1))
    due = np.percentile(lines[:, ::5], [1, 99], axis=1, keepdims=True)
    same(any_pool.percentile(shared[:, ::5], [1, 99], axis=1, keepdims=True), due)


@pytest.mark.parametrize("axis", [None, 1])
def test_elements_keep_their_byte_order(
    serial: shmpar.Pool, monkeypatch: pytest.MonkeyPatch, axis: Any
) -> None:
    """As in NumPy, whether or not blocks and lines are joined."""
    monkeypatch.setattr(quantiles, "_LINE_BYTES", 8)
    values = np.arange(12, dtype=">f4").reshape(2, 6)
    for q in ([0.2, 0.9], 0.2):
        for keywords in ({"method": "lower"}, {"method": "lower", "keepdims": True}):
            due = np.quantile(values, q, axis, **keywords)
            same(serial.quantile(values, q, axis, chunks=2, **keywords), due)


@pytest.mark.parametrize("order", ["random", "sorted", "equal", "two", "grid", "bytes"])
def test_a_selection_takes_few_passes(
    pool: shmpar.Pool, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Two passes find several percentiles, however the elements lie; of bytes one does."""
    values = np.random.default_rng(1).normal(size=300_000)
    others = {"sorted": np.sort(values), "equal": values * 0, "two": np.sign(values)}
    others["grid"] = np.tile(np.random.default_rng(2).normal(size=9_000), 33)
    values = (values * 40).astype("i1") if order == "bytes" else others.get(order, values)
    passes, run = [], pool._run
    monkeypatch.setattr(pool, "_run", lambda call: passes.append(call) or run(call))
    got = pool.percentile(values, [1, 50, 99], chunks=9_000)
    same(got, np.percentile(values, [1, 50, 99]))
    assert len(passes) == (1 if order == "bytes" else 2)


def test_complex_numbers_among_nan_give_no_warning(serial: shmpar.Pool) -> None:
    """A comparison with a complex NaN warns, which the median of NumPy does not do."""
    values = np.random.default_rng(2).normal(size=12_000).astype("c16")
    values[::7] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(serial.nanmedian(values, chunks=6_000), np.nanmedian(values))


def test_many_quantiles_are_taken_in_parts(
    serial: shmpar.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elements that would take too much memory at once are taken by further passes."""
    monkeypatch.setattr(quantiles, "_MOST_BYTES", 4_000)
    values = np.random.default_rng(1).normal(size=20_000)
    q = np.linspace(0, 1, 101)
    same(serial.quantile(values, q, chunks=900), np.quantile(values, q))


def test_the_bytes_do_not_depend_on_the_workers(pool: shmpar.Pool, serial: shmpar.Pool) -> None:
    """Zeros of both signs are equal, and the same one is found on every engine."""
    values = np.random.default_rng(4).choice([-0.0, 0.0, 1.0], 500)
    for name in MEDIANS:
        one, other = getattr(pool, name)(values, chunks=7), getattr(serial, name)(values, chunks=7)
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_numpys_errors(pool: shmpar.Pool, name: str) -> None:
    """They come before anything starts."""
    before, call = pool.last_run, getattr(pool, name)
    q: dict[str, Any] = {} if "median" in name else {"q": 0.5}
    wrong: list[dict[str, Any]] = [{"axis": 2}, {"axis": (0, 0)}, {"axis": 0.5}, {"axis": "x"}]
    if q:
        wrong += [{"q": -1}, {"q": [0, 101]}, {"q": math.nan}, {"method": "cubic"}, {"q": "a"}]
        wrong += [{"q": [[[0.5]]]}]
    for keywords in wrong:
        due = outcome(getattr(np, name), np.ones((2, 3)), **{**q, **keywords})
        assert failed(due)
        assert outcome(call, np.ones((2, 3)), **{**q, **keywords}) == due
    with pytest.raises(TypeError):
        call(np.array(["a", "b"]), **q)
    with pytest.raises(TypeError, match="masked"):
        call(np.ma.masked_less(np.arange(3), 1), **q)
    with pytest.raises(TypeError, match="did you mean keepdims="):
        call(np.arange(3), keep_dims=True, **q)
    assert pool.last_run is before


@pytest.mark.parametrize("chunks", [100, 50_000])
def test_a_failed_block_is_never_filled(pool: shmpar.Pool, chunks: int) -> None:
    """No value stands for the ranks of a block: the option fills nothing, and changes nothing."""
    values = np.arange(1000.0)
    keywords: dict[str, Any] = {"chunks": chunks, "on_error": "fill", "fill_value": 0}
    assert pool.median(values, **keywords) == 499.5
    seen = pool.last_run
    assert seen is not None
    assert seen.execution.policy.on_error == "raise"


def test_a_worker_may_ask_for_quantiles(any_pool: shmpar.Pool) -> None:
    """A call from inside a worker has the same result."""
    found = any_pool.submit(lambda: float(shmpar.median(np.arange(5_000), chunks=99))).result()
    assert found == 2499.5


@given(data=st.data(), margin=st.sampled_from([0, 4]), most=st.sampled_from([16, 64 << 20]))
@quick
def test_elements_near_a_sample(
    monkeypatch: pytest.MonkeyPatch, data: st.DataObject, margin: int, most: int
) -> None:
    """A small sample, whether or not it encloses an element, leads to the element of that rank."""
    dtype = np.dtype(data.draw(st.sampled_from([d for d in DTYPES if d not in ("?", "i1")])))
    numbers = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=120))
    values = np.asarray(numbers).astype(dtype)
    if dtype.kind in "fcmM" and data.draw(st.booleans()):
        values[data.draw(st.integers(0, len(values) - 1))] = "NaT" if dtype.kind in "mM" else np.nan
    right = np.sort(values[values == values])  # noqa: PLR0124
    for name, value in {"_WHOLE": 3, "_SAMPLED": 5, "_MARGIN": margin, "_MOST_BYTES": most}.items():
        monkeypatch.setattr(quantiles, name, value)
    parts = np.array_split(values, data.draw(st.integers(1, 5)))
    chosen = quantiles.Selection(lambda function: [function(part) for part in parts])
    assert (chosen.nans, chosen.size) == (len(values) - len(right), len(right))
    if len(right):
        ranks = data.draw(st.lists(st.integers(0, len(right) - 1), min_size=1, max_size=6))
        assert chosen.at(ranks).tolist() == right[ranks].tolist()


special = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 2.0, -3.0])


@given(data=st.data(), dtype=st.sampled_from(["f2", "f4", "f8"]))
@quick
def test_elements_among_nan_and_infinities(
    monkeypatch: pytest.MonkeyPatch, data: st.DataObject, dtype: str
) -> None:
    """A sample that has lost its NaN is not the whole block, nor is one that has NaN alone."""
    values = np.array(data.draw(st.lists(special, min_size=1, max_size=40)), dtype)
    monkeypatch.setattr(quantiles, "_WHOLE", data.draw(st.integers(1, 6)))
    monkeypatch.setattr(quantiles, "_SAMPLED", data.draw(st.integers(1, 9)))
    right = np.sort(values[~np.isnan(values)])
    parts = np.array_split(values, data.draw(st.integers(1, 4)))
    chosen = quantiles.Selection(lambda function: [function(part) for part in parts])
    assert (chosen.nans, chosen.size) == (len(values) - len(right), len(right))
    if len(right):
        assert chosen.at(range(len(right))).tolist() == right.tolist()


@pytest.mark.parametrize("others", [1, 5, 4_096])
def test_a_sample_as_long_as_the_other_elements(serial: shmpar.Pool, others: int) -> None:
    """One NaN among 4,097 elements, and 4,096 of them, lead to the same median as in NumPy."""
    values = np.full(4_097, np.nan)
    values[-others:] = np.random.default_rng(7).permutation(others)
    assert serial.nanmedian(values, chunks=4_097) == np.nanmedian(values)
    values = np.concatenate([values, values])
    assert serial.nanmedian(values, chunks=4_097) == np.nanmedian(values)
