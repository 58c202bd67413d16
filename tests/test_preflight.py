"""A run that cannot fit into memory is refused before any memory is allocated."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmpar
from shmpar.memory import allocate, limits

# Why: 8 TB of zeros take no memory as long as nobody reads them.
_ZEROS = mmap.mmap(-1, 8 * 10**12, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)
HUGE = np.frombuffer(_ZEROS)


@pytest.mark.parametrize("wait", [True, False])
def test_the_error_lists_the_required_memory(
    any_pool: shmpar.Pool, wait: bool, tmp_path: Path
) -> None:
    """The error lists copies, which threads do not make, and outputs; no function is called."""
    called = tmp_path / "called"

    def work(block: Any) -> Any:
        called.touch()
        return block

    copies = "8,000,000,000,000 for a copy of an input"
    with pytest.raises(shmpar.SegmentFull, match="nothing was begun") as caught:
        any_pool.map_blocks(work, HUGE, chunks=10**6, dtype="u1", wait=wait)
    assert isinstance(caught.value, MemoryError)
    assert "map_blocks needs" in str(caught.value)
    assert "1,000,000,000,000 for an output" in str(caught.value)
    assert (copies in str(caught.value)) == (any_pool.engine == "processes")
    assert not called.exists()
    assert any_pool.parallel_map(abs, range(-3, 0)) == [3, 2, 1]


def test_results_on_disk_need_no_memory(tmp_path: Path) -> None:
    """Mapped files and shared arrays need no memory; a full disk has its own error."""
    rows = np.memmap(tmp_path / "in", "f8", "w+", shape=(3_000_000,))
    out = np.memmap(tmp_path / "out", "f8", "w+", shape=rows.shape)
    with shmpar.Pool(2) as pool:
        pool.map_blocks(np.negative, rows, out=out, chunks=10**6)
        assert pool.last_run.report.memory == ("file", "file")
        with pytest.raises(shmpar.SegmentFull):
            pool.map_blocks(np.negative, HUGE, chunks=10**6, out=tmp_path / "new.npy", dtype="f8")
    assert not (tmp_path / "new.npy").exists()


sizes = st.integers(0, 50)


@given(
    needs=st.lists(sizes, max_size=6),
    free=st.tuples(sizes, sizes, sizes),
    memory=sizes,
    on_disk=st.booleans(),
)
def test_sizes_fit_if_they_can_be_allocated_in_order(
    needs: list[int], free: tuple[int, int, int], memory: int, on_disk: bool
) -> None:
    """Each size takes the first source with room; all sources but the disk share the memory."""
    capacities = [
        allocate.Capacity(source, most, in_memory=not (on_disk and source.kind == "tempfile"))
        for source, most in zip(allocate.SOURCES, free, strict=True)
    ]

    def makes(taken: list[tuple[int, int]]) -> bool:
        """Compute the free bytes from the segments made so far, slowly."""
        if len(taken) == len(needs):
            return True
        used = sum(n for index, n in taken if capacities[index].in_memory)
        size = needs[len(taken)]
        for index, one in enumerate(capacities):
            on_it = sum(n for other, n in taken if other == index)
            if size <= one.free - on_it and (not one.in_memory or size <= memory - used):
                return makes([*taken, (index, size)])
        return False

    assert allocate._fits(needs, capacities, memory) == makes([])


def test_free_memory_is_read_at_each_call() -> None:
    """An earlier refusal is not cached."""
    with pytest.raises(shmpar.SegmentFull):
        allocate.preflight("a test", [("all", limits.free_memory() + 2**50)])
    allocate.preflight("a test", [("little", 1000)])
