"""map_overlap with other axes and with a halo per input equals padding, applying and trimming."""

from __future__ import annotations

import itertools
import resource
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmpar
from tests import naive_verbs as naive

quick = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)

BOUNDARIES = ["none", *naive.MODES, 7]
PAIRS = st.tuples(st.integers(0, 3), st.integers(0, 3))


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    """Different numbers without order."""
    return (np.arange(np.prod(shape)).reshape(shape) * 37 + 11) % 101


@st.composite
def halos(draw: st.DrawFn, ndim: int) -> tuple[Any, Any, Any, Any]:
    """Depths and boundaries per axis, and a spelling of both that the verb takes."""
    depths = [draw(PAIRS) for _ in range(ndim)]
    boundaries = [draw(st.sampled_from(BOUNDARIES)) for _ in range(ndim)]
    spell = draw(st.sampled_from([tuple, lambda sides: dict(enumerate(sides))]))
    if ndim and draw(st.booleans()):
        both = draw(st.integers(0, 3))
        return [(both, both)] * ndim, boundaries[:1] * ndim, both, boundaries[0]
    return depths, boundaries, spell(depths), spell(boundaries)


@st.composite
def broadcast_inputs(draw: st.DrawFn) -> Any:
    """Up to three arrays that broadcast, the halo of each, and chunks."""
    shape = tuple(draw(st.lists(st.integers(2, 7), min_size=1, max_size=3)))
    arrays = [numbers(shape)]
    for _ in range(draw(st.integers(0, 2))):
        ndim = draw(st.integers(1, len(shape)))
        own = [draw(st.sampled_from([n, n, 1])) for n in shape[len(shape) - ndim :]]
        arrays.append(numbers(tuple(own)) + 1000 * len(arrays))
    arrays = draw(st.permutations(arrays))
    chunks = tuple(draw(st.integers(1, 8)) for _ in shape)
    return arrays, shape, chunks, [draw(halos(array.ndim)) for array in arrays]


def own_window(array: Any, shape: Any, cell: Any, depths: Any, boundaries: Any) -> Any:
    """The window of an input that broadcasts to `shape`; a broadcast axis is whole."""
    skip, ends = len(shape) - array.ndim, []
    own = []
    for axis, size in enumerate(array.shape):
        whole = size == 1 and shape[skip + axis] != 1
        own.append(slice(0, 1) if whole else cell[skip + axis])
        ends.append((0, 0) if whole else depths[axis])
    return naive.window(array, tuple(own), ends, boundaries)


@quick
@given(case=broadcast_inputs())
def test_each_input_has_its_own_halo(pool: shmpar.Pool, case: Any) -> None:
    """A list has an entry per input, for the axes of that input."""
    arrays, shape, chunks, own = case
    got = pool.block_reduce(
        lambda *windows: [window.tolist() for window in windows],
        *arrays, chunks=chunks, dtype=object,
        depth=[depth for _, _, depth, _ in own], boundary=[side for *_, side in own],
    )  # fmt: skip
    pairs = list(zip(arrays, own, strict=True))
    for cell, windows in zip(naive.cells(shape, chunks), got.reshape(-1), strict=True):
        for window, (array, (depths, boundaries, *_)) in zip(windows, pairs, strict=True):
            assert window == own_window(array, shape, cell, depths, boundaries)[0].tolist()


@quick
@given(case=broadcast_inputs())
def test_the_halo_of_the_largest_input_is_removed(pool: shmpar.Pool, case: Any) -> None:
    """The result has the halo of the first input with the most axes."""
    arrays, shape, chunks, own = case
    most = max(range(len(arrays)), key=lambda k: (arrays[k].shape == shape, -k))
    first = max(range(len(arrays)), key=lambda k: (arrays[k].ndim, -k))
    if first != most:  # an input that is broadcast has no halo there
        arrays, own = arrays[most:], own[most:]
        most = 0
    got = pool.map_overlap(
        lambda *windows: windows[most] * 2,
        *arrays, chunks=chunks,
        depth=[depth for _, _, depth, _ in own], boundary=[side for *_, side in own],
    )  # fmt: skip
    np.testing.assert_array_equal(got, arrays[most] * 2)


def test_an_axis_without_a_halo_in_the_largest_input_has_that_of_the_next(
    pool: shmpar.Pool,
) -> None:
    """The first input is broadcast along axis 0, so the second decides there."""
    row, image = numbers((1, 6)), numbers((8, 6))
    got = pool.map_overlap(
        lambda a, b: np.broadcast_to(a, (len(b), a.shape[1])) + b.sum() * 0,
        row, image, depth=[(3, 1), (2, 0)], boundary="nearest", chunks=3,
    )  # fmt: skip
    np.testing.assert_array_equal(got, np.broadcast_to(row, (8, 6)))


@pytest.mark.parametrize("given", [[1], [1, 1, 1]])
def test_a_list_of_another_length_is_refused(pool: shmpar.Pool, image: Any, given: Any) -> None:
    """The error says the meaning of a list and of a tuple."""
    for keywords in ({"depth": given}, {"depth": 1, "boundary": given}):
        with pytest.raises(ValueError, match=r"for 2 inputs; a list has an entry per input, and"):
            pool.map_overlap(np.add, image, image, **keywords)


def test_an_entry_names_its_input(pool: shmpar.Pool, image: Any) -> None:
    """The error names the entry of the list."""
    with pytest.raises(ValueError, match=r"depth\[1\]=\(1, 2\) has 2 entries for 1 axis"):
        pool.map_overlap(np.add, image, image[0], depth=[1, (1, 2)])
    with pytest.raises(ValueError, match=r"boundary\[0\]='around', axis 0"):
        pool.map_overlap(np.add, image, image[0], depth=1, boundary=["around", 0])


@quick
@given(case=broadcast_inputs(), halo=st.data())
def test_one_depth_is_for_the_axes_of_the_broadcast_inputs(
    pool: shmpar.Pool, case: Any, halo: st.DataObject
) -> None:
    """An input with fewer axes has the last entries of a tuple."""
    arrays, shape, chunks, _ = case
    depths, boundaries, depth, boundary = halo.draw(halos(len(shape)))
    got = pool.block_reduce(
        lambda *windows: [window.tolist() for window in windows],
        *arrays, chunks=chunks, dtype=object, depth=depth, boundary=boundary,
    )  # fmt: skip
    for cell, windows in zip(naive.cells(shape, chunks), got.reshape(-1), strict=True):
        for window, array in zip(windows, arrays, strict=True):
            skip = len(shape) - array.ndim
            own = own_window(array, shape, cell, depths[skip:], boundaries[skip:])[0]
            assert window == own.tolist()


def test_a_scalar_has_an_entry_that_does_not_matter(pool: shmpar.Pool, image: Any) -> None:
    """A list is as long as the arguments."""
    got = pool.map_overlap(np.multiply, image, 3.0, depth=[2, None], chunks=9)
    np.testing.assert_array_equal(got, image * 3)


def test_constants_are_checked_for_their_input_alone(pool: shmpar.Pool, image: Any) -> None:
    """NaN beyond an array of floats is right, beside an array of integers."""
    whole = numbers(image.shape)
    got = pool.map_overlap(
        lambda a, b: a[1:-1, 1:-1] + b, image, whole,
        depth=[1, 0], boundary=[np.nan, 0], chunks=9, trim=False,
    )  # fmt: skip
    np.testing.assert_array_equal(got, image + whole)
    with pytest.raises(ValueError, match="nan"):
        pool.map_overlap(np.add, image, whole, depth=1, boundary=np.nan)


@st.composite
def other_axes(draw: st.DrawFn) -> Any:
    """An array, chunks, a halo, axes to drop, and the positions of new axes with their lengths."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    dropped = [k for k in range(len(shape)) if draw(st.integers(0, 2)) == 0]
    chunks = tuple(n if k in dropped else draw(st.integers(1, 7)) for k, n in enumerate(shape))
    kept = [k for k in range(len(shape)) if k not in dropped]
    axes: list[int | None] = list(kept)
    for _ in range(draw(st.integers(0, 2))):
        axes.insert(draw(st.integers(0, len(axes))), None)
    lengths = [draw(st.integers(1, 3)) for axis in axes if axis is None]
    return numbers(shape), chunks, draw(halos(len(shape))), dropped, axes, lengths


@quick
@given(case=other_axes(), trim=st.booleans(), signed=st.booleans())
def test_axes_may_be_dropped_and_added(
    pool: shmpar.Pool, case: Any, trim: bool, signed: bool
) -> None:
    """The halo is removed along the axes that the result keeps."""
    array, chunks, (depths, boundaries, depth, boundary), dropped, axes, lengths = case
    new = [k for k, axis in enumerate(axes) if axis is None]
    if not trim:  # every window has its whole halo
        boundaries = ["nearest" if side == "none" else side for side in boundaries]
        boundary = tuple(boundaries)

    def func(window: Any) -> Any:
        if not trim:
            pairs = zip(depths, window.shape, strict=True)
            window = window[tuple(slice(low, n - high) for (low, high), n in pairs)]
        result = window.sum(tuple(dropped))
        for axis, length in zip(new, lengths, strict=True):
            result = np.stack([result * k for k in range(length)], axis)
        return result

    got = pool.map_overlap(
        func, array, depth=depth, boundary=boundary, chunks=chunks, trim=trim,
        drop_axis=[k - array.ndim * signed for k in dropped],
        new_axis=[k - len(axes) * signed for k in new],
    )  # fmt: skip
    expected = naive.map_overlap(
        func, array, chunks, depths, boundaries, axes, trim=trim
    )  # fmt: skip
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == expected.dtype


@quick
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    chunks=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    halo=halos(2),
    known=st.booleans(),
)
def test_blocks_may_change_their_length(
    pool: shmpar.Pool, sizes: Any, chunks: Any, halo: Any, known: bool
) -> None:
    """out_chunks counts what is left without the halo."""
    array, (_, _, depth, boundary) = numbers(sizes), halo
    rows = [cell[0] for cell in naive.cells(sizes[:1], chunks[:1])]
    lengths = [2 * (part.stop - part.start) for part in rows]

    def twice(window: Any, block_info: Any) -> Any:
        """Repeat the rows of the block, but not those of the halo."""
        (low, high), (start, stop) = (
            block_info[0]["array-location"][0],
            block_info[None]["array-location"][0],
        )
        times = [1] * (start - low) + [2] * (stop - start) + [1] * (high - stop)
        return np.repeat(window, times, axis=0)

    got = pool.map_overlap(
        twice, array, depth=depth, boundary=boundary, chunks=chunks,
        out_chunks={0: lengths}, dtype="i8" if known else None,
    )  # fmt: skip
    np.testing.assert_array_equal(got, np.repeat(array, 2, axis=0))


def test_a_new_axis_of_known_length_is_written_in_place(pool: shmpar.Pool, image: Any) -> None:
    """With out_chunks, dtype and pass_out the function writes into its window."""

    def both(window: Any, out: Any) -> None:
        out[0], out[1] = window[1:-1, 1:-1], -window[1:-1, 1:-1]

    got = pool.map_overlap(
        both, image, depth=1, boundary="edge", chunks=9, trim=False, new_axis=0,
        out_chunks={0: 2}, dtype="f8", pass_out=True,
    )  # fmt: skip
    np.testing.assert_array_equal(got, [image, -image])


def test_several_outputs_have_the_axes_each(pool: shmpar.Pool, image: Any) -> None:
    """A tuple is trimmed part by part; out= takes the results."""
    out = np.zeros(23), np.zeros(23)
    got = pool.map_overlap(
        lambda w: (w.min(0), w.max(0)), image, depth=(0, 2), chunks=(-1, 5), drop_axis=0, out=out
    )
    assert all(mine is given for mine, given in zip(got, out, strict=True))
    np.testing.assert_array_equal(out, [image.min(0), image.max(0)])


def test_automatic_chunks_leave_dropped_axes_whole(pool: shmpar.Pool) -> None:
    """So drop_axis needs no chunks=."""
    array = np.random.default_rng(1).normal(size=(200, 3000))
    got = pool.map_overlap(lambda w: w.sum(0), array, depth=(0, 3), drop_axis=0)
    np.testing.assert_array_equal(got, array.sum(0))
    assert pool.last_run.report.chunks > 1


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"drop_axis": 0}, r"drop_axis: axis 0 is cut into 4 chunks, .* chunks=\{0: -1\}"),
        ({"drop_axis": 2}, "drop_axis: there is no axis 2 among 2"),
        ({"new_axis": 5}, "new_axis: there is no axis 5 among 3"),
        ({"out_chunks": (1,)}, "out_chunks=.* has 1 entry for an output of 2 axes"),
        ({"out_chunks": ((1,), 1)}, "out_chunks, axis 0 has 1 length for 4 chunks"),
    ],
)
def test_axes_that_make_no_sense_are_refused(
    pool: shmpar.Pool, image: Any, keywords: Any, match: str
) -> None:
    """The errors are those of map_blocks, before anything starts."""
    with pytest.raises(ValueError, match=match):
        pool.map_overlap(np.negative, image, depth=1, chunks=10, **keywords)


@pytest.mark.parametrize(
    ("func", "keywords", "match"),
    [
        (lambda w: w, {"drop_axis": 0}, "a block is due with 1 axis; name .* adds in new_axis"),
        (lambda w: w, {"new_axis": 0}, "a block is due with 3 axes; name .* drops in drop_axis"),
        (lambda w: w[None, 1:], {"new_axis": 0}, r"must return \(n, 37, 11\) for any n, or, with"),
        (lambda w: w, {"out_chunks": {1: 4}}, r"\(37, 11\); it must return \(37, 5\), or"),
        (
            lambda w: w[:, 1:-1],
            {"out_chunks": {1: 4}, "trim": False},
            r"where \(37, 4\) is due; .* out_chunks=",
        ),
    ],
)
def test_a_result_of_another_shape_is_explained(
    pool: shmpar.Pool, image: Any, func: Any, keywords: Any, match: str
) -> None:
    """The error has the shape that is due with the halo, and the keyword for another."""
    with pytest.raises(shmpar.ChunkError, match=match):
        pool.map_overlap(func, image, depth=(0, 1), chunks=(-1, 10), **keywords)


def test_a_masked_result_is_refused(pool: shmpar.Pool, image: Any) -> None:
    """To remove the halo would lose the mask."""
    with pytest.raises(shmpar.ChunkError, match="whose mask would be lost"):
        pool.map_overlap(lambda w: np.ma.masked_less(w, 0), image, depth=1)


@pytest.mark.parametrize("verb", ["map_overlap", "block_reduce"])
def test_a_halo_that_does_not_fit_into_memory_is_refused(pool: shmpar.Pool, verb: str) -> None:
    """The error has the chunk, the depth and the bytes, and says what to change."""
    calls: list[Any] = []
    with pytest.raises(
        ValueError,
        match=r"a chunk of shape \(5, 2\) with its halo of depth \(\(0, 0\), \(10{12}, 10{12}\)\) "
        r"makes a window of shape \(5, 20{11}2\), which takes 80,0{3}.* bytes.* smaller depth=",
    ):
        getattr(pool, verb)(
            calls.append, np.zeros((5, 6)), depth=(0, 10**12), boundary="wrap", chunks=(5, 2)
        )
    assert not calls


@pytest.mark.parametrize("depth", [10**12, {0: 10**30}, ((0, 10**30), 0)], ids=str)
def test_a_halo_of_any_depth_ends_with_the_array(pool: shmpar.Pool, image: Any, depth: Any) -> None:
    """Without padding nothing is copied, so there is nothing to refuse."""
    got = pool.map_overlap(np.negative, image, depth=depth, chunks=10)
    np.testing.assert_array_equal(got, -image)


def limit_memory(more: int) -> None:
    """Allow this process that many more bytes of address space."""
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))


def test_a_worker_without_memory_for_a_window_names_the_halo() -> None:
    """The error is not one of the function."""
    depth = 12 << 20  # elements; the window takes 192 MiB
    with (
        shmpar.Pool(1, engine="processes", initializer=limit_memory, initargs=(64 << 20,)) as pool,
        pytest.raises(shmpar.ChunkError) as caught,
    ):
        pool.map_overlap(np.negative, np.zeros(9), depth=depth, boundary=0, chunks=3)
    message = str(caught.value)
    assert f"at [0:3]: with its halo of depth (({depth}, {depth}),) it makes" in message
    assert f"a window of shape ({2 * depth + 3},), which takes {16 * depth + 24:,} bytes" in message
    assert "pass a smaller depth=" in message
    assert "function raised" not in message


def test_the_report_counts_the_bytes_of_each_halo(pool: shmpar.Pool) -> None:
    """An input without a halo is read once."""
    one, other = np.zeros(12), np.zeros(12)
    pool.map_overlap(lambda a, b: a + b[1:-1], one, other, depth=[0, 1], chunks=4, trim=False,
                     boundary="edge")  # fmt: skip
    read = 12 + sum(min(12, s + 5) - max(0, s - 1) for s in (0, 4, 8))
    assert pool.last_run.report.bytes_read == 8 * read


def test_checked_calls_and_ledgers_take_a_halo_per_input(pool: shmpar.Pool, tmp_path: Any) -> None:
    """A later call with another depth is another call."""
    keywords = {"out": tmp_path / "a.npy", "ledger": tmp_path / "a.ledger", "chunks": 5}
    one, other = np.arange(20.0), np.arange(20.0)

    def func(a: Any, b: Any) -> Any:
        return a + b[len(b) - len(a) :][: len(a)] * 0

    for _ in range(2):
        got = pool.map_overlap(func, one, other, depth=[1, 1], **keywords)
        np.testing.assert_array_equal(got, one)
    with pytest.raises(ValueError, match="differs in: chunks"):
        pool.map_overlap(func, one, other, depth=[1, 2], **keywords)


def test_every_spelling_of_a_depth_is_the_same(pool: shmpar.Pool, image: Any) -> None:
    """A list of equal entries is the entry itself."""
    spelled = [2, (2, 2), {0: 2, 1: 2}, ((2, 2), 2)]
    results = [
        pool.map_overlap(
            lambda a, b: a[::-1] + b, image, image, depth=one, boundary="mirror", chunks=9
        )
        for one in (*spelled, *([one] * 2 for one in spelled))
    ]
    for one, other in itertools.pairwise(results):
        np.testing.assert_array_equal(one, other)
