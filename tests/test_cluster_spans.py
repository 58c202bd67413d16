"""Spans hold each chunk once, and their windows hold every element that a chunk reads or writes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shmpar.cluster import spans
from shmpar.grid import Grid, Halo
from shmpar.plan import Along, Blocks, InBlocks, PerChunk, Plan
from shmpar.stores.store import Part

BOUNDARIES = ("none", "reflect", "mirror", "nearest", "periodic", 3)


@st.composite
def grids(draw: st.DrawFn, least: int = 1) -> Grid:
    shape = draw(st.lists(st.integers(1, 12), min_size=least, max_size=3))
    return Grid.cut(shape, [draw(st.integers(1, n)) for n in shape])


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw a plan of one input, perhaps with a halo."""
    grid = draw(grids())
    halo = None
    if draw(st.booleans()):
        depth = [(draw(st.integers(0, 15)), draw(st.integers(0, 15))) for _ in grid.shape]
        boundary = [draw(st.sampled_from(BOUNDARIES)) for _ in grid.shape]
        halo = Halo.parse(depth, boundary, grid.ndim)
    argument = Blocks(0, tuple(range(grid.ndim)), halo)
    return Plan("map_blocks", grid, (argument,), InBlocks.exactly(grid), halo)


@given(grids(), st.data())
def test_boxes_hold_each_chunk_of_a_range_once(grid: Grid, data: st.DataObject) -> None:
    """Consecutive chunks are divided into few boxes."""
    first = data.draw(st.integers(0, grid.size - 1))
    last = data.draw(st.integers(first, grid.size - 1))
    found = spans.boxes(grid, range(first, last + 1))
    chunks = [chunk for box in found for chunk in box.chunks(grid)]
    assert sorted(chunks) == list(range(first, last + 1))
    assert [box.size for box in found] == [len(box.chunks(grid)) for box in found]
    assert len(found) <= 2 * grid.ndim - 1


@given(grids(), st.data())
def test_boxes_hold_each_of_any_chunks_once(grid: Grid, data: st.DataObject) -> None:
    """The chunks of a retry may lie anywhere, in any order."""
    every = st.sampled_from(range(grid.size))
    chunks = data.draw(st.lists(every, min_size=1, unique=True))
    found = spans.boxes(grid, chunks)
    assert sorted(n for box in found for n in box.chunks(grid)) == sorted(chunks)


@given(plans())
def test_the_order_is_one_of_all_chunks(plan: Plan) -> None:
    """Each chunk has one place in it, and spans that end with its rows are whole boxes."""
    ordered = spans.order(plan)
    chunks = list(range(plan.chunks)) if ordered is None else list(ordered)
    assert sorted(chunks) == list(range(plan.chunks))
    row = spans.period(plan)
    assert 1 <= row <= plan.chunks


@given(plans(), st.data())
def test_the_window_of_an_input_holds_all_that_its_chunks_read(
    plan: Plan, data: st.DataObject
) -> None:
    """A block that is cut from the window equals that of the whole array, at every boundary."""
    array = np.arange(float(np.prod(plan.grid.shape))).reshape(plan.grid.shape)
    first = data.draw(st.integers(0, plan.chunks - 1))
    last = data.draw(st.integers(first, plan.chunks - 1))
    (argument,) = plan.arguments
    assert isinstance(argument, Blocks)
    for box in spans.boxes(plan.grid, range(first, last + 1)):
        window = spans.input_window(plan, argument, array.shape, box)
        part = Part(array[window].copy(), [one.start for one in window], array.shape)
        for chunk in box.chunks(plan.grid):
            if plan.halo is None:
                cell = plan.grid.core(chunk)
                assert np.array_equal(part[cell], array[cell])
            else:
                found = plan.halo.gather(part, plan.grid, chunk)  # type: ignore[arg-type]
                assert np.array_equal(found, plan.halo.gather(array, plan.grid, chunk))


@given(grids(), st.data())
def test_the_windows_of_an_output_hold_the_results_of_a_box(
    grid: Grid, data: st.DataObject
) -> None:
    """The windows of the boxes of a run tile the output, for each placement."""
    axis = data.draw(st.integers(0, grid.ndim - 1))
    lines = Grid.cut(grid.shape, [-1 if k == axis else a.step for k, a in enumerate(grid.axes)])
    placements = [
        (grid, InBlocks.exactly(grid), grid.shape),
        (grid, PerChunk(), (*grid.numblocks, 2)),
        (lines, Along(axis), (*grid.shape[:axis], 3, 2, *grid.shape[axis + 1 :])),
    ]
    for cut, placement, shape in placements:
        plan = Plan("test", cut, (), placement)
        last = data.draw(st.integers(1, cut.size))
        written = np.zeros(shape, int)
        for chunks in (range(last), range(last, cut.size)):
            for box in spans.boxes(cut, chunks) if chunks else ():
                window = spans.output_window(plan, shape, box)
                written[window] += 1
                for chunk in box.chunks(cut):
                    where = placement.windows(cut, shape)(chunk)
                    part = Part(np.ones(written[window].shape), [s.start for s in window], shape)
                    assert part[where].shape == written[where].shape
        assert (written == 1).all()


@given(
    st.one_of(st.none(), st.floats(1e-9, 1e3)),
    st.integers(0, 10**7),
    st.integers(1, 10**7),
    st.integers(1, 64),
    st.integers(1, 64),
    st.floats(0, 1e9),
)
def test_a_span_is_short_and_leaves_work_for_the_others(
    seconds: float | None, latest: int, remaining: int, hosts: int, workers: int, nbytes: float
) -> None:
    """It takes half a second and 64 MiB at most, unless a single chunk takes more."""
    size = spans.span_size(spans.Measured(seconds, latest, remaining, hosts, workers, nbytes))
    assert 1 <= size <= remaining
    assert size == 1 or size * nbytes <= spans.SPAN_BYTES * (1 + 1e-9)
    if seconds is None:
        assert size <= workers
    else:
        assert size == 1 or size * seconds <= spans.SPAN_SECONDS * (1 + 1e-9)
        assert size * seconds <= spans.LEAST_SECONDS * (1 + 1e-9) or size <= max(
            1, remaining // (4 * hosts)
        )
