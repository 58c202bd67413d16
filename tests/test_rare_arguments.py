"""Arguments that are rare and right, and wrong ones of which the error names the remedy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import shmpar

X = np.arange(1_800.0).reshape(600, 3)


# Items and rows


@pytest.mark.parametrize("kind", [str, str.encode], ids=["text", "bytes"])
def test_large_items_are_mapped(pool: shmpar.Pool, kind: Any) -> None:
    """A few of them make a piece, so fewer than the first piece has."""
    items = [kind(str(number)) * 30_000 for number in range(100)]
    assert list(pool.map(len, items)) == [len(item) for item in items]


@pytest.mark.parametrize("count", [5, 300])
def test_an_error_of_an_iterable_comes_after_the_results_before_it(
    pool: shmpar.Pool, count: int
) -> None:
    """As in multiprocessing: the items before it have results, and the iterator is over."""

    def items(count: int) -> Any:
        yield from range(count)
        raise OSError("no more")

    for way in (pool.imap, pool.imap_unordered):
        found, results = [], way(abs, items(count))
        with pytest.raises(OSError, match="no more"):
            found.extend(results)
        assert sorted(found) == list(range(count))
        assert list(results) == []
        with pytest.raises(OSError, match="no more"):
            way(abs, items(0))


@pytest.mark.parametrize("axis", [1, -1, "y", None])
def test_items_have_no_axis(pool: shmpar.Pool, axis: Any) -> None:
    """An axis that nothing has is an error; beside an array it is that of the array."""
    before = pool.last_run
    with pytest.raises(TypeError, match=r"axis=.* is an axis of an array, but a list gives"):
        pool.parallel_map(sum, [[1, 2], [3, 4]], axis=axis)
    assert pool.last_run is before
    assert pool.parallel_map(sum, [[1, 2], [3, 4]], axis=np.int64(0)) == [3, 7]
    found = pool.parallel_map(lambda item, column: item * column.sum(), [1, 2, 3], X, axis=1)
    np.testing.assert_allclose(found, [1, 2, 3] * X.sum(axis=0))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_the_place_of_a_row_is_that_in_the_array(pool: shmpar.Pool, axis: int) -> None:
    """The entries of block_info have the axes of the array, also if its rows lie along another."""
    array = np.arange(24).reshape(2, 3, 4)

    def place(row: Any, block_info: Any) -> Any:
        info = block_info[0]
        return info["shape"], info["num-chunks"], info["chunk-location"], info["array-location"]

    found = pool.parallel_map(place, array, axis=axis, dtype=object)
    for number, (shape, chunks, index, where) in enumerate(found):
        assert shape == array.shape
        assert chunks == tuple(n if k == axis % 3 else 1 for k, n in enumerate(shape))
        assert index == tuple(number if k == axis % 3 else 0 for k in range(3))
        window = array[tuple(slice(*ends) for ends in where)]
        assert np.array_equal(window.squeeze(axis), np.take(array, number, axis))


@pytest.mark.parametrize("axis", [-1, -2, np.int64(0), np.int8(1)])
def test_any_number_of_an_axis_keeps_the_labels_of_a_table(pool: shmpar.Pool, axis: Any) -> None:
    """Axes that count from the end, and NumPy's integers, are axes."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(np.arange(6.0).reshape(2, 3), index=["p", "q"], columns=list("abc"))
    found = pool.parallel_map(np.max, frame, axis=axis)
    pd.testing.assert_series_equal(found, frame.max(axis=1 - int(axis) % 2))
    twice = pool.parallel_map(lambda row: row * 2, frame, axis=axis)
    pd.testing.assert_frame_equal(twice, 2 * frame if int(axis) % 2 == 0 else (2 * frame).T)
    series = frame["a"]
    pd.testing.assert_series_equal(pool.parallel_map(abs, series, axis=-1), series)


def test_objects_of_a_table_stay_objects(pool: shmpar.Pool) -> None:
    """None among text is no NaN."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [0, 1]}, index=["p", "q"])
    found = pool.parallel_map(lambda row: "text" if row[0] else None, frame, dtype=object)
    assert found.dtype == object
    assert found.to_dict() == {"p": None, "q": "text"}


# Names of axes


def test_weights_with_names_are_those_of_the_elements(pool: shmpar.Pool) -> None:
    """The order of their axes does not matter, and their labels must be equal."""
    xr = pytest.importorskip("xarray")
    values = np.arange(9.0).reshape(3, 3)
    image = xr.DataArray(values, {"y": [0, 1, 2], "x": [5, 6, 7]}, ("y", "x"))
    weights = image**2
    due = np.histogram(values, 3, weights=values**2)
    for given in (weights, weights.T, weights.values):
        found = pool.histogram(image, 3, weights=given, chunks={"y": 2})
        np.testing.assert_array_equal(found[0], due[0])
        np.testing.assert_array_equal(found[1], due[1])
    with pytest.raises(ValueError, match="histogram: the inputs have different labels"):
        pool.histogram(image, 3, weights=weights.assign_coords(x=[0, 1, 2]))
    line = image[0]
    np.testing.assert_array_equal(
        pool.bincount(line.astype(int), weights=weights[0]), np.arange(3.0) ** 2
    )


def test_a_list_of_depths_has_an_entry_per_named_input(pool: shmpar.Pool) -> None:
    """An entry too many is not left out."""
    xr = pytest.importorskip("xarray")
    image = xr.DataArray(np.ones((4, 4)), dims=("y", "x"))
    for option in ({"depth": [{"y": 1}, 1]}, {"depth": 1, "boundary": ["none", "none"]}):
        with pytest.raises(ValueError, match="is a list of 2 entries for 1 input"):
            pool.map_overlap(np.negative, image, **option)


# Results


def test_the_windows_of_lines_are_told(pool: shmpar.Pool) -> None:
    """A run of apply_along_axis yields windows of its output, with any axes of a result."""
    array = np.random.default_rng(0).normal(size=(300, 300))
    for func in (np.sum, np.sort, lambda line: np.outer(line[:2], line[:3])):
        for axis in (0, 1):
            found = pool.apply_along_axis(func, axis, array)
            count = np.zeros(found.shape, int)
            for region in pool.last_run.completed():
                count[region] += 1
            assert (count == 1).all()
    assert pool.last_run.report.chunks > 1


@pytest.mark.parametrize("large", [False, True])
def test_a_ufunc_does_not_broadcast_its_result(pool: shmpar.Pool, large: bool) -> None:
    """The product of vectors has fewer axes than its blocks, and constants give a scalar."""
    rows = X if large else X[:6]
    if hasattr(np, "vecdot"):
        with pytest.raises(shmpar.ChunkError, match="drop_axis"):
            pool.map_blocks(np.vecdot, rows, rows, chunks=3, out=np.empty(rows.shape))
        dot = pool.map_blocks(np.vecdot, rows, rows, chunks=(4, -1), drop_axis=1, dtype=float)
        np.testing.assert_allclose(dot, (rows * rows).sum(1))
    lengths = len(rows) // 2, len(rows) // 2
    with pytest.raises(shmpar.ChunkError, match="a scalar where a block is due"):
        pool.map_blocks(np.sqrt, 2.0, chunks=(lengths, lengths), dtype=float)
    square = rows[:600].reshape(-1, 3, 3)
    got = pool.parallel_map(np.matmul, square, square, out=np.empty(square.shape))
    np.testing.assert_allclose(got, square @ square)


def test_a_product_of_no_rows_has_the_shape_of_any_function(pool: shmpar.Pool) -> None:
    """The shape of its results is not that of the rows."""
    none = np.empty((0, 3))
    with pytest.raises(ValueError, match="cannot tell the dtype of its results"):
        pool.parallel_map(np.matmul, none, none)
    assert pool.parallel_map(np.matmul, none, none, dtype=float).shape == (0,)
    assert pool.parallel_map(np.add, none, none).shape == (0, 3)


def test_blocks_of_a_single_chunk_cannot_have_no_elements(pool: shmpar.Pool) -> None:
    """The error is that of several chunks; without out_chunks the axis may have any length."""
    before = pool.last_run
    for keywords in ({"out_chunks": 0}, {"out_chunks": {0: (0,)}, "chunks": -1}):
        with pytest.raises(ValueError, match="axis 0: chunk 0 would have 0 elements"):
            pool.map_blocks(lambda block: block[:0], X[0], **keywords)
    assert pool.last_run is before
    assert pool.map_blocks(lambda block: block[:0], X[0]).shape == (0,)
    none = pool.map_blocks(lambda _: np.empty((0, 3)), X[0], new_axis=0, out_chunks={0: 0})
    assert none.shape == (0, 3)


# Errors


def test_a_histogram_of_nan_tells_that_its_range_was_found(pool: shmpar.Pool) -> None:
    """The text is NumPy's: nobody has supplied a range."""
    for value in (np.nan, np.inf):
        for bins in (3, "auto"):
            with pytest.raises(ValueError, match="is not finite") as due:
                np.histogram([1.0, value], bins)
            with pytest.raises(ValueError, match="autodetected") as got:
                pool.histogram([1.0, value], bins, chunks=1)
            assert str(got.value) == str(due.value)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(1e300, "f4"), (-1e10, "f2"), (10**400, "f8"), (1e300j, "c8")],
    ids=["f4", "f2", "f8", "c8"],
)
def test_a_fill_value_that_would_be_infinite_does_not_fit(
    pool: shmpar.Pool, value: Any, dtype: str
) -> None:
    """As a constant of a boundary; infinity itself does."""
    before = pool.last_run
    with pytest.raises(ValueError, match="does not fit an output of dtype"):
        pool.map_blocks(np.copy, X, dtype=dtype, on_error="fill", fill_value=value)
    assert pool.last_run is before
    with pytest.warns(RuntimeWarning, match="filled"):
        found = pool.map_blocks(
            lambda _: 1 / 0, X[0], chunks=1, dtype="f2", on_error="fill", fill_value=-np.inf
        )
    assert (found == -np.inf).all()


def test_lines_of_different_dtypes_have_no_keyword_to_pass(pool: shmpar.Pool) -> None:
    """The keywords of apply_along_axis are those of the function."""
    array = np.repeat([0.0, 1.0], 150)[:, None] * np.ones(900)
    with pytest.raises(shmpar.ChunkError, match="return values of one dtype for all lines") as got:
        pool.apply_along_axis(lambda line: int(line[0]) or 0.5, 1, 1 - array)
    assert "dtype=" not in str(got.value)


@pytest.mark.parametrize("name", ["sum", "prod", "nansum", "mean", "nanmean"])
def test_partial_results_are_no_objects(pool: shmpar.Pool, name: str) -> None:
    """The error comes before anything starts, and does not advise the dtype that was passed."""
    before = pool.last_run
    with pytest.raises(TypeError, match=r"cannot be shared; collect them with block_reduce"):
        getattr(pool, name)(X, axis=0, dtype=object)
    assert pool.last_run is before


def test_an_axis_may_be_an_array_without_axes(pool: shmpar.Pool) -> None:
    """As in NumPy, where it is an integer."""
    last = np.array(1)
    np.testing.assert_array_equal(pool.sum(X, axis=last), X.sum(1))
    np.testing.assert_array_equal(pool.median(X, axis=last), np.median(X, 1))
    got = pool.map_blocks(lambda b: b.sum(1), X, drop_axis=last)
    np.testing.assert_array_equal(got, X.sum(1))
    got = pool.map_blocks(lambda b: b[:, None], X, new_axis=last)
    np.testing.assert_array_equal(got, X[:, None])
    got = pool.parallel_map(np.sum, X, axis=last)
    np.testing.assert_array_equal(got, X.sum(0))
    np.testing.assert_array_equal(pool.apply_along_axis(np.sum, last, X), X.sum(1))


def test_axes_may_come_from_an_iterator(pool: shmpar.Pool) -> None:
    """It is read once; quantiles of NumPy take one, and so do drop_axis and new_axis."""
    for name in ("median", "nanmedian"):
        got = getattr(pool, name)(X, axis=iter([0]), chunks=7)
        np.testing.assert_array_equal(got, np.median(X, axis=0))
    got = pool.quantile(X, 0.3, axis=iter([0, 1]))
    assert got == np.quantile(X, 0.3)
    got = pool.map_blocks(lambda b: b.sum(1)[None], X, drop_axis=iter([1]), new_axis=iter([0]))
    np.testing.assert_array_equal(got, X.sum(1)[None])
    got = pool.map_overlap(lambda b: b[None], X, depth=1, new_axis=iter([0]))
    np.testing.assert_array_equal(got, X[None])


def test_an_output_that_nothing_can_address(pool: shmpar.Pool) -> None:
    """The error is that of any output that is too large."""
    for length in (2**62, 10**30):
        for keywords in ({"dtype": float}, {}):
            with pytest.raises(shmpar.SegmentFull, match="too large to address"):
                pool.map_blocks(np.copy, X, out_chunks={0: length}, chunks=-1, **keywords)
    assert pool.sum(X[0]) == 3


def test_an_empty_tuple_is_no_output(pool: shmpar.Pool) -> None:
    """Functions of rows alone may return None instead."""
    with pytest.raises(shmpar.ChunkError, match="empty tuple, which is no output; return None"):
        pool.parallel_map(lambda _: (), X)
    for call in (pool.block_reduce, pool.map_blocks):
        with pytest.raises(shmpar.ChunkError, match=r"empty tuple, which is no output$"):
            call(lambda _: (), X)


def test_an_output_without_room_for_the_results_is_named(pool: shmpar.Pool) -> None:
    """All results have one shape, which `out` does not have."""
    for out in (np.empty(600), np.empty((600, 4))):
        match = r"shape \(3,\) where \(4?,?\) is due; every chunk must .*, and out= must have it"
        with pytest.raises(shmpar.ChunkError, match=match):
            pool.parallel_map(np.copy, X, out=out)


def test_nothing_is_filled_if_nothing_tells_the_shape(pool: shmpar.Pool) -> None:
    """All chunks have failed: the errors are raised; with an output it is filled."""

    def fails(block: Any) -> Any:
        raise OSError(f"no {block.shape}")

    for keywords in ({"chunks": 100}, {"dtype": float}, {}):
        with pytest.raises(shmpar.FailedChunks, match="of map_blocks failed"):
            pool.map_blocks(fails, X, on_error="fill", **keywords)
    with pytest.warns(RuntimeWarning, match="filled"):
        found = pool.map_blocks(fails, X, on_error="fill", out=np.zeros(X.shape))
    assert np.isnan(found).all()
