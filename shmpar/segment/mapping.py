"""Mapped memory that lives exactly as long as something looks at it.

Imports the standard library and NumPy.

Guarantees
----------
A mapping is unmapped by the death of its last view, never by a call: a view cannot fault.
What dies only appends to a deque.  The collector may run while ``_lock`` is held by the same
thread, and a finalizer that took it would wait for itself.
A range whose mapping died may be handed out again by the kernel before it is swept; a lookup
sweeps first, and asks the weak reference, so it never answers with a dead mapping.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import weakref
from bisect import bisect_right, insort
from collections import deque
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from shmpar.segment.backing import Backing

__all__ = ["Mapping", "find", "pointer"]

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
    return pointer(np.ndarray((1,), np.uint8, memory))


def pointer(array: np.ndarray[Any, Any]) -> int:
    """Address of the element [0, ..., 0]."""
    return int(array.__array_interface__["data"][0])


def find(address: int) -> Mapping | None:
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
