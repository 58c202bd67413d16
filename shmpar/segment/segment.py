"""Segments: memory that several processes can map.

Imports NumPy, ``shmpar.errors``, and the backing, descriptors, extent, ladder and mapping beside
it.

Guarantees
----------
A :class:`Segment` is a handle: it, and every array over its mapping, keeps the memory alive;
nothing else does.  Two handles are equal if their segment is the same.
``key`` is never used twice in one interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.errors import SegmentFull
from shmpar.segment import descriptors, extent, ladder
from shmpar.segment.backing import Backing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shmpar.segment.mapping import Mapping

__all__ = ["Segment", "create"]


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
    def make(cls, nbytes: int, fill: ladder.Fill | None = None) -> Segment:
        """Make a nameless segment whose bytes ``fill(descriptor, nbytes)`` writes."""
        size = max(1, nbytes)
        fd, kind = ladder.make(size, fill)
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
        descriptors.keep_room(fd)
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
            ladder.reserve_window(self.fileno(), start, stop)

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
            (0, extent.nbytes(shape, dtype.itemsize))
            if strides is None
            else extent.span(shape, strides, dtype.itemsize)
        )
        if not extent.fits(self.size, offset, touched):
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
