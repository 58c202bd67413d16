"""Reductions equal those of NumPy, on every engine."""

from __future__ import annotations

import inspect
import itertools
import re
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmpar
from shmpar.verbs.options import REDUCTION_OPTIONS

quick = settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
EXACT = ("sum", "min", "max")
ROUNDED = ("mean", "var", "std")
NAMES = (*EXACT, *ROUNDED, "histogram")


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    """An array, axes, keepdims and chunks."""
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    dtype = draw(st.sampled_from(["?", "u1", "i2", ">i4", "i8", "f4", "f8", "c16"]))
    seed = draw(st.integers(0, 99))
    values = np.random.default_rng(seed).integers(-9, 99, shape).astype("i8") % 71
    array = (values > 30) if dtype == "?" else values.astype(dtype)
    if dtype == "f8" and draw(st.booleans()):
        array.flat[seed % array.size] = np.nan
    axes = st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True).map(tuple)
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1) | axes)
    return array, axis, draw(st.booleans()), tuple(draw(st.integers(1, 8)) for _ in shape)


@quick
@given(case=cases(), name=st.sampled_from(EXACT + ROUNDED))
def test_a_reduction_equals_numpys(pool: shmpar.Pool, case: Any, name: str) -> None:
    """Value, shape, dtype and type are NumPy's; the sums here are of whole numbers, so exact."""
    array, axis, keepdims, chunks = case
    expected = getattr(np, name)(array, axis=axis, keepdims=keepdims)
    got = getattr(pool, name)(array, axis=axis, keepdims=keepdims, chunks=chunks)
    assert type(got) is type(expected)
    assert np.asarray(got).dtype == np.asarray(expected).dtype
    if name in EXACT:
        np.testing.assert_array_equal(got, expected)
    else:
        tolerance = 1e-5 if array.dtype == np.float32 else 1e-12
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@quick
@given(case=cases(), bins=st.integers(1, 9))
def test_a_histogram_equals_numpys(pool: shmpar.Pool, case: Any, bins: int) -> None:
    """Counts and edges are exactly NumPy's."""
    array, _, _, chunks = case
    array = np.nan_to_num(array.real)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy says that it converts bool
        expected = np.histogram(array, bins)
    counts, edges = pool.histogram(array, bins, chunks=chunks)
    np.testing.assert_array_equal(counts, expected[0])
    np.testing.assert_array_equal(edges, expected[1])


def test_a_histogram_takes_edges_range_and_density(pool: shmpar.Pool, image: Any) -> None:
    """The keywords mean the same as in NumPy."""
    for keywords in (
        {"bins": [-1.0, 0.0, 0.5, 2.0]},
        {"bins": 5, "range": (-1.0, 1.0)},
        {"bins": 5, "range": (-1.0, 1.0), "density": True},
    ):
        expected, got = np.histogram(image, **keywords), pool.histogram(image, chunks=9, **keywords)
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])


def test_a_variance_is_stable(pool: shmpar.Pool) -> None:
    """Far from zero, the squares of deviations are summed, not those of values."""
    array = 1e9 + np.random.default_rng(0).normal(size=(50, 40))
    np.testing.assert_allclose(pool.var(array, chunks=7), np.var(array), rtol=1e-12)
    np.testing.assert_allclose(pool.std(array, ddof=1, chunks=7), np.std(array, ddof=1), rtol=1e-12)


def test_dtype_is_the_dtype_of_the_accumulator(pool: shmpar.Pool) -> None:
    """As in NumPy, small integers can be added in a large type."""
    array = np.full((40, 30), 200, np.uint8)
    assert pool.sum(array, dtype="u1", chunks=9) == np.sum(array, dtype="u1")
    assert pool.mean(array, dtype="f4", chunks=9).dtype == np.float32
    assert pool.var(array, dtype="f4", chunks=9) == 0


def test_an_axis_that_is_not_there_is_numpys_error(pool: shmpar.Pool, image: Any) -> None:
    """NumPy's error comes before anything starts."""
    with pytest.raises(np.exceptions.AxisError):
        pool.sum(image, axis=2)
    with pytest.raises(np.exceptions.AxisError):
        pool.var(image, axis=-3)


def test_an_empty_array_is_numpys_to_judge(pool: shmpar.Pool) -> None:
    """An empty array has the sum 0 and no smallest element."""
    assert pool.sum(np.empty((0, 3))) == 0
    assert pool.sum(np.empty((0, 3)), axis=1).shape == (0,)
    with pytest.raises(ValueError, match="zero-size"):
        pool.min(np.empty(0))


def test_a_reduction_has_no_wait(pool: shmpar.Pool, image: Any) -> None:
    """A reduction computes after its run, so it always waits."""
    with pytest.raises(TypeError, match="wait"):
        pool.sum(image, wait=False)


FOREIGN: list[dict[str, Any]] = [
    {"kwargs": {"initial": 1}},
    {"kwargs": {}},
    {"initial": 1},
    {"where": True},
    {"out": np.zeros(())},
    {"pass_out": True},
    {"seed": 1},
    {"sigma": 3},
]


@pytest.mark.parametrize("array", [np.arange(6.0), np.empty(0), np.array(1.0)], ids=np.shape)
@pytest.mark.parametrize("name", NAMES)
def test_a_reduction_refuses_foreign_keywords(pool: shmpar.Pool, name: str, array: Any) -> None:
    """The error does not depend on the array, since no block could apply the keyword."""
    pool.sum(np.arange(3))
    before = pool.last_run
    for keywords in FOREIGN:
        (word,) = keywords
        with pytest.raises(TypeError, match=f"'{word}'; beside its own.*block_reduce"):
            getattr(pool, name)(array, **keywords)
        assert pool.last_run is before, keywords


@pytest.mark.parametrize("name", NAMES)
def test_a_reduction_takes_its_keywords(pool: shmpar.Pool, name: str, image: Any) -> None:
    """A reduction takes the keywords that the message lists, and wait=True."""
    seen: list[tuple[int, int]] = []
    keywords = {
        "progress": lambda *at: seen.append(at), "on_error": "fill", "fill_value": 0,
        "retries": 2, "task_timeout": 60, "wait": True, "io_retries": 0,
    }  # fmt: skip
    assert set(keywords) == {*REDUCTION_OPTIONS, "wait"}
    got, expected = getattr(pool, name)(image, **keywords), getattr(pool, name)(image)
    np.testing.assert_equal(got, expected)
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("name", NAMES)
def test_a_reductions_docstring_is_complete(name: str) -> None:
    """The docstring names every parameter, and has every section."""
    text = inspect.getdoc(getattr(shmpar.Pool, name)) or ""
    pairs = itertools.pairwise(text.splitlines())
    titles = [line for line, below in pairs if line and below == "-" * len(line)]
    assert titles == ["Parameters", "Returns", "Raises", "Notes", "Examples"]
    described = text[text.index("Parameters\n") : text.index("Returns\n")]
    listed = re.findall(r"^\**(\w+)(?: : .*)?$", described, re.MULTILINE)
    listed += re.findall(r"\w+", " ".join(re.findall(r"^\w+(?:, \w+)+", described, re.MULTILINE)))
    assert {"self", *listed} >= set(inspect.signature(getattr(shmpar.Pool, name)).parameters)


@pytest.mark.parametrize("name", ["sum", "std", "argmax"])
def test_partial_results_along_the_first_axis_are_few(process_pool: shmpar.Pool, name: str) -> None:
    """Blocks of a stack of images have many of them, so that a result needs few blocks."""
    pool, sizes = process_pool, list[int]()
    stack = pool.array(np.random.default_rng(0).random((40, 60, 500)))

    def look(*_: int) -> None:
        sizes.append(sum(one.nbytes for one in pool.memory if one.purpose == "output"))

    got = getattr(pool, name)(stack, axis=0, progress=look)
    np.testing.assert_allclose(got, getattr(np, name)(stack, axis=0))
    assert 0 < max(sizes) < stack.nbytes / 8
