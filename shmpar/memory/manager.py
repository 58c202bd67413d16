"""Managers: who releases the segments of a pool, or of the interpreter.

Imports ``shmpar.errors``, NumPy, and the modules beside it.

Guarantees
----------
A manager holds its segments weakly: one goes when its last view does, at the manager's end at the
latest.  After ``close()`` none of its names exists, and none of its descriptors is open.
In a forked child a manager of the parent refuses to make segments and closes nothing.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import Any, Final, Self

import numpy as np

from shmpar.memory import allocate, copying, limits, names
from shmpar.memory.segment import Backing, Location, Segment, create

Array = np.ndarray[Any, Any]

_SMALL: Final = 64 << 10  # bytes: arrays up to it may share a segment
_SLAB: Final = 1 << 20  # bytes of a shared segment
_ALIGN: Final = 64  # bytes: one cache line


class Manager:
    """The owner of segments; its end is theirs.

    Safe to use from several threads.

    Examples
    --------
    >>> with Manager() as manager:
    ...     segment = manager.create(80)
    >>> segment.closed
    True
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._owned: weakref.WeakValueDictionary[int, Backing] = weakref.WeakValueDictionary()
        self._named: weakref.WeakValueDictionary[int, Backing] = weakref.WeakValueDictionary()
        self._marker: weakref.ref[names.Marker] | None = None  # held by what it lists
        self._slab: weakref.ref[Backing] | None = None
        self._filled = 0  # bytes of the slab that were given away
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create(self, nbytes: int, *, name: str | None = None) -> Segment:
        """Make a segment of zeros, under a chosen name if one is given.

        Raises
        ------
        FileExistsError
            The name is taken.
        ValueError, TypeError
            The name cannot be one.
        SegmentFull
            There is no room.
        RuntimeError
            The manager was closed, or belongs to a parent process.
        """
        self._check()
        if name is None:
            return self._add(create(nbytes))
        return self._add(self._create_named(max(1, nbytes), names.checked(name)))

    def _create_named(self, nbytes: int, name: str) -> Segment:
        """Only a file in ``/dev/shm`` can have a chosen name; if it is taken, nothing is left."""
        if os.path.lexists(f"{allocate.SHM}/{name}"):
            names.remove_stale()  # it may be a name of somebody who is dead
        if os.path.lexists(f"{allocate.SHM}/{name}"):
            raise FileExistsError(f"a segment named {name!r} exists; choose another, or attach()")
        fd, kind = allocate.make(nbytes, rungs=allocate.SOURCES[:1])
        segment = Segment(Backing(fd, nbytes, kind))
        segment.backing.link(self.marker, name)
        return segment

    def share(self, array: Array, *, name: str | None = None) -> Location:
        """Copy an array's values, in C order, into memory of this manager.

        Raises
        ------
        FileExistsError, ValueError, SegmentFull, RuntimeError
            As :meth:`create`.
        """
        self._check()
        if name is None and not self._crowded(array.nbytes):
            segment = Segment.make(array.nbytes, lambda fd, _: copying.write(fd, 0, array))
            return Location(self._add(segment), 0)
        place = self.allocate(array.nbytes, name=name)
        copying.copy_in(place.segment, place.offset, array)
        return place

    def allocate(self, nbytes: int, *, name: str | None = None) -> Location:
        """Make room for an array: a segment, or, where descriptors are scarce, part of one.

        Raises
        ------
        FileExistsError, ValueError, SegmentFull, RuntimeError
            As :meth:`create`.
        """
        if name is not None or not self._crowded(nbytes):
            return Location(self.create(nbytes, name=name), 0)
        self._check()
        with self._lock:
            return self._from_slab(max(1, nbytes))

    def _crowded(self, nbytes: int) -> bool:
        return nbytes <= _SMALL and limits.descriptors_scarce()

    def _from_slab(self, nbytes: int) -> Location:
        """Cut the next piece; pieces are never used twice, so each reads as zeros."""
        backing = self._slab() if self._slab is not None else None
        if backing is None or backing.closed or self._filled + nbytes > backing.size:
            segment = self.create(_SLAB)
            segment.backing.shared = True
            self._slab, self._filled = weakref.ref(segment.backing), 0
        else:
            segment = Segment(backing)
        offset = self._filled
        self._filled = offset + -(-nbytes // _ALIGN) * _ALIGN
        return Location(segment, offset)

    def _add(self, segment: Segment) -> Segment:
        with self._lock:
            if self._closed:  # by another thread, since the check
                segment.close()
            self._check()
            self._owned[segment.key] = segment.backing
        return segment

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError(
                "the pool (or manager) was closed; make arrays inside its with block"
            )
        if self._pid != os.getpid():
            raise RuntimeError(
                "this manager belongs to the parent process; make one after the fork"
            )

    def own(self, segment: Segment) -> None:
        """Take over an attached segment: its name goes when its last view or this manager does."""
        self._check()
        segment.backing.own(lambda: self._list()[0])
        names.remove_stale()  # not before it is on our list: its maker may be dead
        self._add(segment)

    def name(self, segment: Segment) -> str:
        """Name by which any process finds the segment; made at the first call.

        Raises
        ------
        SegmentGone
            The segment was closed.
        """
        backing = segment.backing
        backing.fileno()
        if backing.name is not None:
            return backing.name
        name = backing.link(self.marker)
        with self._lock:
            self._named[segment.key] = backing
        return name

    def _list(self) -> tuple[names.Marker, bool]:
        """The file that lists the names, and whether it was made just now; nothing is reaped."""
        with self._lock:
            self._check()
            found = self._marker() if self._marker is not None else None
            if found is not None and not found.closed:
                return found, False
            found = names.Marker()
            self._marker = weakref.ref(found)
            return found, True

    def marker(self) -> names.Marker:
        """Give the file that lists the names of this manager; making one reaps the dead."""
        with self._lock:
            found, new = self._list()
            if new:
                names.remove_stale()
            return found

    def close(self) -> None:
        """Remove every name and close every descriptor; values that are held stay readable.

        Twice is once.  Does nothing in a forked child.
        """
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            for backing in list(self._named.values()):
                backing.unlink()
            for backing in list(self._owned.values()):
                backing.close()


_default: Manager | None = None
_default_lock = threading.Lock()


def default_manager() -> Manager:
    """Give the interpreter's manager: made at the first call, closed at exit.

    A forked child gets one of its own.

    Examples
    --------
    >>> default_manager() is default_manager()
    True
    """
    global _default  # noqa: PLW0603 (one an interpreter)
    with _default_lock:
        if _default is None or _default.closed or _default._pid != os.getpid():  # noqa: SLF001
            _default = Manager()
            atexit.register(_default.close)
        return _default


def _after_fork() -> None:
    global _default_lock  # noqa: PLW0603 (another thread of the parent may have held it)
    _default_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
