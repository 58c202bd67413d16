"""Nothing that a function does changes the inputs of a run."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import shmpar
from tests.work.protected import (
    COMPILED,
    add_at,
    as_strided,
    assign,
    through_base,
    through_memoryview,
    unlock,
    unlock_flag,
)

REFUSED = [unlock, unlock_flag, assign, as_strided, through_memoryview, through_base]
REFUSED += [] if add_at in COMPILED else [add_at]


@pytest.fixture(params=["shared", "plain", "file", "large"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> np.ndarray:
    """An input of each kind of memory."""
    values = np.arange(1000.0)
    match request.param:
        case "shared":
            return shmpar.array(values)
        case "large":
            return shmpar.array(np.arange(800_000.0))
        case "file":
            file = np.memmap(tmp_path / "values", "f8", "w+", shape=1000)
            file[:] = values
            return file
        case _:
            return values


@pytest.mark.parametrize("write", REFUSED)
def test_a_write_is_refused(
    write: Callable[[np.ndarray], None], pool: shmpar.Pool, source: np.ndarray
) -> None:
    """NumPy refuses each write to an input, and the input keeps its bytes."""
    before = zlib.crc32(source.tobytes())

    def work(block: np.ndarray) -> float:
        write(block)
        return 0.0

    with pytest.raises(shmpar.ChunkError):
        pool.block_reduce(work, source, chunks=len(source) // 4)
    with pytest.raises(shmpar.ChunkError):
        pool.parallel_map(work, source.reshape(-1, 10))
    assert zlib.crc32(source.tobytes()) == before


@pytest.mark.parametrize("write", COMPILED)
def test_a_write_of_compiled_code_ends_the_worker(
    write: Callable[[np.ndarray], None], source: np.ndarray, nothing_left: None
) -> None:
    """Compiled code that writes to an input dies, and the error says what it may have done."""
    before = zlib.crc32(source.tobytes())

    def work(block: np.ndarray) -> float:
        write(block)
        return 0.0

    with shmpar.Pool(2) as pool:
        with pytest.raises(shmpar.WorkerDied, match="wrote to its read-only input") as caught:
            pool.block_reduce(work, source, chunks=len(source), retries=0)
        assert "chunk 0" in str(caught.value)
        assert pool.block_reduce(np.sum, source, chunks=len(source)).item() == source.sum()
    assert zlib.crc32(source.tobytes()) == before


def test_an_input_that_is_the_output_too(pool: shmpar.Pool) -> None:
    """A call in place writes to its output, and its input stays protected."""

    def work(block: np.ndarray) -> np.ndarray:
        with pytest.raises(ValueError, match="WRITEABLE"):
            block.setflags(write=True)
        return block + 1

    values = pool.array(np.zeros(1000))
    pool.map_blocks(work, values, out=values, chunks=100)
    assert (values == 1).all()


@pytest.mark.parametrize("passed", [True, False])
def test_overlapping_memory_is_seen(passed: bool, pool: shmpar.Pool) -> None:
    """A call in place that returns, or writes, a view of its input has the right values."""

    def work(block: np.ndarray, out: np.ndarray) -> None:
        np.negative(block[::-1], out=out)

    values = pool.array(np.arange(1000.0))
    if passed:
        pool.map_blocks(work, values, out=values, chunks=-1, pass_out=True)
        assert np.array_equal(values, -np.arange(1000.0)[::-1])
    else:
        pool.map_blocks(lambda block: block[::-1], values, out=values, chunks=-1)
        assert np.array_equal(values, np.arange(1000.0)[::-1])


@pytest.mark.parametrize("dtype", ["M8[s]", "m8[ms]", "U3", "S2", "?", "c8", "f2", "V5", "i4,f8"])
def test_protected_inputs_of_any_dtype(pool: shmpar.Pool, dtype: str) -> None:
    """Protected inputs have the dtype, the strides and the values of the array."""
    values = np.zeros((6, 8), dtype)[::-1, ::2]

    def work(block: np.ndarray) -> bool:
        return bool(block.dtype == values.dtype and not block.flags.writeable)

    assert pool.block_reduce(work, values, chunks=(2, -1)).all()


def test_the_strides_of_threads_are_those_of_the_array(nothing_left: None) -> None:
    """Threads and serial get the memory of the caller, not a copy."""
    values = np.zeros((6, 8))[::-1, ::2]
    with shmpar.Pool(2, engine="threads") as pool:
        found = pool.block_reduce(
            lambda block: block.__array_interface__["data"][0], values, chunks=(6, -1)
        )
    assert found.item() == values.__array_interface__["data"][0]
