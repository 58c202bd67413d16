"""Segments that a ``multiprocessing.managers.SharedMemoryManager`` owns.

Imports ``shmpar.errors`` and the segment package.

Guarantees
----------
Their end is the manager's shutdown; this process removes nothing.
Every byte is reserved before it is used: the standard library's own segments are not.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TypeGuard

from shmpar.errors import SegmentFull
from shmpar.segment import Segment, ladder, naming
from shmpar.segment.backing import Backing, remember

if TYPE_CHECKING:
    from multiprocessing.managers import SharedMemoryManager

__all__ = ["allocate", "is_one"]


def is_one(manager: object) -> TypeGuard[SharedMemoryManager]:
    """Whether it is a manager of the standard library, without importing that."""
    managers = sys.modules.get("multiprocessing.managers")
    return managers is not None and isinstance(manager, managers.SharedMemoryManager)


def allocate(manager: SharedMemoryManager, nbytes: int, name: str | None) -> Segment:
    """Have the manager make a segment, and reserve it.

    Raises
    ------
    ValueError
        A name was chosen: the manager chooses them.
    SegmentFull
        There is no room.
    """
    if name is not None:
        raise ValueError("a SharedMemoryManager chooses the names: drop name= or manager=")
    size = max(1, nbytes)
    made = manager.SharedMemory(size)
    fd, _ = naming.open_named(made.name)
    made.close()
    try:
        ladder.fill_zeros(fd, size)
    except BaseException as error:
        os.ftruncate(fd, 1)  # only the manager may remove it; this gives the memory back
        os.close(fd)
        if isinstance(error, OSError):
            raise SegmentFull(f"no room for {size:,} bytes in {ladder.SHM}: {error}") from None
        raise
    backing = Backing(fd, size, "shm")
    backing.path = made.name
    remember(backing)
    return Segment(backing)
