"""Segments: memory that several processes can map, and arrays over it.

A :class:`Segment` is a file with its descriptor and perhaps a name.  A :class:`Mapping` is the
file in the memory of this process.  An array over a segment holds the mapping, and the mapping
holds the segment.

Guarantees
----------
The last view unmaps a mapping, and no call does: a view cannot fault.
A segment lives as long as a reference to it or a view of its memory.  Then, or at ``close()``, its
name is removed, its descriptor is closed and its subscribers are called, each once.
This end may come inside a finalizer, at any point of any thread, so it takes no lock.
A call that such an end overtakes raises `SegmentGone`; no call names, locks or maps another file.
In a forked child the end does nothing: the names belong to the parent, and the numbers of its
descriptors may denote other files by then.
A lookup by address never returns a dead mapping, although the kernel reuses addresses.
``key`` is never reused in one interpreter.
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys
import threading
import weakref
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from operator import itemgetter
from typing import Any, Final, NamedTuple, Self

import numpy as np

from shmpar.errors import SegmentFull, SegmentGone
from shmpar.memory import allocate, huge, limits, names, reuse, system
from shmpar.memory.layout import address_of, dense_nbytes, has_padding, lies_within
from shmpar.memory.names import Identity, NameRegistry

Array = np.ndarray[Any, Any]
Dtype = np.dtype[Any]
Ints = Sequence[int]


# Why: since Python 3.13 a mapping can do without a descriptor of its own.
_UNTRACKED: Final[dict[str, Any]] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class Mapping(huge.Range):
    """A whole segment in the memory of this process.

    Attributes
    ----------
    segment : Segment
        The segment, which therefore lives as long as any view.
    start : int
        Address of the first byte.
    """

    __slots__ = ("segment", "start")
    segment: Segment
    start: int

    def __new__(cls, segment: Segment, *, writable: bool = True) -> Self:
        """Map the file of a segment; copy on write if the segment is private."""
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if segment.writable and writable else 0)
        segment.check_whole()
        purpose = f"a mapping of {segment.size:,} bytes in this process"
        try:
            with system.room_for(purpose, system.ADDRESS_SPACE):
                self = cls._aligned(segment, prot) or cls._anywhere(segment, prot)
        finally:
            segment.fileno()  # Why: as in Segment.status()
        self.segment = segment
        self.start = address_of(np.ndarray(1, np.uint8, self)) + self.lead
        _register(self)
        return self

    @classmethod
    def _anywhere(cls, segment: Segment, prot: int) -> Self:
        flags = mmap.MAP_PRIVATE if segment.private else mmap.MAP_SHARED
        self = super().__new__(cls, segment.fileno(), segment.size, flags, prot, **_UNTRACKED)
        self.lead = 0
        return self

    @classmethod
    def _aligned(cls, segment: Segment, prot: int) -> Self | None:
        """Map a segment so that its huge pages are mapped as such; None if it has none."""
        if segment.size < huge.MIN_BYTES or segment.private or segment.kind not in huge.KINDS:
            return None
        with suppress(OSError, ImportError):
            return huge.new_range(cls, segment.fileno(), segment.size, prot)
        return None

    def close(self) -> None:
        """Do nothing: arrays may use this memory, so the last of them unmaps it."""


# Lock: protects _mappings.  No finalizer takes it: the garbage collector may run while the same
# thread holds it.
_mappings_lock = threading.Lock()
# Invariant: sorted by address; no other one begins within the bytes of a living one.
_mappings: list[tuple[int, weakref.ref[Mapping]]] = []
_start_of: Final = itemgetter(0)


def find_mapping(address: int) -> Mapping | None:
    """Return the mapping of a segment in which an address lies.

    Notes
    -----
    Cost: a binary search under a lock.
    """
    with _mappings_lock:
        position = bisect_right(_mappings, address, key=_start_of)
        mapping = _mappings[position - 1][1]() if position else None
    inside = mapping is not None and address < mapping.start + mapping.segment.size
    return mapping if inside else None


def _register(mapping: Mapping) -> None:
    with _mappings_lock:
        first = bisect_left(_mappings, mapping.start, key=_start_of)
        last = bisect_left(_mappings, mapping.start + mapping.segment.size, key=_start_of)
        # Why: a mapping that began within these addresses is dead, since they were free.
        while first and _mappings[first - 1][1]() is None:
            first -= 1
        _mappings[first:last] = [(mapping.start, weakref.ref(mapping))]


def _nothing() -> None:
    """Stand for a mapping that there is not yet."""


_REMOVE_NAMES: Final = (
    "drop arrays, or remove files there that nobody needs (python -m shmpar ls shows ours)"
)
_keys = itertools.count(1)
# Lock: held while a segment is mapped or named.  Managers take their own lock inside it.
_segments_lock = threading.RLock()
_by_identity: weakref.WeakValueDictionary[Identity, Segment] = weakref.WeakValueDictionary()


class Segment:
    """Memory that several processes can map.

    Parameters
    ----------
    fd : int
        Descriptor, which is closed with the segment.
    size : int
        Bytes, at least 1.
    kind : str
        "shm" (a file in /dev/shm), "memfd", "tempfile", or "file": a mapped file of the user's.
    key : int, optional
        Number of the segment, unique in this interpreter; in a worker the number of the parent.
        Default: the next one.
    writable : bool
        True if arrays over it may be written.
    private : bool
        True if writes stay in this process (copy on write).

    Attributes
    ----------
    divided : bool
        True if several named arrays lie in it.
    reserved : bool
        False if processes reserve its bytes before they write to them.
    purpose : str
        Its purpose, for `Pool.memory` and errors.
    huge_bytes : int
        Bytes that lie in huge pages, if this process made it.
    own : bool
        This process made it, and no other one was told where to open it.
    stale : bool
        It began with the values of a segment that has ended.
    path : str or None
        Path of a mapped file of the user's, or name of a segment made elsewhere.

    Examples
    --------
    >>> segment = create(80)
    >>> a = segment.ndarray(0, (2, 5), None, np.dtype("f8"))
    >>> a.sum(), segment.size
    (np.float64(0.0), 80)
    """

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
        # Invariant: actions that happen once are popped from these lists, which is atomic.
        self._names: list[tuple[str, NameRegistry]] = []  # at most one
        self._callbacks: list[Callable[[int], object]] = []
        self._mappings: list[Callable[[], Mapping | None]] = [_nothing, _nothing]
        self._kept: list[Mapping] | None = None
        self._pid = os.getpid()
        self.key = next(_keys) if key is None else key
        self.size, self.kind = size, kind
        self.writable, self.private, self.reserved = writable or private, private, True
        self.divided, self.purpose, self.huge_bytes = False, "array", 0
        self.own, self.stale = False, False
        self.path: str | None = None
        self._fds = [fd]  # Why: last, so that an interrupt before this leaves nothing to close
        limits.register(id(self))

    @classmethod
    def of(cls, file: allocate.File, size: int, purpose: str = "array") -> Segment:
        """Make a segment of a new file."""
        segment = cls(file.fd, size, file.kind)
        segment.huge_bytes, segment.purpose = file.huge_bytes, purpose
        segment.own = file.kind in huge.KINDS
        return segment

    @classmethod
    def adopt(cls, fd: int, size: int, *, reserved: bool = True, **options: Any) -> Segment:
        """Make a segment of a descriptor that another process sent; the parameters are the same."""
        limits.reserve_descriptors(fd)
        segment = cls(fd, size, **options)
        segment.reserved = reserved
        return segment

    @property
    def closed(self) -> bool:
        """True if the segment was closed; views that exist stay readable."""
        return not self._fds

    def fileno(self) -> int:
        """Return the descriptor.

        Raises
        ------
        SegmentGone
            The segment was closed.
        """
        try:
            return self._fds[0]
        except IndexError:
            raise SegmentGone(
                "the segment was closed (by close(), by leaving its with block, or with its pool): "
                "existing arrays stay readable, but they can no longer be shared"
            ) from None

    def status(self) -> os.stat_result:
        """Return the status of the file."""
        try:
            return os.fstat(self.fileno())
        finally:
            # Why: if another thread has closed the segment, the number may denote another file.
            self.fileno()

    def duplicate(self, opens: Callable[[int], int]) -> int:
        """Return a new descriptor, which a function opens from that of the segment."""
        try:
            made = limits.open_with_retry(opens, self.fileno())
        except OSError:
            self.fileno()  # Why: as above
            raise
        with limits.ClosedOnError(made):
            self.fileno()
        return made

    def identity(self) -> Identity:
        """Return the device and inode of the file."""
        found = self.status()
        return found.st_dev, found.st_ino

    def check_whole(self) -> None:
        """Raise `SegmentError` if the file has become shorter; reading beyond its end is SIGBUS."""
        if self.status().st_size < self.size:
            raise system.shortened(f"an array in {self.path or self.kind} cannot be used")

    def is_file(self, fd: int) -> bool:
        """Return whether a descriptor is one of the file; False if the segment was closed."""
        with suppress(SegmentGone):
            return os.path.samestat(self.status(), os.fstat(fd))
        return False

    @property
    def mapping(self) -> Mapping:
        """The whole segment in the memory of this process, which keeps it mapped."""
        return self._map(writable=True)

    @property
    def memory(self) -> memoryview:
        """The bytes of the segment, which keep it mapped."""
        mapping = self.mapping
        # Why a part: the mapping of a large segment begins before the segment.
        return memoryview(mapping)[mapping.lead : mapping.lead + self.size]

    def _map(self, *, writable: bool) -> Mapping:
        found = self._mappings[writable]()
        if found is None:
            with _segments_lock:
                found = self._mappings[writable]()  # Why: another thread may have mapped it
                if found is None:
                    limits.keep_standard_streams()
                    found = limits.open_with_retry(Mapping, self, writable=writable)
                    self._mappings[writable] = weakref.ref(found)
                    if self._kept is not None:
                        self._kept.append(found)
        return found

    def keep_mapped(self) -> None:
        """Keep the segment mapped from its first use to :meth:`drop_mappings`."""
        self._kept = []

    def drop_mappings(self) -> None:
        """End :meth:`keep_mapped`; a mapping lives as long as its views."""
        self._kept = None

    def ndarray(
        self,
        offset: int,
        shape: Ints,
        strides: Ints | None,
        dtype: Dtype,
        *,
        writable: bool = True,
        protect: bool = False,
    ) -> Array:
        """Return an array over the segment; it is exactly a ``numpy.ndarray``.

        Parameters
        ----------
        offset : int
            Byte of the element [0, ..., 0].
        shape : sequence of int
            Elements along each axis.
        strides : sequence of int or None
            Bytes along each axis; None is C order without gaps.
        dtype : dtype
            Without Python objects.
        writable : bool
            False returns a read-only array; a read-only segment does so too.
        protect : bool
            Use a mapping that nobody can write to, not even by its address.

        Raises
        ------
        ValueError
            The array would reach outside of the segment.

        Notes
        -----
        Cost: maps the segment, unless it is mapped.
        """
        if not lies_within(self.size, offset, shape, strides, dtype.itemsize):
            raise ValueError(
                f"an array of shape {tuple(shape)}, strides {strides} and dtype {dtype} at "
                f"offset {offset} reaches outside of a segment of {self.size:,} bytes"
            )
        # Invariant: NumPy keeps a reference to the mapping, but no buffer, so nothing may close it.
        mapping = self._map(writable=not protect)
        array = np.ndarray(shape, dtype, mapping, mapping.lead + offset, strides)
        if not writable:
            array.flags.writeable = False
        return array

    def reserve(self, start: int, stop: int) -> None:
        """Reserve the bytes [start, stop) of a mapped file of the user's on its disk.

        Other segments are reserved when they are made, or by :meth:`reserve_rest`.

        Raises
        ------
        SegmentFull
            The disk is full.
        """
        if self.kind == "file" and stop > start:
            allocate.reserve_range(self.fileno(), start, stop)

    def info(self) -> SegmentInfo:
        """Return its facts."""
        return SegmentInfo(self.purpose, self.size, self.kind, self.name, self.huge_bytes)

    def unreserved(self) -> tuple[int, int]:
        """Return the device of the file, and the bytes that are not reserved yet."""
        with suppress(OSError):  # Why: another thread may be closing the segment
            if not self.reserved:
                found = self.status()
                return found.st_dev, max(0, self.size - 512 * found.st_blocks)
        return 0, 0

    def reserve_rest(self) -> None:
        """Reserve the bytes that no process has written to; from here on, any may be read.

        Raises
        ------
        SegmentFull
            There is no room.
        """
        if not self.reserved:
            allocate.reserve_range(self.fileno(), 0, self.size)
            self.reserved = True

    def subscribe(self, callback: Callable[[int], object]) -> None:
        """Call ``callback(key)`` once, at the end of the segment; at once if it has ended.

        The callback may run in a finalizer, in any thread and under any lock, so it must take no
        lock.  It is not called in a forked child.
        """
        self._callbacks.append(callback)
        if self.closed:
            self._notify()

    def _notify(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:  # Why: another thread may have popped the last one
                return
            callback(self.key)

    @property
    def name(self) -> str | None:
        """The name by which other processes find the segment now, if it has one."""
        if self.path is None and self.kind == "file":
            self.path = self._path_of_file()
        if self.path is not None:
            return self.path
        return next((name for name, _ in self._names), None)

    def _path_of_file(self) -> str | None:
        """Return the path of a mapped file of the user's that another process has sent."""
        with suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{self.fileno()}")
            return path if os.path.samestat(self.status(), os.stat(path)) else None
        return None

    def link(self, registry: Callable[[], NameRegistry], name: str | None = None) -> str:
        """Give the segment a name that a registry lists, unless it has one; return its name.

        A segment outside of ``/dev/shm``, or in a forked child, gets the name of its descriptor,
        which other processes can open while this process holds it.
        """
        self.own = False
        with _segments_lock:
            if self.name is not None:
                return self.name
            identity = self.identity()
            _by_identity[identity] = self
            if self.kind != "shm" or self._pid != os.getpid():
                return f"/proc/{os.getpid()}/fd/{self.fileno()}"
            own = self.duplicate(os.dup)
            try:
                return self._give_name(own, identity, registry, name)
            finally:
                os.close(own)

    def _give_name(
        self, fd: int, identity: Identity, registry: Callable[[], NameRegistry], name: str | None
    ) -> str:
        """Link a descriptor of the segment, which stays open meanwhile."""
        chosen = name or names.generate_name()
        try:
            with system.room_for(f"a name in {allocate.SHM}", _REMOVE_NAMES):
                listed = registry()
                listed.record(chosen, identity)
                # Why: before the link, so that an interrupt after the link leaves no name.
                self._names.append((chosen, listed))
                allocate.link_file(fd, f"{allocate.SHM}/{chosen}")
            self.fileno()  # raises SegmentGone if another thread has closed the segment
        except BaseException as error:
            if self.closed:
                names.remove(chosen, identity)
            if not names.points_to(chosen, identity):
                self._names.clear()
            if isinstance(error, SegmentGone):
                raise
            refused = isinstance(error, OSError) and error.errno in system.REFUSED
            # Why: the kernel gives such a file no second name after another process has removed
            # the first one.
            had_one = isinstance(error, FileNotFoundError) and os.path.exists(f"/proc/self/fd/{fd}")
            if (refused or had_one) and name is None:
                return f"/proc/{os.getpid()}/fd/{self.fileno()}"
            if refused or isinstance(error, FileNotFoundError):  # /proc is not mounted
                raise system.without_names(str(error)) from None
            raise
        return chosen

    def take_name(self, registry: Callable[[], NameRegistry]) -> None:
        """Take over the name that another process gave, to remove it at the end."""
        with _segments_lock:
            if self.path is not None and "/" not in self.path:
                listed = registry()
                listed.record(self.path, self.identity())
                self._names.append((self.path, listed))
                self.path = None

    def unlink(self) -> None:
        """Remove the name, if this process gave it."""
        with suppress(IndexError, SegmentGone):  # Why: another thread may be closing the segment
            while self._names and self._pid == os.getpid():
                names.remove(self._names[0][0], self.identity())
                self._names.pop(0)

    def close(self) -> None:
        """Remove the name and close the descriptor; views stay valid.  Calling it twice is safe.

        The file may be kept for a new segment, which gets it once no view is left.
        """
        if self._pid != os.getpid():
            self._fds.clear()
            return
        self.unlink()
        try:
            file = reuse.Kept(self._fds.pop(), self.size, self.kind, self.huge_bytes)
        except IndexError:  # closed before, perhaps by another thread at this instant
            return
        if self._names:  # Why again: another thread may have given it a name meanwhile
            found = os.fstat(file.fileno())
            with suppress(IndexError):
                names.remove(self._names.pop()[0], (found.st_dev, found.st_ino))
        limits.unregister(id(self))
        if self._callbacks:
            allocate.note_shared_end()
        self._notify()
        if self.own:
            reuse.keep(file)

    def __del__(self, _ends: Callable[[], bool] = sys.is_finalizing) -> None:
        if hasattr(self, "_fds"):  # Why: an interrupt may have stopped __init__
            try:
                self.close()
            except (AttributeError, TypeError):
                # Why: the last objects of an interpreter outlive the globals of modules.
                if not _ends():
                    raise

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size:,} bytes"
        return f"<Segment {self.key}: {self.kind}, {state}>"


def find_segment(identity: Identity) -> Segment | None:
    """Return the open segment of this process that is this file."""
    found = _by_identity.get(identity)
    return None if found is None or found.closed else found


def open_segments(known: weakref.WeakValueDictionary[int, Segment]) -> list[Segment]:
    """Return the segments of a record that live and are open; any thread may ask."""
    # Why references: another thread may add to the record, which no iteration survives.
    found = [reference() for reference in known.valuerefs()]
    return [one for one in found if one is not None and not one.closed]


def known_segment(fd: int, kind: str, path: str, *, writable: bool = True) -> Segment:
    """Make a segment of an open file that has a path; :func:`find_segment` finds it."""
    segment = Segment(fd, os.fstat(fd).st_size, kind, writable=writable)
    segment.path = path
    _by_identity[segment.identity()] = segment
    return segment


def _after_fork() -> None:
    # Lock: another thread of the parent may have held one of them.
    global _mappings_lock, _segments_lock
    _mappings_lock, _segments_lock = threading.Lock(), threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def create(
    nbytes: int,
    fill: allocate.Fill | None = None,
    *,
    purpose: str = "array",
    blank: bool = False,
) -> Segment:
    """Make a nameless segment that belongs to no manager; it ends with its last view.

    Parameters
    ----------
    nbytes : int
        Bytes; 0 means 1.
    fill : callable, optional
        Writes every byte.  Default: zeros.
    purpose : str
        The purpose, for errors.
    blank : bool
        Bytes that the function leaves are zeros; else they may have values of an ended segment.

    Raises
    ------
    SegmentFull
        It fits nowhere; the message lists the sources and their free bytes.

    Notes
    -----
    Cost: the kernel zeroes the memory.

    Examples
    --------
    >>> create(0).size
    1
    """
    size = max(1, nbytes)
    if size > sys.maxsize:
        raise SegmentFull(f"{purpose}: a segment of {size:,} bytes is too large to address")
    try:
        if fill is not None and not blank and (found := reuse.take(size)) is not None:
            fill(found.fileno(), size)
            file = allocate.File(found.take(), found.kind, found.huge_bytes)
            segment = Segment.of(file, size, purpose)
            segment.stale = True
            return segment
        file = allocate.make_file(size, fill)
    except SegmentFull as error:
        raise SegmentFull(f"{purpose}: {error}") from None
    return Segment.of(file, size, purpose)


class SegmentInfo(NamedTuple):
    """Facts about a segment.

    Attributes
    ----------
    purpose : str
        "array", "output", "copy of an input", "argument", "result" or "ledger".
    nbytes : int
        Its bytes.
    kind : str
        "shm", "memfd", "tempfile" or "file".
    name : str or None
        Its name or path; None if it has none.
    huge_bytes : int
        Bytes in huge pages that this process made.
    """

    purpose: str
    nbytes: int
    kind: str
    name: str | None
    huge_bytes: int


class Location(NamedTuple):
    """The memory of an array.

    Attributes
    ----------
    segment : Segment
        The segment.
    offset : int
        Byte of the segment at which the array's element [0, ..., 0] lies.
    """

    segment: Segment
    offset: int


_PIECES: Final = 16  # Why few: a small result that the user keeps holds back its whole segment
_SMALLEST_SLAB: Final = 64 << 10  # bytes of a segment
_LARGEST_SLAB: Final = 1 << 20
_LARGEST_PIECE: Final = 128 << 10  # Why: for larger arrays, making a segment costs little
CACHE_LINE: Final = 64  # bytes


class Slab:
    """Divides segments into pieces for small arrays; takes a new segment when one is full.

    Pieces are never reused, so each reads as zeros.  Larger pieces lie in larger segments, with
    room for 16 of them, or 8 of the largest.  The slab holds only the newest segment of each size;
    an older one ends with the last array in it.

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
        # Newest segment of each size, and its bytes in use. A mapping holds its segment.
        self._newest: dict[int, tuple[Mapping, int]] = {}
        self._made: weakref.WeakValueDictionary[int, Segment] = weakref.WeakValueDictionary()

    def note(self, segment: Segment) -> None:
        """Have a segment listed, as one that was made where the slab has no room."""
        self._made[segment.key] = segment

    def segments(self) -> list[Segment]:
        """Return the segments of all arrays that live."""
        return open_segments(self._made)

    def take(self, nbytes: int) -> Location | None:
        """Return room for an array of so many bytes; None if the array is too large to share."""
        if nbytes > _LARGEST_PIECE:
            return None
        wanted = _PIECES << (nbytes - 1).bit_length()
        size = min(max(wanted, _SMALLEST_SLAB), _LARGEST_SLAB)
        mapping, filled = self._newest.get(size, (None, 0))
        if mapping is None or filled + nbytes > size:
            segment = create(size, purpose="output")
            segment.divided = True
            self.note(segment)
            mapping, filled = segment.mapping, 0
        self._newest[size] = mapping, filled + -(-nbytes // CACHE_LINE) * CACHE_LINE
        return Location(mapping.segment, filled)


def new_output(
    shape: tuple[int, ...],
    dtype: Dtype,
    slab: Slab | None = None,
    *,
    lazy: bool = False,
    blank: bool = True,
) -> Array:
    """Return an array in a segment that lives as long as its views.

    Parameters
    ----------
    lazy : bool
        A process reserves memory of the array before it writes there, and none reads it earlier.
    blank : bool
        The elements are zeros. If it is lazy, and not blank, they may have any values.
    """
    blank = blank or has_padding(dtype)
    nbytes = dense_nbytes(shape, dtype.itemsize)
    location = None if slab is None else slab.take(nbytes)
    if location is None:
        lazy = lazy and nbytes >= huge.MIN_BYTES
        bookings: list[allocate.Promised] = []
        fill = partial(allocate.promise, bookings) if lazy else None
        segment = create(nbytes, fill, purpose="output", blank=blank)
        if slab is not None:
            slab.note(segment)
        # Why the look: the source may have reserved them nevertheless.
        segment.reserved = not lazy or system.is_reserved(segment.fileno(), nbytes)
        if not segment.reserved:
            allocate.note_promise(segment.key, segment)
        location = Location(segment, 0)
    return location.segment.ndarray(location.offset, shape, None, dtype)
