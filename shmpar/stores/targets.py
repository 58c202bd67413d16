"""Outputs outside memory: recognise ``out=``, make new zarr arrays, map datasets of HDF5 files.

Guarantees
----------
No two chunks of a call write into one unit of a store, and a new zarr array has the chunks of the
grid. Why: a store writes a unit as a whole. Two workers that write parts of the same unit each read
the old unit. So the later write restores the old part of the other worker.
An object that loses the writes of other processes (a dict, memory of this process) is refused
before anything starts. So is an object with a single writer (a zip file, a chunked HDF5 dataset).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from math import gcd, prod
from typing import Any

import numpy as np

from shmpar.errors import StoreError, format_count, summarize
from shmpar.grid import Axis
from shmpar.memory.locate import locate
from shmpar.plan import Along, InBlocks, Plan
from shmpar.stores import formats
from shmpar.stores.recognise import place_of_map, wrap, wrap_zarr
from shmpar.stores.store import Store

Array = np.ndarray[Any, Any]
_ONE_WRITER = "an HDF5 file has one writer; use zarr or .npy, or write run.completed() yourself"
_LOST = "lies in the memory of each process, so the writes would be lost"
_READ_ONLY = "is read-only; open it with mode='r+'"
_SUFFIX = ".zarr"
_MAX_PIECES = 1_000  # units of a new store within one chunk


class Target:
    """An output outside memory.

    Attributes
    ----------
    array : Store, ZarrPath or memmap
        The place of the results.
    user : object
        The object that the call returns; None for the array at a new path.
    is_path : bool
        The user gave its path, so it may exist in a later call alone.
    """

    def __init__(self, array: Any, user: Any, *, is_path: bool = False) -> None:
        self.array, self.user, self.is_path = array, user, is_path


def is_zarr_path(out: Any) -> bool:
    """Return whether `out` is the path of a zarr array, or of an array in a zarr group.

    Examples
    --------
    >>> [is_zarr_path(path) for path in ("a.zarr", "a.zarr/0", "a.zarr.npy", 3)]
    [True, True, False, False]
    """
    if not isinstance(out, str | os.PathLike):
        return False
    path = os.fspath(out)
    return isinstance(path, str) and any(part.endswith(_SUFFIX) for part in path.split("/"))


def find_target(verb: str, out: Any) -> Target | None:
    """Return the output for ``out=`` outside memory; None for any other object.

    Raises
    ------
    TypeError
        If the object cannot have several writers, or its values would be lost.
    ValueError
        If it is read-only, or the path leads to something else than an array.
    """
    if isinstance(out, Store):
        return Target(_checked(verb, out), out)
    if is_zarr_path(out):
        return _at_path(verb, os.fspath(out))
    for kind in type(out).__mro__:
        match kind.__module__.partition(".")[0], kind.__name__:
            case "zarr", "Array":
                _check_zarr(f"{verb}: out= ({out.store_path})", out)
                return Target(_wrapped(verb, out), out)
            case "h5py", "Dataset":
                return Target(map_dataset(verb, out), out)
            case ("dask", "Array") | ("xarray", "DataArray" | "Variable"):
                raise TypeError(
                    f"{verb}: out= is of type {type(out).__name__}, which cannot be written in "
                    "parts; use a zarr array, the path of one, or a .npy"
                )
            case ("zarr" | "h5py", "Group"):
                raise TypeError(f"{verb}: out= is a {type(out).__name__}; pass an array of it")
    return None


def _check_zarr(where: str, array: Any) -> None:
    """Raise an error for a zarr array that several processes cannot write to."""
    if type(formats.innermost(array.store)).__name__ == "ZipStore":
        raise TypeError(f"{where} is a zip file, which has one writer; use a folder")
    _check_dtype(where, array.dtype)
    if array.read_only:
        raise ValueError(f"{where} {_READ_ONLY}")


def _check_dtype(where: str, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject or dtype.kind == "T":
        raise TypeError(f"{where} has dtype {dtype}, which workers cannot write")


def _wrapped(verb: str, array: Any) -> Store:
    try:
        return wrap_zarr(array, "r+")
    except (TypeError, ValueError) as error:
        raise type(error)(f"{verb}: out=: {error}") from None


def _checked(verb: str, store: Store) -> Store:
    """Return a store that several processes may write to; raise an error for any other."""
    where = f"{verb}: out= ({store.where})"
    array = store.array
    array = getattr(array, "array", array)  # Why: the record of an open zarr array holds it
    library = type(array).__module__.partition(".")[0]
    if store.kind == "hdf5" or library == "h5py":
        raise TypeError(f"{where}: {_ONE_WRITER}")
    if store.kind not in {"zarr", "opened"}:
        raise TypeError(
            f"{where} is read through {store.kind}, which cannot be written in parts; use a zarr "
            "array, the path of one, or a .npy"
        )
    if library == "zarr":
        _check_zarr(where, array)
        if formats.lies_in_memory(array):
            raise TypeError(f"{where} {_LOST}")
        return store
    _check_dtype(where, store.dtype)
    if isinstance(array, np.ndarray) and locate(array) is None and array.flags.writeable:
        raise TypeError(f"{where} {_LOST}")
    if not getattr(getattr(array, "flags", None), "writeable", hasattr(array, "__setitem__")):
        raise ValueError(f"{where} {_READ_ONLY}")
    return store


def _at_path(verb: str, path: str) -> Target:
    """Return the array at a path, or the one to be made there."""
    new = ZarrPath(verb, path)
    found = new.reopen()
    if found is None:
        return Target(new, None, is_path=True)
    _check_zarr(f"{verb}: out= ({path})", found.user)
    return Target(found, found.user, is_path=True)


class ZarrPath:
    """A zarr array that the run creates, as soon as its shape and dtype are known.

    Attributes
    ----------
    path : str
        Path or URL of the array.
    array : Store or None
        The array, once it was created.
    plan : Plan or None
        The call, whose chunks become those of the array.

    Raises
    ------
    ImportError
        If zarr is not installed.
    TypeError
        For the memory of this process.
    ValueError
        If the folder above it does not exist, or the path leads to a group or a file.
    """

    def __init__(self, verb: str, path: str) -> None:
        self._where = f"{verb}: out={path!r}"
        if path.partition("://")[0] in {"memory", "dir::memory"}:
            raise TypeError(
                f"{self._where} lies in the memory of this process, so the writes of workers would "
                "be lost; use a folder"
            )
        path = path.removeprefix("file://")  # Why: a file system of fsspec makes no folders.
        is_local = "://" not in path
        parts = (formats.absolute(path) if is_local else path).split("/")
        end = 1 + next(k for k, part in enumerate(parts) if part.endswith(_SUFFIX))
        # The path of the outermost group or array, and the name of the array in it.
        self._root, self._name = "/".join(parts[:end]), "/".join(parts[end:]).strip("/")
        if is_local and os.path.islink(self._root):  # Why: it may lead to no folder yet.
            self._root = os.path.realpath(self._root)
        self.path = "/".join([self._root, self._name][: 1 + bool(self._name)])
        self.array: Store | None = None
        self.plan: Plan | None = None
        self.keeps_partial = False
        self._retries = 2
        if is_local and not os.path.isdir(os.path.dirname(self._root)):
            raise ValueError(f"{self._where}: its folder does not exist")
        if is_local and (os.path.isfile(self._root) or os.path.isfile(self.path)):
            raise ValueError(f"{self._where} is a file, and no folder of zarr")

    def with_retries(self, retries: int) -> ZarrPath:
        """Set the number of attempts after a fault that may pass; return this path."""
        self._retries = retries
        return self

    def create(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Store:
        """Create the array; return its store."""
        import zarr

        assert self.plan is not None, "the call sets it"
        units = units_for(self.plan, shape, self.path)
        version = _format(self._root)
        formats.check_fields(dtype, version or 3, self.path)
        name, how = self._name or None, {"chunks": units, "zarr_format": version}
        found = zarr.create_array(self._root, name=name, shape=shape, dtype=dtype, **how)
        self.array = wrap_zarr(found, "r+").with_retries(self._retries)
        return self.array

    def reopen(self) -> Store | None:
        """Return the array that exists at the path; None if there is none.

        Raises
        ------
        ValueError
            If there is something else.
        """
        zarr: Any = formats.library("zarr", self._where)
        try:
            found = zarr.open_array(self.path, mode="r+")
        except (FileNotFoundError, ValueError) as error:
            group = not isinstance(error, FileNotFoundError)
            if group or (os.path.isdir(self.path) and os.listdir(self.path)):
                raise ValueError(
                    f"{self._where} is a folder without a zarr array of its own; name the array in "
                    f"it, as in 'x.zarr/0', or pass another path ({summarize(error)})"
                ) from None
            return None
        self.array = wrap_zarr(found, "r+").with_retries(self._retries)
        return self.array

    def publish(self) -> Any:
        """Return the zarr array."""
        assert self.array is not None, "it was created or reopened"
        return self.array.user


def _format(root: str) -> int | None:
    """Return the version of zarr's format that the members of a group have; None without one."""
    import zarr

    try:
        return int(zarr.open_group(root, mode="r").metadata.zarr_format)
    except (FileNotFoundError, ValueError):
        return None


def is_same_store(one: Any, other: Any) -> bool:
    """Return whether two arrays, of which at least one is a store, are the same one, opened twice.

    Notes
    -----
    A lazy array that was made of a store is not recognised.
    """
    both = [array for array in (one, other) if isinstance(array, Store)]
    if len(both) == 2 and one.opener == other.opener:  # noqa: PLR2004
        return True
    if not both or "" in (places := [array.place for array in both]):
        return False
    places += [place_of_map(array) for array in (one, other) if isinstance(array, np.ndarray)]
    with contextlib.suppress(OSError):  # Why: a folder may be mounted at two places.
        return os.path.samefile(*places)
    return places[0] == places[-1]


def is_handle(store: Store, value: Any) -> bool:
    """Return whether an object of the user is a store, or a zarr array, that another one is too."""
    if type(value).__module__.partition(".")[0] == "zarr" and hasattr(value, "store_path"):
        with contextlib.suppress(TypeError, StoreError):  # Why: no worker can open it
            value = wrap(value)
    return isinstance(value, Store) and is_same_store(store, value)


def map_dataset(verb: str, dataset: Any) -> Array:
    """Return a contiguous HDF5 dataset as an array that maps its file.

    Raises
    ------
    TypeError
        If the dataset is not one run of bytes in a file.
    ValueError
        If the file is closed, or open for reading alone.
    """
    if not dataset:
        raise ValueError(f"{verb}: out= is a dataset of a closed HDF5 file; open it again")
    file = dataset.file
    where = f"{verb}: out= ({file.filename}:{dataset.name})"
    if dataset.chunks is not None or dataset.is_virtual or dataset.external:
        raise TypeError(f"{where}: {_ONE_WRITER}")
    if file.driver not in {"sec2", "stdio"}:
        raise TypeError(f"{where}: a file of the driver {file.driver!r} cannot be mapped")
    if file.mode != "r+":
        raise ValueError(f"{where} is read-only; open the file with mode 'r+'")
    _check_dtype(where, dataset.dtype)
    if dataset.shape is None:
        raise TypeError(f"{where} has no values")
    if not dataset.size:
        return np.empty(dataset.shape, dataset.dtype)
    if formats.place_of_hdf5(dataset) is None and formats.may_get_place(dataset):
        # Why: HDF5 gives a dataset its place in the file with the first write.
        dataset[(0,) * dataset.ndim] = dataset.fillvalue
    if formats.place_of_hdf5(dataset) is None:
        raise TypeError(
            f"{where} is not one run of bytes in its file, with its values as in memory, so "
            f"workers cannot map it; {_ONE_WRITER}"
        )
    mapped = formats.mapped_hdf5(dataset, "r+")
    assert mapped is not None, "it has a place in the file"
    return mapped


def refresh_dataset(dataset: Any, values: Array) -> None:
    """Make HDF5 forget the bytes of a dataset that it has read before workers wrote others.

    Why: it keeps one piece of each dataset. A read elsewhere replaces that piece.
    """
    if not dataset or not dataset.size:  # Why: a closed dataset is false
        return
    kept = dataset.file.id.get_access_plist().get_sieve_buf_size()
    if dataset.size * dataset.dtype.itemsize <= 2 * kept:
        dataset[...] = values
        return
    for place in (0, -1):
        dataset[(place % dataset.shape[0], *[place % n for n in dataset.shape[1:]])]


# Units


def output_cuts(plan: Plan, ndim: int) -> list[Axis | None]:
    """Return the chunks along each axis of an output; None for an axis that every chunk spans.

    Examples
    --------
    >>> from shmpar.grid import Grid
    >>> from shmpar.plan import PerChunk
    >>> output_cuts(Plan("block_reduce", Grid.cut((10,), (4,)), (), PerChunk()), 2)
    [Axis(size=3, step=1, count=3, edges=None), None]
    """
    grid, placement = plan.grid, plan.placement
    if isinstance(placement, InBlocks):
        return list(placement.cuts)
    if isinstance(placement, Along):
        before, after = grid.axes[: placement.axis], grid.axes[placement.axis + 1 :]
        return [*before, *[None] * (ndim - grid.ndim + 1), *after]
    places = [Axis.regular(count, 1) for count in grid.numblocks]
    return [*places, *[None] * (ndim - grid.ndim)]


def check_one_writer(
    plan: Plan, shape: Sequence[int], unit: Sequence[int] | None, where: str
) -> None:
    """Raise ``ValueError`` if two chunks would write into one unit of an output store.

    Parameters
    ----------
    plan : Plan
        The call.
    shape : sequence of int
        Shape of the output.
    unit : sequence of int or None
        Elements along each axis that the store writes at once; None for single elements.
    where : str
        Name of the store, for the message.
    """
    if unit is None or not prod(shape):
        return
    for axis, (cut, length) in enumerate(zip(output_cuts(plan, len(shape)), unit, strict=True)):
        edge = None if cut is None else _edge_inside(cut, length)
        if edge is not None:
            raise ValueError(
                f"{plan.verb}: out= ({where}) is stored {length} elements at a time along axis "
                f"{axis}, and a chunk ends at {edge}: two workers would write into one piece of "
                f"the store, and one of the two writes would be lost; "
                f"{_remedy(plan, axis, length)}"
            )


def _edge_inside(cut: Axis, unit: int) -> int | None:
    """Return the first edge between two chunks that lies inside of a unit; None without one."""
    edges = cut.edges[1:-1] if cut.edges else (cut.step,) * (cut.count > 1)
    return next((edge for edge in edges if edge % unit), None)


def _remedy(plan: Plan, axis: int, unit: int) -> str:
    if not isinstance(plan.placement, InBlocks):
        made = f"make the store with chunks of 1 element along axis {axis}"
        if plan.verb == "parallel_map":
            return f"{made}, or call map_blocks with chunks= a multiple of {unit} there"
        return f"{made}, since a chunk of {plan.verb} has 1 element there"
    source, cut = plan.placement.axes[axis], plan.placement.cuts[axis]
    if source is None or cut == plan.grid.axes[source]:
        along = "there" if source in {None, axis} else f"along axis {source} of the input"
        return f"pass chunks= a multiple of {unit} {along}"
    return (
        f"pass chunks= and out_chunks= so that each block of the result has a multiple of {unit} "
        "elements there"
    )


def units_for(plan: Plan, shape: Sequence[int], where: str) -> tuple[int, ...]:
    """Return the units of a new store: as long as the chunks, so that each has one writer.

    Raises
    ------
    ValueError
        If the lengths of chunks have so small a common divisor that a chunk would have very many
        units.
    """
    units, pieces = [], 1
    for axis, (cut, size) in enumerate(zip(output_cuts(plan, len(shape)), shape, strict=True)):
        edges = () if cut is None or cut.edges is None else cut.edges[1:-1]
        unit = gcd(*edges) if edges else size if cut is None else cut.step
        pieces *= -(-cut.step // unit) if edges and cut is not None else 1
        if pieces > _MAX_PIECES:
            raise ValueError(
                f"{plan.verb}: out={where!r} would be stored {unit} elements at a time along axis "
                f"{axis}, since the lengths of chunks= have no larger common divisor, which makes "
                f"more than {format_count(_MAX_PIECES, 'piece')} per chunk; pass chunks= of one "
                "length there, or a store of your own"
            )
        units.append(max(1, unit))
    return tuple(units)
