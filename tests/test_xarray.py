"""Inputs and results with named axes, compared with the same on Dask-backed xarray."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest

import shmpar

xr = pytest.importorskip("xarray")
dask = pytest.importorskip("dask")
pytest.importorskip("zarr")
pytest.importorskip("tests.store_formats")  # which starts the threads of zarr


@pytest.fixture
def pool(any_pool):
    with dask.config.set(scheduler="synchronous"):  # Why: its threads stay.
        yield any_pool


@pytest.fixture(scope="module")
def image():
    values = np.random.default_rng(0).random((4, 30, 23))
    coords = {
        "time": np.arange("2026-01-01", "2026-01-05", dtype="M8[D]").astype("M8[ns]"),
        "y": np.arange(30) * 0.5,
        "x": ("x", np.arange(23), {"units": "um"}),
        "channel": ("time", list("abcd")),
        "height": (("y", "x"), np.arange(690.0).reshape(30, 23)),
        "stage": 7,
    }
    attrs = {"units": "counts"}
    return xr.DataArray(values, coords, ("time", "y", "x"), "light", attrs)


def blur(window):
    """Mean of three neighbours along y; the border has fewer."""
    padded = np.concatenate([window[:, :1], window, window[:, -1:]], axis=1)
    return (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3


def same(found, expected):
    """Compare values, names, coordinates, attributes and indexes."""
    assert type(found) is xr.DataArray
    xr.testing.assert_identical(found, expected)


def test_map_overlap_is_the_same_on_dask_backed_xarray(pool, image):
    lazy = image.chunk({"y": 8})
    data = lazy.data.map_overlap(blur, depth={1: 1}, boundary="none")
    expected = lazy.copy(data=data).compute()
    same(pool.map_overlap(blur, image, chunks={"y": 8}, depth={"y": 1}), expected)
    same(pool.map_overlap(blur, lazy, depth={"y": 1}), expected)


def test_block_reduce_is_the_same_as_coarsen_on_dask_backed_xarray(pool, image):
    numbers = image.drop_vars("channel")
    means = numbers.chunk({"y": 8}).coarsen(time=4, y=8, x=5, boundary="pad").mean(keep_attrs=True)
    expected = means.compute()
    chunks = {"time": 4, "y": 8, "x": 5}
    found = pool.block_reduce(np.mean, numbers, chunks=chunks)
    xr.testing.assert_allclose(found, expected)
    assert found.dims == expected.dims
    assert found.name == "light"
    assert found.attrs == expected.attrs == {"units": "counts"}
    assert found.x.attrs == expected.x.attrs == {"units": "um"}
    assert set(found.coords) == set(expected.coords)
    assert found.time.dtype.kind == "M"


def test_a_pipeline_is_the_same_on_dask_backed_xarray(pool, image):
    numbers = image.drop_vars("channel").isel(y=slice(24))
    lazy = numbers.chunk({"y": 8})
    smooth = lazy.copy(data=lazy.data.map_overlap(blur, depth={1: 1}, boundary="none"))
    expected = smooth.coarsen(y=8, x=23, time=4).max(keep_attrs=True).compute()
    blurred = pool.map_overlap(blur, numbers, chunks={"y": 8}, depth={"y": 1})
    same(pool.block_reduce(np.max, blurred, chunks={"y": 8}), expected)


def test_dropped_axes_lose_their_coordinates(pool, image):
    found = pool.map_blocks(lambda b: b.mean(axis=0), image, chunks={"y": 7}, drop_axis="time")
    with xr.set_options(keep_attrs=True):
        expected = image.mean("time")
    xr.testing.assert_allclose(found, expected)
    assert set(found.coords) == {"y", "x", "height", "stage"}
    assert found.attrs == {"units": "counts"}
    both = pool.map_blocks(
        lambda b: b.sum(axis=(0, 2)), image, drop_axis=("time", "x"), chunks={"y": 7}
    )
    assert both.dims == ("y",)
    assert set(both.coords) == {"y", "stage"}
    overlap = pool.map_overlap(
        lambda w: w.sum(axis=0), image, depth={"x": 1}, drop_axis=["time"], chunks={"x": 6}
    )
    assert overlap.dims == ("y", "x")
    assert "channel" not in overlap.coords


def test_new_axes_get_names(pool, image):
    def twice(block):
        return np.stack([block, -block])

    found = pool.map_blocks(twice, image, chunks={"y": 9}, new_axis="sign")
    assert found.dims == ("sign", "time", "y", "x")
    np.testing.assert_array_equal(found.isel(sign=1), -image.values)
    last = pool.map_blocks(
        lambda b: np.stack([b, -b], -1), image, chunks={"y": 9}, new_axis={"sign": -1}
    )
    assert last.dims == ("time", "y", "x", "sign")
    swapped = pool.map_blocks(
        lambda b: np.stack([b.sum(0), b.max(0)], 0),
        image, chunks={"y": 9}, drop_axis="time", new_axis="statistic",
    )  # fmt: skip
    assert swapped.dims == ("statistic", "y", "x")
    plain = pool.map_blocks(twice, image, chunks={"y": 9}, new_axis=0)
    assert plain.dims == ("dim_0", "time", "y", "x")
    with pytest.raises(ValueError, match="new_axis: the result would have 'y' twice"):
        pool.map_blocks(twice, image, chunks={"y": 9}, new_axis="y")


def test_axes_that_change_their_length_lose_their_coordinates(pool, image):
    found = pool.map_blocks(lambda b: b[:, ::2], image, chunks={"y": 10}, out_chunks={"y": 5})
    assert found.sizes == {"time": 4, "y": 15, "x": 23}
    assert set(found.coords) == {"time", "x", "channel", "stage"}
    np.testing.assert_array_equal(found, image[:, ::2])
    whole = pool.map_blocks(lambda b: b[:, :, :3], image, chunks={"y": 10})
    assert whole.sizes["x"] == 3
    assert "x" not in whole.coords
    assert "y" in whole.coords


@pytest.mark.parametrize("verb", ["sum", "mean", "max", "min", "prod", "std", "var"])
@pytest.mark.parametrize("axis", [None, "time", ("y", "x"), ["x"]])
def test_reductions_by_names_are_those_of_xarray(image, verb, axis):
    with xr.set_options(keep_attrs=True), dask.config.set(scheduler="synchronous"):
        expected = getattr(image.chunk({"y": 8}), verb)(dim=axis).compute()
    with shmpar.Pool(1, engine="serial") as pool:
        found = getattr(pool, verb)(image, axis=axis, chunks={"y": 8})
    xr.testing.assert_allclose(found, expected)
    assert set(found.coords) == set(expected.coords)
    assert found.attrs == expected.attrs
    assert found.dims == expected.dims
    assert found.name == expected.name


def test_other_reductions_by_names(pool, image):
    kept = pool.mean(image, "y", keepdims=True)
    assert kept.dims == image.dims
    assert kept.sizes["y"] == 1
    assert "y" not in kept.coords
    same(pool.argmax(image, axis="y").drop_attrs(), image.argmax("y").drop_attrs())
    with xr.set_options(keep_attrs=True):
        same(pool.median(image, axis="time"), image.median("time"))
        half = pool.quantile(image, 0.5, axis="y")
        same(half.drop_vars("stage"), image.quantile(0.5, "y"))  # xarray drops it
        two = image.quantile([0.25, 0.5], ["y", "x"])
    quarters = pool.quantile(image, [0.25, 0.5], axis=("y", "x"))
    xr.testing.assert_allclose(quarters.drop_vars("stage"), two)
    assert pool.percentile(image, [10, 50], axis="y").dims == ("percentile", "time", "x")
    counts, _ = pool.histogram(image, bins=4, chunks={"y": 8})
    assert type(counts) is np.ndarray
    assert counts.sum() == image.size


def test_inputs_broadcast_by_names(pool, image):
    offset = image.isel(y=0, x=0, drop=True)
    turned = image.transpose("x", "time", "y")
    expected = image - offset + turned

    def combine(a, b, c):
        return a - b + c

    found = pool.map_blocks(combine, image, offset, turned, chunks={"y": 8})
    assert found.dims == image.dims
    np.testing.assert_array_equal(found, expected.transpose(*image.dims))
    assert set(found.coords) == set(image.coords)
    lazy = pool.map_blocks(combine, image.chunk({"y": 5}), offset.chunk(), turned, chunks={"y": 10})
    xr.testing.assert_identical(lazy, found)
    plain = pool.map_blocks(np.multiply, image, np.arange(23.0), chunks={"y": 8})
    same(plain, (image * np.arange(23.0)).assign_attrs(image.attrs))
    depth = [{"y": 1}, 0]
    mixed = pool.map_overlap(
        lambda a, b: blur(a) * b[..., :1, :1], image, offset, depth=depth, chunks={"y": 8},
        boundary=[{"y": "nearest"}, "none"],
    )  # fmt: skip
    np.testing.assert_allclose(mixed, blur(image.values) * offset.values[:, None, None])


def test_lazy_files_are_read_by_windows(pool, image, tmp_path):
    path = tmp_path / "image.zarr"
    image.drop_vars("channel").to_dataset().to_zarr(
        path, encoding={"light": {"chunks": (4, 8, 23)}}, consolidated=False
    )
    with xr.open_zarr(path, chunks=None, consolidated=False) as ds:
        lazy = ds["light"]
        assert not lazy.variable._in_memory
        found = pool.map_overlap(blur, lazy, depth={"y": 1}, chunks={"y": 8})
        assert pool.last_run.report.store_read >= image.nbytes
        assert not lazy.variable._in_memory, "the whole array was read here"
        np.testing.assert_array_equal(found, blur(image.values))
        assert found.dims == image.dims
        assert found.attrs == {"units": "counts"}
        total = pool.sum(lazy.transpose("x", "y", "time"), axis="y")
        np.testing.assert_allclose(total, image.values.sum(axis=1).T)
        assert total.dims == ("x", "time")
        with pytest.raises(TypeError, match=r"lacks the axes between .* pass array.load\(\)"):
            pool.map_blocks(np.add, image.drop_vars("channel"), lazy.isel(y=0, drop=True))


def test_a_run_gives_a_dataarray_and_completes_by_numbers(pool, image):
    run = pool.map_blocks(np.negative, image, chunks={"y": 8}, wait=False)
    regions = list(run.completed())
    assert len(regions) == 4
    same(run.result(), (-image).assign_attrs(image.attrs))
    assert next(concurrent.futures.as_completed([run])).result().dims == image.dims


def test_several_outputs_and_out(pool, image):
    low, high = pool.block_reduce(lambda b: (b.min(), b.max()), image, chunks={"y": 15})
    assert low.dims == high.dims == image.dims
    assert float(high.max()) == float(image.max())
    spread = pool.block_reduce(lambda b: np.array([b.min(), b.max()]), image, chunks={"y": 15})
    assert spread.dims == ("time", "y", "x", "dim_0")
    out = np.empty(image.shape)
    assert pool.map_blocks(np.negative, image, chunks={"y": 8}, out=out) is out
    np.testing.assert_array_equal(out, -image.values)


def test_rows_and_lines_by_names(pool, image):
    rows = pool.parallel_map(np.sum, image, axis="y")
    assert rows.dims == ("y",)
    assert set(rows.coords) == {"y", "stage"}
    np.testing.assert_allclose(rows, image.sum(["time", "x"]))
    assert pool.parallel_map(lambda row: row[0], image, axis="y").dims == ("y", "dim_0")
    lines = pool.apply_along_axis(np.sort, "y", image)
    assert lines.dims == image.dims
    assert set(lines.coords) == set(image.coords)
    np.testing.assert_array_equal(lines, np.sort(image.values, axis=1))
    sums = pool.apply_along_axis(np.sum, "y", image)
    assert sums.dims == ("time", "x")
    assert "height" not in sums.coords
    with pytest.raises(ValueError, match="the indexes of the arguments differ"):
        pool.parallel_map(lambda a, b: 0.0, image, image.assign_coords(y=np.arange(30)), axis="y")


def test_labels_of_indexes_with_levels(pool):
    stacked = xr.DataArray(np.arange(6.0).reshape(2, 3), dims=("a", "b")).stack(ab=("a", "b"))
    same(pool.map_blocks(np.negative, stacked, chunks=2), -stacked)
    assert "ab" not in pool.block_reduce(np.sum, stacked, chunks=2).coords


def test_the_result_is_the_shared_memory_of_the_pool(pool, image):
    result = pool.map_blocks(np.negative, image, chunks={"y": 8})
    raw = pool.last_run.result().data
    assert raw is result.data
    del raw, result
    with pytest.raises(shmpar.ShmparError, match="has dropped it"):
        pool.last_run.result()


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda p, x: p.map_blocks(np.negative, x, chunks={"z": 3}), ValueError,
         "map_blocks: chunks: there is no axis 'z'; the axes are 'time', 'y', 'x'"),
        (lambda p, x: p.map_overlap(blur, x, depth={"y": 1, 1: 2}), ValueError,
         "map_overlap: depth=.* names an axis twice"),
        (lambda p, x: p.mean(x, axis=("y", "z")), ValueError, "mean: axis: there is no axis 'z'"),
        (lambda p, x: p.map_blocks(np.add, x, np.ones((2, *x.shape))), ValueError,
         "an array of 4 axes beside a DataArray with the axes 'time', 'y', 'x'"),
        (lambda p, x: p.map_blocks(np.add, x, x.assign_coords(y=np.arange(30))), ValueError,
         "map_blocks: the inputs have different labels; align them first with xarray.align"),
        (lambda p, x: p.map_blocks(np.negative, x.to_dataset()), TypeError,
         r"pass one of them, ds\['light'\], or write ds.map\(lambda one: pool.map_blocks\(func, "),
        (lambda p, x: p.mean(x.to_dataset(), axis="y"), TypeError,
         r"or write ds.map\(lambda one: pool.mean\(one, ...\)\)"),
        (lambda p, x: p.parallel_map(len, x.to_dataset()), TypeError, "a Dataset has several"),
    ],
)  # fmt: skip
def test_refusals_say_what_to_write(image, call, kind, text):
    with shmpar.Pool(1, engine="serial") as pool, pytest.raises(kind, match=text):
        call(pool, image)


def test_the_words_for_a_dataset_work(pool, image):
    ds = xr.Dataset({"light": image, "dark": -image})
    found = ds.map(lambda one: pool.mean(one, axis="y"), keep_attrs=True)
    with xr.set_options(keep_attrs=True):
        xr.testing.assert_allclose(found, ds.mean("y"))
