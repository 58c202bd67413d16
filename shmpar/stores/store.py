"""Stores and parts: arrays of which a process holds only windows.

A :class:`Store` is an array outside memory. Each worker opens it by itself: only the opener
travels, which is a pickled callable with its arguments. A :class:`Part` is a window of a larger
array, addressed in the coordinates of the larger array.

Guarantees
----------
A block that is read has the same strides, relative to its neighbours, as a view of the whole array
in memory: an axis that the block does not span has a gap. So a function adds the numbers in the
same order, and its result is the same bit for bit.
A worker opens a store once per run and opener, for its first chunk, and closes it at the end.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, TypeVar

import numpy as np

from shmpar.errors import ShmparError, StoreError, no_attribute, summarize
from shmpar.memory.copying import is_masked, loses
from shmpar.plan import spell

P = ParamSpec("P")
T = TypeVar("T")
Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

_PERMANENT: Final = frozenset(
    {
        errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EROFS,
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EINVAL, errno.ENAMETOOLONG,
    }
)  # fmt: skip
_LIBRARIES: Final = {
    "zarr": ("zarr",), "hdf5": ("h5py",), "tiff": ("tifffile", "zarr"), "dask": ("dask.array",),
    "xarray": ("xarray",),
}  # fmt: skip
_WAIT_SECONDS: Final = 0.05
_BAND_BYTES: Final = 16 << 20


class Traffic(threading.local):
    """Bytes and seconds that this thread has spent on stores."""

    read = written = 0
    seconds = 0.0

    def counted(
        self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[T, tuple[int, int, float]]:
        """Return the value of a call; and its bytes read, bytes written, and seconds for both.

        Why apart: a thread reads stores for other runs, calls and the user as well.
        """
        before = self.read, self.written, self.seconds
        self.read, self.written, self.seconds = 0, 0, 0.0
        try:
            return work(*args, **kwargs), (self.read, self.written, self.seconds)
        finally:
            self.read, self.written, self.seconds = before


traffic = Traffic()


class OpenStores:
    """The arrays that a worker has opened for a run, by opener.

    Why not those of the thread: a function that calls a verb has another worker in its thread.
    """

    def __init__(self) -> None:
        self._arrays: dict[bytes, Any] = {}
        self._bound = weakref.WeakSet[Store]()

    def bind(self, store: Store) -> Store:
        """Return a store that shares its array with all that have the same opener."""
        # Why here: ``task_timeout`` holds for the opening, and an import may take longer.
        for name in _LIBRARIES.get(store.kind, ()):
            with contextlib.suppress(Exception):  # Why: the opening raises it again.
                importlib.import_module(name)
        made = store.bound(self._arrays)
        self._bound.add(made)
        return made

    def drop(self) -> bool:
        """Forget the arrays, which close with their last users; return whether there were any."""
        found = bool(self._arrays)
        self._arrays.clear()
        for one in self._bound:  # Why: the traceback of a failed chunk holds them.
            one.forget()
        return found


def open_anew(opener: bytes) -> Any:
    """Return the array of an opener, opened anew."""
    call, args, kwargs = pickle.loads(opener)
    return call(*args, **kwargs)


_OTHER_NAMES: Final = {
    **dict.fromkeys(
        ("asarray", "compute", "get", "load", "persist", "read", "result", "to_numpy", "values"),
        "write store[...] for all values, or pass the store to a verb",
    ),
    **dict.fromkeys(("chunks", "chunksize", "shards"), "write store.unit"),
    **dict.fromkeys(("filename", "name", "path", "store", "url"), "write store.where"),
    **dict.fromkeys(("map_blocks", "map_overlap", "parallel_map"), "pass the store to the verb"),
    **dict.fromkeys(("save", "write"), "pass out=target to a verb"),
    "close": "leave it out: workers close it at the end of a run",
    "rechunk": "pass chunks= to the verb",
}


class Store(np.lib.mixins.NDArrayOperatorsMixin):
    """An array outside memory, of which only windows are read or written.

    Pass it to a verb as an input. Each worker opens it for itself, so no value of it passes
    through this process. :func:`shmpar.open` and :func:`shmpar.opened` make one.

    Attributes
    ----------
    shape, dtype
        Those of the array.
    unit : tuple of int or None
        Elements that are written at once along each axis: a shard, else a chunk. None: any
        element can be written alone.
    kind : str
        The format: ``"zarr"``, ``"hdf5"``, ``"tiff"``, ``"dask"``, ``"xarray"`` or
        ``"opened"``.
    where : str
        The place, for messages.
    opener : bytes
        Pickle of a callable, its arguments and its keyword arguments, which returns the array.

    Notes
    -----
    Indexing with slices and ints reads a window, as a new read-only array. There is no arithmetic,
    and no conversion by :func:`numpy.asarray`, since that would read an array that may be larger
    than memory: write ``store[...]`` for all of it.

    Examples
    --------
    >>> import os, tempfile, numpy as np, shmpar
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "x.npy")
    ...     np.save(path, np.arange(12).reshape(3, 4))
    ...     store = shmpar.opened(np.load, path)
    ...     store.shape, store.unit, store[1:, :2].tolist()
    ((3, 4), None, [[4, 5], [8, 9]])
    """

    # Why: of the operators only these two have a meaning without the values.
    __eq__ = object.__eq__
    __ne__ = object.__ne__
    __hash__ = object.__hash__

    def __init__(  # noqa: PLR0913 - a record
        self,
        opener: bytes,
        shape: Sequence[int],
        dtype: Any,
        unit: Sequence[int] | None,
        kind: str,
        where: str,
        *,
        retries: int = 2,
        token: Callable[[], Any] | None = None,
        user: Any = None,
        place: str = "",
    ) -> None:
        self.opener = opener
        self.shape: Shape = tuple(map(int, shape))
        # Why: zarr's dtypes name the machine's order of bytes, and print in another way.
        self.dtype: np.dtype[Any] = np.dtype(spell(np.dtype(dtype)))
        self.unit: Shape | None = None if unit is None else tuple(map(int, unit))
        self.kind, self.where = kind, where
        self._name = f"{where} ({kind})"  # for messages
        self.retries = retries
        self.token = token  # it changes when the file is replaced
        self.user = user  # the object that the user gave
        self.place = place  # of a zarr array, however it was opened
        self.first_axis = 0  # of those of the array in the file
        self._stored: np.dtype[Any] = self.dtype
        self._shared: dict[bytes, Any] | None = None
        self._array: Any = None
        self._token: Any = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, as they would take in memory."""
        return self.size * self.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a store without axes has no length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))

    def __repr__(self) -> str:
        return f"<Store {self.kind} {self.where!r}, shape {self.shape}, dtype {self.dtype}>"

    def __getstate__(self) -> dict[str, Any]:
        # Why: the open array and the user's object belong to this process.
        mine = dict.fromkeys(("token", "user", "_array", "_token", "_shared"))
        return {**self.__dict__, **mine}

    def _copy(self, **changed: Any) -> Store:
        made = Store.__new__(Store)
        made.__dict__.update({**self.__dict__, "_array": None, "_token": None, **changed})
        return made

    def with_retries(self, retries: int) -> Store:
        """Return this store with another number of attempts after a fault that may pass."""
        return self._copy(retries=retries)

    def viewed(self, dtype: Any) -> Store:
        """Return this store with its bytes as another dtype of the same size."""
        return self._copy(dtype=np.dtype(dtype))

    def by_rows_of(self, axis: int) -> Store:
        """Return this store with an axis moved to the front."""
        if axis == 0:
            return self
        order = [axis, *(k for k in range(self.ndim) if k != axis)]
        unit = None if self.unit is None else tuple([self.unit[k] for k in order])
        return self._copy(shape=tuple([self.shape[k] for k in order]), unit=unit, first_axis=axis)

    def __array__(self, *_args: Any, **_kwargs: Any) -> Any:
        raise TypeError(
            f"{self!r} is not read as a whole by mistake: pass it to a verb, or write store[...] "
            f"for an array of {self.nbytes:,} bytes"
        )

    def __array_function__(self, func: Any, _types: Any, args: Any, kwargs: Any) -> Any:
        """Refuse NumPy's functions: some would take the error of a conversion for "not equal"."""
        if func in {np.shape, np.ndim, np.size}:
            return func.__wrapped__(*args, **kwargs)
        return self.__array__()

    def __array_ufunc__(self, ufunc: Any, *_: Any, **__: Any) -> NoReturn:
        """Refuse: NumPy's operators and functions must not read the array as a whole."""
        name = f"np.{ufunc.__name__}"
        call, here = (
            (f"{name}, store", f"{name}(store[...])")
            if ufunc.nin == 1
            else (f"{name}, store, other", f"{name}(store[...], other)")
        )
        raise TypeError(
            f"{name}: {self!r} is not read as a whole by mistake: write pool.map_blocks({call}), "
            f"or {here} for an array of {self.nbytes:,} bytes"
        )

    if not TYPE_CHECKING:  # Why: a type checker would take any name for an attribute.

        def __getattr__(self, name: str) -> NoReturn:
            text = _OTHER_NAMES.get(name)
            if text is None and not name.startswith("_") and hasattr(np.ndarray, name):
                text = (
                    f"pass the store to a verb, as in pool.mean(store), or write store[...].{name}"
                )
            raise no_attribute(self, name, text)

    def identity(self) -> tuple[Any, ...]:
        """Return the parts that tell this store from another in a ledger; its values are none."""
        parts: tuple[Any, ...] = self.kind, self.where, repr((self.shape, self.dtype))
        if self.first_axis:
            parts += (self.first_axis,)
        if self.kind in {"opened", "tiff", "xarray"}:
            # Why: `where` has no series, no long argument, and no part of a lazy array.
            call, args, kwargs = pickle.loads(self.opener)
            # Why the data alone: the names and the attributes do not change the values.
            parts += args if self.kind != "xarray" else (getattr(args[0], "_data", args[0]),)
            parts += (call, kwargs) if self.kind == "opened" else ()
        return parts

    def check(self) -> None:
        """Raise `StoreError` if the store is gone, or has another shape or dtype by now."""
        array = self.array
        if hasattr(array, "check"):  # Why first: zarr would make the folder again
            array.check()
        self._copy(token=None).array  # noqa: B018 - it is opened anew

    def bound(self, shared: dict[bytes, Any]) -> Store:
        """Return this store with an array that it looks for, and puts, among these."""
        return self._copy(_shared=shared, token=None)

    def open(self) -> None:
        """Open the array, unless it is open.

        Raises
        ------
        StoreError
            If it cannot be opened, or has another shape or dtype by now.
        """
        self.array  # noqa: B018 - it is opened

    def forget(self) -> None:
        """Drop the open array, which closes with its last user."""
        self._array = None

    def _error(self, text: str, cause: BaseException | None = None) -> StoreError:
        text += "" if cause is None else f": {summarize(cause)}"
        errno = getattr(cause, "errno", None)
        return StoreError(text, opener=self.kind, where=self.where, errno=errno)

    def _opened(self) -> Any:
        """Open the array, and compare it with the record of it."""
        arrays = {} if self._shared is None else self._shared
        try:
            array = arrays.get(self.opener)
            if array is None or _is_closed(array):
                array = arrays[self.opener] = self._tried(lambda: _known(open_anew(self.opener)))
            shape, dtype = tuple(map(int, array.shape)), np.dtype(array.dtype)
        except StoreError:
            raise
        except (Exception, SystemExit) as error:
            raise self._error(f"{self._name} cannot be opened", error) from error
        due = self._in_file(self.shape)
        # Why without the order of bytes: zarr's third format does not keep it.
        if shape != due or dtype.newbyteorder("=") != self._stored.newbyteorder("="):
            raise self._error(
                f"{self._name} has changed: it has shape {shape} and dtype {dtype}, but had "
                f"{due} and {self._stored} before; open it anew"
            )
        of_units = None if self.unit is None else self._in_file(self.unit)
        read_only = getattr(array, "read_only", True)
        unit = of_units if read_only else getattr(array, "unit", of_units)
        if unit != of_units:  # Why: the check of one writer per unit was for other units
            raise self._error(
                f"{self._name} has changed: it is stored {unit} elements at a time, but was "
                f"{of_units} before; open it anew"
            )
        return array

    @property
    def array(self) -> Any:
        """The open array; opened anew if its file was replaced, or was closed by the user."""
        token = None if self.token is None else self.token()
        array = self._array
        if array is None or token != self._token or _is_closed(array):
            self._array = array = None  # Why: the old file is closed first
            array = self._opened()
            self._array, self._token = array, token
        return array  # Why not the attribute: another thread may open it anew.

    def _in_file(self, along: Sequence[Any]) -> tuple[Any, ...]:
        """Return values along the axes of the store in the order of the axes in the file."""
        first, *rest = along or [None]
        return tuple([*rest[: self.first_axis], first, *rest[self.first_axis :]] if along else [])

    def __getitem__(self, key: Any) -> Array:
        where, finish = _slices(key, self.shape)
        window = self._in_file(where)
        block: Array = self._transfer("read", window, lambda array: self._read(array, window))
        traffic.read += block.nbytes
        block = np.moveaxis(block, self.first_axis, 0) if self.first_axis else block
        block = block if self.dtype is self._stored else block.view(self.dtype)
        block.flags.writeable = False
        return block if finish is None else block[finish]

    def _read(self, array: Any, where: tuple[slice, ...]) -> Array:
        """Read a window into new memory that has the gaps of a view."""
        lengths = tuple([len(range(one.start, one.stop, one.step or 1)) for one in where])
        direct = hasattr(array, "read_into")
        order: Any = getattr(array, "order", "C") if direct else "C"
        outer = len(lengths) - 1 if order == "F" else 0
        pairs = zip(lengths, self._in_file(self.shape), strict=True)
        # Why: NumPy adds in another order where an axis follows the next without a gap.
        room = [n + (k != outer and n < whole) for k, (n, whole) in enumerate(pairs)]
        inside = tuple([slice(n) for n in lengths])
        memory = np.empty(room, array.dtype if direct else self._stored, order)
        block: Array = memory[inside or ...]
        if direct and block.size:
            array.read_into(where, memory, inside)
        if direct or not block.size:
            return memory.astype(self._stored, copy=False)[inside or ...]
        # Why no steps: an array of the user need not take them.
        window = tuple([slice(one.start, one.stop) for one in where])
        found = array[window or ...]
        if hasattr(found, "compute"):  # Why: the threads of Dask would compete with the workers.
            found = found.compute(scheduler="synchronous")
        if is_masked(found) and np.ma.is_masked(found):  # Why not any: netCDF4 masks nothing too.
            raise self._error(
                f"{self._name} has masked values in a window, and a block would lose its mask; let "
                "it return plain values, as values.filled(0), and pass the mask as a second input"
            )
        if (lost := loses(found)) is not None:
            raise self._error(f"a window of {self._name} would lose {lost}")
        # Why the ellipsis: without it an array of text without axes becomes a shorter scalar.
        steps: Any = (*[slice(None, None, one.step) for one in where], ...)
        found = np.asarray(found)[steps]
        if found.shape != lengths or found.dtype.newbyteorder("=") != block.dtype.newbyteorder("="):
            raise self._error(
                f"a window of {self._name} has shape {found.shape} and dtype {found.dtype}, where "
                f"{lengths} and {self._stored} are due: the array has changed under the run, or "
                "tells another shape or dtype than it has"
            )
        block[...] = found
        return block

    def near(self, sources: Sequence[Sequence[Any]]) -> Pieces:
        """Read the neighbourhood of a window, each element once.

        Parameters
        ----------
        sources : sequence of sequence of (slice or ndarray of int)
            Positions that are needed along each axis.

        Returns
        -------
        Pieces
            The values, in the coordinates of the store.
        """
        runs = [_runs(one) for one in sources]
        parts = {}
        for numbers in product(*[range(len(one)) for one in runs]):
            spans = [one[k] for one, k in zip(runs, numbers, strict=True)]
            block = self[tuple([slice(*span) for span in spans])]
            parts[numbers] = Part(block, [low for low, _ in spans], self.shape)
        return Pieces(parts, runs)

    def __setitem__(self, key: Any, value: Any) -> None:
        where, finish = _slices(key, self.shape)
        if any(one.step for one in (*where, *(finish or ())) if isinstance(one, slice)):
            raise IndexError(f"{self.where}: a store is written by slices of step 1, not {key}")
        if self.first_axis or self.dtype is not self._stored:
            raise TypeError(f"{self!r} is a view of a store, which is not written to")
        lengths = tuple([one.stop - one.start for one in where])
        values = np.asarray(value)
        if finish is not None:  # Why: an int leaves out an axis of length 1
            kept = [n for n, one in zip(lengths, finish, strict=True) if isinstance(one, slice)]
            values = np.broadcast_to(values, kept)
        values = values.reshape(lengths) if finish else np.broadcast_to(values, lengths)

        def write(array: Any) -> None:
            array[where or ...] = values

        self._transfer("write", where, write)
        traffic.written += prod(lengths) * self.itemsize

    def _transfer(self, verb: str, where: tuple[slice, ...], use: Callable[[Any], Any]) -> Any:
        """Read or write a window."""
        began = time.perf_counter()
        try:
            return self._tried(lambda: use(self.array))
        except ShmparError:
            raise
        except Exception as error:
            window = ", ".join([f"{one.start}:{one.stop}" for one in where])
            raise self._error(f"cannot {verb} [{window}] of {self._name}", error) from error
        finally:
            traffic.seconds += time.perf_counter() - began

    def _tried(self, call: Callable[[], Any]) -> Any:
        """Make a call, several times if the fault may pass."""
        for again in range(self.retries, 0, -1):
            try:
                return call()
            except ShmparError:
                raise
            except Exception as error:
                if not (_is_closed(self._array) or _may_pass(error)):
                    raise
                time.sleep(_WAIT_SECONDS * 2 ** (self.retries - again))
        return call()


def _known(array: Any) -> Any:
    """Return the record of an open zarr array; any other array as it is."""
    kind = type(array)
    is_zarr = kind.__name__ == "Array" and kind.__module__.partition(".")[0] == "zarr"
    if is_zarr and hasattr(array, "store_path"):
        from shmpar.stores.formats import ZarrArray  # Why here: a worker without zarr needs none.

        return ZarrArray(array)
    return array


def has_axes_of(one: Any, other: Any) -> bool:
    """Return whether two arrays have the same shape, and stores the same order of axes."""
    axes = [getattr(array, "first_axis", 0) for array in (one, other)]
    return bool(one.shape == other.shape and axes[0] == axes[1])


def _is_closed(array: Any) -> bool:
    """Return whether the user has closed the file of an open array, which both share."""
    return getattr(array, "closed", False) is True  # Why: that of a user's class may be a method.


def _may_pass(error: BaseException) -> bool:
    """Return whether a second attempt may succeed."""
    if not isinstance(error, OSError):
        # Why by name: the clients of object stores raise errors of their own.
        return type(error).__module__.partition(".")[0] in {"aiohttp", "botocore", "google"}
    return error.errno not in _PERMANENT


def _slices(key: Any, shape: Shape) -> tuple[tuple[slice, ...], tuple[Any, ...] | None]:
    """Split a key into slices of positive step, and the index of their window that is the result.

    A step of 1 is None. The index is None where the window is the result.
    """
    keys = list(key) if isinstance(key, tuple) else [key]
    dots = [place for place, one in enumerate(keys) if one is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can have one ellipsis")
    missing = len(shape) - len(keys) + len(dots)
    if missing < 0:
        raise IndexError(f"{len(keys) - len(dots)} indices for a store of shape {shape}")
    place = dots[0] if dots else len(keys)
    keys[place : place + 1] = [slice(None)] * missing
    where: list[slice] = []
    finish: list[Any] = []
    for axis, (one, size) in enumerate(zip(keys, shape, strict=True)):
        if isinstance(one, slice):
            steps = range(*one.indices(size)) or range(0)
            finish.append(slice(None, None, None if steps.step > 0 else -1))
            steps = steps if steps.step > 0 else steps[::-1]
            last = steps[-1] if steps else -1
            where.append(slice(steps.start, last + 1, None if steps.step == 1 else steps.step))
        elif isinstance(one, int | np.integer) and not isinstance(one, bool):
            index = int(one) + (size if one < 0 else 0)
            if not 0 <= index < size:
                raise IndexError(f"index {one} is out of bounds for axis {axis} of size {size}")
            where.append(slice(index, index + 1))
            finish.append(0)
        else:
            raise IndexError(f"a store takes slices and ints, not {type(one).__name__}")
    is_window = all(one == slice(None) for one in finish)
    return tuple(where), None if is_window else tuple(finish)


class Part:
    """A window of an array of a larger shape, in the coordinates of the larger array.

    Parameters
    ----------
    array : ndarray
        The values of the window.
    origin : sequence of int
        Position of its first element in the larger array.
    shape : sequence of int
        Shape of the larger array.

    Examples
    --------
    >>> part = Part(np.arange(6).reshape(2, 3), (10, 0), (100, 3))
    >>> part.shape, part[11:12, 1:].tolist()
    ((100, 3), [[4, 5]])
    """

    __slots__ = ("array", "origin", "shape")
    __array_ufunc__ = None

    def __init__(self, array: Array, origin: Sequence[int], shape: Sequence[int]) -> None:
        self.array = array
        self.origin: Shape = tuple(origin)
        self.shape: Shape = tuple(shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype."""
        return self.array.dtype  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements of the larger array."""
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.array.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the window."""
        return self.array.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<Part of shape {self.array.shape} at {self.origin} of {self.shape}>"

    def __array__(self, *_args: Any, **_kwargs: Any) -> Any:
        raise TypeError(f"{self!r} is a window; its values are part.array")

    def _inside(self, key: Any) -> tuple[Any, ...]:
        """Return the index in the window of an index in the larger array."""
        given = key if isinstance(key, tuple) else (key,)
        keys = tuple([one for one in given if one is not ...])
        places: list[Any] = []
        bounds = zip(keys, self.origin, self.array.shape, self.shape, strict=False)
        for one, first, length, size in bounds:
            if isinstance(one, slice):
                start, stop, step = one.indices(size)
                low, high = start - first, max(start, stop) - first
                places.append(slice(low, high, step))
                fits = start >= stop or (low >= 0 and high <= length)
            else:
                places.append(one - first)
                fits = bool(np.all((places[-1] >= 0) & (places[-1] < length)))
            if not fits:
                raise IndexError(f"{one} of axis {len(places) - 1} lies outside {self!r}")
        # Why only then: with an Ellipsis NumPy returns an element as an array, else as a scalar.
        return (*places, ...) if len(keys) < len(given) else tuple(places)

    def __getitem__(self, key: Any) -> Any:
        return self.array[self._inside(key)]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.array[self._inside(key)] = value

    def near(self, _sources: Sequence[Sequence[Any]]) -> Part:
        """Return the part, which holds the neighbourhood of its windows."""
        return self


def _runs(sources: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the runs of positions that cover all sources along one axis; none touch another.

    Examples
    --------
    >>> _runs([slice(0, 4), np.array([8, 9]), np.array([3, 2])])
    [(0, 4), (8, 10)]
    """
    ends = [
        (one.start, one.stop) if isinstance(one, slice) else (int(one.min()), int(one.max()) + 1)
        for one in sources
    ]
    runs: list[tuple[int, int]] = []
    for low, high in sorted(ends):
        if runs and low <= runs[-1][1]:
            runs[-1] = runs[-1][0], max(runs[-1][1], high)
        else:
            runs.append((low, high))
    return runs


class Pieces:
    """Windows of a store that together hold the neighbourhood of a chunk."""

    def __init__(
        self, parts: dict[tuple[int, ...], Part], runs: list[list[tuple[int, int]]]
    ) -> None:
        self._parts, self._runs = parts, runs
        self.array = next(iter(parts.values())).array

    def __getitem__(self, key: tuple[Any, ...]) -> Any:
        numbers = []
        for one, runs in zip(key, self._runs, strict=True):
            first = one.start if isinstance(one, slice) else int(one.min())
            numbers.append(next(k for k, (low, high) in enumerate(runs) if low <= first < high))
        return self._parts[tuple(numbers)][key]


class StoreRows:
    """The rows of a store, read in bands of whole units.

    Parameters
    ----------
    store : Store
        The store, whose first axis has the rows.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.shape, self.dtype, self.ndim = store.shape, store.dtype, store.ndim
        row = max(1, store.nbytes // max(1, len(store)))
        unit = 1 if store.unit is None else store.unit[0]
        self.band = max(1, min(unit, _BAND_BYTES // row))
        self._start = 0
        self._block: Any = ()
        self.open = store.open

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> Any:
        place = row - self._start
        if not 0 <= place < len(self._block):
            self._start = row - row % self.band
            self._block = ()  # Why: the memory of the old band is free first
            self._block = self._store[self._start : self._start + self.band]
            place = row - self._start
        return self._block[place]
