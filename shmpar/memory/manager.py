"""Managers: owners of segments, one for each pool and one for the interpreter.

Guarantees
----------
A manager holds its segments weakly: a segment ends with its last view, or with the manager at the
latest.  After ``close()`` none of its names exists, and none of its descriptors is open.
In a forked child a manager of the parent refuses to make segments and closes nothing.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from typing import Final, Self

from shmpar.memory import allocate, copying, limits, names
from shmpar.memory.layout import has_padding
from shmpar.memory.segment import (
    CACHE_LINE,
    Array,
    Dtype,
    Location,
    Segment,
    create,
    open_segments,
)

_LARGEST_PIECE: Final = 64 << 10  # bytes of an array that may share a segment
_SLAB_BYTES: Final = 1 << 20  # bytes of a shared segment


class Manager:
    """The owner of segments: closing it closes them.

    Safe to use from several threads.

    Attributes
    ----------
    closed : bool
        True if the manager was closed.

    Examples
    --------
    >>> with Manager() as manager:
    ...     segment = manager.create(80)
    >>> segment.closed
    True
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        # Lock: taken inside the lock of the segments (when one gets a name), never around it.
        self._lock = threading.RLock()
        self._owned: weakref.WeakValueDictionary[int, Segment] = weakref.WeakValueDictionary()
        self._named: weakref.WeakValueDictionary[int, Segment] = weakref.WeakValueDictionary()
        # Invariant: only the named segments hold the registry, and only arrays the slab.
        self._registry: Callable[[], names.NameRegistry | None] = lambda: None
        self._slab: Callable[[], Segment | None] = lambda: None
        self._filled = 0  # bytes of the slab in use
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create(
        self,
        nbytes: int,
        *,
        name: str | None = None,
        fill: allocate.Fill | None = None,
        blank: bool = True,
    ) -> Segment:
        """Make a segment of zeros, or filled by a function, under a chosen name if one is given.

        Raises
        ------
        FileExistsError
            The name is taken.
        ValueError, TypeError
            The name is impossible.
        SegmentFull
            There is no room.
        RuntimeError
            The manager was closed, or belongs to a parent process.
        """
        self._check()
        if name is None:
            return self._add(create(nbytes, fill, blank=blank))
        path, size = f"{allocate.SHM}/{names.check_name(name)}", max(1, nbytes)
        if os.path.lexists(path):
            names.remove_stale()  # Why: it may be a name of a dead process
        if os.path.lexists(path):
            raise FileExistsError(f"a segment named {name!r} exists; choose another, or attach()")
        # Why: only a file in /dev/shm can have a chosen name.
        segment = Segment.of(allocate.make_file(size, fill, allocate.SOURCES[:1]), size)
        segment.link(self.registry, name)
        return self._add(segment)

    def allocate(
        self,
        nbytes: int,
        values: Array | None = None,
        *,
        name: str | None = None,
        dtype: Dtype | None = None,
    ) -> Location:
        """Make room for an array: a segment or, where descriptors are scarce, part of one.

        It holds zeros, or a copy of ``values`` in C order, cast to ``dtype`` if that is given.

        Raises
        ------
        FileExistsError, ValueError, SegmentFull, RuntimeError
            As :meth:`create`.
        """
        self._check()
        if name is None and nbytes <= _LARGEST_PIECE and limits.descriptors_scarce():
            with self._lock:
                location = self._take_piece(max(1, nbytes))
            if values is not None:
                layout = location.offset, values.shape, None, dtype or values.dtype
                location.segment.ndarray(*layout)[...] = values
            return location
        fill = None if values is None else copying.filling(values, dtype)
        blank = values is None or has_padding(dtype or values.dtype)
        return Location(self.create(nbytes, name=name, fill=fill, blank=blank), 0)

    def segments(self) -> list[Segment]:
        """Return the segments that the manager owns and that are open."""
        return open_segments(self._owned)

    def _take_piece(self, nbytes: int) -> Location:
        """Return the next piece of the slab; no piece is reused, so each reads as zeros."""
        slab = self._slab()
        if slab is None or slab.closed or self._filled + nbytes > slab.size:
            slab = self.create(_SLAB_BYTES)
            slab.divided = True
            self._slab, self._filled = weakref.ref(slab), 0
        offset = self._filled
        self._filled = offset + -(-nbytes // CACHE_LINE) * CACHE_LINE
        return Location(slab, offset)

    def _add(self, segment: Segment) -> Segment:
        with self._lock:
            if self.closed:  # Why: another thread may have closed it since the check
                segment.close()
            self._check()
            self._owned[segment.key] = segment
        return segment

    def _check(self) -> None:
        if self.closed:
            raise RuntimeError("the pool or manager was closed; make arrays in its with block")
        if self._pid != os.getpid():
            raise RuntimeError("this manager belongs to the parent; make one after the fork")

    def own(self, segment: Segment) -> None:
        """Own an attached segment: its name is removed with its last view or with this manager."""
        self._check()
        segment.take_name(lambda: self.registry(clean=False))
        # Why: only after its name is on our list, since its maker may be dead.
        names.remove_stale()
        self._add(segment)

    def name(self, segment: Segment) -> str:
        """Return the name by which any process finds the segment; the first call makes it.

        Raises
        ------
        SegmentGone
            The segment was closed.
        """
        segment.fileno()
        if segment.name is not None:
            return segment.name
        name = segment.link(self.registry)
        if self._pid == os.getpid():  # Lock: at a fork, another thread may have held it
            with self._lock:
                self._named[segment.key] = segment
        return name

    def registry(self, *, clean: bool = True) -> names.NameRegistry:
        """Return the registry of this manager; remove stale names when a new one is made."""
        with self._lock:
            self._check()
            found = self._registry()
            if found is None or found.closed:
                found = names.NameRegistry()
                self._registry = weakref.ref(found)
                if clean:
                    names.remove_stale()
            return found

    def close(self) -> None:
        """Remove every name and close every descriptor; views that exist stay readable.

        A second call is harmless.  A forked child closes nothing.
        """
        if self._pid != os.getpid():
            return
        with self._lock:
            self.closed = True
            for segment in list(self._named.values()):
                segment.unlink()
            for segment in list(self._owned.values()):
                segment.close()


_default: Manager | None = None


def default_manager() -> Manager:
    """Return the interpreter's manager; the first call makes it, and the exit closes it.

    A forked child gets one of its own.

    Examples
    --------
    >>> default_manager() is default_manager()
    True
    """
    global _default  # noqa: PLW0603 (one per interpreter)
    if _default is None or _default.closed or _default._pid != os.getpid():  # noqa: SLF001
        # Why: no lock, since a manager that another thread makes at this moment works as well.
        _default = Manager()
        atexit.register(_default.close)
    return _default


def own_manager(manager: object) -> Manager:
    """Return the manager that a user has passed; None is that of the interpreter.

    Raises
    ------
    TypeError
        It is another object, which would own nothing.
    """
    if isinstance(manager, Manager | None):
        return manager or default_manager()
    raise TypeError(
        f"manager= cannot be a {type(manager).__name__} here: leave it out, make the array by a "
        "method of the pool that shall own it (pool.zeros), or pass a SharedMemoryManager to a "
        "function that makes an array"
    )
