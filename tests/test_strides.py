"""Plain arrays of any memory layout: all engines agree with NumPy in the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmpar
from shmpar.memory.copying import copied_nbytes, share
from shmpar.memory.layout import Layout, byte_bounds
from tests.pools import ENGINES, drop_caches, warm


@st.composite
def strided(draw: st.DrawFn, most: int = 12, dtypes: str = "fdFeBi") -> Any:
    """Return a view with gaps, negative and zero strides, in any order of axes."""
    ndim = draw(st.integers(1, 3))
    steps = [draw(st.sampled_from([1, 1, 2, 3, 40])) for _ in range(ndim)]
    lengths = [draw(st.integers(1, most)) for _ in range(ndim)]
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    rest = draw(st.sampled_from([0, 0, 1]))  # elements behind the last one of an axis
    full = [step * length + rest for step, length in zip(steps, lengths, strict=True)]
    # Why: values of many magnitudes make each order of additions visible.
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = random.normal(size=full) * 10.0 ** random.integers(-3, 3, full)
    array = values.astype(dtype)
    signs = [draw(st.sampled_from([1, -1])) for _ in range(ndim)]
    array = array[tuple(slice(None, None, s * step) for s, step in zip(signs, steps, strict=True))]
    array = array.transpose(draw(st.permutations(range(ndim))))
    kind = draw(st.sampled_from(["as it is", "broadcast", "windows", "unaligned"]))
    if kind == "broadcast":
        array = np.broadcast_to(array[..., None], (*array.shape, draw(st.integers(1, 5))))
        array = array.transpose(draw(st.permutations(range(array.ndim))))
    elif kind == "windows":
        window = draw(st.integers(1, array.shape[0]))
        array = np.lib.stride_tricks.sliding_window_view(array, window, axis=0)
    elif kind == "unaligned":
        packed = np.zeros(array.shape, [("pad", "u1"), ("values", dtype)])
        packed["values"] = array
        array = packed["values"]
    return array


@pytest.fixture(scope="module")
def warm_pools() -> Iterator[list[shmpar.Pool]]:
    """Return a pool of each engine."""
    with ExitStack() as stack:
        yield [stack.enter_context(warm(engine)) for engine in ENGINES]


@pytest.fixture
def pools(warm_pools: list[shmpar.Pool], nothing_left: None) -> Iterator[list[shmpar.Pool]]:
    """Return the pools, whose caches are dropped after the test."""
    yield warm_pools
    for pool in warm_pools:
        drop_caches(pool)


def total(block: Any) -> Any:
    """Return a sum whose last bits depend on the memory layout."""
    return block.sum(), np.exp(-abs(block)).sum(dtype="f4"), np.linalg.norm(block.ravel("K"))


@given(array=strided())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_engines_agree_on_an_input(pools: list[shmpar.Pool], array: Any) -> None:
    """The function gets the same memory layout on each engine, whole or in blocks."""
    with np.errstate(all="ignore"):
        due = [np.asarray(one).tobytes() for one in total(array)]
        for pool in pools:
            whole = pool.block_reduce(total, array, chunks=-1)
            assert [one.tobytes() for one in whole] == due
        found = [pool.block_reduce(total, array, chunks=4) for pool in pools]
        rows = [pool.parallel_map(np.sum, array) for pool in pools]
    assert len({b"".join(one.tobytes() for one in parts) for parts in found}) == 1
    assert {one.tobytes() for one in rows} == {np.array([row.sum() for row in array]).tobytes()}


@given(array=strided())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_engines_agree_on_a_captured_array(pools: list[shmpar.Pool], array: Any) -> None:
    """An array that the function holds, or an argument, keeps its layout too."""
    with np.errstate(all="ignore"):
        due = [np.asarray(one).tobytes() for one in total(array)]
        for pool in pools:
            held = pool.block_reduce(lambda _: total(array), np.zeros(1))
            assert [one.tobytes() for one in held] == due
            given_ = pool.submit(total, array).result()
            assert [np.asarray(one).tobytes() for one in given_] == due


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[::7],
        lambda a: a[:, ::2],
        lambda a: a[::-1, ::-3],
        lambda a: a.T[5:60:50],
        lambda a: np.broadcast_to(a[:, :1], (400, 3000)),
        lambda a: np.lib.stride_tricks.sliding_window_view(a[0], 200),
        lambda a: a[:, 0],
    ],
)
def test_engines_agree_on_large_arrays(pools: list[shmpar.Pool], view: Any) -> None:
    """As an input, and as a captured array that goes into shared memory."""
    a = np.random.default_rng(0).normal(size=(400, 3000)).astype("f4") * 1e3
    array = view(a)
    due = [np.asarray(one).tobytes() for one in total(array)]
    for pool in pools:
        found = pool.block_reduce(total, array, chunks=-1)
        assert [one.tobytes() for one in found] == due
        held = pool.block_reduce(lambda _: total(array), np.zeros(1))
        assert [one.tobytes() for one in held] == due


@given(array=strided(most=6, dtypes="fdFeBi"))
def test_a_copy_has_the_layout_of_the_array(array: Any) -> None:
    """The order, signs and contiguity of axes stay; the copy is at most three times as large.

    A copy of elements that overlap takes at most the bytes that they span.
    """
    _, copy = share(array)
    np.testing.assert_array_equal(copy, array)
    low, high = byte_bounds(array.shape, array.strides, array.itemsize)
    exact = Layout.of(array).is_exact
    assert exact or high - low > 2 * array.nbytes
    cut = [axis for axis in range(array.ndim) if array.shape[axis] > 1]
    mine, due = ([one.strides[axis] for axis in cut] for one in (copy, array))
    pairs = zip(array.shape, array.strides, strict=True)
    if exact:
        assert mine == due
    else:
        places = sum(np.ix_(*[stride * np.arange(n) for n, stride in pairs]))
        most = 3 * array.nbytes + array.itemsize
        overlap = np.unique(places).size < array.size
        assert copied_nbytes(array) <= (max(most, high - low) if overlap else most)
    for flag in ("C_CONTIGUOUS", "F_CONTIGUOUS", "ALIGNED"):
        assert copy.flags[flag] == array.flags[flag]
    assert np.sign(mine).tolist() == np.sign(due).tolist()
    assert (
        np.argsort(np.abs(mine), stable=True).tolist()
        == np.argsort(np.abs(due), stable=True).tolist()
    )


def test_a_broadcast_input_is_copied_once(pools: list[shmpar.Pool]) -> None:
    """Zero strides stay, so a broadcast row takes the memory of a row."""
    row = np.arange(1000.0)
    wide = np.broadcast_to(row, (1_000_000_000, 1000))
    assert copied_nbytes(wide) == row.nbytes
    for pool in pools:
        part = pool.block_reduce(lambda block: list(block.strides), wide[:2], chunks=-1)
        assert part.ravel().tolist() == [0, 8]


def test_windows_of_few_elements_take_little_memory(pools: list[shmpar.Pool]) -> None:
    """Windows over every 1,000th element are copied without the elements between them."""
    values = np.random.default_rng(0).normal(size=3_000_000) * 1e3
    few = np.lib.stride_tricks.sliding_window_view(values[::-1000], 3)
    assert copied_nbytes(few) <= few.nbytes
    segment, copy = share(few)
    assert np.array_equal(copy, few)
    assert segment.size <= few.nbytes
    assert copy.strides == (-16, -16)
    assert np.shares_memory(copy[0], copy[1])
    due = [np.asarray(one).tobytes() for one in total(few)]
    for pool in pools:
        found = pool.block_reduce(total, few, chunks=-1)
        assert [one.tobytes() for one in found] == due


def test_elements_without_bytes_may_have_gaps(pools: list[shmpar.Pool]) -> None:
    """A field of no bytes is an input and an argument like any other."""
    field = np.zeros(5, [("empty", "V0"), ("value", "f8")])["empty"]
    assert field.strides == (8,)
    assert share(field)[1].shape == (5,)
    assert copied_nbytes(field) == 0
    for pool in pools:
        assert pool.submit(np.shape, field).result() == (5,)
        assert pool.block_reduce(np.size, field, chunks=-1).tolist() == [5]
