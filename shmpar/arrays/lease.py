"""What the views of one shared array have in common: their segment and who releases it.

Imports NumPy, ``shmpar.errors``, the segment package, and the address and lock beside it.

Guarantees
----------
Closing a lease ends the sharing of its array, never the memory: values that are held stay
readable.  It closes the segment only where the array owns it and lies in it alone.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

import numpy as np

from shmpar.arrays.address import Address
from shmpar.arrays.lock import Lock, lock_of
from shmpar.errors import SegmentGone
from shmpar.segment import Manager, Place, locate
from shmpar.segment.descriptors import opened
from shmpar.segment.mapping import pointer

__all__ = ["Lease", "part"]

Array = np.ndarray[Any, Any]

_PART: Final = re.compile(r"(shmpar_[0-9a-f]{16})@([0-9]{1,9})")


class Lease:
    """One shared array's part of a segment.

    Parameters
    ----------
    place : Place
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
        self, place: Place, root: Array, manager: Manager, *, start: int, owner: bool
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
        return not self.segment.backing.shared

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
            offset=self._offset + pointer(array) - pointer(self.root),
            shape=array.shape,
            strides=array.strides,
            dtype=array.dtype,
            start=self.start,
            writable=array.flags.writeable,
            identity=self.segment.backing.identity(),
            file=self.segment.kind == "file",
        )

    def lock(self) -> Lock:
        """Give the lock of the array, whichever of its views asks."""
        if self._lock is None:
            self.check()
            identity = self.segment.backing.identity()
            self._lock = lock_of(identity, self.start, self._reopen)
        return self._lock

    def _reopen(self) -> int:
        """Open the segment anew: a duplicate would share the lock with whoever it came from."""
        path, flags = f"/dev/fd/{self.segment.fileno()}", os.O_RDWR | os.O_CLOEXEC
        return opened(lambda: os.open(path, flags))


def part(name: str) -> tuple[str, int]:
    """Split the name of an array that shares its segment into the segment's and its first byte.

    Examples
    --------
    >>> part("shmpar_0123456789abcdef@64"), part("mine")
    (('shmpar_0123456789abcdef', 64), ('mine', 0))
    """
    found = _PART.fullmatch(name)
    return (found[1], int(found[2])) if found else (name, 0)
