"""Where the bytes of an array lie.

Imports NumPy, and the mapping, mapped and segment beside it.

Guarantees
----------
An array is known by where its bytes lie, whatever its Python type and however it was made.
"""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple

import numpy as np

from shmpar.segment import extent, mapped
from shmpar.segment.mapping import Mapping, find, pointer
from shmpar.segment.segment import Segment

__all__ = ["Place", "kind_of", "locate"]


class Place(NamedTuple):
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


def locate(array: np.ndarray[Any, Any]) -> Place | None:
    """Find the segment in which an array lies; None if no other process can map it.

    Parameters
    ----------
    array : ndarray
        Any.

    Returns
    -------
    Place or None
        None for plain memory, for what was closed, for a private mapping (np.memmap of mode
        "c") and for files that were removed or replaced.

    Notes
    -----
    Cost: 0.1 us for an array that owns its data, 2 us for one in a segment of ours; the first time
    for a mapped file of the user's, 100 us.

    Examples
    --------
    >>> locate(np.ones(3)) is None
    True
    """
    base: Any = array.base
    if base is None:
        return None
    while isinstance(base, np.ndarray):
        base = base.base
    if type(base) is Mapping:
        if base.backing.closed:
            return None
        return Place(Segment(base.backing, base), pointer(array) - base.start)
    memory = _memory(base)
    return _ours(find(pointer(array)), array) if memory is None else _users(memory, array)


def kind_of(array: np.ndarray[Any, Any]) -> str:
    """Where an array lies, in a word: a segment's kind, or ``private`` for memory of this process.

    Cost: as :func:`locate`, without working out the place.
    """
    base: Any = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    if type(base) is Mapping:
        return base.backing.kind
    place = locate(array)
    return "private" if place is None else place.segment.kind


def _memory(base: Any) -> mmap.mmap | None:
    """Find the mmap behind memoryviews."""
    while isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, mmap.mmap) and not isinstance(base, Mapping) else None


def _ours(mapping: Mapping | None, array: np.ndarray[Any, Any]) -> Place | None:
    if mapping is None or mapping.backing.closed:
        return None
    return _within(Segment(mapping.backing, mapping), pointer(array) - mapping.start, array)


def _users(memory: mmap.mmap, array: np.ndarray[Any, Any]) -> Place | None:
    window = mapped.of(memory, array) if array.size else None
    if window is None or window.segment.closed:
        return None
    return _within(window.segment, pointer(array) + window.shift, array)


def _within(segment: Segment, offset: int, array: np.ndarray[Any, Any]) -> Place | None:
    """Answer only for an array that lies inside as a whole: a file may have been shortened."""
    touched = extent.span(array.shape, array.strides, array.itemsize)
    return Place(segment, offset) if extent.fits(segment.size, offset, touched) else None
