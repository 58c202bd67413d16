"""``Pool(check=True)``: each window is written once and whole, and nothing else is written."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmpar

X = np.arange(400.0).reshape(20, 20)
POOL = {"check": True}  # the module's pools use it
HALVES: dict[str, Any] = {"chunks": (10, -1)}


def test_correct_functions_pass(pool: shmpar.Pool, tmp_path: Path) -> None:
    """Correct functions pass, with any verb and any kind of output."""
    shared = pool.array(X)
    flipped = np.concatenate([X[9::-1], X[:9:-1]])
    np.testing.assert_array_equal(pool.map_blocks(np.negative, X, chunks=7), -X)
    np.testing.assert_array_equal(pool.map_blocks(lambda b: b[::-1], shared, **HALVES), flipped)
    np.testing.assert_array_equal(pool.parallel_map(np.sum, shared), X.sum(1))
    assert pool.parallel_map(lambda row: None, shared) is None
    sums, most = pool.block_reduce(lambda b: (b.sum(), b.max()), shared, chunks=5)
    assert (sums.sum(), most.max()) == (X.sum(), X.max())
    np.testing.assert_array_equal(
        pool.map_overlap(lambda b: b.copy(), shared, depth=2, boundary="reflect", chunks=6), X
    )
    assert pool.sum(shared) == X.sum()
    assert pool.block_reduce(str, X, chunks=10, dtype=object).shape == (2, 2)
    assert pool.map_blocks(np.negative, np.empty((0, 3))).shape == (0, 3)
    strided = np.zeros((20, 40))[:, ::2]
    path = tmp_path / "out.npy"
    for out in (strided, np.memmap(tmp_path / "mapped", "f8", "w+", shape=X.shape), path):
        np.testing.assert_array_equal(pool.map_blocks(np.sqrt, X, chunks=7, out=out), np.sqrt(X))
    records = np.zeros((6, 5), np.dtype([("a", "u1"), ("b", "f8", 2)], align=True))
    np.testing.assert_array_equal(pool.map_blocks(np.copy, records, chunks=4), records)
    pool.map_blocks(np.negative, shared, out=shared, chunks=7)
    np.testing.assert_array_equal(shared, -X)


@pytest.mark.parametrize("dtype", ["u1", "?", "f8", "U3", "M8[s]"])
def test_a_function_that_leaves_elements_is_found(pool: shmpar.Pool, dtype: str) -> None:
    """The error counts them and names the chunk; a value that equals the pattern does not count."""
    values = np.ones((20, 20)).astype("i8").astype(dtype)
    if dtype in {"u1", "f8"}:
        values[3:5] = np.frombuffer(b"\xa5" * values.itemsize, dtype)[0]

    def writes(block: Any, out: Any) -> None:
        out[...] = block

    options: dict[str, Any] = {"dtype": dtype, "pass_out": True, **HALVES}
    np.testing.assert_array_equal(pool.map_blocks(writes, values, **options), values)

    def skips(block: Any, out: Any) -> None:
        out[:3] = block[:3]

    with pytest.raises(shmpar.ChunkError, match="left 140 elements of its window") as caught:
        pool.map_blocks(skips, values, **options)
    assert caught.value.chunk in {0, 1}


def test_a_ufunc_that_leaves_elements_is_found(pool: shmpar.Pool) -> None:
    """The keyword where= leaves elements unwritten."""
    with pytest.raises(shmpar.ChunkError, match="left 50 elements"):
        pool.map_blocks(
            np.negative, X, kwargs={"where": np.arange(20) % 4 > 0}, dtype="f8", pass_out=True,
            **HALVES,
        )  # fmt: skip


@pytest.mark.parametrize("engine", ["processes", "threads", "serial"])
@pytest.mark.parametrize("later", [False, True], ids=["before", "after"])
def test_a_function_that_writes_elsewhere_is_found(engine: str, later: bool) -> None:
    """A single worker goes in order: the other window is computed later, or was before."""

    def astray(block: Any) -> Any:
        first = block[0, 0] == 0
        if first != later:
            shmpar.attach(address)[10 if first else 9, 7] = 1
        return block

    with shmpar.Pool(1, engine=engine, check=True) as pool:
        out = pool.zeros(X.shape)
        address = out.address  # Why: an output that the function holds is refused.
        with pytest.raises(
            shmpar.ChunkError, match="check=True: its window of the output was"
        ) as caught:
            pool.map_blocks(astray, X, out=out, **HALVES)
        assert caught.value.chunk == (0 if later else 1)


def test_an_input_that_was_changed_is_found() -> None:
    """The array is read-only for Python, but C code can write to it."""

    def scribbles(block: Any) -> Any:
        ctypes.memset(block.ctypes.data, 1, 8)
        return block.copy()

    values = X.copy()
    with (
        shmpar.Pool(2, engine="threads", check=True) as pool,
        pytest.raises(shmpar.ChunkError, match=r"input 0 \(shape \(20, 20\)\) was changed"),
    ):
        pool.map_blocks(scribbles, values, **HALVES)


def test_a_chunk_may_be_computed_again_after_a_death(tmp_path: Path) -> None:
    """The values that the dead worker has written are no error."""
    first = tmp_path / "first"

    def dies(block: Any, out: Any) -> None:
        out[:5] = 1
        if block[0, 0] == 200 and not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        out[...] = block

    with shmpar.Pool(2, check=True) as pool:
        found = pool.map_blocks(dies, X, dtype="f8", pass_out=True, chunks=(5, -1))
        np.testing.assert_array_equal(found, X)


def test_the_checks_work_with_a_ledger_on_disk(pool: shmpar.Pool, tmp_path: Path) -> None:
    """Finished chunks keep their values."""
    failing = tmp_path / "failing"
    failing.touch()

    def work(block: Any) -> Any:
        if block[0, 0] == 200 and failing.exists():
            raise OSError
        return block * 2

    kept: dict[str, Any] = {"out": tmp_path / "out.npy", "ledger": tmp_path / "ledger", **HALVES}
    with pytest.raises(ExceptionGroup):
        pool.map_blocks(work, X, on_error="collect", **kept)
    failing.unlink()
    np.testing.assert_array_equal(pool.map_blocks(work, X, **kept), 2 * X)
