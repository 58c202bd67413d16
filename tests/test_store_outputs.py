"""Results in stores: right values, refused objects, errors while a run writes."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import shmpar

X = np.random.default_rng(0).integers(0, 60_000, (60, 80)).astype("u2")
CUT = (20, 40)


@pytest.fixture
def made(zarr, tmp_path):
    """A function that makes a zarr array like `X`, with units of 20 x 20."""

    def make(name="x.zarr", **how):
        how = {"shape": X.shape, "dtype": X.dtype, "chunks": (20, 20), **how}
        return zarr.create_array(tmp_path / name, **how)

    return make


@pytest.fixture(scope="module")
def serial():
    """A serial pool, for errors that come before anything starts."""
    with shmpar.Pool(engine="serial") as pool:
        yield pool


def half(block):
    return block // 2


# Values


@pytest.mark.parametrize(
    "how",
    [
        {"zarr_format": 2},
        {"zarr_format": 3},
        {"chunks": (10, 5), "shards": (20, 20)},
        {"dtype": ">u2"},
        {"dtype": "f4"},
        {"chunks": (60, 80)},
    ],
)
def test_a_zarr_array_has_the_values(any_pool, made, how):
    """Each kind of zarr array gets the values, cast as by a ufunc, and is returned itself."""
    out = made(**how)
    chunks = (60, 80) if how.get("chunks") == (60, 80) else CUT
    assert any_pool.map_blocks(half, X, chunks=chunks, out=out) is out
    np.testing.assert_array_equal(out[...], (X // 2).astype(out.dtype))


def test_every_verb_writes_into_a_store(any_pool, made):
    """Rows, tiles with a halo, values of blocks, dropped and new axes lie where NumPy has them."""
    out = made("rows", chunks=(1, 80))
    any_pool.parallel_map(half, X, out=out)
    np.testing.assert_array_equal(out[...], X // 2)
    out = made("halo")
    any_pool.map_overlap(lambda w: w + np.uint16(1), X, depth=3, chunks=CUT, out=out)
    np.testing.assert_array_equal(out[...], X + 1)
    sums = made("sums", shape=(3, 2, 2), chunks=(1, 1, 2), dtype="i8")
    any_pool.block_reduce(lambda b: np.array([b.min(), b.max()], "i8"), X, chunks=CUT, out=sums)
    assert sums[1, 1].tolist() == [X[20:40, 40:].min(), X[20:40, 40:].max()]
    flat = made("flat", shape=(60,), chunks=(20,), dtype="i8")
    any_pool.map_blocks(lambda b: b.sum(1, "i8"), X, chunks=(20, -1), drop_axis=1, out=flat)
    np.testing.assert_array_equal(flat[...], X.sum(1))
    deep = made("deep", shape=(60, 80, 2), chunks=(20, 20, 2))
    any_pool.map_blocks(lambda b: np.stack([b, b], 2), X, chunks=CUT, new_axis=2, out=deep)
    np.testing.assert_array_equal(deep[..., 1], X)
    small = made("small", shape=(30, 40), chunks=(10, 20))
    any_pool.map_blocks(lambda b: b[::2, ::2], X, chunks=CUT, out_chunks=(10, 20), out=small)
    np.testing.assert_array_equal(small[...], X[::2, ::2])
    fresh = made("fresh", dtype="i4")
    any_pool.map_blocks(
        lambda block_id: np.full((20, 20), block_id[0]), chunks=((20,) * 3, (20,) * 4), out=fresh
    )
    np.testing.assert_array_equal(fresh[:, 0], np.repeat([0, 1, 2], 20))


def test_several_outputs_of_several_kinds(any_pool, made, tmp_path):
    """A tuple may mix a zarr array, new paths and an array in memory; each is returned."""
    memory, stored = np.empty(X.shape, "f8"), made()
    paths = str(tmp_path / "new.zarr"), str(tmp_path / "new.npy")
    results = any_pool.map_blocks(
        lambda b: (b // 2, b + 0.5, b.astype("i4"), -b.astype("i8")),
        X,
        chunks=CUT,
        out=(stored, memory, *paths),
    )
    assert results[0] is stored
    assert results[1] is memory
    assert type(results[3]) is np.memmap
    due = (X // 2, X + 0.5, X.astype("i4"), -X.astype("i8"))
    for found, expected in zip(results, due, strict=True):
        np.testing.assert_array_equal(found[...], expected)
        assert found.dtype == expected.dtype


def test_a_dataset_of_hdf5_is_mapped(any_pool, tmp_path):
    """A new, a used and a small dataset in a file with a user block are read right through h5py."""
    h5py = pytest.importorskip("h5py")
    for block in (0, 512):
        path = tmp_path / f"{block}.h5"
        with h5py.File(path, "w", userblock_size=block) as file:
            file["before"] = np.arange(9)
            new = file.create_dataset("new", X.shape, "u2")
            assert any_pool.map_blocks(half, X, chunks=CUT, out=new) is new
            np.testing.assert_array_equal(new[...], X // 2)
            for shape in ((3, 2), (300, 100)):  # Why: HDF5 keeps 64 KiB that it has read.
                used = file.create_dataset(f"used{shape}", data=np.zeros(shape, "i8"))
                assert not used[...].any()
                assert used[shape[0] // 2, 1] == 0
                due = np.arange(used.size).reshape(shape)
                any_pool.map_blocks(np.negative, due, chunks=shape, out=used)
                assert used[shape[0] // 2, 1] == -due[shape[0] // 2, 1]
                np.testing.assert_array_equal(used[...], -due)
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["new"][...], X // 2)
            np.testing.assert_array_equal(file["before"][...], np.arange(9))


def test_a_memmap_of_tiff(any_pool, tmp_path):
    """The file that tifffile has made holds the values."""
    tifffile = pytest.importorskip("tifffile")
    out = tifffile.memmap(tmp_path / "x.tif", shape=X.shape, dtype="u2")
    assert any_pool.map_blocks(half, X, chunks=CUT, out=out) is out
    out.flush()
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "x.tif"), X // 2)


def test_a_path_becomes_a_zarr_array_with_the_chunks_of_the_grid(any_pool, zarr, tmp_path):
    """The array is made when its shape and dtype are known: by options, or by the first result."""
    for path, options, dtype in (
        (tmp_path / "a.zarr", {}, "u2"),
        (str(tmp_path / "b.zarr"), {"dtype": "f8"}, "f8"),
        (str(tmp_path / "c.zarr/deep/0"), {}, "u2"),
    ):
        out = any_pool.map_blocks(half, X, chunks=CUT, out=path, **options)
        assert isinstance(out, zarr.Array)
        assert (out.chunks, out.shape, out.dtype) == (CUT, X.shape, np.dtype(dtype))
        np.testing.assert_array_equal(zarr.open_array(path, mode="r")[...], X // 2)
    assert list(zarr.open_group(tmp_path / "c.zarr", mode="r")["deep"].array_keys()) == ["0"]
    # irregular chunks: the common divisor of the places where they end
    out = any_pool.map_blocks(half, X, chunks=((10, 20, 30), 80), out=tmp_path / "d.zarr")
    assert out.chunks == (10, 80)
    np.testing.assert_array_equal(out[...], X // 2)
    # small results, which workers write elsewhere first
    out = any_pool.block_reduce(np.max, X, chunks=CUT, out=tmp_path / "e.zarr")
    assert out.chunks == (1, 1)
    assert out[2, 1] == X[40:, 40:].max()
    out = any_pool.parallel_map(lambda row: row[:3], X, out=tmp_path / "f.zarr")
    assert out.chunks == (1, 3)
    np.testing.assert_array_equal(out[...], X[:, :3])


def test_a_local_url_becomes_a_zarr_array(serial, zarr, tmp_path):
    """It is the same array as by its path."""
    for values in (X, X[::-1]):
        out = serial.map_blocks(half, values, out=f"file://{tmp_path}/u.zarr")
        np.testing.assert_array_equal(out[...], values // 2)
    both = f"file://{tmp_path}/v.zarr", tmp_path / "v.zarr"
    with pytest.raises(ValueError, match="two outputs are one file"):
        serial.map_blocks(lambda b: (b, b), X, out=both)


def test_a_link_that_leads_nowhere_yet(serial, tmp_path):
    """The array is made where the link leads, and found there by the next call."""
    link = tmp_path / "link.zarr"
    link.symlink_to("made")
    for values in (X, X[::-1]):
        np.testing.assert_array_equal(serial.map_blocks(half, values, out=link), values // 2)
    assert link.is_symlink()
    assert (tmp_path / "made" / "zarr.json").exists()


def test_a_zarr_array_without_axes(serial, tmp_path):
    """It can be made, and written into once more by its path, its object and its store."""
    path = str(tmp_path / "x.zarr")
    made = serial.map_blocks(np.negative, np.array(1.0), out=path)
    assert made[...] == -1
    for number, out in enumerate((path, made, shmpar.open(path, mode="r+")), 2):
        serial.map_blocks(np.negative, np.array(float(number)), out=out)
        assert made[...] == -number


def test_an_array_at_the_path_is_written_into(serial, made, zarr, tmp_path):
    """An existing array that fits stays; its units count, and nothing else is replaced."""
    made("x.zarr", attributes={"name": "kept"})
    path = str(tmp_path / "x.zarr")
    out = serial.map_blocks(half, X, chunks=CUT, out=path)
    assert (out.chunks, dict(out.attrs)) == ((20, 20), {"name": "kept"})
    np.testing.assert_array_equal(out[...], X // 2)
    with pytest.raises(ValueError, match="multiple of 20"):
        serial.map_blocks(half, X, chunks=15, out=path)
    with pytest.raises(ValueError, match=r"out= has shape \(60, 80\)"):
        serial.map_blocks(half, X[:40], chunks=20, out=path)
    with pytest.raises(ValueError, match="out= has dtype uint16, dtype= says float32"):
        serial.map_blocks(half, X, chunks=20, out=path, dtype="f4")
    zarr.create_group(tmp_path / "group.zarr").create_array("0", shape=(3,), dtype="i4")
    with pytest.raises(ValueError, match="without a zarr array of its own"):
        serial.map_blocks(half, X, chunks=20, out=tmp_path / "group.zarr")


def test_a_new_array_has_few_units_per_chunk(serial, tmp_path):
    """Lengths without a common divisor along two axes would make very many units."""
    path, y = tmp_path / "x.zarr", np.ones((151, 151), "u1")
    with pytest.raises(ValueError, match="more than 1,000 pieces per chunk"):
        serial.map_blocks(np.negative, y, chunks=((50, 51, 50),) * 2, out=path)
    assert not path.exists()
    assert serial.map_blocks(np.negative, y, chunks=((60, 60, 31),) * 2, out=path).chunks == (
        60,
        60,
    )


def test_auto_follows_the_units_of_two_outputs(serial, made):
    """A common multiple that is longer than an axis is the whole axis, and counts as that."""
    x = np.zeros((400, 400))
    one, two = (
        made(name, shape=x.shape, dtype="f8", chunks=chunks)
        for name, chunks in (("a", (97, 89)), ("b", (101, 103)))
    )
    serial.map_blocks(lambda b: (b + 1, b + 2), x, out=(one, two))
    assert (one[...] == 1).all()
    assert (two[...] == 2).all()


# Refused outputs


def refusals(zarr, tmp_path):
    """Yield objects that no workers can write to, with the error and its words."""
    import h5py
    from zarr.storage import MemoryStore, ZipStore

    like = {"shape": X.shape, "dtype": X.dtype, "chunks": (20, 20)}
    for store in (MemoryStore(), {}):
        yield zarr.create_array(store, **like), TypeError, "memory of this process"
    yield "memory://x.zarr", TypeError, "memory of this process"
    yield zarr.create_array(ZipStore(tmp_path / "x.zip", mode="w"), **like), TypeError, "one writer"
    zarr.create_array(tmp_path / "r.zarr", **like)
    yield zarr.open_array(tmp_path / "r.zarr", mode="r"), ValueError, "mode='r\\+'"
    yield shmpar.open(tmp_path / "r.zarr"), ValueError, "read-only; open it with mode='r\\+'"
    yield zarr.open_group(tmp_path / "g.zarr", mode="w"), TypeError, "pass an array of it"
    yield tmp_path / "no" / "x.zarr", ValueError, "its folder does not exist"
    zarr.create_array(tmp_path / "t.zarr", shape=X.shape, chunks=(20, 20), dtype=str)
    yield tmp_path / "t.zarr", TypeError, "which workers cannot write"
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    yield tmp_path / "broken.zarr", ValueError, "JSONDecodeError"
    (tmp_path / "file.zarr").write_text("no folder")
    yield tmp_path / "file.zarr", ValueError, "is a file"
    file = h5py.File(tmp_path / "x.h5", "w")
    chunked = file.create_dataset("x", X.shape, X.dtype, chunks=(20, 20))
    yield (
        chunked,
        TypeError,
        "an HDF5 file has one writer; use zarr or .npy, or write run.completed",
    )
    yield file, TypeError, "pass an array of it"
    yield file.create_dataset("s", X.shape, h5py.string_dtype()), TypeError, "dtype object"
    yield file.create_dataset("n", data=h5py.Empty("u2")), TypeError, "has no values"
    core = h5py.File("core.h5", "w", driver="core", backing_store=False)
    yield core.create_dataset("x", X.shape, X.dtype), TypeError, "the driver 'core'"
    closed = h5py.File(tmp_path / "c.h5", "w")
    dataset = closed.create_dataset("x", X.shape, X.dtype)
    closed.close()
    yield dataset, ValueError, "closed HDF5 file"
    yield shmpar.opened(h5_dataset, tmp_path / "x.h5"), TypeError, "one writer"
    yield shmpar.opened(np.zeros, X.shape, "u2"), TypeError, "the writes would be lost"


def h5_dataset(path):
    """Open a dataset of a file that this process may have open."""
    import h5py

    return h5py.File(path, "r+")["x"]


def test_outputs_that_several_workers_cannot_write(serial, zarr, tmp_path):
    """Each is refused before anything starts, and the error has the reason."""
    pytest.importorskip("h5py")
    for out, error, text in refusals(zarr, tmp_path):
        with pytest.raises(error, match=text) as caught:
            serial.map_blocks(half, X, chunks=CUT, out=out)
        assert str(caught.value).startswith("map_blocks: out="), caught.value


def test_lazy_arrays_are_no_outputs(serial):
    """Dask and xarray compute values; they have no place for new ones."""
    xarray, dask = pytest.importorskip("xarray"), pytest.importorskip("dask.array")
    for out in (dask.zeros(X.shape), xarray.DataArray(X), xarray.Variable(("y", "x"), X)):
        with pytest.raises(TypeError, match="cannot be written in parts; use a zarr array"):
            serial.map_blocks(half, X, chunks=CUT, out=out)


def test_a_window_in_a_store_is_not_passed_to_the_function(serial, made, tmp_path):
    """`pass_out=True` needs memory; the error says so for an array and for a path."""
    for out in (made(), tmp_path / "new.zarr"):
        with pytest.raises(ValueError, match="pass_out=True passes a window in memory"):
            serial.map_blocks(
                lambda b, out: None, X, chunks=CUT, out=out, dtype="u2", pass_out=True
            )
    assert not (tmp_path / "new.zarr").exists()


def test_two_outputs_are_not_one_store(serial, made, zarr, tmp_path):
    """The same array, another handle and the same new path are refused."""
    one = made()
    other, new = zarr.open_array(tmp_path / "x.zarr", mode="r+"), tmp_path / "n.zarr"
    for out in ((one, one), (one, other), (one, str(tmp_path / "x.zarr")), (new, str(new))):
        with pytest.raises(ValueError, match="two outputs are one"):
            serial.map_blocks(lambda b: (b, b), X, chunks=CUT, out=out)


# Errors while the run writes


def test_a_fill_value_lies_in_the_windows_of_failed_chunks(any_pool, made):
    """`on_error="fill"` writes into the store too."""
    out = made(dtype="i4")

    def fail(block, block_id):
        if block_id == (1, 1):
            raise ArithmeticError
        return block.astype("i4")

    with pytest.warns(RuntimeWarning, match="1 chunk failed and was filled"):
        any_pool.map_blocks(fail, X, chunks=CUT, out=out, on_error="fill", fill_value=-7)
    due = X.astype("i4")
    due[20:40, 40:] = -7
    np.testing.assert_array_equal(out[...], due)


def test_finished_chunks_are_kept_after_an_error(any_pool, made):
    """The other chunks lie in the store, and the run can be resumed into it."""
    out = made(dtype="i4")

    def wrong(block, block_id):
        return block.astype("i4")[: 20 - (block_id == (1, 1))]

    with pytest.raises(ExceptionGroup) as caught:
        any_pool.map_blocks(wrong, X, chunks=CUT, out=out, on_error="collect")
    (error,) = caught.value.exceptions
    assert "returned shape (19, 40) where (20, 40) is due" in str(error)
    due = X.astype("i4")
    due[20:40, 40:] = 0
    np.testing.assert_array_equal(out[...], due)


def test_regions_of_a_run_in_flight_can_be_read(any_pool, made):
    """`run.out` is the zarr array, and `run.completed()` yields windows of it."""
    out = made()
    run = any_pool.map_blocks(half, X, chunks=CUT, out=out, wait=False)
    regions = list(run.completed())
    assert run.out is out
    assert len(regions) == 6
    for region in regions:
        np.testing.assert_array_equal(run.out[region], X[region] // 2)
    assert run.result() is out


def test_checked_runs_write_into_stores(made, zarr):
    """With `check=True` the values that were written are compared with those in the store."""
    out, memory = made(), np.empty(X.shape, "i4")
    path = out.store_path.store.root
    with shmpar.Pool(2, engine="threads", check=True) as pool:
        pool.map_blocks(lambda b: (b, b.astype("i4")), X, chunks=CUT, out=(out, memory))

        first_is_done = threading.Event()

        def spoil(block, block_id):
            if block_id == (2, 1):
                assert first_is_done.wait(60)
                zarr.open_array(path, mode="r+")[:20, :20] = 1
            return block

        run = pool.map_blocks(spoil, X, chunks=CUT, out=out, wait=False)
        assert (slice(0, 20), slice(0, 40)) in run.completed()
        first_is_done.set()
        with pytest.raises(shmpar.ChunkError, match="was changed by another writer"):
            run.result(60)
