"""What the views of one shared array have in common: their segment and who releases it.

Imports NumPy, ``shmpar.errors``, the segment package, and the address and lock beside it.

Guarantees
----------
Closing a lease ends the sharing of its array, never the memory: values that are held stay
readable.  It closes the segment only where the array owns it and lies in it alone.

SharedArray: an ndarray that pickles as its address.

Imports NumPy, and the lease and address beside it.

Guarantees
----------
An array is shared if, and only if, its bytes lie in the segment.  Whatever makes new memory
(arithmetic, reductions, ``copy``, ``astype``, fancy indexing, ``deepcopy``) gives a plain ndarray;
what looks at the same memory (slices, ``.T``, ``reshape``) gives a SharedArray.
A view keeps its memory: after ``close()`` it stays readable and writable.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from shmpar.arrays.address import Address
from shmpar.arrays.lock import Lock, lock_of
from shmpar.errors import SegmentGone
from shmpar.memory.limits import open_with_retry
from shmpar.memory.locate import locate
from shmpar.memory.manager import Manager
from shmpar.memory.segment import Location, address_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from shmpar.arrays.lock import Lock

__all__ = ["Lease", "SharedArray", "over", "part"]

Array = np.ndarray[Any, Any]

_PART: Final = re.compile(r"(shmpar_[0-9a-f]{16})@([0-9]{1,9})")


class Lease:
    """One shared array's part of a segment.

    Parameters
    ----------
    place : Location
        Where ``root`` lies.
    root : ndarray
        The plain array that every view in the lease is based on.
    manager : Manager
        Who names the segment.
    start : int
        Byte of the segment at which the array begins that ``root`` is, or is a view of.
    owner : bool
        Whether the segment goes with this lease.
    """

    __slots__ = ("_closed", "_lock", "_offset", "manager", "owner", "root", "segment", "start")

    def __init__(
        self, place: Location, root: Array, manager: Manager, *, start: int, owner: bool
    ) -> None:
        self.segment, self.root, self.manager = place.segment, root, manager
        self.start, self.owner = start, owner
        self._offset = place.offset
        self._closed = False
        self._lock: Lock | None = None

    @property
    def closed(self) -> bool:
        """Whether the array can no longer be shared."""
        return self._closed or self.segment.closed

    @property
    def alone(self) -> bool:
        """Whether the array has the segment to itself."""
        return not self.segment.divided

    def check(self) -> None:
        """Raise SegmentGone if the array was closed."""
        if self._closed:
            raise SegmentGone(
                "the array was closed: its values stay readable, but it has no address any more; "
                "share a copy with shmpar.array()"
            )
        self.segment.fileno()

    def close(self) -> None:
        """End the sharing.  Twice is once."""
        self._closed = True
        if self.owner and self.alone:
            self.segment.close()

    def holds(self, array: Array) -> bool:
        """Whether an array's bytes lie in the segment."""
        base: Any = array.base
        while isinstance(base, np.ndarray):
            if base is self.root:
                return True
            base = base.base
        place = locate(array)
        return place is not None and place.segment == self.segment

    def name(self) -> str:
        """Name by which others find the array, made at the first call."""
        self.check()
        name = self.manager.name(self.segment)
        return name if self.alone else f"{name}@{self.start}"

    def address(self, array: Array) -> Address:
        """Address of a view in the lease."""
        self.check()
        name = self.manager.name(self.segment)
        return Address(
            name=name,
            size=self.segment.size,
            offset=self._offset + address_of(array) - address_of(self.root),
            shape=array.shape,
            strides=array.strides,
            dtype=array.dtype,
            start=self.start,
            writable=array.flags.writeable,
            identity=self.segment.identity(),
            file=self.segment.kind == "file",
        )

    def lock(self) -> Lock:
        """Give the lock of the array, whichever of its views asks."""
        if self._lock is None:
            self.check()
            identity = self.segment.identity()
            self._lock = lock_of(identity, self.start, self._reopen)
        return self._lock

    def _reopen(self) -> int:
        """Open the segment anew: a duplicate would share the lock with whoever it came from."""
        path, flags = f"/dev/fd/{self.segment.fileno()}", os.O_RDWR | os.O_CLOEXEC
        return open_with_retry(lambda: os.open(path, flags))


def part(name: str) -> tuple[str, int]:
    """Split the name of an array that shares its segment into the segment's and its first byte.

    Examples
    --------
    >>> part("shmpar_0123456789abcdef@64"), part("mine")
    (('shmpar_0123456789abcdef', 64), ('mine', 0))
    """
    found = _PART.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, 0)


_Shape = TypeVar("_Shape", bound=tuple[int, ...])
_DType = TypeVar("_DType", bound=np.dtype[Any])
Plain = np.ndarray[Any, Any]

# Methods of ndarray that may return new memory in the type of the array they are called on.
# Those that always return a view (T, view, transpose, squeeze, ...) need no help.
_MAKERS: Final = (
    *(
        [
            "all",
            "any",
            "argmax",
            "argmin",
            "argpartition",
            "argsort",
            "astype",
            "byteswap",
            "choose",
            "clip",
            "compress",
        ]
    ),
    *(
        [
            "conj",
            "conjugate",
            "copy",
            "cumprod",
            "cumsum",
            "dot",
            "flatten",
            "max",
            "mean",
            "min",
            "nonzero",
            "prod",
            "ravel",
        ]
    ),
    *(["repeat", "reshape", "round", "searchsorted", "std", "sum", "take", "trace", "var"]),
    *(["__copy__", "__deepcopy__", "__getitem__"]),
)


class SharedArray(np.ndarray[_Shape, _DType]):
    """An array in shared memory; made by :func:`shmpar.array`, :func:`shmpar.attach` and the like.

    It is used as any ndarray.  Views of it lie in the same segment and are SharedArrays too;
    everything else that is computed from it is a plain ndarray.  Pickled, it is its address: the
    process that loads it sees the same memory, and never removes it.

    Leaving a ``with`` block closes it.

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

    __array_priority__ = -100.0  # as np.memmap's: other subclasses go first
    _lease: Lease | None

    def __new__(cls, *_: Any, **__: Any) -> SharedArray[Any, Any]:
        """Refuse: a constructor would not say where the memory comes from."""
        raise TypeError("make a SharedArray with shmpar.array(), zeros(), attach() and the like")

    def __array_finalize__(self, parent: Plain | None) -> None:
        self._lease = getattr(parent, "_lease", None)

    @property
    def address(self) -> dict[str, Any]:
        """All that another process needs to find this array, as JSON; a view has its own.

        The segment gets a name by this.

        Raises
        ------
        SegmentGone
            It was closed.

        Examples
        --------
        >>> from shmpar.arrays import attach, zeros
        >>> a = zeros(3)
        >>> attach(a.address)[1:].shape
        (2,)
        """
        return self._leased().address(self).to_json()

    @property
    def name(self) -> str:
        """Name of the segment, as in ``/dev/shm``; made at the first call.

        Raises
        ------
        SegmentGone
            It was closed.
        """
        return self._leased().name()

    @property
    def owner(self) -> bool:
        """Whether the segment is removed with this array."""
        return self._lease is not None and self._lease.owner

    @property
    def lock(self) -> Lock:
        """The lock of this array, one for all processes and views; freed if its holder dies.

        Examples
        --------
        >>> from shmpar.arrays import zeros
        >>> a = zeros(1)
        >>> with a.lock:
        ...     a[0] += 1
        """
        return self._leased().lock()

    @property
    def closed(self) -> bool:
        """Whether the array can no longer be shared; its values stay readable."""
        return self._lease is None or self._lease.closed

    def close(self) -> None:
        """Remove the name and end the sharing, of all views; twice is once.

        Values that are held stay readable and writable, in this process and in those that have
        attached.
        """
        if self._lease is not None:
            self._lease.close()

    def __enter__(self) -> SharedArray[_Shape, _DType]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _leased(self) -> Lease:
        if self._lease is None or not self._lease.holds(self):
            raise SegmentGone(
                "this array does not lie in shared memory (it is a copy that kept the type); "
                "share it with shmpar.array()"
            )
        return self._lease

    def __reduce__(self) -> Any:
        """Pickle as an address; what does not lie in the segment, by value."""
        if self._lease is None or not self._lease.holds(self):
            return self.view(np.ndarray).__reduce__()
        return _load, (self.address,)

    def __reduce_ex__(self, protocol: Any, /) -> Any:
        if self._lease is None or not self._lease.holds(self):
            return self.view(np.ndarray).__reduce_ex__(protocol)
        return self.__reduce__()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Compute on plain views: the result is plain, ``out`` is what was passed."""
        out = kwargs.get("out")
        if out is not None:
            kwargs["out"] = tuple(_plain(each) for each in out)
        result = getattr(ufunc, method)(*map(_plain, inputs), **_plain_where(kwargs))
        if out is None or result is None or result is NotImplemented:
            return result
        if len(out) == 1:
            return out[0]
        return tuple(new if old is None else old for new, old in zip(result, out, strict=True))

    def __array_function__(
        self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        """Call on plain views: of the results, those that lie in the segment are shared again."""
        seen: dict[int, Any] = {}  # plain view -> what it is a view of
        result = func(*_unwrapped(args, seen), **_unwrapped(kwargs, seen))
        return _rewrapped(result, seen)

    def __array_wrap__(
        self, array: Plain, context: Any = None, return_scalar: bool = False, /
    ) -> Any:
        """Give results of functions that are written for subclasses: plain unless views."""
        plain = _plain(array)
        return plain[()] if return_scalar else _again(self, plain)

    @property
    def imag(self) -> Any:
        """Imaginary part: a view of a complex array, plain zeros of a real one."""
        return _again(self, self.view(np.ndarray).imag)

    @imag.setter
    def imag(self, value: Any) -> None:
        self.view(np.ndarray).imag = value


def over(root: Plain, lease: Lease) -> SharedArray[Any, Any]:
    """Look at a plain array as a shared one."""
    shared = root.view(SharedArray)
    shared._lease = lease  # noqa: SLF001 (the constructor of its class)
    return shared


def _load(address: dict[str, Any]) -> SharedArray[Any, Any]:
    """Unpickle: attach, without ever owning."""
    from shmpar.arrays.attach import attach

    return attach(address)


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if type(value) is SharedArray else value


def _plain_where(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Replace a ufunc's ``where=``, which may be a shared array too."""
    if "where" in kwargs:
        kwargs["where"] = _plain(kwargs["where"])
    return kwargs


def _again(parent: SharedArray[Any, Any], result: Any) -> Any:
    """Share a result again if it is a view of its parent's segment."""
    lease = parent._lease  # noqa: SLF001 (its class)
    if type(result) is np.ndarray and result.base is not None and lease is not None:
        return over(result, lease) if lease.holds(result) else result
    return result


def _unwrapped(value: Any, seen: dict[int, Any]) -> Any:
    """Replace shared arrays by plain views, in the containers that NumPy's functions take."""
    if type(value) is SharedArray:
        plain = value.view(np.ndarray)
        seen[id(plain)] = (plain, value)
        return plain
    if type(value) in {list, tuple}:
        return type(value)([_unwrapped(each, seen) for each in value])
    if type(value) is dict:
        return {key: _unwrapped(each, seen) for key, each in value.items()}
    return value


def _rewrapped(value: Any, seen: dict[int, Any]) -> Any:
    """Give what was passed (``out=``) back as it came, and share views again."""
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, (list, tuple)):
        return _rebuilt(value, [_rewrapped(each, seen) for each in value])
    if type(value) is np.ndarray and value.base is not None:
        parents = (parent for _, parent in seen.values())
        shared = (_again(parent, value) for parent in parents)
        return next((each for each in shared if each is not value), value)
    return value


def _rebuilt(old: Any, values: list[Any]) -> Any:
    """Keep the type of a result, named tuples as those of ``np.linalg`` too."""
    return type(old)(*values) if hasattr(old, "_fields") else type(old)(values)


def _delegate(name: str) -> Callable[..., Any]:
    plain_method = getattr(np.ndarray, name)

    def method(self: SharedArray[Any, Any], *args: Any, **kwargs: Any) -> Any:
        plain = self.view(np.ndarray)
        result = plain_method(plain, *args, **kwargs)
        return self if result is plain else _again(self, result)

    method.__name__, method.__doc__ = name, plain_method.__doc__
    method.__qualname__ = f"SharedArray.{name}"
    return method


for _name in _MAKERS:
    setattr(SharedArray, _name, _delegate(_name))
