"""Inputs without elements: results as of any input, or an error that asks for what is missing."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import shmpar

EMPTY = np.zeros((0, 5), int)
SHAPES = [(0,), (0, 5), (5, 0), (3, 0, 2), (0, 0)]

ASKS = "no elements, so the function is never called and cannot tell the dtype .*; pass dtype=, or "

CALLS: dict[str, Any] = {
    "map_blocks": lambda pool, *args, **keywords: pool.map_blocks(*args, **keywords),
    "map_overlap": lambda pool, *args, **keywords: pool.map_overlap(*args, depth=1, **keywords),
    "block_reduce": lambda pool, *args, **keywords: pool.block_reduce(*args, **keywords),
    "parallel_map": lambda pool, *args, **keywords: pool.parallel_map(*args, **keywords),
}
SHAPE_OF = {
    "map_blocks": (0, 5),
    "map_overlap": (0, 5),
    "block_reduce": (0, 1),
    "parallel_map": (0,),
}


def never(*_: Any, **__: Any) -> Any:
    """A function that nothing calls."""
    raise AssertionError("an input without elements has no chunk")


@pytest.mark.parametrize("verb", CALLS)
@pytest.mark.parametrize("keywords", [{}, {"wait": False}, {"on_error": "fill", "fill_value": 0}])
def test_nothing_tells_the_dtype_of_a_function_that_is_never_called(
    pool: shmpar.Pool, verb: str, keywords: Any
) -> None:
    """The dtype of the input is not that of the result."""
    with pytest.raises(ValueError, match=f"{verb}: the input has {ASKS}"):
        CALLS[verb](pool, never, EMPTY, **keywords)


@pytest.mark.parametrize("verb", CALLS)
def test_the_dtype_is_declared(pool: shmpar.Pool, verb: str) -> None:
    """A tuple declares several outputs."""
    got = CALLS[verb](pool, never, EMPTY, dtype="f4")
    assert (type(got), got.shape, got.dtype) == (np.ndarray, SHAPE_OF[verb], np.float32)
    first, second = CALLS[verb](pool, never, EMPTY, dtype=("f4", "M8[s]"))
    assert (first.dtype, second.dtype) == (np.float32, np.dtype("M8[s]"))
    assert first.shape == second.shape == SHAPE_OF[verb]
    run = CALLS[verb](pool, never, EMPTY, dtype="f4", wait=False)
    assert run.result().dtype == np.float32
    assert list(run.completed()) == []


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("verb", ["map_blocks", "map_overlap"])
def test_a_ufunc_tells_its_dtypes(pool: shmpar.Pool, verb: str, shape: Any) -> None:
    """Results are those of the ufunc on the whole array, also if there are several."""
    array = np.zeros(shape, int)
    for dtype in (None, "f4"):
        got = CALLS[verb](pool, np.sqrt, array, dtype=dtype)
        assert (got.shape, got.dtype) == (shape, np.sqrt(array).astype(dtype or float).dtype)
    for got, due in zip(CALLS[verb](pool, np.divmod, array, 3), np.divmod(array, 3), strict=True):
        assert (got.shape, got.dtype) == (due.shape, due.dtype)


def test_a_ufunc_tells_the_shape_of_its_rows(pool: shmpar.Pool) -> None:
    """Rows of five elements stay rows of five elements."""
    got = pool.parallel_map(np.sqrt, EMPTY)
    assert (got.shape, got.dtype) == ((0, 5), float)
    whole, part = pool.parallel_map(np.modf, EMPTY)
    assert whole.shape == part.shape == (0, 5)
    assert pool.parallel_map(np.add, EMPTY, np.zeros(0, "f4")).shape == (0, 5)
    assert pool.parallel_map(np.sqrt, EMPTY, dtype="f4").shape == (0, 5)
    assert pool.parallel_map(np.sqrt, np.zeros((5, 0)), axis=1).shape == (0, 5)


def test_a_ufunc_of_blocks_returns_no_value_per_block(pool: shmpar.Pool) -> None:
    """Its results are blocks, whose shape nothing tells."""
    with pytest.raises(ValueError, match=r"cannot tell the shape .*; pass out=$"):
        pool.block_reduce(np.sqrt, EMPTY)


@pytest.mark.parametrize("verb", CALLS)
def test_out_takes_results_of_any_shape(pool: shmpar.Pool, verb: str, tmp_path: Any) -> None:
    """An array says shape and dtype."""
    shape = {"block_reduce": (0, 1, 7), "parallel_map": (0, 7, 2)}.get(verb, (0, 5))
    out = np.zeros(shape, "c8")
    assert CALLS[verb](pool, never, EMPTY, out=out) is out
    mapped = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.dtype("i2"), shape)
    assert CALLS[verb](pool, never, EMPTY, out=mapped) is mapped
    both = out, pool.zeros(shape, "i2")
    got = CALLS[verb](pool, never, EMPTY, out=both)
    assert got[0] is both[0]
    assert got[1] is both[1]
    with pytest.raises(ValueError, match=r"out= has shape \(1, 5\); the results make"):
        CALLS[verb](pool, never, EMPTY, out=np.zeros((1, 5)))


@pytest.mark.parametrize("verb", CALLS)
def test_a_file_is_replaced_or_stays(pool: shmpar.Pool, verb: str, tmp_path: Any) -> None:
    """A path needs a dtype, since it has none."""
    path, other = tmp_path / "a.npy", tmp_path / "b.npy"
    np.save(path, np.ones(3))
    with pytest.raises(ValueError, match=ASKS):
        CALLS[verb](pool, never, EMPTY, out=path)
    assert np.load(path).tolist() == [1, 1, 1]
    got = CALLS[verb](pool, never, EMPTY, out=path, dtype="f4")
    assert isinstance(got, np.memmap)
    assert np.load(path).shape == got.shape == SHAPE_OF[verb]
    assert np.load(path).dtype == got.dtype == np.float32
    CALLS[verb](pool, never, EMPTY, out=(path, other), dtype=("i2", "i4"))
    assert (np.load(path).dtype, np.load(other).dtype) == (np.int16, np.int32)


def test_a_ufunc_needs_no_dtype_for_a_file(pool: shmpar.Pool, tmp_path: Any) -> None:
    """As for an input with elements, the old file is replaced."""
    path = tmp_path / "a.npy"
    np.save(path, np.ones(3))
    got = pool.map_blocks(np.sqrt, np.zeros((0, 5)), out=path)
    assert (got.shape, got.dtype) == ((0, 5), float)
    assert (np.load(path).shape, np.load(path).dtype) == ((0, 5), float)
    pool.map_blocks(np.modf, EMPTY, out=(path, tmp_path / "b.npy"))
    assert np.load(tmp_path / "b.npy").shape == (0, 5)


def test_a_ledger_of_nothing_is_complete(pool: shmpar.Pool, tmp_path: Any) -> None:
    """The call may be repeated."""
    for _ in range(2):
        files = {"out": tmp_path / "a.npy", "ledger": tmp_path / "a.ledger"}
        assert pool.map_blocks(never, EMPTY, dtype=float, **files).shape == (0, 5)


def test_lists_without_items_are_inputs_without_elements(pool: shmpar.Pool) -> None:
    """The result of no item is an empty list, or an array with a dtype."""
    assert pool.parallel_map(never, []) == []
    assert pool.parallel_map(never, [], dtype="i2").dtype == np.int16
    assert pool.parallel_map(never, [], dtype=object).shape == (0,)
    assert pool.block_reduce(never, EMPTY, dtype=object).shape == (0, 1)


def test_axes_of_results_that_are_never_made(pool: shmpar.Pool) -> None:
    """A new axis needs its length, and a dropped one must leave nothing to compute."""
    with pytest.raises(
        ValueError, match=r"cannot tell the shape .*; pass out_chunks= for .* or out="
    ):
        pool.map_blocks(never, EMPTY, new_axis=0, dtype=float)
    got = pool.map_blocks(never, EMPTY, new_axis=0, out_chunks={0: 4}, dtype=float)
    assert got.shape == (4, 0, 5)
    assert pool.map_blocks(never, EMPTY, drop_axis=1, dtype=float).shape == (0,)
    assert pool.map_blocks(never, EMPTY, chunks=(2, 3), out_chunks={1: 1}, dtype=float).shape == (
        0,
        2,
    )
    for out in (None, np.ones(5)):
        with pytest.raises(ValueError, match=r"never called, but its output of shape \(5,\) would"):
            pool.map_blocks(never, EMPTY, drop_axis=0, out=out, dtype=float)
        with pytest.raises(ValueError, match=r"never called, but its output of shape \(5,\) would"):
            pool.map_overlap(never, EMPTY, depth=1, drop_axis=0, out=out, dtype=float)


def test_in_place_and_pass_out_do_nothing(pool: shmpar.Pool) -> None:
    """Outputs that are known need no call."""
    array = np.zeros((0, 3))
    assert pool.map_blocks(never, array, out=array) is array
    assert pool.map_blocks(lambda _, out: never(), array, pass_out=True, dtype="f8").shape == (0, 3)


def test_chunks_without_elements_make_nothing(pool: shmpar.Pool) -> None:
    """Without an array the chunks may be empty too."""
    assert pool.map_blocks(never, chunks=((0,), (2, 1)), dtype=float).shape == (0, 3)
    with pytest.raises(ValueError, match=ASKS):
        pool.map_blocks(never, chunks=((0,), (2, 1)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["sum", "mean", "var", "std", "min", "max"])
def test_reductions_are_numpys(pool: shmpar.Pool, name: str, shape: Any) -> None:
    """Values, dtypes, warnings and errors, along every axis."""
    array = np.zeros(shape, "f4")
    for axis in (None, *range(len(shape))):
        results = []
        for reduce in (getattr(np, name), getattr(pool, name)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    result = reduce(array, axis=axis)
                except ValueError as error:
                    result = str(error)
            results.append((result, sorted({str(one.message) for one in caught})))
        (due, due_warnings), (got, got_warnings) = results
        if isinstance(due, str):
            assert got == due
            assert "zero-size" in due
        else:
            np.testing.assert_array_equal(got, due)
            assert (np.shape(got), got.dtype) == (np.shape(due), due.dtype)
        assert got_warnings == due_warnings


def test_a_histogram_of_nothing_is_numpys(pool: shmpar.Pool) -> None:
    """No element is in any bin."""
    counts, edges = pool.histogram(np.zeros((0, 3)), bins=4)
    assert counts.tolist() == [0] * 4
    np.testing.assert_array_equal(edges, np.histogram(np.zeros(0), bins=4)[1])
