"""Results that are written directly into the output: ufuncs, ``pass_out``, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar

X = np.random.default_rng(0).uniform(1, 9, size=(30, 40))


@pytest.mark.parametrize("chunks", [(7, 11), (30, 40), "auto", (30, 11)])
@pytest.mark.parametrize("func", [np.sqrt, np.negative, np.isnan, np.divmod, np.frexp, np.add])
def test_a_ufunc_is_the_ufunc(pool: shmpar.Pool, func: np.ufunc, chunks: Any) -> None:
    """Ufuncs with one or two inputs and outputs."""
    arguments = (X, X[::-1])[: func.nin]
    expected = func(*arguments)
    result = pool.map_blocks(func, *arguments, chunks=chunks)
    for one, other in zip(np.atleast_3d(result), np.atleast_3d(expected), strict=True):
        assert np.array_equal(one, other)
    if func.nout == 1:
        assert result.dtype == expected.dtype


@pytest.mark.parametrize(
    "arguments",
    [(X, 2.5), (X, np.arange(40.0)), (X, np.arange(30.0)[:, None]), (2, X), (X[:1], X[:, :1])],
    ids=["scalar", "row", "column", "scalar-first", "crossed"],
)
def test_a_ufuncs_inputs_broadcast(pool: shmpar.Pool, arguments: Any) -> None:
    """Ufuncs broadcast as in NumPy."""
    result = pool.map_blocks(np.multiply, *arguments, chunks=(7, 11))
    assert np.array_equal(result, np.multiply(*arguments))


def test_a_ufunc_on_rows(pool: shmpar.Pool) -> None:
    """A chunk is one row, or one number."""
    assert np.array_equal(pool.parallel_map(np.sqrt, X), np.sqrt(X))
    assert np.array_equal(pool.parallel_map(np.add, X, X), X + X)
    assert np.array_equal(pool.parallel_map(np.sqrt, X[0]), np.sqrt(X[0]))
    assert np.array_equal(pool.parallel_map(np.add, X, X[0][:30]), X + X[0][:30, None])
    assert np.array_equal(pool.parallel_map(np.add, X, range(30)), X + np.arange(30)[:, None])


def test_a_ufunc_casts_into_out(pool: shmpar.Pool) -> None:
    """The cast is that of the ufunc itself."""
    out = np.zeros(X.shape, "f4")
    assert pool.map_blocks(np.sqrt, X, out=out, chunks=(7, 11)) is out
    expected = np.zeros(X.shape, "f4")
    np.sqrt(X, out=expected)
    assert np.array_equal(out, expected)
    assert pool.map_blocks(np.sqrt, X, dtype="c8", chunks=(7, 11)).dtype == np.complex64


@pytest.mark.parametrize("verb", ["map_blocks", "parallel_map"])
def test_a_ufunc_that_does_not_cast_is_an_error_before_the_run(
    pool: shmpar.Pool, verb: str
) -> None:
    """The dtypes of the results are known before the run."""
    call, before = getattr(pool, verb), pool.last_run
    for declared in ({"dtype": "i8"}, {"out": np.zeros(X.shape, "i8")}):
        with pytest.raises(
            TypeError, match="sqrt gives dtype float64, which cannot be cast to int"
        ):
            call(np.sqrt, X, **declared)
    assert pool.last_run is before
    assert call(np.add, X, X, dtype="f4").dtype == np.float32
    assert pool.map_blocks(np.add, X, 1, dtype="f4").dtype == np.float32
    assert call(np.sqrt, np.empty((0, 3), int)).dtype == np.float64
    with pytest.raises(TypeError, match="sqrt takes 1 array, not 2"):
        call(np.sqrt, X, X)


def test_a_ufunc_has_larger_blocks(pool: shmpar.Pool) -> None:
    """A ufunc has no temporaries that should stay in the cache."""
    array = pool.full((3 * 2**15, 2**10), 7, "u1")
    out = pool.empty_like(array)
    assert (pool.map_blocks(np.invert, array, out=out) == 248).all()
    assert pool.last_run.report.chunks == 64
    assert (pool.map_blocks(lambda block: ~block, array, out=out) == 248).all()
    assert pool.last_run.report.chunks == 96


def test_a_ufunc_works_in_place(pool: shmpar.Pool) -> None:
    """The output is the same array as the input."""
    array = pool.array(X)
    assert pool.map_blocks(np.sqrt, array, out=array, chunks=(7, 11)) is array
    assert np.array_equal(array, np.sqrt(X))


def test_a_ufuncs_keywords_are_its_own(pool: shmpar.Pool) -> None:
    """Keyword arguments are passed to the ufunc."""
    result = pool.map_blocks(np.add, X, 1, kwargs={"dtype": "f4"}, chunks=(7, 11))
    assert np.array_equal(result, np.add(X, 1, dtype="f4"))


# pass_out


def _double(block: Any, out: Any) -> str:
    np.multiply(block, 2, out=out)
    return "not looked at"


@pytest.mark.parametrize("chunks", [(7, 11), (30, 40), (30, 11)])
def test_a_function_may_write_by_itself(pool: shmpar.Pool, chunks: Any) -> None:
    """The function writes into its argument ``out``."""
    result = pool.map_blocks(_double, X, dtype=float, chunks=chunks, pass_out=True)
    assert np.array_equal(result, 2 * X)
    out = np.zeros(X.shape, "f4")
    assert pool.map_blocks(_double, X, out=out, chunks=chunks, pass_out=True) is out
    assert np.array_equal(out, (2 * X).astype("f4"))


@pytest.mark.parametrize("chunks", [(7, 11), (30, 40), (30, 11)])
def test_a_function_may_write_in_place(pool: shmpar.Pool, chunks: Any) -> None:
    """The input is the output, also if an axis lies in one chunk."""
    array = pool.array(X)
    assert pool.map_blocks(_double, array, out=array, chunks=chunks, pass_out=True) is array
    assert np.array_equal(array, 2 * X)


def test_several_outputs_are_passed_as_a_tuple(pool: shmpar.Pool) -> None:
    """A tuple of one output is still a tuple."""

    def both(block: Any, out: Any, block_id: Any) -> None:
        out[0][...] = block.sum()
        out[1][...] = block_id

    out = np.zeros((5, 4)), np.zeros((5, 4, 2), int)
    pool.block_reduce(both, X, chunks=(7, 11), out=out, pass_out=True)
    assert np.array_equal(out[0], pool.block_reduce(np.sum, X, chunks=(7, 11)))
    assert out[1][4, 3].tolist() == [4, 3]

    def one(block: Any, out: Any) -> None:
        (window,) = out
        window[...] = block

    result = pool.map_blocks(one, X, dtype=(float,), chunks=(7, 11), pass_out=True)
    assert np.array_equal(result[0], X)


def test_rows_may_be_written_by_the_function(pool: shmpar.Pool) -> None:
    """Each row gives a number, or an array."""
    out = np.zeros(30)
    pool.parallel_map(lambda row, out: np.sum(row, out=out), X, out=out, pass_out=True)
    assert np.allclose(out, X.sum(axis=1))
    pool.parallel_map(_double, X, out=(whole := np.zeros(X.shape)), pass_out=True)
    assert np.array_equal(whole, 2 * X)


def test_a_halo_may_be_used_up_by_the_function(pool: shmpar.Pool) -> None:
    """The function writes the window of its chunk."""

    def slope(window: Any, out: Any) -> None:
        np.subtract(window[2:], window[:-2], out=out)

    padded = np.pad(X, ((1, 1), (0, 0)), mode="edge")
    options = {"depth": (1, 0), "boundary": "nearest", "chunks": (7, 11), "trim": False}
    result = pool.map_overlap(slope, X, dtype=float, pass_out=True, **options)
    assert np.array_equal(result, padded[2:] - padded[:-2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.map_blocks(_double, X, pass_out=True), ValueError, "pass out=, or dtype="),
        (lambda p: p.block_reduce(_double, X, dtype=float, pass_out=True), ValueError, "pass out="),
        (lambda p: p.parallel_map(_double, X, dtype=object, pass_out=True), ValueError, "out="),
        (
            lambda p: p.map_overlap(_double, X, depth=1, dtype=float, pass_out=True),
            ValueError,
            "trim=False",
        ),
        (
            lambda p: p.map_blocks(lambda block: block, X, dtype=float, pass_out=True),
            TypeError,
            "out",
        ),
    ],
)
def test_pass_out_needs_to_know_the_output(
    pool: shmpar.Pool, call: Any, error: Any, message: str
) -> None:
    """The function must take ``out``, too; both errors come before the run."""
    with pytest.raises(error, match=message):
        call(pool)


# Files


@pytest.mark.parametrize("dtype", [None, "f4"])
def test_a_path_is_a_file_to_make(pool: shmpar.Pool, tmp_path: Path, dtype: Any) -> None:
    """The verb returns an np.memmap of the file."""
    path = tmp_path / "result.npy"
    result = pool.map_blocks(lambda b: b * 2, X, out=path, dtype=dtype, chunks=(7, 11))
    assert isinstance(result, np.memmap)
    expected = (2 * X).astype(dtype or float)
    assert np.array_equal(result, expected)
    assert np.array_equal(np.load(path), expected)
    again = pool.map_blocks(np.negative, np.load(path, mmap_mode="r"), chunks=(7, 11))
    assert np.array_equal(again, -expected)
    assert [one.name for one in tmp_path.iterdir()] == ["result.npy"]


def test_files_for_several_outputs_and_values(pool: shmpar.Pool, tmp_path: Path) -> None:
    """Each output has its own array or file."""
    paths = str(tmp_path / "mean.npy"), tmp_path / "peak.npy"
    pool.block_reduce(lambda b: (b.mean(), b.max()), X, chunks=(7, 11), out=paths)
    assert np.load(paths[1]).max() == X.max()
    array = np.zeros((5, 4))
    pool.block_reduce(lambda b: (b.mean(), b.max()), X, chunks=(7, 11), out=(paths[0], array))
    assert np.load(paths[0]).shape == (5, 4)
    assert array.max() == X.max()


def test_a_file_that_is_there_is_replaced_not_cut_short(pool: shmpar.Pool, tmp_path: Path) -> None:
    """An existing map keeps the old file, even if it is the input of the same call."""
    path = tmp_path / "values.npy"
    np.save(path, X)
    old = np.load(path, mmap_mode="r")
    pool.map_blocks(lambda b: b[:, :1] * 2, old, out=path, chunks=(7, -1))
    assert np.array_equal(old, X)
    assert np.array_equal(np.load(path), 2 * X[:, :1])


@pytest.mark.parametrize("name", ["result.txt", "nowhere/result.npy", "folder.npy"])
def test_a_path_must_be_a_file_that_can_be_made(
    pool: shmpar.Pool, tmp_path: Path, name: str
) -> None:
    """The error comes before the run."""
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(ValueError, match=r"out="):
        pool.map_blocks(np.negative, X, out=tmp_path / name)


def test_two_outputs_cannot_be_one_file(pool: shmpar.Pool, tmp_path: Path) -> None:
    """Two spellings of a path are one file."""
    with pytest.raises(ValueError, match="one file"):
        pool.map_blocks(np.frexp, X, out=(tmp_path / "a.npy", str(tmp_path / "." / "a.npy")))
