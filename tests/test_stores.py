"""Stores and parts: opening, windows, recognition, and their errors."""

from __future__ import annotations

import os
import pickle
import re
import sys
import threading
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

zarr = pytest.importorskip("zarr")
h5py = pytest.importorskip("h5py")
tifffile = pytest.importorskip("tifffile")
xarray = pytest.importorskip("xarray")
da = pytest.importorskip("dask.array")

import shmpar  # noqa: E402
from shmpar.grid import Grid, Halo  # noqa: E402
from shmpar.stores.formats import ZarrArray  # noqa: E402
from shmpar.stores.recognise import wrap  # noqa: E402
from shmpar.stores.store import Part, Store, _runs  # noqa: E402
from shmpar.stores.targets import find_target  # noqa: E402
from shmpar.verbs.arguments import blocks  # noqa: E402
from tests import store_formats  # noqa: E402
from tests.store_formats import FORMATS  # noqa: E402

X = np.arange(23 * 17, dtype="f4").reshape(23, 17)
KEYS = [
    np.s_[...], np.s_[3:9], np.s_[3:9, 2:5], np.s_[4], np.s_[:, 3], np.s_[::2, ::-3], np.s_[5:5],
    np.s_[-3:, ...], np.s_[..., -1], np.s_[2, 3], np.s_[20:99], np.int64(4),
]  # fmt: skip


@pytest.mark.parametrize("name", [*FORMATS, "tiff"])
def test_windows_of_a_store(tmp_path: Path, name: str) -> None:
    """Slices and ints read what they read of the array; so does the pickle of a store."""
    make = store_formats.tiff if name == "tiff" else FORMATS[name]
    store = wrap(make(str(tmp_path), X, (5, 4)))
    if name == "contiguous":
        assert isinstance(store, np.memmap)
        np.testing.assert_array_equal(store, X)
        return
    assert (store.shape, store.dtype, store.ndim) == (X.shape, X.dtype, 2)
    assert (store.size, store.nbytes, len(store)) == (X.size, X.nbytes, 23)
    for one in (store, pickle.loads(pickle.dumps(store))):
        for key in KEYS:
            got = one[key]
            np.testing.assert_array_equal(got, X[key])
            assert got.dtype == X.dtype
            assert np.ndim(got) == 0 or not got.flags.writeable
    np.testing.assert_array_equal(list(store)[3], X[3])


@pytest.mark.parametrize("name", ["zarr3", "hdf5"])
def test_a_step_reads_into_little_memory(tmp_path: Path, name: str) -> None:
    """The elements between those of a slice with a step are not kept."""
    large = np.arange(2_000_000).astype("u1").reshape(2_000, 1_000)
    store = wrap(FORMATS[name](str(tmp_path), large, (20, 1_000)))
    np.testing.assert_array_equal(store[:1], large[:1])
    tracemalloc.start()
    try:
        got = store[::-100]
        assert tracemalloc.get_traced_memory()[1] < large.nbytes // 4
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(got, large[::-100])


def test_a_text_without_axes(tmp_path: Path) -> None:
    """It keeps its dtype, though a scalar of the text has a shorter one."""
    np.save(tmp_path / "x.npy", np.array("ab", "U5"))
    got = shmpar.opened(np.load, str(tmp_path / "x.npy"))[...]
    assert (got[()], got.shape, got.dtype) == ("ab", (), np.dtype("U5"))


@pytest.mark.parametrize(
    "key", [23, (0, 17), (..., ...), (0, 0, 0), [1, 2], None, True, 1.0], ids=str
)
def test_wrong_indices(tmp_path: Path, key: Any) -> None:
    """Any other index is an IndexError."""
    store = wrap(store_formats.zarr3(str(tmp_path), X, (5, 4)))
    with pytest.raises(IndexError):
        store[key]


def test_a_store_is_no_array(tmp_path: Path) -> None:
    """Neither arithmetic nor NumPy's functions read a store as a whole."""
    store = wrap(store_formats.zarr3(str(tmp_path), X, (5, 4)))
    equal: Any = lambda s: np.array_equal(s, X)
    for use in (np.asarray, np.sin, lambda s: s + 1, lambda s: np.ones(3) * s, np.sum, equal):
        with pytest.raises(TypeError):
            use(store)
    with pytest.raises(TypeError, match=r"write store\[\.\.\.\] for an array of 1,564 bytes"):
        np.array(store)
    assert (np.shape(store), np.ndim(store), np.size(store)) == (X.shape, 2, X.size)


@pytest.mark.parametrize(("name", "unit"), [
    ("zarr2", (5, 4)), ("zarr3", (5, 4)), ("sharded", (10, 8)), ("hdf5", (5, 4)),
    ("opened", (5, 4)), ("dask_array", (5, 4)),
])  # fmt: skip
def test_the_unit_of_a_store(tmp_path: Path, name: str, unit: Any) -> None:
    """The unit is what a store writes at once: a shard, else a chunk."""
    assert wrap(FORMATS[name](str(tmp_path), X, (5, 4))).unit == unit


def test_blocks_have_the_gaps_of_views(tmp_path: Path) -> None:
    """NumPy adds up a block of a store in the order of the same view in memory."""
    x = np.random.default_rng(0).normal(size=(60, 50, 40)).astype("f4")
    for name in ("zarr3", "hdf5", "dask_array"):
        store = wrap(FORMATS[name](str(tmp_path), x, (25, 20, 30)))
        for key in (np.s_[:30, :, :], np.s_[:30, 3:40], np.s_[2:31, :, 5:20], np.s_[7, 2:]):
            assert store[key].sum().tobytes() == x[key].sum().tobytes()
            assert store[key].flags.c_contiguous == x[key].flags.c_contiguous


def test_writing_windows(tmp_path: Path) -> None:
    """Assignment writes a window; the user's handle sees it."""
    z = store_formats.zarr3(str(tmp_path), X, (5, 4))
    store = find_target("map_blocks", z).array
    store[3:6, 1:3] = 7
    store[10] = np.arange(17)
    store[0, 0] = -1
    due = X.copy()
    due[3:6, 1:3], due[10], due[0, 0] = 7, np.arange(17), -1
    np.testing.assert_array_equal(z[...], due)
    assert store.user is z
    with pytest.raises(IndexError, match="step 1"):
        store[::2] = 0
    with pytest.raises(ValueError, match="mode='r\\+'"):
        find_target("map_blocks", zarr.open_array(str(z.store.root), mode="r"))


def test_opening_by_path(tmp_path: Path) -> None:
    """The suffix of a path decides on the format."""
    folder = str(tmp_path)
    np.save(tmp_path / "x.npy", X)
    assert isinstance(shmpar.open(tmp_path / "x.npy"), np.memmap)
    (tmp_path / "y.NPY").symlink_to("x.npy")
    group = zarr.create_group(f"{folder}/g.zarr")
    group.create_array("0", shape=X.shape, chunks=(5, 4), dtype=X.dtype)[...] = X
    with zarr.storage.ZipStore(f"{folder}/z.zip", mode="w") as packed:
        zarr.create_array(packed, shape=X.shape, chunks=(5, 4), dtype=X.dtype)[...] = X
    with zarr.storage.ZipStore(f"{folder}/g.zarr.zip", mode="w") as packed:
        made = zarr.create_group(packed).create_array(
            "a/0", shape=X.shape, chunks=(5, 4), dtype="f4"
        )
        made[...] = X
    with pytest.raises(FileNotFoundError):
        shmpar.open(f"{folder}/none.zip/0")
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "folder.zip" / "g.zarr").symlink_to(tmp_path / "g.zarr")
    tifffile.imwrite(f"{folder}/u.tif", X)
    assert isinstance(shmpar.open(f"{folder}/u.tif"), np.memmap)
    tifffile.imwrite(f"{folder}/p.tif", np.stack([X, X + 1]), compression="zlib")
    for where in (
        "x.npy",
        "y.NPY",
        "g.zarr/0",
        "z.zip",
        "g.zarr.zip/a/0",
        "folder.zip/g.zarr/0",
        "u.tif",
    ):
        np.testing.assert_array_equal(shmpar.open(f"{folder}/{where}")[...], X)
    np.testing.assert_array_equal(shmpar.open(os.fsencode(f"{folder}/x.npy")), X)
    with pytest.raises(ValueError, match="by a URL only zarr arrays are opened"):
        shmpar.open("s3://bucket/x.h5:/data")
    np.testing.assert_array_equal(shmpar.open(f"{folder}/p.tif")[1], X + 1)
    with h5py.File(f"{folder}/a.h5", "w") as file:
        file["run/c"] = X
        file.create_dataset("k", data=X, chunks=(5, 4))
    assert isinstance(shmpar.open(f"{folder}/a.h5:/run/c"), np.memmap)
    np.testing.assert_array_equal(shmpar.open(f"{folder}/a.h5:run/c"), X)
    assert shmpar.open(f"{folder}/a.h5:/k").kind == "hdf5"


def test_levels_and_series_of_a_tiff(tmp_path: Path) -> None:
    """`series` and `level` choose the array of a TIFF file."""
    path, large = tmp_path / "x.tif", np.arange(64 * 64, dtype="u2").reshape(64, 64)
    with tifffile.TiffWriter(path) as file:
        file.write(large, tile=(16, 16), compression="zlib", subifds=1)
        file.write(large[::2, ::2], tile=(16, 16), compression="zlib", subfiletype=1)
        file.write(large[:16, :8], compression="zlib")
    np.testing.assert_array_equal(shmpar.open(path)[...], large)
    np.testing.assert_array_equal(shmpar.open(path, level=1)[...], large[::2, ::2])
    np.testing.assert_array_equal(shmpar.open(path, series=1)[...], large[:16, :8])
    with pytest.raises(shmpar.StoreError, match="cannot be opened"):
        shmpar.open(path, level=7)
    with pytest.raises(TypeError, match="unknown option page="):
        shmpar.open(path, page=1)


def test_wrong_paths(tmp_path: Path) -> None:
    """A path that leads nowhere, or to no array, is an error that says so."""
    folder = str(tmp_path)
    zarr.create_group(f"{folder}/g.zarr").create_array("0", shape=3, chunks=1, dtype="u1")
    with h5py.File(f"{folder}/a.h5", "w") as file:
        file["run/c"] = X
        file["null"] = h5py.Empty("f4")
        with pytest.raises(TypeError, match="/null has no values"):
            wrap(file["null"])
    zarr.create_array(f"{folder}/codec.zarr", shape=3, chunks=1, dtype="u1")
    metadata = Path(f"{folder}/codec.zarr/zarr.json")
    metadata.write_text(metadata.read_text().replace('"zstd"', '"unheard"'))
    Path(f"{folder}/bad.zip").write_bytes(b"nothing")
    Path(f"{folder}/bad.npy").write_bytes(b"")
    Path(f"{folder}/bad.tif").write_bytes(b"II*\0 nothing")
    Path(f"{folder}/bad.h5").write_bytes(b"nothing")
    for where in ("none.npy", "none.zarr", "g.zarr/7", "none.h5:/x", "none.tif"):
        with pytest.raises(shmpar.StoreError) as caught:
            shmpar.open(f"{folder}/{where}")
        assert isinstance(caught.value, FileNotFoundError)
        assert isinstance(pickle.loads(pickle.dumps(caught.value)), FileNotFoundError)
    wrong = {
        "g.zarr": "is a group of zarr, not an array; open one of its arrays: 0",
        "a.h5:/x": "has no dataset /x; it has null, run",
        "a.h5:/run": "is a group, not a dataset; it has /run/c",
        "a.h5:/null": "/null has no values",
        "codec.zarr": "cannot be opened: .*unheard",
        "bad.zip": "cannot be opened",
        "bad.npy": "cannot be opened: EOFError",
        "bad.tif": "cannot be opened",
        "bad.h5:/x": "cannot be opened",
    }
    for where, text in wrong.items():
        with pytest.raises(shmpar.StoreError, match=text) as caught:
            shmpar.open(f"{folder}/{where}")
        assert isinstance(caught.value, OSError)
    with pytest.raises(ValueError, match=r"name the dataset too, as in .*a\.h5:/data"):
        shmpar.open(f"{folder}/a.h5")
    with pytest.raises(ValueError, match="no format has this suffix"):
        shmpar.open("x.xyz")
    with pytest.raises(ValueError, match="mode='w'"):
        shmpar.open("x.npy", mode="w")


def test_what_opened_refuses() -> None:
    """A function that fails, returns no array, or does not pickle is an error at once."""
    with pytest.raises(
        shmpar.StoreError, match=r"fail\(3\) \(opened\) cannot be opened: Val"
    ) as caught:
        shmpar.opened(fail, 3)
    assert isinstance(caught.value.__cause__, ValueError)
    assert (caught.value.opener, caught.value.where) == ("opened", "fail(3)")
    with pytest.raises(TypeError, match="returned a int, which has no shape"):
        shmpar.opened(int, 3)
    with pytest.raises(TypeError, match="cannot be sent to workers"):
        shmpar.opened(np.asarray, threading.Lock())


def fail(_number: int) -> None:
    """Fail, as an opener."""
    raise ValueError("no")


def test_arrays_of_this_process_are_refused(tmp_path: Path) -> None:
    """An array that lies in the memory of this process is refused with a remedy."""
    for store in ({}, zarr.storage.MemoryStore()):
        with pytest.raises(TypeError, match=r"memory of this process .*pass x\[\.\.\.\]"):
            wrap(zarr.create_array(store, shape=3, chunks=1, dtype="u1"))
    with pytest.raises(TypeError, match="memory of this process"):
        wrap(zarr.create_array("memory://x.zarr", shape=3, chunks=1, dtype="u1"))
    with h5py.File(tmp_path / "c.h5", "w", driver="core", backing_store=False) as file:
        file["x"] = X
        with pytest.raises(TypeError, match="'core'"):
            wrap(file["x"])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        held = file.create_dataset("x", data=X)
    with pytest.raises(TypeError, match="is closed"):
        wrap(held)
    for group in (zarr.create_group({}), xarray.Dataset({"x": ("a", np.ones(3))})):
        with pytest.raises(TypeError, match="is no array; pass one of its arrays"):
            wrap(group)


@pytest.mark.filterwarnings("ignore:The data type:zarr.errors.UnstableSpecificationWarning")
def test_fields_whose_order_of_bytes_is_lost(tmp_path: Path) -> None:
    """Zarr's third format forgets the order of bytes of fields, so an array of them is refused."""
    dtype = np.dtype([("a", ">i4"), ("b", "u1")])
    how: dict[str, Any] = {"shape": 4, "chunks": 2}
    values = np.array([(1, 2)] * 4, dtype)
    out = str(tmp_path / "out.zarr")
    with shmpar.Pool(1, engine="serial") as pool:
        with pytest.raises(TypeError, match="order of bytes of fields"):
            wrap(zarr.create_array(tmp_path / "3.zarr", dtype=dtype, **how))
        with pytest.raises(TypeError, match="order of bytes of fields"):
            pool.map_blocks(np.copy, values, out=out)
        assert not os.path.exists(out)
        for name, kind, version in (("2", dtype, 2), ("native", dtype.newbyteorder("="), 3)):
            path = tmp_path / f"{name}.zarr"
            made = zarr.create_array(path, dtype=kind, zarr_format=version, **how)
            made[...] = values.astype(kind)
            assert pool.map_blocks(np.copy, made).tolist() == values.tolist()


def test_values_in_a_graph(tmp_path: Path) -> None:
    """A Dask array that holds many values itself is refused; a small one is not."""
    assert wrap(da.from_array(np.ones(1000)))[3:5].tolist() == [1, 1]
    with pytest.raises(
        TypeError, match=r"more than 4 MiB of values .*pass the array that it was made of"
    ):
        wrap(da.from_array(np.ones(1 << 20)))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        lazy = da.from_array(file.create_dataset("x", data=X, chunks=(5, 4)))
        with pytest.raises(TypeError, match="cannot be sent to workers"):
            wrap(lazy)
    unknown = da.ones(9, chunks=3)
    with pytest.raises(TypeError, match="unknown length"):
        wrap(unknown[unknown > 0])


def test_xarray_in_memory_is_an_array() -> None:
    """An xarray object with its values in memory is its array, without a copy."""
    for value in (xarray.DataArray(X), xarray.Variable(("a", "b"), X)):
        assert wrap(value) is X
    assert wrap([1]) == [1]


def test_outputs_that_have_one_writer(tmp_path: Path) -> None:
    """A chunked HDF5 dataset and a lazy array are no outputs."""
    with pytest.raises(TypeError, match="has one writer"):
        find_target("map_blocks", store_formats.hdf5(str(tmp_path), X, (5, 4)))
    for lazy in (da.ones(3), xarray.DataArray(X)):
        with pytest.raises(TypeError, match="cannot be written in parts"):
            find_target("map_blocks", lazy)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the library of a format, the error names it and the extra that has it."""
    with shmpar.Pool(engine="serial") as pool:
        run = pool.map_blocks(np.negative, X, wait=False)
        run.result()
        uses: list[tuple[str, str, Callable[[], object]]] = [
            ("zarr", "zarr", lambda: shmpar.open(str(tmp_path / "x.zarr"))),
            ("zarr", "zarr", lambda: pool.map_blocks(abs, X, out=str(tmp_path / "new.zarr"))),
            ("fsspec", "zarr", lambda: shmpar.open("http://localhost:1/x.zarr")),
            ("h5py", "hdf5", lambda: shmpar.open(str(tmp_path / "x.h5:/x"))),
            ("tifffile", "tiff", lambda: shmpar.open(str(tmp_path / "x.tif"))),
            ("matplotlib", "plot", run.live),
            ("matplotlib", "plot", run.report.plot),
            ("distributed", "dask", lambda: shmpar.Pool(engine="dask")),
        ]
        for name, extra, use in uses:
            with monkeypatch.context() as missing:
                missing.setitem(sys.modules, name, None)
                with pytest.raises(ImportError, match=rf"needs.* {name},.*shmpar\[{extra}") as one:
                    use()
            assert one.value.name == name


def test_errors_of_stores_pickle() -> None:
    """A StoreError keeps its attributes."""
    error = pickle.loads(pickle.dumps(shmpar.StoreError("m", opener="zarr", where="x.zarr")))
    assert (str(error), error.opener, error.where) == ("m", "zarr", "x.zarr")


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)), data=st.data(),
    depth=st.integers(0, 4), boundary=st.sampled_from(["none", "reflect", "periodic", 1]),
)  # fmt: skip
def test_halos_of_parts(shape: Any, data: Any, depth: int, boundary: Any) -> None:
    """A part that has the neighbourhood of a chunk gives its window as the whole array does."""
    x = np.arange(shape[0] * shape[1]).reshape(shape)
    grid = Grid.cut(shape, (3, 4))
    halo = Halo.parse(depth, boundary, 2)
    number = data.draw(st.integers(0, grid.size - 1))
    part: Any = Part(x, (0, 0), shape)
    low = tuple(max(0, start - depth) for start, _ in halo.window(grid, number))
    if boundary == "none":
        part = Part(x[low[0] :, low[1] :], low, shape)
    np.testing.assert_array_equal(halo.gather(part, grid, number), halo.gather(x, grid, number))


def test_windows_of_a_part() -> None:
    """A part is indexed in the coordinates of the larger array, within its window."""
    part = Part(np.arange(12).reshape(3, 4), (10, 20), (100, 200))
    assert part[11:13, 21].tolist() == [5, 9]
    part[10:11, 20:22] = -1
    assert part.array[0].tolist() == [-1, -1, 2, 3]
    assert (part.shape, part.ndim, part.size, part.nbytes) == ((100, 200), 2, 20_000, 96)
    for key in (9, np.s_[9:11], np.s_[10:14], np.s_[:, 20:21], (10, 24)):
        with pytest.raises(IndexError, match="lies outside"):
            part[key]
    with pytest.raises(TypeError, match=r"its values are part\.array"):
        np.asarray(part)


@given(
    sources=st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=5), min_size=1, max_size=4)
)
def test_runs_cover_all_sources(sources: Any) -> None:
    """Runs are apart, and each source lies in one of them."""
    runs = _runs([np.array(one) for one in sources])
    assert all(high < low for (_, high), (low, _) in pairwise(runs))
    for one in sources:
        assert any(low <= min(one) and max(one) < high for low, high in runs)


@pytest.mark.parametrize(
    ("shape", "unit", "itemsize", "depth"),
    [
        ((40_000, 40_000), (512, 512), 4, 0),
        ((40_000, 40_000), (512, 512), 4, 12),
        ((4_000, 3_000, 2_000), (64, 128, 128), 2, 3),
        ((10_000, 7_000), (1000, 7_000), 1, 0),
        ((300_000_000,), (1 << 20,), 8, 5),
    ],
)
def test_auto_follows_the_units(shape: Any, unit: Any, itemsize: int, depth: int) -> None:
    """Chunks are multiples of the unit, at least two of them with a halo, of 8 to 32 MiB."""
    store = Store(b"", shape, f"u{itemsize}", unit, "zarr", "x")
    inputs = blocks("map_blocks", [store])
    grid = inputs.cut("auto", depth=((depth, depth),) * len(shape) if depth else ())
    for axis, step in zip(grid.axes, unit, strict=True):
        assert axis.step % step == 0 or axis.step == axis.size
        assert not depth or axis.step >= min(2 * step, axis.size)
    nbytes = np.prod([axis.step for axis in grid.axes]) * itemsize
    assert 4 << 20 <= nbytes <= 32 << 20


def test_auto_follows_the_units_of_all_stores() -> None:
    """Chunks are multiples of the units of all stores, with broadcast axes as they are."""
    one = Store(b"", (9000, 9000), "u2", (300, 400), "zarr", "x")
    other = Store(b"", (1, 9000), "u2", (1, 600), "zarr", "y")
    output = Store(b"", (9000, 9000), "u2", (450, 100), "zarr", "z")
    inputs = blocks("map_blocks", [one, other, np.ones(9000, "u2")])
    inputs.written = [((0, 1), output)]
    lengths = [axis.step for axis in inputs.cut("auto").axes]
    assert (lengths[0] % 900, lengths[1] % 1200) == (0, 0)
    assert inputs.cut((7, "auto")).axes[0].step == 7
    assert blocks("map_blocks", [np.ones((9, 9))]).cut("auto") == Grid.cut((9, 9), "auto")


def test_import_takes_no_library(run_python: Any) -> None:
    """Neither the package nor the recognition of arrays imports a library of stores."""
    run_python(
        "import sys, numpy, shmpar\n"
        "shmpar.Store; shmpar.opened\n"
        "with shmpar.Pool(1, engine='serial') as pool: pool.map_blocks(abs, numpy.ones(3))\n"
        "names = {'zarr', 'h5py', 'tifffile', 'dask', 'xarray', 'pandas'}\n"
        "assert not names & set(sys.modules), names & set(sys.modules)\n"
    )
    assert os.path.exists(shmpar.__file__)


@pytest.mark.parametrize("fill", [0, 3, -0.0, float("nan"), None])
def test_chunks_of_the_fill_value_are_left_out(tmp_path: Path, fill: Any) -> None:
    """A folder has the same files, byte by byte, as after the same writes by zarr."""
    rng = np.random.default_rng(0)
    version = 2 if fill is None else 3
    for number, share in enumerate((0.0, 0.5, 0.9, 0.99, 1.0)):
        x = np.where(rng.random((22, 19)) < share, fill or 0, rng.integers(-2, 4, (22, 19)) * 1.0)
        x[rng.random(x.shape) < 0.1 * (number > 0)] = -0.0
        how = {"shape": x.shape, "chunks": (4, 6), "dtype": "f4", "fill_value": fill}
        folders = [tmp_path / f"{number}{name}" for name in ("ours", "theirs")]
        ours, theirs = (zarr.create_array(one, zarr_format=version, **how) for one in folders)
        for row in range(0, 22, 8):
            for column in range(0, 19, 12):
                where = slice(row, min(row + 8, 22)), slice(column, min(column + 12, 19))
                ZarrArray(ours)[where] = x[where]
                theirs[where] = x[where]
        files = [
            {path.relative_to(one): path.read_bytes() for path in one.rglob("*") if path.is_file()}
            for one in folders
        ]
        assert files[0] == files[1]
        assert share == 1 or len(files[0]) > 3  # Why: some chunks have values


@pytest.mark.parametrize(
    "path", ["x.npy", "x.zarr", "s3://bucket/x.zarr/0", "x.h5:/data", "x.TIF", Path("x.zarr")]
)
def test_a_path_as_an_input_is_refused(any_pool: shmpar.Pool, path: Any) -> None:
    """The error names the call that opens it."""
    advice = re.escape(f"a path is no array: pass shmpar.open({os.fspath(path)!r}), or kwargs=")
    for call in (any_pool.map_blocks, any_pool.block_reduce, any_pool.parallel_map):
        with pytest.raises(TypeError, match=advice):
            call(np.negative, path)
    with pytest.raises(TypeError, match=advice):
        any_pool.mean(path)
