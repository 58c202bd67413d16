"""Halos: the windows of chunks, and the padding beyond the array."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpar.grid import Grid, Halo, Mode
from shmpar.grid.halo import BOUNDARIES
from tests import naive

MODES = ["none", *naive.NUMPY_MODES]
sides = st.sampled_from([*MODES, -7, 0.5])
depths = st.one_of(st.integers(0, 3), st.integers(0, 25))


def counted(shape: tuple[int, ...]) -> np.ndarray:
    """Make an array whose elements all differ, none of them a constant of the tests."""
    return np.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)


@st.composite
def cases(draw, side=sides):
    """Draw an array, a grid, and depths and boundaries per axis and side."""
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 7)) for _ in range(ndim))
    grid = Grid.cut(shape, tuple(draw(st.integers(1, 7)) for _ in range(ndim)))
    limit = depths if ndim < 3 else st.integers(0, 9)
    depth = tuple((draw(limit), draw(limit)) for _ in range(ndim))
    return counted(shape), grid, depth, tuple((draw(side), draw(side)) for _ in range(ndim))


@given(cases(), st.randoms(use_true_random=False))
def test_windows_are_cut_from_the_padded_array(case, random):
    """A window equals the same window of the whole padded array."""
    array, grid, depth, boundary = case
    halo = Halo.parse(depth, boundary, grid.ndim)
    numbers = range(grid.size)
    for number in random.sample(numbers, min(5, grid.size)):
        window = halo.gather(array, grid, number)
        wanted = naive.window(array, grid.core(number), depth, boundary)
        np.testing.assert_array_equal(window, wanted)
        np.testing.assert_array_equal(window[halo.trim(grid, number)], array[grid.core(number)])
        assert window.shape == tuple(stop - start for start, stop in halo.window(grid, number))
        bounds = halo.window(grid, number)
        inside = all(a >= 0 and b <= n for (a, b), n in zip(bounds, grid.shape, strict=True))
        assert np.shares_memory(window, array) == inside
        if inside:
            np.testing.assert_array_equal(window, array[tuple(slice(*pair) for pair in bounds)])


@pytest.mark.parametrize("mode", naive.NUMPY_MODES)
@given(case=cases())
def test_a_name_means_one_mode_of_np_pad(mode, case):
    """With one boundary for all, a single call of np.pad gives the same windows."""
    array, grid, wide, _ = case
    # Wider than the axis on both sides at once, np.pad of older NumPy goes wrong.
    depth = [
        (min(before, size - 1), min(after, size - 1))
        for (before, after), size in zip(wide, array.shape, strict=True)
    ]
    padded = np.pad(array, depth, mode=naive.NUMPY_MODES[mode])
    halo = Halo.parse(depth, mode, grid.ndim)
    for number in {0, grid.size // 2, grid.size - 1}:
        where = tuple(
            slice(part.start, part.stop + before + after)
            for part, (before, after) in zip(grid.core(number), depth, strict=True)
        )
        np.testing.assert_array_equal(halo.gather(array, grid, number), padded[where])


@given(cases(side=st.integers(-9, 0)))
def test_constants_are_those_of_np_pad(case):
    """Constants per axis and side fill as in np.pad: a later axis has the corners."""
    array, grid, depth, boundary = case
    whole = Grid.cut(array.shape, None)
    window = Halo.parse(depth, boundary, grid.ndim).gather(array, whole, 0)
    np.testing.assert_array_equal(window, np.pad(array, depth, constant_values=boundary))


@pytest.mark.parametrize("mode", [*naive.NUMPY_MODES, 9])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_halo_may_be_much_wider_than_the_array(mode, size):
    """A tiny axis is continued as far as asked, also a single element."""
    array = counted((size,))
    window = Halo.parse(50, mode, 1).gather(array, Grid.cut((size,), 1), size - 1)
    wanted = naive.window(array, (slice(size - 1, size),), [(50, 50)], [(mode, mode)])
    np.testing.assert_array_equal(window, wanted)


@pytest.mark.parametrize(
    ("mode", "row"),
    [
        ("reflect", [2, 1, 1, 2, 3, 3, 2]),
        ("symmetric", [2, 1, 1, 2, 3, 3, 2]),
        ("grid-mirror", [2, 1, 1, 2, 3, 3, 2]),
        ("mirror", [3, 2, 1, 2, 3, 2, 1]),
        ("nearest", [1, 1, 1, 2, 3, 3, 3]),
        ("edge", [1, 1, 1, 2, 3, 3, 3]),
        ("periodic", [2, 3, 1, 2, 3, 1, 2]),
        ("wrap", [2, 3, 1, 2, 3, 1, 2]),
        ("grid-wrap", [2, 3, 1, 2, 3, 1, 2]),
        ("constant", [0, 0, 1, 2, 3, 0, 0]),
        ("grid-constant", [0, 0, 1, 2, 3, 0, 0]),
        ("none", [1, 2, 3]),
        (None, [1, 2, 3]),
        (Mode.MIRROR, [3, 2, 1, 2, 3, 2, 1]),
        (8, [8, 8, 1, 2, 3, 8, 8]),
        (np.int8(8), [8, 8, 1, 2, 3, 8, 8]),
        (True, [1, 1, 1, 2, 3, 1, 1]),
    ],
    ids=str,
)
def test_every_name_by_example(mode, row):
    """Each name of either dialect continues 1 2 3 as its table says."""
    array = np.array([1, 2, 3])
    assert Halo.parse(2, mode, 1).gather(array, Grid.cut((3,), 3), 0).tolist() == row


def test_every_name_is_in_the_examples():
    """A new name needs an example."""
    (marks,) = test_every_name_by_example.pytestmark
    assert set(BOUNDARIES) <= {mode for mode, _ in marks.args[1]}


@pytest.mark.parametrize(
    ("name", "scipy_mode"),
    [
        ("reflect", "reflect"),
        ("mirror", "mirror"),
        ("nearest", "nearest"),
        ("periodic", "grid-wrap"),
        (3.5, "constant"),
    ],
    ids=str,
)
def test_names_are_scipys(name, scipy_mode):
    """A filter on windows equals SciPy's filter on the whole array, in the mode of that name."""
    ndimage = pytest.importorskip("scipy.ndimage")
    array = np.random.default_rng(0).random((13, 9))
    grid, halo = Grid.cut(array.shape, (4, 5)), Halo.parse(3, name, 2)
    out = np.empty_like(array)
    for number in range(grid.size):
        blurred = ndimage.uniform_filter(halo.gather(array, grid, number), 7)
        out[grid.core(number)] = blurred[halo.trim(grid, number)]
    cval = name if scipy_mode == "constant" else 0.0
    np.testing.assert_allclose(out, ndimage.uniform_filter(array, 7, mode=scipy_mode, cval=cval))


def test_a_window_inside_is_a_view_of_the_array():
    """Inside the array nothing is copied, and a read-only array stays so."""
    array = counted((9, 9))
    array.flags.writeable = False
    grid, halo = Grid.cut((9, 9), 3), Halo.parse(1, "reflect", 2)
    middle, corner = halo.gather(array, grid, 4), halo.gather(array, grid, 0)
    assert middle.base is not None
    assert np.shares_memory(middle, array)
    assert not np.shares_memory(corner, array)
    assert not middle.flags.writeable
    assert not corner.flags.writeable


@pytest.mark.parametrize("boundary", ["reflect", 0], ids=str)
def test_the_memory_order_stays(boundary):
    """A window at the border lies in memory as the array does."""
    array = np.asfortranarray(counted((6, 5)))
    window = Halo.parse(1, boundary, 2).gather(array, Grid.cut((6, 5), 3), 0)
    assert window.flags.f_contiguous


@pytest.mark.parametrize(
    "dtype", ["?", "u1", ">i4", "f2", "c16", "M8[s]", "S3", "U2", "i4,f8"], ids=str
)
def test_any_dtype_is_continued(dtype):
    """Modes only copy elements, so they do so for every dtype."""
    array = np.zeros(4, dtype)
    array[1:3] = np.ones(2, "i8").astype(array[:1].dtype) if array.dtype.names is None else array[0]
    window = Halo.parse(2, "mirror", 1).gather(array, Grid.cut((4,), 2), 0)
    assert window.dtype == array.dtype
    assert window.tolist() == array[[2, 1, 0, 1, 2, 3]].tolist()


def test_an_array_without_axes_has_a_window():
    """The window of a zero-dimensional array is the array, not a scalar."""
    array = np.array(3.0)
    window = Halo.parse(2, "reflect", 0).gather(array, Grid.cut((), None), 0)
    assert isinstance(window, np.ndarray)
    assert np.shares_memory(window, array)


def test_an_array_of_another_shape_is_refused():
    """A window of the wrong array would be wrong in silence."""
    with pytest.raises(ValueError, match=r"array of shape \(5,\) on a grid of \(4,\)"):
        Halo.parse(1, 0, 1).gather(np.zeros(5), Grid.cut((4,), 2), 0)


def test_a_chunk_that_is_not_there_is_an_index_error():
    """Windows exist for the chunks of the grid only."""
    grid, halo = Grid.cut((4,), 2), Halo.parse(1, 0, 1)
    for ask in (halo.window, halo.trim, partial(halo.gather, np.zeros(4))):
        with pytest.raises(IndexError, match="chunk 2 of a grid with 2 chunks"):
            ask(grid, 2)


def test_a_side_without_depth_is_never_left():
    """A boundary matters only where the halo reaches beyond the array."""
    grid, halo = Grid.cut((9,), 3), Halo.parse(((0, 1),), "reflect", 1)
    array = np.zeros(9)
    views = [np.shares_memory(halo.gather(array, grid, number), array) for number in range(3)]
    assert views == [True, True, False]
    assert [halo.window(grid, number) for number in range(3)] == [((0, 4),), ((3, 7),), ((6, 10),)]


def test_a_halo_without_depth_is_false():
    """A halo that widens nothing says so."""
    assert not Halo.parse(0, "reflect", 2)
    assert Halo.parse({1: (0, 1)}, "reflect", 2)


@given(cases())
def test_a_halo_is_a_value(case):
    """A halo pickles, compares and hashes by its contents."""
    _, grid, depth, boundary = case
    halo = Halo.parse(depth, boundary, grid.ndim)
    again = pickle.loads(pickle.dumps(halo))
    assert again == halo
    assert hash(again) == hash(halo)
    assert len(pickle.dumps(halo, protocol=5)) <= 200


@pytest.mark.parametrize(
    ("depth", "pairs"),
    [
        (2, ((2, 2), (2, 2))),
        (np.uint8(2), ((2, 2), (2, 2))),
        ((1, 2), ((1, 1), (2, 2))),
        ([1, 2], ((1, 1), (2, 2))),
        (((0, 1), 0), ((0, 1), (0, 0))),
        (([0, 1], (2, 3)), ((0, 1), (2, 3))),
        ({}, ((0, 0), (0, 0))),
        ({0: (0, 1)}, ((0, 1), (0, 0))),
        ({-1: 3}, ((0, 0), (3, 3))),
    ],
    ids=repr,
)
def test_forms_of_depth(depth, pairs):
    """Each form of `depth` has its documented meaning; a pair only nested."""
    assert Halo.parse(depth, None, 2).depth == pairs


NONE = Mode.NONE


@pytest.mark.parametrize(
    ("boundary", "pairs"),
    [
        ("edge", ((Mode.NEAREST, Mode.NEAREST),) * 2),
        (1.5, ((1.5, 1.5),) * 2),
        (("edge", None), ((Mode.NEAREST, Mode.NEAREST), (NONE, NONE))),
        ([1j, np.float32(2)], ((1j, 1j), (2, 2))),
        ((("wrap", 3), "none"), ((Mode.PERIODIC, 3), (NONE, NONE))),
        ({-1: "reflect"}, ((NONE, NONE), (Mode.REFLECT, Mode.REFLECT))),
        ({0: (None, "mirror")}, ((NONE, Mode.MIRROR), (NONE, NONE))),
    ],
    ids=repr,
)
def test_forms_of_boundary(boundary, pairs):
    """Each form of `boundary` has its documented meaning; a pair only nested."""
    assert Halo.parse(1, boundary, 2).boundary == pairs


@pytest.mark.parametrize(
    ("depth", "error", "says"),
    [
        (-1, ValueError, r"depth=-1, axis 0: a halo cannot have -1 elements; pass 0 or more"),
        ((1, -2), ValueError, r"depth=\(1, -2\), axis 1: .* -2 elements"),
        (((0, -1), 0), ValueError, r"axis 0: .* -1 elements"),
        (1.0, TypeError, r"depth=1.0, axis 0: 1.0 is a float; pass an int"),
        ((1, True), TypeError, r"axis 1: True is a bool; pass an int"),
        ((1, None), TypeError, r"axis 1: None is a NoneType; pass an int"),
        ("2", TypeError, r"'2' is a str; pass an int"),
        (
            (1, 2, 3),
            ValueError,
            r"depth=\(1, 2, 3\) has 3 entries for 2 axes; pass 2, one per axis",
        ),
        (((1, 2, 3), 0), ValueError, r"axis 0: \(1, 2, 3\) has 3 entries; pass an int or a pair"),
        ({2: 1}, ValueError, r"depth=\{2: 1\}: there is no axis 2 among 2; pass -2 to 1"),
        ({0: 1, -2: 1}, ValueError, r"axis 0 is there twice"),
    ],
    ids=repr,
)
def test_depths_that_do_not_fit_are_refused(depth, error, says):
    """A message names the value, its place and the remedy."""
    with pytest.raises(error, match=says):
        Halo.parse(depth, "none", 2)


@pytest.mark.parametrize(
    ("boundary", "error", "says"),
    [
        (
            "mirrored",
            ValueError,
            r"boundary='mirrored', axis 0: 'mirrored' is unknown; .* mirror, ",
        ),
        (
            ("none", "Wrap"),
            ValueError,
            r"axis 1: 'Wrap' is unknown; pass a constant or one of none",
        ),
        (("none",), ValueError, r"boundary=\('none',\) has 1 entry for 2 axes"),
        ((("edge",) * 3, 0), ValueError, r"axis 0: .* has 3 entries; pass a name, a constant or a"),
        (object, TypeError, r"axis 0: <class 'object'> is a type; pass a constant or one of none"),
        ({5: "edge"}, ValueError, r"boundary=\{5: 'edge'\}: there is no axis 5 among 2"),
    ],
    ids=repr,
)
def test_boundaries_that_do_not_fit_are_refused(boundary, error, says):
    """A message names the value, its place, and the names there are."""
    with pytest.raises(error, match=says):
        Halo.parse(1, boundary, 2)


def test_an_axis_that_no_array_has_is_refused():
    """Without axes a dict must be empty."""
    with pytest.raises(ValueError, match="there is no axis 0, the array has none; leave it out"):
        Halo.parse({0: 1}, None, 0)


@pytest.mark.parametrize(
    ("constant", "dtype", "fits"),
    [
        (0, "u1", True),
        (255.0, "u1", True),
        (np.int64(3), "i2", True),
        (True, "?", True),
        (np.nan, "f2", True),
        (0.1, "f4", True),
        (1j, "c8", True),
        (np.datetime64("NaT", "s"), "M8[s]", True),
        (-1, "u1", False),
        (256, "u1", False),
        (2.5, "i8", False),
        (np.nan, "i8", False),
        (1j, "f8", False),
        (2, "?", False),
        (10**400, "f8", False),
        (10**400, "i8", False),
        (1j, "i8", False),
        (np.datetime64("NaT", "s"), "i8", False),
    ],
    ids=repr,
)
def test_a_constant_must_fit_the_dtype(constant, dtype, fits):
    """A constant that the dtype cannot hold is refused."""
    halo = Halo.parse(((0, 1),), constant, 1)
    if fits:
        halo.check_constants(dtype)
        return
    with pytest.raises(ValueError, match="on axis 0 does not fit an array of dtype"):
        halo.check_constants(dtype)
    Halo.parse(0, constant, 1).check_constants(dtype)
