"""Runs of so many chunks that their ledger lies in huge pages."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

import shmpar
from shmpar.ipc.ledger import Ledger
from shmpar.memory import huge
from shmpar.memory.segment import create

CHUNKS = huge.MIN_BYTES // Ledger.nbytes(workers=0, chunks=1) + 1_000


def _first(row: np.ndarray) -> np.float64:
    return row[0]


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Return so many rows that the ledger of a row each lies in huge pages."""
    return np.arange(2.0 * CHUNKS).reshape(CHUNKS, 2) + 1


def test_a_chunk_for_each_of_many_rows(pool, rows):
    """The result, its dtype and the report are those of all rows; a second call agrees."""
    for _ in range(2):
        result = pool.parallel_map(_first, rows)
        assert np.array_equal(result, rows[:, 0])
        assert result.dtype == rows.dtype
        report = str(pool.last_run.report)
        assert f"{CHUNKS:,} done" in report
        assert "before this run" not in report


@pytest.mark.parametrize("warm_pool", ["processes"], indirect=True)
def test_a_block_for_each_of_many_rows(pool, rows):
    """The blocks of an output are as right as numbers."""
    result = pool.map_blocks(np.negative, rows, chunks=(1, 2))
    assert np.array_equal(result, -rows)


def test_a_worker_that_is_killed_in_one_of_many_rows(rows, tmp_path: Path):
    """A chunk of a dead worker is computed again, and none is lost; items are as right as rows."""
    mark = tmp_path / "killed"

    def first(row: np.ndarray) -> np.float64:
        if row[0] == 2 * CHUNKS - 99 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return row[0]

    with shmpar.Pool(2) as own:
        result = own.parallel_map(first, rows, retries=1)
        assert mark.exists()
        assert own.last_run.report.deaths == 1
        run = own.parallel_map(np.max, rows, wait=False)
        assert np.array_equal(run.result(), rows[:, 1])
        assert run.progress == (CHUNKS, CHUNKS)
        assert own.parallel_map(abs, range(CHUNKS)) == list(range(CHUNKS))
    assert np.array_equal(result, rows[:, 0])


@pytest.mark.parametrize("nbytes", [1, huge.MIN_BYTES - 1, huge.MIN_BYTES, huge.MIN_BYTES + 5])
def test_the_bytes_of_a_segment(nbytes):
    """The memory of a segment begins and ends with its file."""
    segment = create(nbytes)
    segment.memory[0] = segment.memory[-1] = 7
    assert len(segment.memory) == nbytes
    assert os.pread(segment.fileno(), 1, 0) == os.pread(segment.fileno(), 9, nbytes - 1) == b"\7"
