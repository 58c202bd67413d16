"""Pages of an output are reserved and mapped before they are written, many at once."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shmpar
from shmpar.grid import Grid
from shmpar.plan import InBlocks, PerChunk, PerItem, Placement, Plan
from shmpar.worker.store import reserver

PAGE = resource.getpagesize()

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="faults are counted as Linux does")


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMPAR_HUGE_PAGES", "0")


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def planned(shape: tuple[int, ...], chunks: Any, placement: Placement | None = None) -> Plan:
    grid = Grid.cut(shape, chunks, itemsize=8)
    return Plan("test", grid, (), placement or InBlocks.exactly(grid))


def touched(shape: tuple[int, ...]) -> np.ndarray:
    """Make an output with pages that hold data but were not touched by this process."""
    return shmpar.array(np.ones(shape)).view(np.ndarray)


def written(plan: Plan, output: np.ndarray, claim: int, *, ahead: bool) -> int:
    """Write all chunks, this many per claim; return the number of page faults."""
    begun = reserver(plan, [output], 0.0) if ahead else None
    count = faults()
    for first in range(0, plan.chunks, claim):
        chunks = range(first, min(first + claim, plan.chunks))
        if begun is not None:
            begun(chunks)
        for chunk in chunks:
            plan.windows(chunk, [output])[0][...] = chunk
    return faults() - count


@pytest.mark.parametrize(
    ("shape", "chunks", "claim"),
    [
        ((2**21,), 2**18, 1),
        ((2**21,), 1000, 50),
        ((1024, 1024), (100, -1), 1),
        ((1024, 1024), (1, -1), 70),
        ((256, 8192), (256, 2048), 1),
        ((128, 128, 128), (10, -1, -1), 2),
    ],
)
def test_a_fault_maps_many_pages(
    shape: tuple[int, ...], chunks: Any, claim: int, nothing_left: None
) -> None:
    plan = planned(shape, chunks)
    plain, ahead = touched(shape), touched(shape)
    slow = written(plan, plain, claim, ahead=False)
    fast = written(plan, ahead, claim, ahead=True)
    assert slow > plain.nbytes // PAGE * 0.9
    assert fast < slow / 6
    assert np.array_equal(plain, ahead)


@pytest.mark.parametrize("placement", [PerItem(), PerChunk()])
def test_rows_of_results(placement: Placement, nothing_left: None) -> None:
    plan = planned((4096,), 1, placement)
    output = touched((4096, 512))
    assert written(plan, output, 100, ahead=True) < output.nbytes // PAGE / 6


def test_a_worker_writes_with_few_faults(nothing_left: None) -> None:
    def count(_: Any) -> int:
        return faults()

    values = np.ones((2048, 2048))
    with shmpar.Pool(1) as pool:
        array, out = pool.array(values), pool.array(values * 2)
        pool.map_blocks(np.sqrt, pool.array(values[:64]))  # imports happen once
        begun = pool.parallel_map(count, [0], dtype=object)[0]
        pool.map_blocks(np.sqrt, array, out=out, chunks=(64, -1))
        ended = pool.parallel_map(count, [0], dtype=object)[0]
        assert np.array_equal(out, values)
    assert ended - begun < out.nbytes // PAGE / 3


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.data(),
)
def test_any_claim_of_any_grid(numblocks: list[int], data: st.DataObject) -> None:
    """Reserving writes nothing and raises nothing."""
    lengths = [data.draw(st.integers(1, 5)) for _ in numblocks]
    lengths[-1] += 2**17 // int(np.prod(numblocks)) + 1
    shape = tuple(count * length for count, length in zip(numblocks, lengths, strict=True))
    plan = planned(shape, tuple(lengths))
    output = shmpar.zeros(shape)
    chunks = sorted(data.draw(st.sets(st.integers(0, plan.chunks - 1), min_size=1)))
    if output.nbytes >= 2**20:
        read = reserver(plan, [output.view(np.ndarray)], data.draw(st.floats(0, 0.99)))
        assert read is not None
        read(chunks)
    assert not output.any()


def test_outputs_that_do_not_gain_are_not_reserved(tmp_path: Path, nothing_left: None) -> None:
    plan = planned((2**18,), 2**12)
    on_disk = shmpar.asarray(np.memmap(tmp_path / "out", "f8", "w+", shape=(2**18,)))
    small = shmpar.empty(2**10)
    for output in (np.empty(2**18), on_disk.view(np.ndarray), small.view(np.ndarray)):
        assert reserver(plan, [output], 0.0) is None
