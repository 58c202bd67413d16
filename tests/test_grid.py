"""Grids: the chunks of an array, and the forms of ``chunks=``."""

from __future__ import annotations

import itertools
import pickle
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpar.grid import Axis, Grid
from shmpar.grid.grid import block_bytes
from tests import naive


def regular(size: int, step: int) -> list[int]:
    """Lengths of the chunks of a regular axis."""
    return [min(step, size - start) for start in range(0, size, step)]


@st.composite
def cuts(draw):
    """Draw an axis: the entry of `chunks`, and the length of every chunk."""
    if draw(st.booleans()):
        lengths = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
        return lengths, list(lengths)
    size, step = draw(st.integers(1, 9)), draw(st.integers(1, 10))
    return step, regular(size, step)


@st.composite
def grids(draw, max_ndim=3):
    """Draw a grid and the lengths of its chunks."""
    axes = draw(st.lists(cuts(), max_size=max_ndim))
    lengths = [steps for _, steps in axes]
    grid = Grid.cut([sum(steps) for steps in lengths], tuple(chunks for chunks, _ in axes))
    return grid, lengths


def check_axis(axis):
    """Assert that the chunks of an axis tile it, and that `step` is the longest length."""
    end = longest = 0
    for start, stop in map(axis.span, range(axis.count)):
        assert start == end < stop <= axis.size
        end, longest = stop, max(longest, stop - start)
    assert end == axis.size
    assert longest == (axis.step if axis.count else 0)


def check_grid(grid):
    """Assert that each axis tiles, so that the cells tile, and that chunks have their index."""
    for axis in grid.axes:
        check_axis(axis)
    for number in (0, grid.size // 2, grid.size - 1):
        assert not grid.size or grid.number(grid.index(number)) == number


@given(grids())
def test_cells_tile_the_array_once(made):
    """Every element lies in the cell of exactly one chunk."""
    grid, _ = made
    count = np.zeros(grid.shape, int)
    for number in range(grid.size):
        count[grid.core(number)] += 1
    assert (count == 1).all()
    check_grid(grid)


@given(grids())
def test_cells_are_those_of_the_lengths(made):
    """Chunks have the lengths asked for, in C order, with bounds that are plain ints."""
    grid, lengths = made
    cells = [grid.core(number) for number in range(grid.size)]
    assert cells == naive.cells(lengths)
    assert {
        type(bound) for cell in cells for part in cell for bound in (part.start, part.stop)
    } in (
        set(),
        {int},
    )


@given(grids())
def test_the_fast_cutter_cuts_the_same_cells(made):
    """A slice of the cutter may extend beyond an axis, and still selects the same cell."""
    grid, _ = made
    cut, places = grid.cutter(), np.arange(prod(grid.shape)).reshape(grid.shape)
    for number in range(grid.size):
        assert np.array_equal(places[cut(number)], places[grid.core(number)])


@given(grids())
def test_number_and_index_are_inverse(made):
    """A chunk's number leads to its index and back, in the order of np.ndindex."""
    grid, _ = made
    assert grid.size == prod(grid.numblocks)
    for number, index in enumerate(np.ndindex(grid.numblocks)):
        assert grid.index(number) == index
        assert grid.number(index) == number


@given(grids())
def test_properties_agree(made):
    """Shape, ndim, numblocks and cells agree with the axes."""
    grid, lengths = made
    assert grid.shape == tuple(map(sum, lengths))
    assert grid.ndim == len(grid.shape) == len(grid.axes)
    assert grid.numblocks == tuple(map(len, lengths)) == tuple(map(len, grid.axes))
    for number, shape in enumerate(itertools.product(*lengths)):
        assert tuple(cell.stop - cell.start for cell in grid.core(number)) == shape
        index = grid.index(number)
        assert grid.core(number) == tuple(axis[i] for axis, i in zip(grid.axes, index, strict=True))


@given(grids())
def test_a_grid_is_a_value(made):
    """A grid pickles; equal chunks give equal grids with equal hashes."""
    grid, lengths = made
    assert pickle.loads(pickle.dumps(grid)) == grid
    explicit = Grid.cut(grid.shape, tuple(map(tuple, lengths)))
    assert explicit == grid
    assert hash(explicit) == hash(grid)


def test_a_grid_pickles_small():
    """The pickle of a regular grid has a few dozen bytes per axis, for any number of chunks."""
    small, large = (pickle.dumps(Grid.cut((n,) * 4, 1), protocol=5) for n in (10, 10**9))
    assert len(large) - len(small) <= 4 * 12
    assert len(large) <= 100 + 4 * 30


def test_a_grid_does_not_change():
    """Neither a grid nor an axis can be assigned to."""
    grid = Grid.cut((4,), 2)
    with pytest.raises(AttributeError, match="cannot assign to field 'axes'"):
        grid.axes = ()
    with pytest.raises(AttributeError, match="cannot assign to field 'step'"):
        grid.axes[0].step = 1


def test_a_grid_may_be_huge():
    """No list of chunks is made: a grid of 10**18 chunks answers at once."""
    grid = Grid.cut((10**9, 10**9), 1)
    assert grid.core(10**18 - 1) == (slice(10**9 - 1, 10**9),) * 2


@pytest.mark.parametrize("number", [np.int64(5), np.uint8(5), np.array(5)], ids=lambda n: n.dtype)
def test_numbers_may_be_numpys(number):
    """Integers of NumPy are taken, and plain ints come back."""
    grid = Grid.cut((np.int64(1000), np.uint8(200)), (np.uint8(250), np.int32(100)))
    assert grid == Grid.cut((1000, 200), (250, 100))
    assert grid.core(number) == grid.core(5)
    assert type(grid.core(number)[0].start) is int
    assert type(grid.axes[0].span(np.uint8(3))[1]) is int
    assert grid.number(grid.index(number)) == 5


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (0, 0, 3)], ids=str)
@pytest.mark.parametrize("chunks", [3, -1, None, "auto"], ids=str)
def test_without_elements_there_are_no_chunks(shape, chunks):
    """An array with an axis of length 0 has no chunks."""
    grid = Grid.cut(shape, chunks)
    assert grid.size == 0
    assert grid.shape == shape
    for ask in (grid.core, grid.index):
        with pytest.raises(IndexError, match="chunk 0 of a grid with 0 chunks"):
            ask(0)
    check_grid(grid)


@pytest.mark.parametrize("lengths", [(), (0,)], ids=str)
def test_an_empty_axis_has_explicit_lengths_too(lengths):
    """No lengths, or a single 0 as Dask writes it, cut an axis without elements."""
    assert Grid.cut((0,), (lengths,)) == Grid.cut((0,), 1)


@pytest.mark.parametrize("chunks", [(), {}, 5, -1, None, "auto"], ids=str)
def test_without_axes_there_is_one_chunk(chunks):
    """A zero-dimensional array is one chunk, with an empty index and an empty cell."""
    grid = Grid.cut((), chunks)
    assert (grid.size, grid.numblocks) == (1, ())
    assert grid.core(0) == grid.index(0) == ()
    assert grid.number(()) == 0
    with pytest.raises(IndexError):
        grid.core(1)


@pytest.mark.parametrize(
    ("ask", "argument"),
    [
        ("core", 9),
        ("core", -1),
        ("index", 9),
        ("index", -1),
        ("number", (3, 0)),
        ("number", (0, -1)),
        ("number", (0,)),
        ("number", (0, 0, 0)),
    ],
)
@pytest.mark.parametrize("chunks", [(4, 3), ((5, 1, 4), (1, 5, 1))], ids=["regular", "explicit"])
def test_a_missing_chunk_is_an_index_error(chunks, ask, argument):
    """Numbers and indices outside the grid raise IndexError, also negative ones."""
    with pytest.raises(IndexError):
        getattr(Grid.cut((10, 7), chunks), ask)(argument)


def test_an_axis_is_a_sequence_of_slices():
    """An axis has a length, items and an end."""
    axis = Axis.explicit((2, 5, 3))
    assert list(axis) == [slice(0, 2), slice(2, 7), slice(7, 10)]
    assert next(reversed(axis)) == axis[2]
    for i in (-1, 3):
        with pytest.raises(IndexError, match="an axis with 3 chunks"):
            axis[i]


@pytest.mark.parametrize(
    "axis",
    [
        Axis(10, 4, 2),
        Axis(10, 4, 4),
        Axis(10, 6, 2, (0, 5, 10)),
        Axis(10, 5, 2, (1, 5, 10)),
        Axis(10, 5, 2, (0, 5, 9)),
    ],
    ids=str,
)
def test_the_check_of_this_module_finds_a_broken_axis(axis):
    """An axis that does not tile is an AssertionError."""
    with pytest.raises(AssertionError):
        check_grid(Grid((axis,)))


@pytest.mark.parametrize(
    ("shape", "chunks", "lengths"),
    [
        ((10, 7), (4, 3), ([4, 4, 2], [3, 3, 1])),
        ((10, 7), [4, 3], ([4, 4, 2], [3, 3, 1])),
        ((10, 7), 8, ([8, 2], [7])),
        ((10, 7), -1, ([10], [7])),
        ((10, 7), None, ([10], [7])),
        ((10, 7), (-1, 3), ([10], [3, 3, 1])),
        ((10, 7), (None, 3), ([10], [3, 3, 1])),
        ((10, 7), {}, ([10], [7])),
        ((10, 7), {0: 5}, ([5, 5], [7])),
        ((10, 7), {-1: 3}, ([10], [3, 3, 1])),
        ((10, 7), {np.int8(-2): 5, 1: None}, ([5, 5], [7])),
        ((10, 7), ((1, 9), 3), ([1, 9], [3, 3, 1])),
        ((10, 7), ((1, 9), [7]), ([1, 9], [7])),
        ((10, 7), {1: (3, 1, 3)}, ([10], [3, 1, 3])),
        ((10, 7), (999, 1), ([10], [1] * 7)),
        ((10, 7), "auto", ([10], [7])),
        ((10, 7), {0: "auto"}, ([10], [7])),
        ((10, 7), (4, "auto"), ([4, 4, 2], [7])),
        ((0, 7), (0, 3), ([0], [3, 3, 1])),
    ],
    ids=str,
)
def test_forms_of_chunks(shape, chunks, lengths):
    """Each form of `chunks` has its documented meaning."""
    assert Grid.cut(shape, chunks) == Grid(tuple(map(Axis.explicit, lengths)))


@pytest.mark.parametrize(
    ("chunks", "error", "says"),
    [
        (
            0,
            ValueError,
            r"chunks=0, axis 0 of shape \(10, 7\): .* cannot have 0 elements; pass a po",
        ),
        (-2, ValueError, r"cannot have -2 elements; pass a positive int, -1 or None"),
        ((4, 0), ValueError, r"chunks=\(4, 0\), axis 1 of shape \(10, 7\)"),
        ((4,), ValueError, r"chunks=\(4,\) has 1 entry for an array of shape \(10, 7\); pass 2"),
        ((4, 3, 1), ValueError, r"has 3 entries for an array of shape \(10, 7\)"),
        (((5, 4), 7), ValueError, r"axis 0 .* lengths \(5, 4\) sum to 9, not to 10; pass"),
        (((5, 5, 0), 7), ValueError, r"axis 0 .* chunk 2 would have 0 elements; pass positive"),
        (((11, -1), 7), ValueError, r"axis 0 .* chunk 1 would have -1 elements"),
        (((5, 5.0), 7), TypeError, r"axis 0 .* entry 1: 5.0 is a float; pass an int"),
        ({2: 4}, ValueError, r"chunks=\{2: 4\}: there is no axis 2 among 2; pass -2 to 1"),
        ({-3: 4}, ValueError, r"there is no axis -3 among 2"),
        ({0: 4, -2: 5}, ValueError, r"axis 0 is there twice"),
        ({"x": 4}, TypeError, r"chunks=\{'x': 4\}: 'x' is a str; pass an int"),
        ({True: 4}, TypeError, r"True is a bool; pass an int"),
        (4.0, TypeError, r"axis 0 .* 4.0 is a float; pass a positive int"),
        ((4, np.float64(3)), TypeError, r"axis 1 .* float64"),
        (True, TypeError, r"True is a bool; pass a positive int"),
        ((4, np.True_), TypeError, r"axis 1 .* is a bool"),
        ("Auto", ValueError, r"'Auto' is unknown, the only word is \"auto\"; pass"),
        (("auto", "1MiB"), ValueError, r"axis 1 .* '1MiB' is unknown"),
        (np.array([4, 3]), TypeError, r"is a ndarray; pass"),
    ],
    ids=repr,
)
def test_chunks_that_do_not_fit_are_refused(chunks, error, says):
    """A message names the value, its place and the remedy."""
    with pytest.raises(error, match=says):
        Grid.cut((10, 7), chunks)


@pytest.mark.parametrize(
    ("keywords", "error", "says"),
    [
        ({"whole": (2,)}, ValueError, r"whole=\(2,\): there is no axis 2 among 2"),
        ({"depth": -1}, ValueError, r"depth=-1, axis 0: .* pass 0 or more"),
        ({"depth": (1,)}, ValueError, r"depth=\(1,\) has 1 entry for 2 axes"),
        ({"itemsize": 8.0}, TypeError, r"itemsize: 8.0 is a float; pass an int"),
    ],
    ids=repr,
)
def test_other_arguments_are_checked_too(keywords, error, says):
    """Arguments that only "auto" needs are checked for all chunks."""
    with pytest.raises(error, match=says):
        Grid.cut((10, 7), 4, **keywords)


@pytest.mark.parametrize(
    ("shape", "error"), [((-1,), ValueError), ((2.0,), TypeError), ((True,), TypeError)], ids=str
)
def test_a_shape_is_checked(shape, error):
    """A shape is a sequence of ints that are not negative."""
    with pytest.raises(error, match="shape="):
        Grid.cut(shape, 1)


@pytest.mark.parametrize("ask", [lambda: Axis.regular(-1, 1), lambda: Axis.regular(5, 0)])
def test_a_regular_axis_needs_a_step(ask):
    """Negative sizes and steps below 1 are refused."""
    with pytest.raises(ValueError, match="pass a positive step"):
        ask()


# "auto" --------------------------------------------------------------------------------------

shapes = st.lists(
    st.integers(0, 14).flatmap(lambda bits: st.integers(2**bits // 2, 2**bits)),
    min_size=1,
    max_size=4,
)
itemsizes = st.sampled_from([0, 1, 2, 4, 8, 16, 100])


def longest(grid: Grid) -> tuple[int, ...]:
    """Elements of the largest chunk along each axis."""
    return tuple(axis.step for axis in grid.axes)


@given(shapes, itemsizes, st.sampled_from([2**20, 2**23]))
def test_auto_blocks_are_at_most_their_target(shape, itemsize, most):
    """No block is larger than may be, nor, down to 64 KiB, than a 64th of the array."""
    grid = Grid.cut(shape, "auto", itemsize=itemsize, most=most)
    total = prod(shape) * itemsize
    target = min(most, max(2**16, total // 64))
    assert block_bytes(shape, itemsize, most) == target
    assert prod(longest(grid)) * itemsize <= target
    if total >= 64 * 2**16:
        assert grid.size >= 64


@given(shapes, itemsizes)
def test_auto_blocks_are_not_small(shape, itemsize):
    """A block is at least a quarter of the target, or the whole array."""
    item = max(1, itemsize)
    grid = Grid.cut(shape, "auto", itemsize=itemsize)
    block = (prod(longest(grid)) + 1) * item
    assert grid.size <= 1 or 4 * block > block_bytes(shape, item)


@given(shapes, itemsizes)
def test_auto_blocks_are_runs_of_memory(shape, itemsize):
    """Without a halo only one axis is cut into more than single elements, later ones are whole."""
    grid = Grid.cut(shape, "auto", itemsize=itemsize)
    cut = [k for k, axis in enumerate(grid.axes) if len(axis) > 1]
    assert all(grid.axes[k].step == 1 for k in cut[:-1])


@given(shapes, itemsizes, st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_auto_blocks_are_wide_enough_for_their_halo(shape, itemsize, depth):
    """A halo adds at most half of a block's length, unless the axis is in one chunk."""
    depth = depth[: len(shape)]
    grid = Grid.cut(shape, "auto", itemsize=itemsize, depth=depth)
    for axis, around in zip(grid.axes, depth, strict=True):
        assert len(axis) <= 1 or axis.step >= 4 * around


@given(shapes, itemsizes, st.data())
def test_auto_never_divides_a_whole_axis(shape, itemsize, data):
    """The axes named in `whole` are one chunk, however large."""
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    grid = Grid.cut(shape, "auto", itemsize=itemsize, depth=2, whole=(axis,))
    assert len(grid.axes[axis]) <= 1


def test_explicit_chunks_may_divide_a_whole_axis():
    """`whole` applies to "auto" only, not to explicit chunks."""
    assert Grid.cut((10, 10), 5, whole=(0,)).numblocks == (2, 2)


@given(shapes, itemsizes, st.integers(1, 300))
def test_auto_axes_share_what_fixed_axes_leave(shape, itemsize, step):
    """With one axis given, the others fill the block up to the target, and not beyond."""
    grid = Grid.cut(
        shape, {0: step, **dict.fromkeys(range(1, len(shape)), "auto")}, itemsize=itemsize
    )
    assert longest(grid)[0] == max(1, min(step, shape[0]))
    rest = prod(longest(grid)[1:])
    assert rest == 1 or rest * longest(grid)[0] * itemsize <= block_bytes(shape, itemsize)


@pytest.mark.parametrize("seen", [1, 2, 64])
def test_auto_does_not_look_at_the_machine(seen, monkeypatch):
    """The number of CPUs changes nothing."""
    monkeypatch.setattr("os.cpu_count", lambda: seen)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(seen)), raising=False)
    monkeypatch.setenv("SHMPAR_NUM_WORKERS", str(seen))
    assert Grid.cut((10_000, 10_000), "auto").numblocks == (770, 1)


@pytest.mark.parametrize(
    ("shape", "itemsize", "depth", "block"),
    [
        ((10_000, 10_000), 8, None, (13, 10_000)),
        ((10_000, 10_000), 8, 12, (264, 477)),
        ((1_000, 64, 64), 1, {1: 5, 2: 5}, (16, 64, 64)),
        ((500, 500, 500), 8, {0: 2}, (250, 1, 250)),
        ((100, 100), 8, 60, (100, 100)),
    ],
    ids=str,
)
def test_auto_by_example(shape, itemsize, depth, block):
    """Bands of rows to stream, tiles for a halo, frames for a halo in the plane."""
    cell = Grid.cut(shape, "auto", itemsize=itemsize, depth=depth).core(0)
    assert tuple(part.stop for part in cell) == block


@pytest.mark.parametrize(
    ("chunks", "units", "most"),
    [
        ("auto", (1, 4096, 4096), 4),
        ("auto", (1, 512, 512), 64),
        (("auto", -1, -1), None, 4),
    ],
)
def test_blocks_of_a_reduction_are_small_beside_large_units(chunks, units, most):
    """Units, or chunks, that are whole planes leave many blocks for the workers."""
    grid = Grid.cut((200, 4096, 4096), chunks, itemsize=4, units=units, reduced=(0,))
    assert longest(grid)[0] <= most
    assert grid.size >= 50
