"""Make stores: of a path, of an opening function, or of an array of another library.

Guarantees
----------
An array is recognised by the module of its type. Nothing is imported for it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np

from shmpar.errors import StoreError, summarize
from shmpar.memory.locate import locate
from shmpar.stores import formats
from shmpar.stores.store import Part, Store, open_anew

Array = np.ndarray[Any, Any]

_MOST_VALUES: Final = 4 << 20
_MOST_GRAPH: Final = 16 << 20  # Why more: the tasks of a large graph are no values
_HDF5_SUFFIXES: Final = (".h5", ".hdf5", ".hdf", ".he5", ".ims", ".nc", ".h5ad", ".mat")
_PLUGINS: Final = ("hdf5plugin",)
# A path of which `open` knows the format; other text is a value.
_NO_URL: Final = r"\.(npy|tiff?|h5|hdf5?|he5|ims|nc|h5ad|mat)(:.*)?$"
_SUFFIX: Final = rf"(?i){_NO_URL}|\.zip(/.*)?$|\.zarr(/.*)?$"


class MissingStore(StoreError, FileNotFoundError):
    """There is no store at a path."""


def open(  # noqa: A001 - the public name
    path: str | os.PathLike[str], *, mode: str = "r", **how: Any
) -> Store | Array:
    """Open an array in a file or in an object store, as an input of a verb.

    Parameters
    ----------
    path : str or path
        ``x.npy``; ``x.zarr``, or ``x.zarr/0`` for an array in a group, both also in a zip file,
        ``x.zip/0``, or a URL of zarr;
        ``x.h5:/data`` for a dataset of an HDF5 file; ``x.tif``.
    mode : str
        ``"r"``, or ``"r+"`` for a store that is an output too.
    **how
        For the library that opens the file: ``storage_options`` of zarr, ``series`` and ``level``
        of TIFF, options of :class:`h5py.File`.

    Returns
    -------
    Store or numpy.memmap
        A memmap where the values are one run of bytes of the file (``.npy``, a contiguous HDF5
        dataset, an uncompressed TIFF); else a :class:`Store`.

    Raises
    ------
    StoreError
        The file cannot be opened, or has no such array. It is an OSError too, and a
        FileNotFoundError if there is no such file.
    ImportError
        The library that opens the file is missing; the error names it.
    ValueError
        The suffix is of no known format: use :func:`opened`.

    Notes
    -----
    Cost: the file is opened once here, for its shape and dtype, and once per run in each worker
    that gets a chunk.

    Examples
    --------
    >>> import os, tempfile, numpy as np, shmpar
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "x.npy")
    ...     np.save(path, np.arange(6).reshape(2, 3))
    ...     with shmpar.Pool(2) as pool:
    ...         pool.sum(shmpar.open(path), axis=1)
    array([ 3, 12])
    """
    text = os.fsdecode(path)
    if mode not in {"r", "r+"}:
        raise ValueError(f"mode={mode!r}: pass 'r' or 'r+'")
    lower = text.lower()
    if "://" in text and re.search(_NO_URL, lower):
        raise ValueError(
            f"{text}: by a URL only zarr arrays are opened; for any other format pass "
            "shmpar.opened(func, url)"
        )
    if lower.endswith(".npy"):
        return _opened_npy(text, mode, how)
    if (end := _end_of_hdf5_path(text)) is not None:
        return _opened_hdf5(text[:end], text[end + 1 :] or "/", mode, how)
    if lower.endswith(_HDF5_SUFFIXES):
        raise ValueError(f"{text}: name the dataset too, as in {text}:/data")
    if lower.endswith((".tif", ".tiff")):
        return _opened_tiff(text, mode, how)
    if ".zarr" in lower or formats.archive_in(text) is not None or "://" in text:
        return _opened_zarr(text, mode, how)
    raise ValueError(
        f"{text}: no format has this suffix; known are .npy, .zarr, .h5:/name and .tif; for any "
        "other one pass shmpar.opened(func, path)"
    )


def opened(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Store:
    """Make an input of an array that each worker opens by a call.

    Parameters
    ----------
    func : callable
        It returns an array: an object with a shape, a dtype, and slicing.
    *args, **kwargs
        Its arguments.

    Returns
    -------
    Store
        The store.

    Raises
    ------
    StoreError
        If the call fails. It is an OSError too, and a FileNotFoundError if the call raised that.
    TypeError
        If `func` does not pickle, or its result has no shape, dtype or slicing.

    Notes
    -----
    Cost: one call here, for the shape and dtype, and one per run in each worker that gets a chunk.

    Examples
    --------
    >>> import os, tempfile, numpy as np, shmpar
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "x.npy")
    ...     np.save(path, np.arange(6).reshape(2, 3))
    ...     store = shmpar.opened(np.load, path, mmap_mode="r")
    ...     with shmpar.Pool(2) as pool:
    ...         pool.map_blocks(np.negative, store, chunks=2)
    array([[ 0, -1, -2],
           [-3, -4, -5]])
    """
    name = getattr(func, "__qualname__", None) or type(func).__name__
    where = f"{name}({', '.join(map(_brief, args))})"
    opener = _pickled(f"opened: {where}", func, *args, **kwargs)
    with _opening(where, "opened"):
        array = open_anew(opener)
    missing = [one for one in ("shape", "dtype", "__getitem__") if not hasattr(array, one)]
    if missing and not hasattr(array, "read_into"):
        raise TypeError(
            f"{where} returned a {type(array).__name__}, which has no {missing[0]}; return an array"
        )
    return _store(opener, array, "opened", where)


def _pickled(where: str, func: Callable[..., Any], *args: Any, **kwargs: Any) -> bytes:
    """Return the opener that calls a function with these arguments."""
    import cloudpickle  # Why here: a worker that opens a store needs none.

    try:
        return cloudpickle.dumps((func, args, kwargs), 5)  # type: ignore[no-any-return]
    except Exception as error:
        raise TypeError(
            f"{where} cannot be sent to workers: {summarize(error)}; pass shmpar.opened() a "
            "function that opens the array, and its path"
        ) from error


@contextlib.contextmanager
def _opening(where: str, kind: str, *passes: type[Exception]) -> Iterator[None]:
    """Turn the errors of a library into those of stores; let these types pass."""
    unchanged: tuple[type[Exception], ...] = (StoreError, ImportError, *passes)
    try:
        yield
    except unchanged:
        raise
    except Exception as error:
        failed = MissingStore if isinstance(error, FileNotFoundError) else StoreError
        text = f"{where} ({kind}) cannot be opened: {summarize(error)}"
        raise failed(text, opener=kind, where=where) from error


def _existing(path: str, kind: str, noun: str) -> str:
    """Return the whole path of a file, or of a folder or an array in a zip file."""
    path = formats.absolute(path)
    if not os.path.exists(formats.archive_in(path) or path):
        raise MissingStore(f"there is no such {noun}: {path}", opener=kind, where=path)
    return path


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004


def _store(opener: bytes, array: Any, kind: str, where: str, **more: Any) -> Store:
    """Return the store of an array that this process has opened."""
    held = getattr(array, "array", array)  # Why: the record of an open zarr array holds it
    place = formats.place_of_zarr(held) if hasattr(held, "store_path") else place_of_map(array)
    return Store(
        opener, array.shape, array.dtype, _unit_of(array), kind, where, place=place, **more
    )


def place_of_map(array: Any) -> str:
    """Return the text that stands for the place of an array that maps a file; else empty."""
    found = locate(array) if isinstance(array, np.ndarray) else None
    return f"{found.segment.identity()} {found.offset}" if found is not None else ""


def _unit_of(array: Any) -> tuple[int, ...] | None:
    """Return the unit of any array that tells one."""
    for name in ("unit", "shards", "chunks", "chunksize"):
        found = getattr(array, name, None)
        # Why the checks: any library may have such a name, for instance for the unit of the values.
        if not isinstance(found, tuple | list) or len(found) != len(array.shape):
            continue
        pairs = zip(found, array.shape, strict=True)
        if all(isinstance(one, int | np.integer) and one >= min(1, n) for one, n in pairs):
            return tuple(map(int, found))
    return None


def _opened_npy(path: str, mode: str, how: dict[str, Any]) -> Array:
    _takes(path, how, ())
    with _opening(path, "npy"):
        return np.load(path, mmap_mode=mode)  # type: ignore[arg-type,no-any-return]


def _takes(path: str, how: dict[str, Any], names: tuple[str, ...]) -> None:
    if unknown := sorted(set(how) - set(names)):
        known = f"known are {', '.join(names)}" if names else "there are none"
        raise TypeError(f"{path}: unknown option {unknown[0]}=; {known}")


def _opened_zarr(path: str, mode: str, how: dict[str, Any]) -> Store:
    formats.library("zarr", path)
    if "://" not in path:
        path = _existing(path, "zarr", "zarr array")
    try:
        with _opening(path, "zarr", TypeError):
            opened = formats.open_zarr(path, "", mode, how)
    except ImportError:
        if "://" in path:
            formats.library("fsspec", path)  # Why: its error names the extra.
        raise
    formats.check_zarr_store(opened.array)
    opener = _pickled(path, formats.open_zarr, path, "", mode, how, opened.metadata)
    return _store(opener, opened, "zarr", path)


def _opened_hdf5(path: str, name: str, mode: str, how: dict[str, Any]) -> Store | Array:
    formats.library("h5py", path)
    path = _existing(path, "hdf5", "HDF5 file")
    with _opening(path, "hdf5", TypeError, ValueError):
        # Why with the lock: another process may have the file open for writing.
        found = formats.open_hdf5(path, name, {"locking": "best-effort", **how})
    mapped = formats.mapped_hdf5(found.dataset, mode)
    if mapped is not None:
        return mapped
    if mode != "r":
        raise TypeError(
            f"{path}:{name}: an HDF5 file in chunks has one writer; write to a zarr array or a "
            ".npy, or write the file yourself from run.completed()"
        )
    return _hdf5_store(path, name, how, found)


def _end_of_hdf5_path(text: str) -> int | None:
    """Return the index of the colon in ``x.h5:/data``; None if there is none.

    Why a search: names of folders and of datasets may have colons, as ``kernel:0``.
    """
    colons = [found.start() for found in re.finditer(":", text)]
    ends = [end for end in colons if text[:end].lower().endswith(_HDF5_SUFFIXES)]
    return next((end for end in ends if os.path.exists(text[:end])), max(ends, default=None))


def _hdf5_store(path: str, name: str, how: dict[str, Any], array: Any, user: Any = None) -> Store:
    if array.dtype.subdtype is not None:
        raise TypeError(
            f"the elements of {path}:{name} are arrays (dtype {array.dtype}), of which a store has "
            "no windows; read it as a whole, x[...], or store numbers with one more axis"
        )
    # Why: their import makes filters known to HDF5.
    plugins = [one for one in _PLUGINS if one in sys.modules]
    where = f"{path}:{name}"
    opener = _pickled(where, formats.open_hdf5, path, name, how, plugins)
    return _store(opener, array, "hdf5", where, token=partial(formats.file_token, path), user=user)


def _opened_tiff(path: str, mode: str, how: dict[str, Any]) -> Store | Array:
    tifffile = formats.library("tifffile", path)
    _takes(path, how, ("series", "level"))
    path = _existing(path, "tiff", "TIFF file")
    series, level = how.get("series", 0), how.get("level", 0)
    # Why suppressed: the values are compressed, or in several runs.
    with _opening(path, "tiff"), contextlib.suppress(ValueError):
        return tifffile.memmap(path, series=series, level=level, mode=mode)  # type: ignore[no-any-return]
    if mode != "r":
        raise TypeError(f"{path}: only an uncompressed TIFF can be written to")
    opener = _pickled(path, formats.TiffArray, path, series, level)
    with _opening(path, "tiff"):
        array = open_anew(opener)
    return _store(opener, array, "tiff", path, token=partial(formats.file_token, path))


def wrap(value: Any) -> Any:
    """Return the store of an array that lies in one; anything else as it is.

    Parameters
    ----------
    value : object
        A zarr array, an HDF5 dataset, a Dask array, an xarray object, or anything else.

    Raises
    ------
    TypeError
        For an array that no worker can open.
    StoreError
        If the array is gone, or cannot be opened.

    Examples
    --------
    >>> wrap([1, 2]), wrap(3)
    ([1, 2], 3)
    """
    if isinstance(value, np.ndarray | Store | Part):
        if isinstance(value, Store) and value.kind == "hdf5":
            path, *_ = pickle.loads(value.opener)[1]
            formats.same_process_file(path)  # which flushes the file
        return value
    if isinstance(value, os.PathLike) or (isinstance(value, str) and re.search(_SUFFIX, value)):
        raise _no_array(value)
    for kind in type(value).__mro__:
        match kind.__module__.partition(".")[0], kind.__name__:
            case "zarr", "Array":
                return wrap_zarr(value)
            case "h5py", "Dataset":
                return _wrap_hdf5(value)
            case "dask", "Array":
                return _lazy(value, "dask", f"the Dask array {value.name}", value.chunksize)
            case "xarray", "DataArray" | "Variable":
                return _wrap_xarray(value)
            case "zarr" | "h5py" | "xarray" as library, "Group" | "File" | "Dataset" as name:
                raise TypeError(f"a {name} of {library} is no array; pass one of its arrays")
    return value


def _no_array(path: str | os.PathLike[Any]) -> TypeError:
    """Return the error for a path as an input."""
    text = repr(os.fspath(path))
    if os.path.isdir(path) and not re.search(_SUFFIX, os.fsdecode(path)):
        return TypeError(
            f"a folder is no array: pass parallel_map the list of its files, as "
            f"sorted(pathlib.Path({text}).glob('*.tif'))"
        )
    return TypeError(
        f"a path is no array: pass shmpar.open({text}), or kwargs={{'path': {text}}} where the "
        "function opens it"
    )


def wrap_zarr(array: Any, mode: str = "r") -> Store:
    """Return the store of a zarr array, which workers open in this mode."""
    if not hasattr(array, "store_path"):
        raise TypeError("an array of zarr 2 has no store that workers can open; install zarr>=3")
    formats.check_zarr_store(array)
    place = _absolute(array.store_path)
    where, how = str(place), {"zarr_format": array.metadata.zarr_format}
    if hasattr(array, "config"):  # the order in memory, and if chunks of the fill value are written
        how["config"] = array.config
    name = f"the zarr array {where} in a {type(place.store).__name__}"
    opened = formats.ZarrArray(array)
    opened.check()
    args = place.store, place.path, mode, how, opened.metadata
    opener = _pickled(name, formats.open_zarr, *args)
    return _store(opener, opened, "zarr", where, user=array)


def _absolute(place: Any) -> Any:
    """Return the place of a zarr array with the whole path of its folder.

    Why: hosts, and a later call with the same ledger, may work in another folder.
    """
    store = place.store
    if type(store).__name__ != "LocalStore" or os.path.isabs(store.root):
        return place
    store = type(store)(formats.absolute(store.root), read_only=store.read_only)
    return type(place)(store, place.path)


def _check_hdf5(dataset: Any) -> None:
    """Raise ``TypeError`` for a dataset that no worker can open."""
    if not dataset:
        raise TypeError("the HDF5 file of this dataset is closed; open it again")
    if dataset.shape is None:
        raise TypeError(f"the HDF5 dataset {dataset.name} has no values")
    file = dataset.file
    if file.driver not in {"sec2", "stdio", "ros3"}:
        raise TypeError(
            f"the HDF5 file {file.filename} lies in the memory of this process, or is opened by "
            f"the driver {file.driver!r}, which no worker can open; pass x[...]"
        )


def _wrap_hdf5(dataset: Any) -> Store | Array:
    _check_hdf5(dataset)
    file, name = dataset.file, dataset.name
    if file.driver == "ros3":
        path, how = file.filename, {"driver": file.driver}
    else:
        path, how = formats.path_of_hdf5(file), {"swmr": True} if file.swmr_mode else {}
        if name is None:
            raise TypeError(f"a dataset of {path} has no name there, by which workers open it")
        if file.mode == "r+":
            file.flush()
        mapped = formats.mapped_hdf5(dataset)
        if mapped is not None:
            return mapped
    _check_way(dataset, path)
    return _hdf5_store(path, name, how, formats.Hdf5Array(dataset), user=dataset)


def _check_way(dataset: Any, path: str) -> None:
    """Raise ``TypeError`` for a dataset that is another one, or has other values, by its name."""
    name, access = dataset.name, dataset.id.get_access_plist()
    if dataset.file.get(name) != dataset:  # Why: HDF5 may know the name in the file of the link
        raise TypeError(
            f"the HDF5 dataset {name} was reached by links from another file; open it in {path}"
        )
    if access.get_virtual_prefix() or access.get_efile_prefix():
        raise TypeError(
            f"the HDF5 dataset {name} was opened with virtual_prefix= or efile_prefix=, which "
            "workers do not have; pass shmpar.opened() a function that opens it"
        )


def _wrap_xarray(value: Any) -> Any:
    variable = getattr(value, "variable", value)
    if getattr(variable, "_in_memory", True):
        return variable.values if hasattr(variable, "values") else variable
    if variable.chunks is not None:
        return wrap(variable.data)
    unit = variable.encoding.get("preferred_chunks") or {}
    given = [unit.get(name, size) for name, size in variable.sizes.items()]
    # Why: a backend may name the length of each chunk.
    lengths = tuple([max(one) if isinstance(one, tuple | list) else one for one in given])
    named = f"the lazy xarray variable {getattr(value, 'name', None) or ''}".rstrip()
    return _lazy(variable, "xarray", named, lengths if unit else None)


def _lazy(lazy: Any, kind: str, where: str, unit: Any) -> Store:
    if np.isnan(np.asarray(lazy.shape, float)).any():
        raise TypeError(f"{where} has chunks of unknown length; call compute_chunk_sizes() first")
    import cloudpickle  # Why here: as in opened()

    counted = 0

    def count(buffer: pickle.PickleBuffer) -> bool:
        nonlocal counted
        counted += buffer.raw().nbytes
        if counted > _MOST_VALUES:
            raise _TooLarge
        return True

    try:
        opener = cloudpickle.dumps((formats.same, (lazy,), {}), 5, buffer_callback=count)
        if len(opener) > _MOST_GRAPH:
            raise _TooLarge  # noqa: TRY301 - as in the callback
    except _TooLarge:
        raise TypeError(
            f"{where} of shape {lazy.shape} holds more than 4 MiB of values in its graph, which "
            "would be sent to each worker: pass the array that it was made of, or put that array "
            "into a store first, or pass x.compute()"
        ) from None
    except Exception as error:
        raise TypeError(
            f"{where} of shape {lazy.shape} cannot be sent to workers: {error}; pass the array "
            "that it was made of"
        ) from error
    return Store(opener, lazy.shape, lazy.dtype, unit, kind, where, user=lazy)


class _TooLarge(Exception):
    """A graph holds too many values."""
