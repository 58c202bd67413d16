"""Open arrays in files: zarr, HDF5, TIFF, lazy xarray and Dask.

The functions here are the openers of stores: they run in each worker. Their results have a shape, a
dtype, and either ``read_into`` or slicing. Libraries are imported here, when they are used.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from shmpar.errors import StoreError

Array = np.ndarray[Any, Any]
Where = tuple[slice, ...]

_LOOKS = 4  # along each axis of a chunk
_EXTRAS = {
    "zarr": "zarr", "fsspec": "zarr", "h5py": "hdf5", "tifffile": "tiff", "distributed": "dask",
    "matplotlib": "plot",
}  # fmt: skip


def library(name: str, purpose: str) -> ModuleType:
    """Import a library; the error names it and the extra of shmpar that installs it."""
    try:
        return __import__(name)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs the library {name}, install it, for example by the extra "
            f"shmpar[{_EXTRAS[name]}]: {error}",
            name=name,
        ) from error


def absolute(path: Any) -> str:
    """Return the whole path of a file, as the system finds it from this folder.

    Why not ``abspath`` alone: a folder may be a link, and ``..`` leads to the one above its target.
    """
    text: str = os.fspath(path)
    return os.path.realpath(text) if ".." in text.split(os.sep) else os.path.abspath(text)


# zarr


class ZarrArray:
    """An open zarr array.

    Attributes
    ----------
    metadata : str or None
        Path of the file of metadata, for an array in a folder.
    order : "C" or "F"
        Order of the windows in memory.
    read_only : bool
        It was opened for reading alone.
    """

    def __init__(self, array: Any) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.unit = array.shards or array.chunks
        self.read_only = array.read_only
        self.order = array.order
        self.metadata = _metadata_file(array)
        self._unchecked = _without_comparison(array)

    def read_into(self, where: Where, memory: Array, inside: Where) -> None:
        """Decode a window into memory."""
        from zarr.buffer.cpu import NDBuffer

        self.check()
        if where:
            view = NDBuffer.from_numpy_array(memory[inside])
            self.array.get_basic_selection(where, out=view)
        else:  # Why: zarr does not fill an output without axes
            memory[...] = self.array[...]
        # Why after the read: a chunk that is missing reads as the fill value.
        self.check()

    def __setitem__(self, where: Any, value: Any) -> None:
        self.check()
        known = self._unchecked is not None and _shows_values(self.array, where, value)
        try:
            (self._unchecked if known else self.array)[where] = value
        except OSError:
            self.check()  # Why: it names the cause, if that is a removed folder.
            raise

    def check(self) -> None:
        """Raise `StoreError` if the folder of the array is gone."""
        if self.metadata is not None and not os.path.exists(self.metadata):
            raise _gone(str(self.array.store_path), f"is gone: {self.metadata} was removed")


def _gone(where: str, text: str) -> StoreError:
    return StoreError(f"the zarr array {where} {text}", opener="zarr", where=where)


def _without_comparison(array: Any) -> Any:
    """Return a zarr array that compares no chunk with the fill value; None if it may not.

    Why: zarr compares each chunk, in order to leave out those of the fill value alone, and that
    takes longer than a simple function of the chunk.
    """
    if not hasattr(array, "with_config") or array.shards or array.dtype.kind not in "biufc":
        return None
    fill = array.fill_value
    if not array.shape or fill != fill or array.config.write_empty_chunks:  # noqa: PLR0124 - NaN
        return None
    return array.with_config({"write_empty_chunks": True})


def _shows_values(array: Any, where: Any, value: Any) -> bool:
    """Return whether a few elements tell that no chunk in a window has the fill value alone."""
    if not isinstance(where, tuple) or value.shape != tuple([s.stop - s.start for s in where]):
        return False
    places = []
    for one, length in zip(where, array.chunks, strict=True):
        if one.start % length or one.start == one.stop:
            return False
        starts = np.arange(0, one.stop - one.start, length)
        lengths = np.minimum(length, one.stop - one.start - starts)
        steps = [(2 * k + 1) * lengths // (2 * _LOOKS) for k in range(_LOOKS)]
        places.append((starts + steps).T.ravel())
    looks = value[np.ix_(*places)].astype(array.dtype) != (array.fill_value or 0)
    by_chunk = looks.reshape([n for one in places for n in (len(one) // _LOOKS, _LOOKS)])
    return bool(by_chunk.any(tuple(range(1, 2 * len(places), 2))).all())


def _metadata_file(array: Any) -> str | None:
    root = _root_of(array)
    if root is None:
        return None
    name = "zarr.json" if array.metadata.zarr_format == 3 else ".zarray"  # noqa: PLR2004
    # Why the whole path: a process that opens the array may work in another folder.
    return absolute(os.path.join(root, array.store_path.path, name))


def _root_of(array: Any) -> str | None:
    """Return the folder of this machine that a zarr store is; None if it lies elsewhere."""
    store = innermost(array.store)
    behind: Any = getattr(store, "store", None)  # of obstore
    if type(behind).__name__ == "LocalStore":
        return str(behind.prefix or os.sep)
    if (root := getattr(store, "root", None)) is not None:
        return str(root)
    path = getattr(store, "path", "")
    for system in _systems(store):
        if "dir" not in _names(system):
            return str(path) if "file" in _names(system) else None
        path = os.path.join(system.path, path)
    return None


def innermost(store: Any) -> Any:
    """Return the store that a wrapper of zarr wraps."""
    while (inner := getattr(store, "_store", None)) is not None:
        store = inner
    return store


def open_zarr(
    store: Any, path: str, mode: str = "r", options: Any = None, metadata: str | None = None
) -> ZarrArray:
    """Open a zarr array by its store, or by its path or URL; it had this file of metadata."""
    zarr = library("zarr", path or store)
    if isinstance(store, str) and (archive := archive_in(store)) is not None:
        path = store[len(archive) :].strip("/")
        store = zarr.storage.ZipStore(archive, mode="r")
    try:
        found = zarr.open(store, path=path or None, mode=mode, **(options or {}))
    except Exception:
        if metadata is not None and not os.path.exists(metadata):
            # Why: zarr's error is about a group, and the options of arrays.
            text = f"is gone: {metadata} was removed, or is not on this machine"
            raise _gone(f"{store}/{path}".rstrip("/"), f"cannot be opened, it {text}") from None
        raise
    if not hasattr(found, "shape"):
        names = ", ".join(sorted(name for name, _ in found.arrays()))
        raise StoreError(
            f"{found.store_path} is a group of zarr, not an array; open one of its arrays"
            + (f": {names}" if names else ""),
            opener="zarr", where=str(found.store_path),
        )  # fmt: skip
    return ZarrArray(found)


def archive_in(path: str) -> str | None:
    """Return the part of a path that is a zip file; None without one.

    Examples
    --------
    >>> archive_in("a/x.zarr.zip/0"), archive_in("x.zip"), archive_in("x.zarr")
    ('a/x.zarr.zip', 'x.zip', None)
    """
    ends = [found.end() for found in re.finditer(r"\.zip(?=/|$)", path) if "://" not in path]
    return next((path[:end] for end in ends if not os.path.isdir(path[:end])), None)


def check_zarr_store(array: Any) -> None:
    """Raise ``TypeError`` for a zarr array whose values lie in this process."""
    if lies_in_memory(array):
        raise TypeError(
            f"the zarr array {array.store_path} lies in the memory of this process "
            f"({type(innermost(array.store)).__name__}), which no worker can open; pass x[...], or "
            "put it into a folder"
        )
    check_fields(array.dtype, array.metadata.zarr_format, str(array.store_path))


def lies_in_memory(array: Any) -> bool:
    """Return whether the values of a zarr array lie in the memory of a process."""
    store = innermost(array.store)
    kinds = type(store), type(getattr(store, "store", store))  # that of obstore, too
    in_memory = any("Memory" in kind.__name__ for kind in kinds) or isinstance(store, dict)
    return in_memory or any("memory" in _names(system) for system in _systems(store))


def _systems(store: Any) -> Iterator[Any]:
    """Yield the file system of a zarr store, and those of which it is a folder or a cache."""
    holder = store
    while (system := getattr(holder, "fs", None)) is not None:
        holder = getattr(system, "sync_fs", system)  # Why: a wrapper makes it asynchronous.
        yield holder


def _names(system: Any) -> tuple[str, ...]:
    protocol = getattr(system, "protocol", ())
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def place_of_zarr(array: Any) -> str:
    """Return the path of a zarr array without links, or the text that stands for its URL."""
    store, root = innermost(array.store), _root_of(array)
    if root is None and not hasattr(store, "fs"):
        return str(array.store_path)
    whole = os.path.join(root or store.path, array.store_path.path).rstrip("/")
    if root is not None or any("file" in _names(system) for system in _systems(store)):
        return os.path.realpath(whole)
    return f"{type(store.fs).__name__} {whole}"


def check_fields(dtype: Any, version: int, where: str) -> None:
    """Raise ``TypeError`` for a dtype with fields whose order of bytes a zarr array does not keep.

    Why: an array that is opened anew would give other values than the user's object.
    """
    if version > 2 and dtype.names and dtype != dtype.newbyteorder("="):  # noqa: PLR2004
        raise TypeError(
            f"the zarr array {where} has dtype {dtype}, and version 3 of zarr does not keep the "
            "order of bytes of fields: a worker would read other values; make it with "
            "dtype.newbyteorder('='), or with zarr_format=2"
        )


# HDF5


class Hdf5Array:
    """An open HDF5 dataset."""

    def __init__(self, dataset: Any) -> None:
        # Why the file is not closed: that closes the objects of other users in this process. The
        # file ends with its last object.
        self.dataset = dataset
        self.shape, self.dtype, self.unit = dataset.shape, dataset.dtype, dataset.chunks

    @property
    def closed(self) -> bool:
        """True once the user has closed the file that both have open."""
        return not self.dataset

    def read_into(self, where: Where, memory: Array, inside: Where) -> None:
        """Read a window into memory."""
        self.dataset.read_direct(memory, where, inside)


def same_process_file(path: str) -> Any:
    """Return the id of an HDF5 file that this process has open, flushed; None if it has not."""
    h5py = sys.modules.get("h5py")
    if h5py is None or not os.path.exists(path):
        return None
    h5f, found = h5py.h5f, None
    # Why datasets too: a file stays open as long as any object of it.
    for one in h5f.get_obj_ids(h5f.OBJ_ALL, h5f.OBJ_FILE | h5f.OBJ_DATASET | h5f.OBJ_GROUP):
        try:
            file = h5py.h5i.get_file_id(one)
            is_here = is_open_at(file, path)
            written = is_here and file.get_intent() & h5f.ACC_RDWR
        except Exception:  # noqa: BLE001, S112 - another thread has closed it
            continue
        if written:
            h5f.flush(file)
            return file
        found = file if is_here else found
    return found


def is_open_at(file: Any, path: str) -> bool:
    """Return whether a path leads to a file that HDF5 has open, and not to its successor."""
    try:
        return os.path.samestat(os.fstat(file.get_vfd_handle()), os.stat(path))
    except (OSError, ValueError, RuntimeError, NotImplementedError, TypeError):
        name = os.fsdecode(file.name)  # Why: not every driver tells its descriptor
        return os.path.exists(name) and os.path.exists(path) and os.path.samefile(name, path)


def path_of_hdf5(file: Any) -> str:
    """Return the whole path of an open file, also where the program works in another folder now.

    Raises
    ------
    StoreError
        If it was removed, or another file has its path.
    """
    path = absolute(file.filename)
    if not is_open_at(file.id, path):
        with contextlib.suppress(OSError, ValueError, RuntimeError, NotImplementedError, TypeError):
            path = os.readlink(f"/proc/self/fd/{file.id.get_vfd_handle()}")
        if not is_open_at(file.id, path):
            raise StoreError(
                f"the HDF5 file {path} was removed or replaced after it was opened; open it again",
                opener="hdf5", where=path,
            )  # fmt: skip
    return path


def open_hdf5(path: str, name: str, options: Any = None, plugins: Any = ()) -> Hdf5Array:
    """Open a dataset of an HDF5 file for reading, without the lock of the file."""
    h5py = library("h5py", path)
    for one in plugins:
        with contextlib.suppress(ImportError):  # Why: HDF5 names the filter that is missing.
            __import__(one)
    shared = same_process_file(path)
    if shared is not None:  # Why: HDF5 refuses to open a file twice in other ways
        return Hdf5Array(_dataset(h5py.File(shared), name, path))
    try:
        file = _open_without_lock(h5py, path, options or {})
    except OSError as error:
        if any(word in str(error) for word in ("already open for", "consistency", "lock file")):
            raise StoreError(
                f"{path} is open for writing in another process, or was not closed: {error}; close "
                "it first",
                opener="hdf5", where=path,
            ) from error  # fmt: skip
        raise
    return Hdf5Array(_dataset(file, name, path))


def _open_without_lock(h5py: Any, path: str, how: dict[str, Any]) -> Any:
    if "locking" in how:
        return h5py.File(path, "r", **how)
    try:
        # Why with the lock at first: only so does HDF5 let the user open it in this process too.
        file = h5py.File(path, "r", **how)
    except OSError:  # Why again: the user may have it open for writing, or there are no locks.
        return h5py.File(path, "r", **how, locking=False)
    if file.driver == "sec2":
        # Why suppressed: not every system has the module, nor each file such a lock.
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            fcntl.flock(file.id.get_vfd_handle(), fcntl.LOCK_UN)
    return file


def _dataset(file: Any, name: str, path: str) -> Any:
    try:
        found = file[name]
    except KeyError as error:
        names = ", ".join(sorted(file)[:10])
        raise StoreError(
            f"{path} has no dataset {name}; it has {names or 'none'}", opener="hdf5", where=path
        ) from error
    if not hasattr(found, "shape"):
        within = sorted(found) if hasattr(found, "keys") else ()  # Why: or it is a type with a name
        names = ", ".join(f"{name.rstrip('/')}/{one}" for one in within[:10])
        raise StoreError(
            f"{path}:{name} is a group, not a dataset; it has {names or 'none'}",
            opener="hdf5", where=f"{path}:{name}",
        )  # fmt: skip
    if found.shape is None:
        raise StoreError(f"{path}:{name} has no values", opener="hdf5", where=f"{path}:{name}")
    return found


def place_of_hdf5(dataset: Any) -> int | None:
    """Return the byte of the file at which the values lie, as one run; None if they do not."""
    if dataset.chunks is not None or dataset.is_virtual or dataset.external or not dataset.size:
        return None
    if dataset.dtype.hasobject or not dataset.shape or not _keeps_bytes(dataset):
        return None
    offset: int | None = dataset.id.get_offset()
    # Why: HDF5 adds the user block to the number that means "none".
    return None if offset is None or offset < dataset.file.userblock_size else offset


def may_get_place(dataset: Any) -> bool:
    """Return whether HDF5 gives a dataset its run of bytes in the file with the first write."""
    if not dataset.shape or not _keeps_bytes(dataset):
        return False
    layout = dataset.id.get_create_plist().get_layout()
    return bool(layout == sys.modules["h5py"].h5d.CONTIGUOUS)


def _keeps_bytes(dataset: Any) -> bool:
    """Return whether the elements lie in the file as NumPy has them in memory.

    Why: HDF5 converts numbers of other lengths of bits, and text that is padded with spaces.
    """
    in_memory = sys.modules["h5py"].h5t.py_create(dataset.dtype, logical=True)
    return bool(in_memory.equal(dataset.id.get_type()))


def mapped_hdf5(dataset: Any, mode: str = "r") -> Array | None:
    """Map a dataset whose values are one run of bytes in its file; None if they are not."""
    offset = place_of_hdf5(dataset)
    if offset is None:
        return None
    path = path_of_hdf5(dataset.file)
    same_process_file(path)
    if os.path.getsize(path) < offset + dataset.nbytes:
        raise StoreError(
            f"{path} is shorter than its dataset {dataset.name}: it was not closed, or is cut off",
            opener="hdf5", where=f"{path}:{dataset.name}",
        )  # fmt: skip
    return np.memmap(path, dataset.dtype, mode, offset, dataset.shape)  # type: ignore[call-overload,no-any-return]


# TIFF


class TiffArray(ZarrArray):
    """A compressed series of a TIFF file, through its zarr interface."""

    def __init__(self, path: str, series: int, level: int) -> None:
        tifffile, zarr = library("tifffile", path), library("zarr", path)
        self._file = tifffile.TiffFile(path)
        self._store = self._file.aszarr(series=series, level=level)
        found = zarr.open(self._store, mode="r")
        super().__init__(found if hasattr(found, "shape") else found["0"])

    def __del__(self) -> None:
        for one in ("_store", "_file"):  # Why: the series may be missing
            if hasattr(self, one):
                getattr(self, one).close()


# Lazy arrays


def same(lazy: Any) -> Any:
    """Return a lazy array, which travels as its graph."""
    return lazy


def file_token(path: str) -> Any:
    """Return the identity of a file, which changes with its replacement; None without a file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
