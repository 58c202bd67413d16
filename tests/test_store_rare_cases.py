"""Rare arrays in stores: writable openers, other types in the file, closed files, equal ledgers."""

from __future__ import annotations

import errno
import fcntl
import importlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

zarr = pytest.importorskip("zarr")
h5py = pytest.importorskip("h5py")
tifffile = pytest.importorskip("tifffile")
xarray = pytest.importorskip("xarray")
da = pytest.importorskip("dask.array")
fsspec = pytest.importorskip("fsspec")

import shmpar  # noqa: E402
from shmpar.runtime.checkpoint import fingerprint  # noqa: E402
from shmpar.stores.recognise import wrap  # noqa: E402
from tests import pools, store_formats  # noqa: E402
from tests.interpreters import run_python  # noqa: E402

X = np.arange(48, dtype="f4").reshape(6, 8)


@pytest.fixture(scope="module")
def warm_serial() -> Iterator[shmpar.Pool]:
    """A serial pool."""
    with shmpar.Pool(engine="serial") as pool:
        yield pool


@pytest.fixture
def serial(warm_serial: shmpar.Pool, nothing_left: None) -> Iterator[shmpar.Pool]:
    """The serial pool; its latest run is dropped after the test."""
    yield warm_serial
    pools.drop_caches(warm_serial)


def stored(path: Any, values: np.ndarray = X, **how: Any) -> Any:
    """Make a zarr array of these values."""
    made = zarr.create_array(
        path, shape=values.shape, dtype=values.dtype, **{"chunks": (3, 8), **how}
    )
    made[...] = values
    return made


# Openers


def test_an_opener_of_a_writable_zarr_array(any_pool: shmpar.Pool, tmp_path: Path) -> None:
    """`zarr.open_array` opens for writing by default; that is an input and an output."""
    path = str(tmp_path / "x.zarr")
    stored(path)
    store = shmpar.opened(zarr.open_array, path)
    np.testing.assert_array_equal(store[...], X)
    np.testing.assert_array_equal(any_pool.map_blocks(np.negative, store), -X)
    for given in (store, shmpar.open(path, mode="r+")):
        np.testing.assert_array_equal(any_pool.parallel_map(np.sum, given, axis=1), X.sum(0))
    out = shmpar.opened(zarr.open_array, path, mode="r+")
    assert any_pool.map_blocks(np.negative, X, out=out) is out
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[...], -X)
    with pytest.raises(ValueError, match="multiple of 3"):
        any_pool.map_blocks(np.negative, X, chunks=2, out=out)


def in_memory() -> Any:
    """Make a zarr array in this process."""
    return zarr.create_array({}, shape=X.shape, chunks=(3, 8), dtype="f4")


def test_an_opener_of_memory_is_no_output(serial: shmpar.Pool) -> None:
    """Each worker would write into an array of its own."""
    with pytest.raises(TypeError, match="in the memory of each process, so the writes would be"):
        serial.map_blocks(np.negative, X, out=shmpar.opened(in_memory))


def test_memory_behind_a_file_system_is_refused(serial: shmpar.Pool) -> None:
    """A cache of the memory of this process is such memory too."""
    zarr.create_array("memory://rare.zarr", shape=X.shape, chunks=(3, 8), dtype="f4")
    made = zarr.open_array("simplecache::memory://rare.zarr", mode="r")
    with pytest.raises(TypeError, match="in the memory of this process"):
        serial.map_blocks(np.negative, made)
    fsspec.filesystem("memory").rm("/rare.zarr", recursive=True)


def test_the_output_is_an_input_that_was_opened_otherwise(
    serial: shmpar.Pool, tmp_path: Path
) -> None:
    """An opener and a URL of the output are the output, so a halo is refused."""
    path = str(tmp_path / "x.zarr")
    out = stored(path)
    for given in (
        shmpar.opened(zarr.open_array, path, mode="r"),
        shmpar.open(f"file://{path}"),
        zarr.open_array(f"file://{path}", mode="r"),
    ):
        with pytest.raises(ValueError, match="is the store of an input"):
            serial.map_overlap(lambda w: w, given, depth=1, chunks=3, out=out)
    np.testing.assert_array_equal(out[...], X)


def test_a_folder_of_a_file_system(serial: shmpar.Pool, tmp_path: Path) -> None:
    """Two folders of one name in different folders are different arrays; one by two ways is not."""
    from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.local import LocalFileSystem

    def within(name: str, mode: Any) -> Any:
        local = AsyncFileSystemWrapper(LocalFileSystem(auto_mkdir=True), asynchronous=True)
        system = DirFileSystem(str(tmp_path / name), local, asynchronous=True)
        store = zarr.storage.FsspecStore(system, path="x.zarr", read_only=mode == "r")
        return zarr.open_array(store, mode=mode)

    first, second = stored(tmp_path / "a" / "x.zarr"), stored(tmp_path / "b" / "x.zarr", X * 0)
    how: dict[str, Any] = {"depth": 1, "chunks": (3, 8)}
    serial.map_overlap(lambda w: w, within("a", "r"), out=within("b", "r+"), **how)
    np.testing.assert_array_equal(second[...], X)
    with pytest.raises(ValueError, match="is the store of an input"):
        serial.map_overlap(lambda w: w, within("a", "r"), out=first, **how)


@pytest.mark.filterwarnings("ignore:Both")
def test_two_formats_in_a_folder(serial: shmpar.Pool, tmp_path: Path) -> None:
    """Workers open the format of the array that was given."""
    path = tmp_path / "x.zarr"
    old = stored(path, zarr_format=2)
    new = zarr.create_array(path, shape=X.shape, chunks=(3, 8), dtype="f4", zarr_format=3)
    new[...] = X + 1
    for given, due in ((old, X), (new, X + 1)):
        np.testing.assert_array_equal(serial.map_blocks(np.copy, given), due)


def test_a_relative_folder_is_known_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store does not depend on the folder in which the program works."""
    stored(tmp_path / "x.zarr")
    monkeypatch.chdir(tmp_path)
    store = wrap(zarr.open_array("x.zarr", mode="r"))
    assert store.where == f"file://{tmp_path}/x.zarr"
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(store[...], X)


def test_dots_after_a_link_lead_to_the_folder_above_its_target(
    serial: shmpar.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs are read, and outputs written, where the system finds their paths."""
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/sub")
    monkeypatch.chdir(tmp_path)
    stored("real/x.zarr")
    with h5py.File("real/x.h5", "w") as file:
        file["run"] = X
        file.create_dataset("chunked", data=X, chunks=(3, 8))
    tifffile.imwrite("real/x.tif", X, compression="zlib")
    for name in ("x.zarr", "x.h5:/run", "x.h5:/chunked", "x.tif"):
        np.testing.assert_array_equal(shmpar.open(f"link/../{name}")[...], X)
    assert serial.sum(zarr.open_array("link/../x.zarr", mode="r")) == X.sum()
    for name in ("y.npy", "y.zarr"):
        how = {"out": f"link/../{name}", "ledger": f"link/../{name}.ledger"}
        np.testing.assert_array_equal(serial.map_blocks(np.negative, X, **how), -X)
    assert {"y.npy", "y.zarr", "y.npy.ledger", "y.zarr.ledger"} <= set(os.listdir("real"))
    with pytest.raises(ValueError, match="two outputs are one file"):
        serial.map_blocks(lambda b: (b, b), X, out=("link/z.npy", "real/sub/z.npy"))


def test_a_dataset_of_a_relative_path_is_read_from_another_folder(
    serial: shmpar.Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open HDF5 file is found by its descriptor."""
    monkeypatch.chdir(tmp_path)
    with h5py.File("x.h5", "w") as file:
        file["run"] = X
        file.create_dataset("chunked", data=X, chunks=(3, 8))
        monkeypatch.chdir("/")
        for name in ("run", "chunked"):
            assert serial.sum(file[name]) == X.sum()


def test_a_mapped_output_is_an_input_that_was_opened_otherwise(
    serial: shmpar.Pool, tmp_path: Path
) -> None:
    """A map of a file and an opener of it are one array, so a halo is refused."""
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r+")
    store = shmpar.opened(np.load, str(tmp_path / "x.npy"), mmap_mode="r+")
    for given, out in ((mapped, store), (store, mapped)):
        with pytest.raises(ValueError, match="is the store of an input"):
            serial.map_overlap(lambda w: w, given, depth=1, chunks=3, out=out)
        serial.map_blocks(np.negative, given, chunks=3, out=out)
    np.testing.assert_array_equal(mapped, X)
    with pytest.raises(ValueError, match="two outputs are one store"):
        serial.map_blocks(lambda b: (b, b), X, chunks=3, out=(store, mapped))


# Openers of others


class Other:
    """An array whose attributes have other meanings, or other types, than those of zarr."""

    shape, dtype = X.shape, X.dtype

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __getitem__(self, key: Any) -> Any:
        return X[key]


class Length(np.ndarray):
    """Numbers with a unit."""

    unit = "m"


class Lengths(Other):
    """An array whose windows have a unit."""

    def __getitem__(self, key: Any) -> Any:
        return X[key].view(Length)


def test_units_of_other_arrays(serial: shmpar.Pool) -> None:
    """Lengths of any type of integer are a unit; that of a quantity, or of other axes, is none."""
    for due, how in (
        ((3, 8), {"chunks": [3, 8]}),
        ((3, 4), {"chunks": (np.int64(3), np.int32(4))}),
        ((3, 8), {"unit": "m", "chunksize": (3, 8)}),
        (None, {"chunks": (3,)}),
        (None, {"chunks": (0, 0)}),
    ):
        store = shmpar.opened(Other, **how)
        assert store.unit == due
        assert serial.sum(store) == X.sum()
    with pytest.raises(shmpar.ChunkError, match=r"would lose its unit \(m\); give the numbers"):
        serial.sum(shmpar.opened(Lengths))


def open_late(path: str, left: str) -> Any:
    """Open an array; fail as often as a file has bytes."""
    if size := os.path.getsize(left):
        os.truncate(left, size - 1)
        raise TimeoutError(errno.ETIMEDOUT, "late")
    return np.load(path, mmap_mode="r")


def test_a_store_that_opens_late_is_opened_again(serial: shmpar.Pool, tmp_path: Path) -> None:
    """A fault that may pass is tried again where a store is opened too."""
    left = tmp_path / "left"
    np.save(tmp_path / "x.npy", X)
    left.touch()
    store = shmpar.opened(open_late, str(tmp_path / "x.npy"), str(left))
    left.write_bytes(bytes(2))
    assert serial.sum(store) == X.sum()
    left.write_bytes(bytes(1))
    with pytest.raises(shmpar.StoreError, match="cannot be opened: TimeoutError"):
        serial.map_blocks(np.negative, store, io_retries=0)


def test_a_store_of_a_class_of_the_program(process_pool: shmpar.Pool, tmp_path: Path) -> None:
    """Workers get the class of a zarr store by value; one that does not pickle has a remedy."""
    stored(tmp_path / "x.zarr")

    class Own(zarr.storage.LocalStore):
        pass

    class Locked(zarr.storage.LocalStore):
        def __reduce__(self) -> Any:
            raise ValueError("locked")

    given = zarr.open_array(Own(tmp_path / "x.zarr"), mode="r")
    np.testing.assert_array_equal(process_pool.map_blocks(np.negative, given), -X)
    given = zarr.open_array(Locked(tmp_path / "x.zarr"), mode="r")
    with pytest.raises(
        TypeError, match=r"in a Locked cannot be sent .* locked; pass shmpar\.opened"
    ):
        process_pool.sum(given)


def test_a_folder_behind_a_url_that_vanished(serial: shmpar.Pool, tmp_path: Path) -> None:
    """It is gone like any other folder: its chunks are not read as the fill value."""
    path = tmp_path / "x.zarr"
    stored(path)
    array = zarr.open_array(f"file://{path}", mode="r")

    def remove(block: Any) -> Any:
        shutil.rmtree(path, ignore_errors=True)
        return block

    with pytest.raises(shmpar.ChunkError, match=r"is gone: .*zarr\.json was removed"):
        serial.map_blocks(remove, shmpar.open(f"file://{path}"), chunks=3)
    with pytest.raises(shmpar.StoreError, match="is gone"):
        serial.sum(array)


# Masks


class Masked:
    """An array whose windows have masks, as those of netCDF4."""

    shape, dtype = X.shape, X.dtype

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __getitem__(self, key: Any) -> Any:
        return np.ma.masked_greater(X, self.limit)[key]


def test_masked_values_are_refused(serial: shmpar.Pool) -> None:
    """A block has no mask, so masked values are an error; a mask of nothing is none."""
    assert serial.sum(shmpar.opened(Masked, 99)) == X.sum()
    for given in (shmpar.opened(Masked, 40), da.ma.masked_greater(da.from_array(X, chunks=3), 40)):
        with pytest.raises(shmpar.ChunkError, match="has masked values in a window"):
            serial.sum(given, chunks=3)


# HDF5


def test_a_dataset_that_another_process_appends_to(
    process_pool: shmpar.Pool, tmp_path: Path
) -> None:
    """A file that was opened for one writer and many readers is opened so by the workers."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("x", data=X, chunks=(3, 8), maxshape=(None, 8))
        file.swmr_mode = True
        shutil.copy(path, tmp_path / "copy.h5")  # Why: HDF5 opens a file in one way per process
    with h5py.File(tmp_path / "copy.h5", "r", libver="latest", swmr=True) as file:
        assert process_pool.sum(file["x"]) == X.sum()


def test_plugins_of_hdf5_are_imported_by_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers import the package of filters that the program has imported."""
    (tmp_path / "hdf5plugin.py").write_text(
        f"import os\nopen(f'{tmp_path}/{{os.getpid()}}.loaded', 'x').close()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "hdf5plugin", importlib.import_module("hdf5plugin"))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=X, chunks=(3, 8))
    with shmpar.Pool(1) as pool:
        assert pool.sum(shmpar.open(f"{tmp_path}/x.h5:/x")) == X.sum()
    assert len(list(tmp_path.glob("*.loaded"))) == 2


def test_datasets_that_their_name_does_not_tell(serial: shmpar.Pool, tmp_path: Path) -> None:
    """A dataset without a name, or with other sources of its values, is refused."""
    (tmp_path / "source").mkdir()
    with h5py.File(tmp_path / "source" / "s.h5", "w") as file:
        file["x"] = X
    with h5py.File(tmp_path / "x.h5", "w") as file:
        layout = h5py.VirtualLayout(X.shape, "f4")
        layout[...] = h5py.VirtualSource("s.h5", "x", X.shape)
        file.create_virtual_dataset("v", layout, fillvalue=-1)
        file["type"] = np.dtype("f4")
        with pytest.raises(TypeError, match="has no name there"):
            serial.sum(file.create_dataset(None, data=X, chunks=(3, 8)))
    with h5py.File(tmp_path / "x.h5") as file:
        how = {"virtual_prefix": str(tmp_path / "source")}
        dataset = file.require_dataset("v", X.shape, "f4", **how)
        np.testing.assert_array_equal(dataset[...], X)
        with pytest.raises(TypeError, match="opened with virtual_prefix="):
            serial.sum(dataset)
    with pytest.raises(shmpar.StoreError, match="type is a group"):
        shmpar.open(f"{tmp_path}/x.h5:/type")


def low_level(file: Any, name: str, dtype: Any, values: Any, layout: int | None = None) -> Any:
    """Make a dataset of a type, or with a layout, that NumPy's dtypes do not tell."""
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if layout is not None:
        how.set_layout(layout)
    space = h5py.h5s.create_simple(np.shape(values))
    h5py.h5d.create(file.id, name.encode(), dtype, space, how)
    file[name][...] = values
    return file[name]


def unusual(file: Any) -> Iterator[Any]:
    """Make contiguous datasets whose bytes are not those of NumPy."""
    brain = h5py.h5t.IEEE_F16LE.copy()
    brain.set_fields(15, 7, 8, 0, 7)
    brain.set_ebias(127)
    yield low_level(file, "bfloat16", brain, X)
    short = h5py.h5t.STD_U16LE.copy()
    short.set_precision(12)
    short.set_offset(4)
    yield low_level(file, "12 bits", short, X.astype("u2"))
    text = h5py.h5t.C_S1.copy()
    text.set_size(5)
    text.set_strpad(h5py.h5t.STR_SPACEPAD)
    yield low_level(file, "padded", text, np.array([b"ab", b"cde"] * 24).reshape(6, 8))


def test_values_that_hdf5_converts_are_read_by_it(serial: shmpar.Pool, tmp_path: Path) -> None:
    """Such a dataset is not mapped, neither as an input nor as an output."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for dataset in unusual(file):
            due = dataset[...]
            np.testing.assert_array_equal(serial.map_blocks(np.copy, dataset, chunks=3), due)
            with pytest.raises(TypeError, match="its values as in memory, so workers cannot map"):
                serial.map_blocks(np.copy, due, out=dataset)
            np.testing.assert_array_equal(dataset[...], due)


def test_usual_values_of_hdf5_are_mapped(tmp_path: Path) -> None:
    """The check of types lets all others be mapped."""
    times = np.arange(3).astype("M8[s]").astype(h5py.opaque_dtype("M8[s]"))
    records = np.zeros(3, np.dtype([("a", "u1"), ("b", ">f8")], align=True))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for dtype in ("?", "i1", ">u4", "f2", ">f8", "c8", "S5", "V3"):
            file[dtype] = X.astype("u1").astype(dtype) if dtype != "V3" else np.zeros(3, "V3")
        file.create_dataset("times", data=times)
        file["records"] = records
        file.create_dataset("names", data=[0, 1], dtype=h5py.enum_dtype({"a": 0, "b": 1}))
        file.flush()
        for dataset in file.values():
            mapped = wrap(dataset)
            assert type(mapped) is np.memmap, dataset
            np.testing.assert_array_equal(mapped, dataset[...])


def test_a_refused_dataset_keeps_its_values(serial: shmpar.Pool, tmp_path: Path) -> None:
    """Neither a scalar nor a compact dataset is an output, and neither is changed."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["scalar"] = 7.0
        compact = low_level(file, "compact", h5py.h5t.IEEE_F32LE, X + 1, h5py.h5d.COMPACT)
        for out, due in ((file["scalar"], 7), (compact, X + 1)):
            with pytest.raises(TypeError, match="is not one run of bytes in its file"):
                serial.map_blocks(np.negative, X, out=out)
            np.testing.assert_array_equal(out[...], due)


def test_a_scalar_dataset_is_a_constant(any_pool: shmpar.Pool, tmp_path: Path) -> None:
    """An HDF5 dataset without axes is read as a number."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["scalar"] = 2.5
        got = any_pool.map_blocks(np.multiply, np.ones(3), file["scalar"])
    np.testing.assert_array_equal(got, np.full(3, 2.5))


def test_a_failed_run_leaves_its_file_closed(any_pool: shmpar.Pool, tmp_path: Path) -> None:
    """The user may write to the file of an input, though the error is at hand."""
    path = str(tmp_path / "x.h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=X, chunks=(3, 8))
    with pytest.raises(shmpar.ChunkError, match="division by zero") as caught:
        any_pool.map_blocks(lambda block: 1 / 0, shmpar.open(f"{path}:/x"))
    assert caught.value.run is not None
    pools.drop_caches(any_pool)  # Why: a thread, or a worker, may have begun to open it
    pools.wait_for_workers(any_pool)
    with h5py.File(path, "r+") as file:
        file["x"][0, 0] = 7


def test_a_dataset_of_arrays(serial: shmpar.Pool, tmp_path: Path) -> None:
    """Elements that are arrays are mapped with one more axis, or refused."""
    values, dtype = np.arange(12, dtype="i4").reshape(4, 3), np.dtype(("i4", (3,)))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, chunks in (("mapped", None), ("chunked", (2,))):
            file.create_dataset(name, shape=(4,), dtype=dtype, chunks=chunks)[...] = values
        np.testing.assert_array_equal(serial.map_blocks(np.copy, file["mapped"]), values)
        with pytest.raises(TypeError, match="are arrays"):
            serial.map_blocks(np.copy, file["chunked"])


def test_a_function_opens_the_file_of_its_input(any_pool: shmpar.Pool, tmp_path: Path) -> None:
    """The values beside an input may be read by the function."""
    path = str(tmp_path / "x.h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=X, chunks=(3, 8))
        file["factor"] = 2

    def scaled(block: np.ndarray, path: str) -> np.ndarray:
        import h5py

        with h5py.File(path) as file:
            factor: np.ndarray = block * file["factor"][()]
        return factor

    got = any_pool.map_blocks(scaled, shmpar.open(f"{path}:/x"), chunks=3, kwargs={"path": path})
    np.testing.assert_array_equal(got, 2 * X)


def test_chunks_of_xarray_may_differ_in_length(serial: shmpar.Pool, tmp_path: Path) -> None:
    """The longest chunk is the unit."""
    xarray.Dataset({"x": (("y", "x"), X)}).to_zarr(tmp_path / "x.zarr", consolidated=False)
    lazy = xarray.open_zarr(tmp_path / "x.zarr", chunks=None, consolidated=False)["x"]
    lazy.encoding["preferred_chunks"] = {"y": (2, 3, 1), "x": 4}
    assert wrap(lazy).unit == (3, 4)
    np.testing.assert_array_equal(serial.map_blocks(np.copy, lazy), X)


def test_links_to_other_files(serial: shmpar.Pool, tmp_path: Path) -> None:
    """A dataset behind an external link is read; a name that leads elsewhere is refused."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=X, chunks=(3, 8))
        file.create_dataset("soft", data=X + 1, chunks=(3, 8))
    with h5py.File(tmp_path / "links.h5", "w") as file:
        file["external"] = h5py.ExternalLink("x.h5", "/x")
        file["soft"] = h5py.SoftLink("/external")
        np.testing.assert_array_equal(serial.map_blocks(np.copy, file["external"]), X)
        with pytest.raises(TypeError, match="was reached by links from another file; open it in"):
            serial.map_blocks(np.copy, file["soft"])


def test_a_file_that_the_user_closes(tmp_path: Path) -> None:
    """A store that shares an open file of the user opens it anew once that was closed."""
    path = str(tmp_path / "x.h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=X, chunks=(3, 8))
    store = shmpar.open(f"{path}:/x")
    for _ in range(2):
        with h5py.File(path):
            np.testing.assert_array_equal(store[...], X)
        np.testing.assert_array_equal(store[...], X)
    with open(path, "rb") as file:  # the store holds no lock that other processes would meet
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_that_the_user_closes_in_a_run(tmp_path: Path) -> None:
    """Threads go on with a file of their own."""
    path = str(tmp_path / "x.h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=X, chunks=(3, 8))
    begun, closed = threading.Event(), threading.Event()

    def work(block: np.ndarray) -> np.ndarray:
        begun.set()
        assert closed.wait(20)
        return -block

    with shmpar.Pool(1, engine="threads") as pool:
        with h5py.File(path):
            run = pool.map_blocks(work, shmpar.open(f"{path}:/x"), chunks=3, wait=False)
            assert begun.wait(20)
        closed.set()
        np.testing.assert_array_equal(run.result(20), -X)


def test_files_that_other_threads_open_and_close(tmp_path: Path) -> None:
    """A look at the open files of HDF5 passes over those that are closed meanwhile."""
    paths = [str(tmp_path / f"{number}.h5") for number in range(4)]
    for path in paths:
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=X, chunks=(3, 8))
    over = threading.Event()

    def open_and_close(path: str) -> None:
        while not over.is_set():
            with h5py.File(path) as file:
                file["x"][0]

    threads = [threading.Thread(target=open_and_close, args=(path,)) for path in paths[1:]]
    for thread in threads:
        thread.start()
    try:
        for _ in range(250):
            wrap(shmpar.open(f"{paths[0]}:/x"))
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_names_with_colons(tmp_path: Path) -> None:
    """A dataset may have a colon in its name, and a folder too."""
    folder = tmp_path / "12:30"
    folder.mkdir()
    with h5py.File(folder / "x.h5", "w") as file:
        file["layer/kernel:0"] = X
        file.create_dataset("bias:1", data=X + 1, chunks=(3, 8))
    np.testing.assert_array_equal(shmpar.open(f"{folder}/x.h5:/layer/kernel:0"), X)
    store = shmpar.open(f"{folder}/x.h5:bias:1")
    with h5py.File(folder / "x.h5", "r+") as file:
        file["bias:1"][...] = X + 2
        wrap(store)  # which flushes the file
        with open(file.filename, "rb") as raw:
            assert (X + 2)[:3].tobytes() in raw.read()
    np.testing.assert_array_equal(store[...], X + 2)


# Ledgers


def test_a_ledger_tells_inputs_apart(serial: shmpar.Pool, tmp_path: Path) -> None:
    """Another axis, argument, series or part of a lazy array is another input."""
    square = stored(tmp_path / "square.zarr", np.arange(16.0).reshape(4, 4), chunks=(4, 4))
    long = [str(tmp_path / ("long" * 20) / f"{name}.zarr") for name in "ab"]
    for number, path in enumerate(long):
        stored(path, X + number)
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for number in range(2):
            file.write(X + number, compression="zlib", photometric="minisblack")
    cube = xarray.Dataset({"x": (("t", "y", "x"), np.stack([X, X + 1]))})
    cube.to_zarr(tmp_path / "cube.zarr", consolidated=False)
    lazy = xarray.open_zarr(tmp_path / "cube.zarr", chunks=None, consolidated=False)["x"]
    rows = [{"axis": 0}, {"axis": 1}]
    calls: list[list[Any]] = [
        [lambda how, k=k: serial.parallel_map(np.copy, square, **rows[k], **how) for k in (0, 1)],
        [
            lambda how, given=given: serial.map_blocks(np.copy, given, **how)
            for given in [shmpar.opened(zarr.open_array, path, mode="r") for path in long]
        ],
        [
            lambda how, k=k: serial.map_blocks(
                np.copy, shmpar.open(tmp_path / "x.tif", series=k), **how
            )
            for k in (0, 1)
        ],
        [lambda how, k=k: serial.map_blocks(np.copy, lazy[k], **how) for k in (0, 1)],
    ]
    for number, (first, second) in enumerate(calls):
        how = {"out": tmp_path / f"{number}.npy", "ledger": tmp_path / f"{number}.ledger"}
        first(how)
        first(how)
        assert serial.last_run is not None
        assert serial.last_run.report.computed == 0
        with pytest.raises(ValueError, match=r"differs in: (chunks, )?inputs"):
            second(how)


PRINT = """
import sys, xarray, zarr, shmpar
from shmpar.runtime.checkpoint import fingerprint
from shmpar.stores.recognise import wrap
folder = sys.argv[1]
lazy = xarray.open_zarr(folder + "/x.zarr", chunks=None, consolidated=False)["x"]
classic = xarray.open_dataset(folder + "/x.nc", engine="scipy")["x"]
opened = shmpar.opened(zarr.open_array, folder + "/x.zarr/x", mode="r")
print(lazy[0, 0].values, classic[0, 0].values, opened[0, 0], file=sys.stderr)
for one in (lazy, lazy[1:], classic, classic[1:], opened):
    print(fingerprint(wrap(one)))
"""


def test_another_process_has_the_same_fingerprints(tmp_path: Path) -> None:
    """A lazy array of a file, and an opened one, are known again, also if they were read before."""
    cube = xarray.Dataset({"x": (("y", "x"), X)})
    cube.to_zarr(tmp_path / "x.zarr", consolidated=False)
    cube.to_netcdf(tmp_path / "x.nc", engine="scipy")
    lazy = xarray.open_zarr(f"{tmp_path}/x.zarr", chunks=None, consolidated=False)["x"]
    classic = xarray.open_dataset(f"{tmp_path}/x.nc", engine="scipy")["x"]
    opened = shmpar.opened(zarr.open_array, f"{tmp_path}/x.zarr/x", mode="r")
    given = lazy, lazy[1:], classic, classic[1:], opened
    found = [fingerprint(wrap(one)) for one in given]
    assert run_python(PRINT, str(tmp_path)).stdout.split() == found
    assert len(set(found)) == 5


# Errors in the pool thread


def test_a_checked_store_that_cannot_be_read(tmp_path: Path) -> None:
    """The run fails with the error of its store, and another run of the pool goes on."""
    path, go = tmp_path / "x.zarr", threading.Event()
    out = stored(path)

    def spoil(block: np.ndarray, block_id: Any) -> np.ndarray:
        if block_id == (1, 0):
            (path / "c" / "0" / "0").write_bytes(b"nothing")
        return block

    def wait(block: np.ndarray) -> np.ndarray:
        assert go.wait(20)
        return -block

    with shmpar.Pool(2, engine="threads", check=True) as pool:
        other = pool.map_blocks(wait, X, chunks=(6, 8), wait=False)
        with pytest.raises(shmpar.StoreError, match="cannot read"):
            pool.map_blocks(spoil, X + 1, chunks=(3, 8), out=out)
        go.set()
        np.testing.assert_array_equal(other.result(20), -X)


def test_results_without_elements(any_pool: shmpar.Pool, tmp_path: Path) -> None:
    """A new array may have an axis of length 0."""
    for number, verb in enumerate((any_pool.parallel_map, any_pool.map_blocks)):
        path = tmp_path / f"out{number}.zarr"
        out = verb(lambda block: block[..., :0], X, out=path)
        assert (out.shape, os.path.isdir(path)) == ((6, 0), True)
    empty = store_formats.zarr3(str(tmp_path), X[:0], (1, 8))
    assert any_pool.map_blocks(np.negative, empty, out=tmp_path / "empty.zarr").shape == (0, 8)


def test_workers_have_the_settings_of_the_array(serial: shmpar.Pool, tmp_path: Path) -> None:
    """The order in memory decides on the order of additions; chunks of zeros may be written."""
    x = np.random.default_rng(0).normal(size=(64, 50)).astype("f4")
    old = stored(tmp_path / "old.zarr", x, chunks=(16, 50), zarr_format=2, order="F")
    new = stored(tmp_path / "new.zarr", x, chunks=(16, 50), config={"order": "F"})
    for given in (old, new):
        assert given[...].flags.f_contiguous
        for how in ({"chunks": (30, 20)}, {"chunks": (64, 50)}):
            got = serial.block_reduce(lambda b: (b.sum(), b.flags.f_contiguous), given, **how)
            due = serial.block_reduce(lambda b: (b.sum(), b.flags.f_contiguous), given[...], **how)
            assert [one.tobytes() for one in got] == [one.tobytes() for one in due]
    for name, config in (("some", {}), ("all", {"write_empty_chunks": True})):
        out = stored(tmp_path / f"{name}.zarr", X * 0, config=config)
        serial.map_blocks(np.copy, X * 0, chunks=(3, 8), out=out)
        assert (tmp_path / f"{name}.zarr" / "c" / "1" / "0").exists() == bool(config)


class Counted:
    """An array in units of 16 rows that counts its reads."""

    chunks = (16, 3)
    reads = 0

    def __init__(self) -> None:
        self.values = np.arange(144.0).reshape(48, 3)
        self.shape, self.dtype = self.values.shape, self.values.dtype

    def __getitem__(self, key: Any) -> Any:
        Counted.reads += 1
        return self.values[key]


def test_a_ledger_of_items_reads_rows_in_bands(serial: shmpar.Pool, tmp_path: Path) -> None:
    """The rows beside items are read once for the ledger and once for the function."""
    store = shmpar.opened(Counted)
    Counted.reads = 0
    got = serial.parallel_map(
        lambda item, row: item + row[0], range(48), store, ledger=tmp_path / "x.ledger"
    )
    assert got == [4 * k for k in range(48)]
    assert Counted.reads <= 12


def test_a_ledger_and_another_order_of_bytes(serial: shmpar.Pool, tmp_path: Path) -> None:
    """A new array of zarr forgets the order of bytes, and its chunks count as done."""
    how: dict[str, Any] = {"chunks": 3, "out": tmp_path / "x.zarr", "ledger": tmp_path / "x.ledger"}
    for computed in (6, 0):
        out = serial.map_blocks(np.copy, X.astype(">i2"), **how)
        assert serial.last_run is not None
        assert serial.last_run.report.computed == computed
        np.testing.assert_array_equal(out[...], X)
