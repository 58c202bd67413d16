"""Slabs: segments that many small results share.

Imports segment and place beside it.
"""

from __future__ import annotations

from shmpar.segment.place import Place
from shmpar.segment.segment import Segment, create

__all__ = ["Slab"]

_SIZE = 64 << 10  # bytes: what one small result that is kept can hold back
_SMALL = 4 << 10  # bytes; making a segment costs thirty times as much as taking a piece of one
_ALIGN = 64  # bytes: one cache line


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

    def take(self, nbytes: int) -> Place | None:
        """Room for an array of so many bytes; None if it is too large to share a segment."""
        if nbytes > _SMALL:
            return None
        if self._segment is None or self._filled + nbytes > _SIZE:
            self._segment, self._filled = create(_SIZE, what="output"), 0
        place = Place(self._segment, self._filled)
        self._filled += -(-nbytes // _ALIGN) * _ALIGN
        return place
