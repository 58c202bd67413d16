"""SharedArray, an ndarray that pickles as its address, and attach(), which opens an address.

Guarantees
----------
An array is shared if, and only if, its bytes lie in the segment. Operations that make new memory
(arithmetic, reductions, ``copy``, ``astype``, fancy indexing, ``deepcopy``) return a plain ndarray;
operations that return a view (slices, ``.T``, ``reshape``) return a SharedArray.
Closing an array ends its sharing and never unmaps memory: views stay readable and writable.
The segment is closed with the array only if the array owns it and has it to itself.
Everything in an address is checked before anything is mapped; the size of the segment is checked
before its use.
Nothing is registered with ``multiprocessing.resource_tracker``, so the exit of a process that only
attached removes nothing.
Attaching twice to it, or to a segment of this process, maps nothing twice.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import numpy as np

from shmpar.arrays.address import Address, ArraySpec, short_repr
from shmpar.arrays.lock import Lock, lock_of
from shmpar.errors import SegmentError, SegmentGone, no_attribute
from shmpar.memory import allocate, names
from shmpar.memory.layout import address_of
from shmpar.memory.limits import ClosedOnError
from shmpar.memory.locate import locate, memory_owner
from shmpar.memory.manager import Manager, own_manager
from shmpar.memory.segment import Array, Location, Segment, find_segment, known_segment
from shmpar.tracebacks import delivering, hide_frames, shorten

if TYPE_CHECKING:
    from multiprocessing.shared_memory import SharedMemory

_Shape = TypeVar("_Shape", bound=tuple[int, ...])
_DType = TypeVar("_DType", bound=np.dtype[Any])

# The name of an array in a common segment: the name of the segment, and the first byte.
_PART_NAME: Final = r"(shmpar_[0-9a-f]{16})@([0-9]{1,9})"

# Why: NumPy 1 does not tell whether a result without axes is to be a scalar, as those of ufuncs.
_WRAPS_SCALARS: Final = np.__version__.startswith("1.")

_DONE: Final = "leave it out: the values are here"
_NO_CHUNKS: Final = "pass chunks= to the verb: an array has no chunks of its own"
# Attributes of the arrays of other libraries, and the call to write here.
_ADVICE: Final = {
    "array as_array asarray compute get get_obj load numpy persist raw result": _DONE,
    "to_numpy value values": _DONE,
    "chunks chunksize compute_chunk_sizes npartitions numblocks": _NO_CHUNKS,
    "rechunk to_delayed": _NO_CHUNKS,
    "acquire get_lock release": "write with a.lock: ...",
    "destroy free shutdown unlink": "write close()",
    "apply": "write pool.map_blocks(f, a), or pool.parallel_map(f, a) for its rows",
    "apply_along_axis": "write pool.apply_along_axis(f, axis, a)",
    "attrs coords dims": "pass an xarray.DataArray to the verb: its labels stay",
    "block_reduce": "write pool.block_reduce(f, a)",
    "blocks partitions": "write a[...] with slices: an array has no chunks of its own",
    "buf": "write memoryview(a)",
    "dask to_dask_array to_dask_dataframe": "write dask.array.from_array(a)",
    "filename": "write a.name",
    "flush": "leave it out: other processes see a write at once",
    "map parallel_map": "write pool.parallel_map(f, a)",
    "map_blocks": "write pool.map_blocks(f, a)",
    "map_overlap": "write pool.map_overlap(f, a, depth=...)",
    "save": "write np.save(path, a)",
    "share": "leave it out: it is shared; pass it to a verb, or send a.address",
    "shared_memory shm": "write a.name, or a.address for another process",
    "store": "write target[...] = a, or out=target in the verb",
    "to_dataframe": "write pandas.DataFrame(a)",
    "to_hdf5": "write file[name] = a with h5py, or out=dataset in the verb",
    "to_npy": 'write np.save(path, a), or out="result.npy" in the verb',
    "to_zarr": 'write zarr.save(path, a), or out="result.zarr" in the verb',
    "topk": "write np.partition(a, -k)",
    "vindex": "write a[...], which takes lists of indexes",
    "visualize": "write run.report.plot(), after run = pool.last_run",
}
_OTHER_NAMES: Final = {name: text for names, text in _ADVICE.items() for name in names.split()}

# Methods of ndarray that may return new memory in the type of the array.
# Methods that always return a view (T, view, transpose, squeeze, ...) need no wrapper, nor do those
# that call a ufunc (sum, clip, ...).
_METHODS_WITH_COPIES: Final = (
    "__copy__", "__deepcopy__", "__getitem__", "argmax", "argmin", "argpartition", "argsort",
    "astype", "byteswap", "choose", "compress", "copy", "dot", "flatten", "ravel", "repeat",
    "reshape", "round", "take",
)  # fmt: skip

_KINDS: Final = {
    "shm": "shared memory",
    "memfd": "an anonymous memory file",
    "tempfile": "a temporary file on disk",
}


class Handle:
    """State that all views of one shared array have in common.

    Parameters
    ----------
    place : Location
        Location of ``array``.
    array : ndarray
        Plain array over the segment.
    manager : Manager
        Gives the segment its name.
    start : int
        First byte in the segment of the array of which ``array`` is a view.
    owner : bool
        Whether the segment is closed with the array.
    """

    __slots__ = ("_closed", "_lock", "_memory", "_shift", "manager", "owner", "segment", "start")

    def __init__(
        self, place: Location, array: Array, manager: Manager, *, start: int, owner: bool
    ) -> None:
        self.segment, self.manager, self.start, self.owner = place.segment, manager, start, owner
        self._memory = memory_owner(array)
        self._shift = place.offset - address_of(array)
        self._closed = False
        self._lock: Lock | None = None

    @property
    def closed(self) -> bool:
        """Return True if the array can no longer be shared."""
        return self._closed or self.segment.closed

    def close(self) -> None:
        """End the sharing; further calls have no effect."""
        self._closed = True
        # Invariant: a segment that several arrays share is never closed by one of them.
        if self.owner and not self.segment.divided:
            self.segment.close()

    def holds(self, array: Array) -> bool:
        """Return True if the bytes of an array lie in the segment."""
        if array.base is None:
            return False
        if memory_owner(array) is self._memory:
            return True
        # Why: as_strided and the like put objects of their own between a view and its memory.
        place = locate(array)
        return place is not None and place.segment == self.segment

    def name(self) -> str:
        """Return the name by which other processes find the array; the first call makes it."""
        self._check_open()
        name = self.manager.name(self.segment)
        return f"{name}@{self.start}" if self.segment.divided else name

    def address(self, array: Array) -> Address:
        """Return the address of a view."""
        self._check_open()
        segment, offset = self.segment, self._shift + address_of(array)
        if memory_owner(array) is not self._memory and (place := locate(array)) is not None:
            offset = place.offset  # Why: a worker maps an input a second time, elsewhere
        layout = array.shape, array.strides, array.dtype
        address = Address(self.manager.name(segment), segment.size, offset, *layout, self.start)
        writable, is_file = array.flags.writeable, segment.kind == "file"
        return address._replace(writable=writable, identity=segment.identity(), file=is_file)

    def lock(self) -> Lock:
        """Return the lock of the array, which is the same one for all views."""
        if self._lock is None:
            self._check_open()
            # Why: a lock is known by its file, and may outlive the array.
            self.segment.own = False
            # Why: the lock refers to no array; a cycle would keep the array until the next garbage
            # collection.
            reopen = functools.partial(_reopen, self.segment)
            view = functools.partial(_empty_view, self.segment, self.manager, self.start)
            self._lock = lock_of(self.segment.identity(), self.start, reopen, view)
        return self._lock

    def _check_open(self) -> None:
        if self._closed:
            raise SegmentGone(
                "the array was closed: its values stay readable, but it has no address any more; "
                "share a copy with shmpar.array()"
            )
        self.segment.fileno()  # raises SegmentGone if the segment was closed


def _reopen(segment: Segment) -> int:
    # Lock: a duplicated descriptor would share its locks with the process that sent it.
    # Why not /dev/fd on Linux: a sandbox may have a /dev without it.
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    try:
        return segment.duplicate(lambda fd: os.open(f"{folder}/{fd}", os.O_RDWR | os.O_CLOEXEC))
    except SegmentGone:
        raise
    except FileNotFoundError:
        raise SegmentError(
            "the lock of an array needs /proc, which is not mounted: let the function return its "
            "values, and combine them in the caller"
        ) from None


def _empty_view(segment: Segment, manager: Manager, start: int) -> SharedArray[Any, Any]:
    array = segment.ndarray(start, (0,), None, np.dtype("u1"))
    return share_view(Location(segment, start), array, manager, start=start)


class SharedArray(np.ndarray[_Shape, _DType]):
    """Array in shared memory, made by :func:`shmpar.array`, :func:`shmpar.attach` and the like.

    It is used as any ndarray. A view of it lies in the same segment and is a SharedArray too; each
    other result is a plain ndarray. It pickles as its address: the process that loads the pickle
    sees the same memory and never removes it.

    Leaving a ``with`` block closes the array.

    Examples
    --------
    >>> import pickle
    >>> from shmpar.arrays import zeros
    >>> with zeros((2, 3)) as a:
    ...     b = pickle.loads(pickle.dumps(a[1]))
    ...     b[:] = 7
    ...     print(a.tolist(), type(b).__name__, type(a + 1).__name__)
    [[0.0, 0.0, 0.0], [7.0, 7.0, 7.0]] SharedArray ndarray
    """

    __array_priority__ = -100.0  # as np.memmap: other subclasses go first
    _handle: Handle | None

    def __new__(cls, *_: Any, **__: Any) -> SharedArray[Any, Any]:
        """Refuse: the arguments of a constructor would not tell where the memory comes from."""
        raise TypeError("make a SharedArray with shmpar.array(), zeros(), attach() and the like")

    if not TYPE_CHECKING:  # Why: a type checker would take any name for an attribute.

        def __getattr__(self, name: str) -> NoReturn:
            text = _OTHER_NAMES.get(name)
            function = None if name.startswith("_") else vars(np).get(name)
            if text is None and callable(function) and not isinstance(function, type):
                text = f"write np.{name}(a)"
            raise no_attribute(self, name, text)

    def __array_finalize__(self, parent: Array | None) -> None:
        # Why: some functions of NumPy keep the type of an array that they copy.
        self._handle = None if self.flags.owndata else getattr(parent, "_handle", None)

    @property
    def address(self) -> dict[str, Any]:
        """Address by which another process finds this array or view, as JSON.

        The first use gives the segment a name.

        Raises
        ------
        SegmentGone
            The array was closed.

        Examples
        --------
        >>> from shmpar.arrays import attach, zeros
        >>> a = zeros(3)
        >>> attach(a.address)[1:].shape
        (2,)
        """
        return self._shared_handle().address(self).to_json()

    @property
    def name(self) -> str:
        """Name of the segment, as in ``/dev/shm``; the first use makes it.

        Raises
        ------
        SegmentGone
            The array was closed.
        """
        return self._shared_handle().name()

    @property
    def owner(self) -> bool:
        """True if the segment is removed with this array."""
        return self._handle is not None and self._handle.owner

    @property
    def lock(self) -> Lock:
        """Lock of this array, common to all processes and views; the kernel frees a dead holder's.

        Examples
        --------
        >>> from shmpar.arrays import zeros
        >>> a = zeros(1)
        >>> with a.lock:
        ...     a[0] += 1
        """
        return self._shared_handle().lock()

    @property
    def closed(self) -> bool:
        """True if the array can no longer be shared; its values stay readable."""
        return self._handle is None or self._handle.closed

    def close(self) -> None:
        """Remove the name and end the sharing of all views; further calls have no effect.

        Views stay readable and writable, in this process and in those that have attached.
        """
        if self._handle is not None:
            self._handle.close()

    def __enter__(self) -> SharedArray[_Shape, _DType]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _repr_html_(self) -> str:
        """Return a table of its shape, its size and its place, and the values below."""
        # Why here: few programs show an array in a notebook.
        from html import escape

        from shmpar.display import format_bytes, html_table

        rows = [
            ("shape", " x ".join(f"{length:,}" for length in self.shape) or "()"),
            ("dtype", escape(f"{self.dtype!s:.200}")),
            ("size", format_bytes(self.nbytes)),
            ("lies in", escape(self._place())),
        ]
        style = "margin:0;overflow:auto;max-height:16em"
        values = f"<pre style='{style}'>{escape(np.array2string(self.view(np.ndarray)))}</pre>"
        table = f"<strong>{escape(type(self).__name__)}</strong>{html_table(rows, '<<')}"
        return f"<div>{table}{values}</div>"

    def _place(self) -> str:
        """Tell the memory in plain words; give it no name."""
        handle = self._handle
        if handle is None or not handle.holds(self):
            return "private memory of this process (a copy that kept the type)"
        if self.closed:
            return "memory of this process (the array was closed)"
        kind, name = handle.segment.kind, handle.segment.name
        if kind == "file":
            return f"the mapped file {name}"
        kind = _KINDS.get(kind, kind)
        return f"{kind}, {f'named {name}' if name else 'without a name'}"

    def _shared_handle(self) -> Handle:
        if self._handle is None or not self._handle.holds(self):
            raise SegmentGone(
                "this array does not lie in shared memory (it is a copy that kept the type); "
                "share it with shmpar.array()"
            )
        return self._handle

    def __reduce_ex__(self, protocol: Any, /) -> Any:
        """Pickle as an address; an array outside of the segment is pickled by value."""
        if self._handle is None or not self._handle.holds(self):
            return self.view(np.ndarray).__reduce_ex__(protocol)
        return attach, (self.address,)

    def __iter__(self) -> Any:
        if not self.ndim:
            return iter(self.view(np.ndarray))  # an error
        # Why: NumPy's own iteration ends by an IndexError, whose traceback would be made short.
        return map(self.__getitem__, range(len(self)))

    @delivering
    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Call a function on plain views; views in its results are shared again."""
        originals: dict[int, tuple[Array, SharedArray[Any, Any]]] = {}  # by id of the plain view
        args, kwargs = _unwrap_all(args, originals), _unwrap_all(kwargs, originals)
        if not originals:  # Why: they lie in another container, such as a named tuple or a deque
            return super().__array_function__(func, types, args, kwargs)
        return _rewrap_all(func(*args, **kwargs), originals)

    def __array_wrap__(self, array: Any, _: Any = None, scalar: bool = _WRAPS_SCALARS, /) -> Any:
        """Convert the result of a ufunc, and others that keep subclasses: a view stays shared."""
        if array is self:  # an argument ``out=``
            return self
        plain = array.view(np.ndarray) if isinstance(array, SharedArray) else array
        return plain[()] if scalar and not plain.ndim else _rewrap(plain, self)

    @property
    def imag(self) -> Any:
        """Imaginary part: a view of a complex array, plain zeros of a real one."""
        return _rewrap(self.view(np.ndarray).imag, self)

    @imag.setter
    def imag(self, value: Any) -> None:
        self.view(np.ndarray).imag = value


def wrap(array: Array, handle: Handle) -> SharedArray[Any, Any]:
    """View a plain array as a shared one."""
    shared = array.view(SharedArray)
    shared._handle = handle  # noqa: SLF001 (the constructor of its class)
    return shared


def share_view(
    place: Location, array: Array, manager: Manager, *, start: int, owner: bool = False
) -> SharedArray[Any, Any]:
    """View a plain array over a segment as a shared one, with a handle of its own."""
    return wrap(array, Handle(place, array, manager, start=start, owner=owner))


def _rewrap(result: Any, parent: SharedArray[Any, Any]) -> Any:
    """Share a plain result again if it lies in the segment of its parent."""
    handle = parent._handle  # noqa: SLF001 (its class)
    if type(result) is np.ndarray and handle is not None and handle.holds(result):
        shared = wrap(result, handle)
        if type(parent) is not SharedArray:  # a subclass, which may have attributes
            shared = shared.view(type(parent))
            shared.__array_finalize__(parent)
        return shared
    return result


def _unwrap_all(value: Any, originals: dict[int, tuple[Array, SharedArray[Any, Any]]]) -> Any:
    """Replace shared arrays by plain views, in the containers that NumPy's functions take."""
    if isinstance(value, SharedArray):
        plain = value.view(np.ndarray)
        originals[id(plain)] = (plain, value)  # Why: an id is unique while its object is referenced
        return plain
    if type(value) in {list, tuple}:
        return type(value)([_unwrap_all(each, originals) for each in value])
    if type(value) is dict:
        return {key: _unwrap_all(each, originals) for key, each in value.items()}
    return value


def _rewrap_all(value: Any, originals: dict[int, tuple[Array, SharedArray[Any, Any]]]) -> Any:
    """Replace plain views by the arrays that were passed (``out=``), or share them again."""
    if id(value) in originals:
        return originals[id(value)][1]
    if isinstance(value, (list, tuple)):
        values = [_rewrap_all(each, originals) for each in value]
        # Why: a named tuple, as np.linalg returns, takes its values as separate arguments.
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
    rewrapped = (_rewrap(value, parent) for _, parent in originals.values())
    return next((each for each in rewrapped if each is not value), value)


def _with_views_shared(name: str) -> Callable[..., Any]:
    """Return a method of ndarray of which only views stay shared."""
    plain_method = getattr(np.ndarray, name)

    def method(self: SharedArray[Any, Any], *args: Any, **kwargs: Any) -> Any:
        plain = self.view(np.ndarray)
        try:
            result = plain_method(plain, *args, **kwargs)
        except BaseException as error:
            shorten(error, delivered=True)
            raise
        return self if result is plain else _rewrap(result, self)

    method.__name__, method.__doc__ = name, plain_method.__doc__
    method.__qualname__ = f"SharedArray.{name}"
    return method


for _name in _METHODS_WITH_COPIES:
    setattr(SharedArray, _name, _with_views_shared(_name))


@hide_frames
def attach(
    where: str | dict[str, Any] | SharedMemory,
    shape: Any = None,
    dtype: Any = None,
    *,
    own: bool = False,
    manager: Manager | None = None,
) -> SharedArray[Any, Any]:
    """Attach to an array that another process made.

    Parameters
    ----------
    where : str, dict or SharedMemory
        Name of a segment, ``address`` of an array, or a segment of the standard library.
    shape : int or sequence of int
        Elements along each axis; required unless ``where`` is an address.
    dtype : dtype
        Required unless ``where`` is an address.
    own : bool
        True takes the segment over: its name is removed with this array, or with the manager.
        False removes nothing.
    manager : Manager, optional
        By default the manager of the interpreter.

    Returns
    -------
    SharedArray
        The same memory, in C order unless the address has other strides.

    Raises
    ------
    TypeError
        A name without shape and dtype, or a dtype that holds Python objects.
    ValueError
        The name or the address is not valid, or the segment is too small for the array.
    SegmentGone
        There is no such segment, or it was removed.
    PermissionError
        The segment belongs to another user.
    SegmentFull
        The maker of the segment did not reserve its memory, and there is no room.

    Notes
    -----
    Cost: a few system calls; no copy and no message.

    Examples
    --------
    >>> from shmpar.arrays import zeros
    >>> a = zeros((2, 3))
    >>> attach(a.name, (2, 3), "f8").shape
    (2, 3)
    """
    address, manager = _parse(where, shape, dtype), own_manager(manager)
    segment = _open_segment(address)
    layout = address.offset, address.shape, address.strides, address.dtype
    array = segment.ndarray(*layout, writable=address.writable)
    if own:
        manager.own(segment)
    place = Location(segment, address.offset)
    return share_view(place, array, manager, start=address.start, owner=own)


def _parse(where: Any, shape: Any, dtype: Any) -> Address:
    """Check the arguments and return the address that they describe."""
    if isinstance(where, dict):
        if shape is not None or dtype is not None:
            raise TypeError("an address has its own shape and dtype; reshape or view the array")
        return Address.parse(where)
    # Why: the import is slow; an instance exists only after it.
    module = sys.modules.get("multiprocessing.shared_memory")
    name = where.name if module and isinstance(where, module.SharedMemory) else where
    shown = short_repr(name)
    if not isinstance(name, str):
        raise TypeError(f"attach() takes a name, an address or a SharedMemory, not {shown}")
    if shape is None or dtype is None:
        raise TypeError(f"attach({shown}) needs the array's shape and dtype, or its address")
    spec = ArraySpec.of(shape, dtype)
    part = re.fullmatch(_PART_NAME, name)
    name, start = (part[1], int(part[2])) if part else (name, 0)
    size = max(1, start + spec.nbytes)
    return Address(name, size, start, spec.shape, spec.strides, spec.dtype, start=start)


def _open_segment(address: Address) -> Segment:
    """Open the segment, or find it among the open segments of this process."""
    name, verify = address.name, functools.partial(_verify, address)
    if address.file:
        shown, may_write = short_repr(name), address.writable
        fd, writable = names.open_checked(name, shown, verify, writable=may_write)
    else:
        fd, writable = names.open_named(name)
    with ClosedOnError(fd):
        found = os.fstat(fd)
        verify(found)
        segment = find_segment((found.st_dev, found.st_ino))
        # Why: a file may have grown since it was attached.
        if segment is None or segment.writable < writable or segment.size < address.size:
            if writable and not address.file and found.st_blocks * 512 < found.st_size:
                # Why: its maker reserved nothing; a write to a page without room is SIGBUS.
                allocate.reserve_range(fd, 0, found.st_size)
            kind = "memfd" if name.startswith("/proc/") else "shm"
            kind = "file" if address.file else kind
            return known_segment(fd, kind, name, writable=writable)
    os.close(fd)
    return segment


def _verify(address: Address, found: os.stat_result) -> None:
    if address.identity not in {None, (found.st_dev, found.st_ino)}:
        raise SegmentGone(
            f"segment {short_repr(address.name)} was removed; another one has its name now"
        )
    if found.st_size < address.size:
        raise ValueError(
            f"segment {short_repr(address.name)} has {found.st_size:,} bytes; an array of shape "
            f"{short_repr(address.shape)} and dtype {address.dtype} there needs {address.size:,}"
        )
