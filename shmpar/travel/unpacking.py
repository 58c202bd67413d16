"""Opening a parcel, in the process where it has arrived.

Imports namespaces; arrays and segment only where a parcel speaks of shared arrays.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.travel.namespaces import namespaces

if TYPE_CHECKING:
    from shmpar.segment import Segment

__all__ = ["take", "unpack"]


class _Arriving(threading.local):
    """The segments of the parcel that this thread is opening, and what it took from them."""

    segments: Sequence[Segment] = ()
    taken: list[np.ndarray[Any, Any]]


_arriving = _Arriving()


def take(  # noqa: PLR0913, PLR0917 - the layout of an array, flat in a pickle
    index: int,
    start: int | None,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
    writable: bool,
) -> np.ndarray[Any, Any]:
    """The array that lies so in a segment of the parcel; what its pickle calls.

    Parameters
    ----------
    index : int
        Place of the segment in the parcel.
    start : int or None
        Where the bytes begin that a shared array may be asked for again; None: it is private.
    offset, shape, strides, dtype, writable
        Of the array.
    """
    segment = _arriving.segments[index]
    array = segment.ndarray(offset, shape, strides, dtype, writable=writable)
    if start is None:
        _arriving.taken.append(array)
        return array
    from shmpar.arrays.lease import Lease
    from shmpar.arrays.sharedarray import over
    from shmpar.segment import Place, default_manager

    place = Place(segment, offset)
    return over(array, Lease(place, array, default_manager(), start=start, owner=False))


def unpack(body: bytes, segments: Sequence[Segment] = ()) -> tuple[Any, list[np.ndarray[Any, Any]]]:
    """Open a parcel.

    Parameters
    ----------
    body : bytes
        As :func:`shmpar.travel.packing.pack` made it.
    segments : sequence of Segment
        In the parcel's order.

    Returns
    -------
    value : object
        What was packed.
    private : list of ndarray
        The arrays in it that are privately mapped; :meth:`Namespaces.forget` takes them.
    """
    _arriving.segments, _arriving.taken = segments, []
    try:
        value = pickle.loads(body)
        namespaces.keep_own()
        return value, _arriving.taken
    finally:
        _arriving.segments, _arriving.taken = (), []
