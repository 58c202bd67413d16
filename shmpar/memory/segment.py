"""Which bytes an array touches, by arithmetic on Python integers.

Imports nothing.

Guarantees
----------
Nothing wraps: shapes whose size overflows 64 bits give a large number, never a small one.

Mapped memory that lives exactly as long as something looks at it.

Imports the standard library and NumPy.

Guarantees
----------
A mapping is unmapped by the death of its last view, never by a call: a view cannot fault.
What dies only appends to a deque.  The collector may run while ``_lock`` is held by the same
thread, and a finalizer that took it would wait for itself.
A range whose mapping died may be handed out again by the kernel before it is swept; a lookup
sweeps first, and asks the weak reference, so it never answers with a dead mapping.

The state of a segment: its file, its name, its mapping and whom to tell of its end.

Imports ``shmpar.errors`` and the mapping, naming, marker and descriptors beside it.

Guarantees
----------
A backing lives as long as a :class:`Segment` or a view of its memory does; then, or at ``close()``,
its name is removed, its descriptor closed and its subscribers called, once.
That end may come inside a finalizer, at any point of any thread: it takes no lock; what must
happen once is popped from a list, which is atomic.
In a forked child the end does nothing: names belong to the parent, and the numbers of its
descriptors may mean other files by then.

Segments: memory that several processes can map.

Imports NumPy, ``shmpar.errors``, and the backing, descriptors, extent, ladder and mapping beside
it.

Guarantees
----------
A :class:`Segment` is a handle: it, and every array over its mapping, keeps the memory alive;
nothing else does.  Two handles are equal if their segment is the same.
``key`` is never used twice in one interpreter.

Slabs: segments that many small results share.

Imports segment and place beside it.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import os
import sys
import threading
import weakref
from bisect import bisect_right, insort
from collections import deque
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from shmpar.errors import SegmentFull, SegmentGone
from shmpar.memory import allocate, limits, names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmpar.memory.names import Marker


def byte_bounds(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, int]:
    """Bytes [low, high) touched, relative to the element [0, ..., 0]; (0, 0) if there is none.

    Examples
    --------
    >>> byte_bounds((3, 4), (-32, 8), 8)
    (-64, 32)
    """
    low, high = 0, itemsize
    for n, step in zip(shape, strides, strict=True):
        if n == 0:
            return 0, 0
        if step < 0:
            low += (n - 1) * step
        else:
            high += (n - 1) * step
    return low, high


def dense_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Strides in bytes of a C-ordered array without gaps.

    Examples
    --------
    >>> dense_strides((3, 4), 8)
    (32, 8)
    """
    steps, step = [], itemsize
    for n in reversed(shape):
        steps.append(step)
        step *= max(n, 1)
    return tuple(reversed(steps))


def lies_within(size: int, offset: int, touched: tuple[int, int]) -> bool:
    """Whether an array whose first element lies at ``offset`` stays within ``size`` bytes."""
    low, high = offset + touched[0], offset + touched[1]
    return low >= 0 and high <= size and 0 <= offset <= size


def dense_nbytes(shape: Sequence[int], itemsize: int) -> int:
    """Bytes of a dense array."""
    return math.prod(shape) * itemsize


_lock = threading.Lock()
_starts: list[int] = []  # sorted
_mappings: dict[int, weakref.ref[Mapping]] = {}
_dead: deque[int] = deque()
# Since 3.13 a mapping needs no descriptor of its own.
_UNTRACKED: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class Mapping(mmap.mmap):
    """The whole of a segment in this process' memory.

    Attributes
    ----------
    backing : Backing
        The segment's state, which therefore lives as long as any view.
    start : int
        Address of its first byte.
    """

    __slots__ = ("backing", "start")
    backing: Backing
    start: int

    def __new__(cls, backing: Backing) -> Self:
        """Map all of a segment's file, privately if the backing says so."""
        flags = mmap.MAP_PRIVATE if backing.private else mmap.MAP_SHARED
        writable = backing.writable or backing.private
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self = super().__new__(cls, backing.fileno(), backing.size, flags, prot, **_UNTRACKED)
        self.backing = backing
        self.start = _address(self, writable=writable)
        _register(self)
        return self

    def close(self) -> None:
        """Do nothing: arrays may look at this memory, and it goes with the last of them."""

    def __del__(self) -> None:
        if hasattr(self, "start"):  # else it could not be mapped
            _dead.append(self.start)


def _address(memory: mmap.mmap, *, writable: bool) -> int:
    """Address of a mapping's first byte; ctypes knows it in a tenth of the time, if writable."""
    if writable:
        return ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return address_of(np.ndarray((1,), np.uint8, memory))


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Address of the element [0, ..., 0]."""
    return int(array.__array_interface__["data"][0])


def find_mapping(address: int) -> Mapping | None:
    """Find the mapping of ours in which an address lies.  Cost: 0.5 us."""
    with _lock:
        if _dead:
            _sweep()
        position = bisect_right(_starts, address) - 1
        if position < 0:
            return None
        mapping = _mappings[_starts[position]]()
    if mapping is None:  # dying in another thread at this instant: look below its range
        return _below(address)
    return mapping if address < mapping.start + len(mapping) else None


def _below(address: int) -> Mapping | None:
    alive = [ref() for start, ref in list(_mappings.items()) if start <= address]
    return next((m for m in alive if m is not None and address < m.start + len(m)), None)


def _register(mapping: Mapping) -> None:
    with _lock:
        _sweep()
        if mapping.start not in _mappings:
            insort(_starts, mapping.start)
        _mappings[mapping.start] = weakref.ref(mapping)


def _sweep() -> None:
    """Forget the ranges of the dead, unless a new mapping took the place.  Needs ``_lock``."""
    while _dead:
        start = _dead.popleft()
        found = _mappings.get(start)
        if found is not None and found() is None:
            del _mappings[start]
            del _starts[bisect_right(_starts, start) - 1]


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 (another thread of the parent may have held it)
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


_keys = itertools.count(1)
_backing_lock = threading.RLock()  # makes mappings and names; no finalizer takes it
_known: weakref.WeakValueDictionary[names.Identity, Backing] = weakref.WeakValueDictionary()


class Backing:
    """What all handles and views of one segment share.

    Parameters
    ----------
    fd : int
        Descriptor, taken over.
    size : int
        Bytes, at least 1.
    kind : str
        "shm", "memfd", "tempfile" or "file".
    key : int, optional
        Number of the segment; by default the next one of this interpreter.
    writable, private : bool
        Whether the file may be written; whether writes stay in this process.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_fds",
        "_mapping",
        "_names",
        "_pid",
        "key",
        "kind",
        "path",
        "private",
        "shared",
        "size",
        "writable",
    )

    def __init__(
        self,
        fd: int,
        size: int,
        kind: str,
        *,
        key: int | None = None,
        writable: bool = True,
        private: bool = False,
    ) -> None:
        self._names: list[tuple[str, Marker]] = []  # the marker goes with its last name
        self._callbacks: list[Callable[[int], object]] = []
        self._mapping: weakref.ref[Mapping] | None = None
        self._pid = os.getpid()
        self.key = next(_keys) if key is None else key
        self.size, self.kind = size, kind
        self.writable, self.private = writable, private
        self.shared = False  # whether several arrays lie in it
        self.path: str | None = None  # of a user's mapped file, or of a segment made elsewhere
        self._fds = [fd]  # last: an interrupt before leaves nothing to end
        limits.born(id(self))

    @property
    def closed(self) -> bool:
        """Whether it was closed; its memory may still be looked at."""
        return not self._fds

    def fileno(self) -> int:
        """Give the descriptor.

        Raises
        ------
        SegmentGone
            It was closed.
        """
        try:
            return self._fds[0]
        except IndexError:
            raise SegmentGone(
                "the segment was closed (by close(), by leaving its with block, or with its pool): "
                "values that are held stay readable, but it can no longer be shared"
            ) from None

    def identity(self) -> names.Identity:
        """Device and inode of the file."""
        found = os.fstat(self.fileno())
        return found.st_dev, found.st_ino

    def mapping(self) -> Mapping:
        """Map the whole segment, or give the mapping that lives."""
        found = self._mapping() if self._mapping is not None else None
        return found if found is not None else self._map()

    def _map(self) -> Mapping:
        with _backing_lock:
            found = self._mapping() if self._mapping is not None else None
            if found is None:
                limits.keep_standard_streams()
                found = limits.open_with_retry(lambda: Mapping(self))
                self._mapping = weakref.ref(found)
            return found

    def subscribe(self, callback: Callable[[int], object]) -> None:
        """Have ``callback(key)`` called once at the end; at once if that has been."""
        self._callbacks.append(callback)
        if self.closed:
            self._tell()

    @property
    def name(self) -> str | None:
        """The name by which others find it now, if it has one."""
        if self.path is not None:
            return self.path
        try:
            return self._names[0][0]
        except IndexError:
            return None

    def link(self, marker: Callable[[], Marker], name: str | None = None) -> str:
        """Give the segment a name, listed by a marker before it exists; or say the one it has.

        Where it cannot have one (no file in ``/dev/shm``, or a forked child asks) the name is that
        of the descriptor, which others can open while this process holds it.
        """
        with _backing_lock:
            if self.name is not None:
                return self.name
            fd, identity = self.fileno(), self.identity()
            _known[identity] = self
            if self.kind != "shm" or self._pid != os.getpid():
                return names.descriptor_name(fd)
            chosen = name or names.generate_name()
            try:
                listed = marker()
                listed.record(chosen, identity)
                self._names.append((chosen, listed))  # first: an interrupt may follow the link
                names.link(fd, chosen)
            except BaseException as error:
                if not names.leads(chosen, identity):
                    self._names.clear()
                if isinstance(error, OSError) and error.errno in allocate.FULL:
                    raise SegmentFull(
                        f"no room in {allocate.SHM} for a name: {error.strerror}; drop arrays, or "
                        "remove files there that nobody needs (python -m shmpar ls shows ours)"
                    ) from None
                raise
            return chosen

    def own(self, marker: Callable[[], Marker]) -> None:
        """Remove the name at the end, as if it had been made here."""
        with _backing_lock:
            if self.path is not None and "/" not in self.path:
                listed = marker()
                listed.record(self.path, self.identity())
                self._names.append((self.path, listed))
                self.path = None

    def unlink(self) -> None:
        """Remove the name, if it was given here."""
        while self._names and self._pid == os.getpid():
            names.remove(self._names[0][0], self.identity())
            self._names.pop(0)

    def close(self) -> None:
        """End the sharing: no name, no descriptor; views keep the memory.  Twice is once."""
        if self._pid != os.getpid():
            self._fds.clear()
            return
        try:
            self.unlink()
            fd = self._fds.pop()
        except (IndexError, SegmentGone):  # closed before, or by another thread just now
            return
        os.close(fd)
        limits.died(id(self))
        self._tell()

    def _tell(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return
            callback(self.key)

    def __del__(self) -> None:
        """Close it, if it was made."""
        if hasattr(self, "_fds"):
            self.close()


def find_segment(identity: names.Identity) -> Backing | None:
    """Find the open segment of this process that is that file."""
    found = _known.get(identity)
    return None if found is None or found.closed else found


def remember_segment(backing: Backing) -> None:
    """Let :func:`find_segment` find a segment that was attached."""
    _known[backing.identity()] = backing


def _backing_after_fork() -> None:
    global _backing_lock  # noqa: PLW0603 (another thread of the parent may have held it)
    _backing_lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_backing_after_fork)


class Segment:
    """A handle on a piece of memory that several processes can map.

    Attributes
    ----------
    key : int
        Number of the segment, unique in this interpreter; in a worker the parent's.
    size : int
        Bytes, at least 1.
    kind : str
        "shm" (a nameless file in /dev/shm), "memfd", "tempfile", or "file": a mapped file
        of the user's.
    writable : bool
        Whether arrays over it may be written.
    private : bool
        Whether what is written stays in this process (copy on write).

    Examples
    --------
    >>> segment = create(80)
    >>> a = segment.ndarray(0, (2, 5), None, np.dtype("f8"))
    >>> a.sum(), segment.size
    (np.float64(0.0), 80)
    """

    __slots__ = ("__weakref__", "_mapping", "backing")

    def __init__(self, backing: Backing, mapping: Mapping | None = None) -> None:
        self.backing = backing
        self._mapping = mapping

    @classmethod
    def make(cls, nbytes: int, fill: allocate.Fill | None = None) -> Segment:
        """Make a nameless segment whose bytes ``fill(descriptor, nbytes)`` writes."""
        size = max(1, nbytes)
        fd, kind = allocate.make(size, fill)
        return cls(Backing(fd, size, kind))

    @classmethod
    def adopt(
        cls,
        fd: int,
        size: int,
        *,
        kind: str,
        key: int | None = None,
        writable: bool = True,
        private: bool = False,
    ) -> Segment:
        """Take over a descriptor that another process sent.

        Parameters
        ----------
        fd : int
            The descriptor; it is closed with the segment.
        size : int
            Bytes.
        kind : str
            The sender's kind.
        key : int, optional
            The sender's number of the segment; by default it gets one of this interpreter's.
        writable : bool
            Whether arrays over it may be written.
        private : bool
            Map it copy on write: writable, and no write is seen elsewhere.
        """
        limits.reserve_descriptors(fd)
        backing = Backing(fd, size, kind, key=key, writable=writable or private, private=private)
        return cls(backing)

    @property
    def key(self) -> int:
        """Number of the segment, unique in this interpreter."""
        return self.backing.key

    @property
    def size(self) -> int:
        """Bytes, at least 1."""
        return self.backing.size

    @property
    def kind(self) -> str:
        """Where it lies: "shm", "memfd", "tempfile" or "file"."""
        return self.backing.kind

    @property
    def writable(self) -> bool:
        """Whether arrays over it may be written."""
        return self.backing.writable

    @property
    def private(self) -> bool:
        """Whether what is written stays in this process."""
        return self.backing.private

    @property
    def closed(self) -> bool:
        """Whether the segment was closed; views that are held stay readable."""
        return self.backing.closed

    @property
    def mapping(self) -> Mapping:
        """The whole segment in this process' memory, mapped at first use."""
        if self._mapping is None:
            self._mapping = self.backing.mapping()
        return self._mapping

    def fileno(self) -> int:
        """Give the descriptor, to be sent to a worker.

        Raises
        ------
        SegmentGone
            The segment was closed.
        """
        return self.backing.fileno()

    def subscribe(self, callback: Callable[[int], object]) -> None:
        """Have ``callback(key)`` called once: when the memory is dropped, or at ``close()``.

        It may be called from a finalizer, in any thread and under any lock: it must not lock.
        It is not called in a forked child.
        """
        self.backing.subscribe(callback)

    def close(self) -> None:
        """Remove the name and close the descriptor; views stay valid.  Twice is once."""
        self.backing.close()

    def reserve(self, start: int, stop: int) -> None:
        """Make sure that the bytes [start, stop) of a mapped file have room on its disk.

        What :func:`create` made is reserved already.  A write to a hole of a mapped file on a
        full disk is SIGBUS.

        Raises
        ------
        SegmentFull
            They have not.
        """
        if self.kind == "file" and stop > start:
            allocate.reserve_range(self.fileno(), start, stop)

    def ndarray(
        self,
        offset: int,
        shape: Sequence[int],
        strides: Sequence[int] | None,
        dtype: np.dtype[Any],
        *,
        writable: bool = True,
    ) -> np.ndarray[Any, Any]:
        """Look at the segment as an array; exactly a ``numpy.ndarray``.

        Parameters
        ----------
        offset : int
            Byte at which the element [0, ..., 0] lies.
        shape : sequence of int
            Elements along each axis.
        strides : sequence of int or None
            Bytes along each axis; None is C order without gaps.
        dtype : dtype
            Without Python objects.
        writable : bool
            False gives a read-only array; so does a read-only segment.

        Raises
        ------
        ValueError
            The array would reach outside of the segment.

        Notes
        -----
        Cost: 2 us; the first one of a segment maps it (10 us).
        """
        touched = (
            (0, dense_nbytes(shape, dtype.itemsize))
            if strides is None
            else byte_bounds(shape, strides, dtype.itemsize)
        )
        if not lies_within(self.size, offset, touched):
            raise ValueError(
                f"an array of shape {tuple(shape)}, strides {strides} and dtype {dtype} at "
                f"offset {offset} reaches outside of a segment of {self.size:,} bytes"
            )
        # numpy keeps a reference to the mapping, but no buffer: nothing may ever close it
        array = np.ndarray(shape, dtype, self.mapping, offset, strides)
        if not writable:
            array.flags.writeable = False
        return array

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Segment) and other.backing is self.backing

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size:,} bytes"
        return f"<Segment {self.key}: {self.kind}, {state}>"


def create(nbytes: int, *, what: str = "array") -> Segment:
    """Make a nameless segment of zeros that belongs to no manager: it goes with its last view.

    Parameters
    ----------
    nbytes : int
        Bytes; 0 is 1.
    what : str
        What an error calls it.

    Raises
    ------
    SegmentFull
        It cannot fit anywhere; says where was looked and how much was free.

    Notes
    -----
    Cost: 10 us and the zeroing of ``nbytes`` (3.6 GB/s).

    Examples
    --------
    >>> create(0).size
    1
    """
    try:
        return Segment.make(nbytes)
    except SegmentFull as error:
        raise SegmentFull(f"{what}: {error}") from None


_SIZE = 64 << 10  # bytes: what one small result that is kept can hold back
_SMALL = 4 << 10  # bytes; making a segment costs thirty times as much as taking a piece of one
_ALIGN = 64  # bytes: one cache line


class Location(NamedTuple):
    """Where an array lies.

    Attributes
    ----------
    segment : Segment
        The memory.
    offset : int
        Byte of the segment at which the array's element [0, ..., 0] lies.
    """

    segment: Segment
    offset: int


class Slab:
    """Gives out pieces of a segment, and takes a new one when it is full.

    Pieces are never used twice, so each reads as zeros.  It holds the segment that it gives out;
    each segment goes with the last array in it, and with this.

    Examples
    --------
    >>> slab = Slab()
    >>> one, two = slab.take(80), slab.take(80)
    >>> one.segment == two.segment, two.offset
    (True, 128)
    >>> slab.take(1 << 20) is None
    True
    """

    def __init__(self) -> None:
        self._segment: Segment | None = None
        self._filled = 0

    def take(self, nbytes: int) -> Location | None:
        """Room for an array of so many bytes; None if it is too large to share a segment."""
        if nbytes > _SMALL:
            return None
        if self._segment is None or self._filled + nbytes > _SIZE:
            self._segment, self._filled = create(_SIZE, what="output"), 0
        place = Location(self._segment, self._filled)
        self._filled += -(-nbytes // _ALIGN) * _ALIGN
        return place


def new_output(
    shape: tuple[int, ...], dtype: np.dtype[Any], slab: Slab | None = None
) -> np.ndarray[Any, Any]:
    """An array in a segment that lives as long as its views."""
    nbytes = prod(shape) * dtype.itemsize
    place = None if slab is None else slab.take(nbytes)
    if place is None:
        place = Location(create(nbytes, what="output"), 0)
    return place.segment.ndarray(place.offset, shape, None, dtype)
