"""Put an array that several calls take into shared memory once.

Guarantees
----------
- An array is known by its identity. Its copy lives as long as the array and the record of copies.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from shmpar.memory.copying import share
from shmpar.memory.segment import Segment
from shmpar.memory.system import return_freed_blocks

Array = np.ndarray[Any, Any]

_LARGE = 64 << 20  # bytes; a copy of so many is slow beside the search for freed blocks


class Copies:
    """The copies of arrays in shared memory, by the identity of the arrays."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[Array], Segment, Array]] = {}

    def share(self, array: Array) -> tuple[Segment, Array]:
        """Return the copy of an array and its segment; make it at the first time."""
        known = self._found.get(id(array))
        if known is None or known[0]() is not array:
            key, found = id(array), self._found
            alive = weakref.ref(array, lambda _: found.pop(key, None))
            if array.nbytes >= _LARGE:
                # Why: the copy and the freed blocks would take memory at the same time.
                return_freed_blocks()
            known = found[key] = alive, *share(array, "argument")
        return known[1:]

    def clear(self) -> None:
        """Forget the copies; they go when the last call that takes them is over."""
        self._found.clear()


class _Current(threading.local):
    copies: Copies | None = None


_current = _Current()


@contextlib.contextmanager
def shared_once(copies: Copies) -> Iterator[None]:
    """Have the arguments that this thread pickles in the block taken from a record of copies."""
    before, _current.copies = _current.copies, copies
    try:
        yield
    finally:
        _current.copies = before


def share_argument(array: Array) -> tuple[Segment, Array]:
    """Copy an argument into shared memory, unless its copy is on record."""
    copies = _current.copies
    return share(array, "argument") if copies is None else copies.share(array)
