"""The globals of functions that travelled by value, in a worker.

Imports numpy, for types alone.

Opening a parcel, in the process where it has arrived.

Imports namespaces; arrays and segment only where a parcel speaks of shared arrays.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy as np

    from shmpar.memory.segment import Segment

__all__ = ["Namespaces", "globals_of", "namespaces", "take", "unpack"]


class Namespaces:
    """The globals of modules whose functions arrived by value, in a worker.

    What an initializer has set is the worker's own: later functions bring the parent's values
    of their globals, but never over those.
    """

    def __init__(self) -> None:
        self._globals: dict[str, dict[str, Any]] = {}
        self._own: dict[str, dict[str, Any]] = {}

    def of(self, module: str, attributes: dict[str, Any]) -> dict[str, Any]:
        """The globals dict that stands for a module."""
        found = self._globals.setdefault(module, {})
        found.update(attributes)
        return found

    def keep_own(self) -> None:
        """Restore what the initializer has set."""
        for module, values in self._own.items():
            self._globals[module].update(values)

    def run_initializer(self, initializer: Callable[[], object]) -> None:
        """Call it, and remember each global that it has set."""
        before = {module: dict(values) for module, values in self._globals.items()}
        initializer()
        absent = object()
        for module, values in self._globals.items():
            old = before.get(module, {})
            self._own[module] = {
                name: value for name, value in values.items() if old.get(name, absent) is not value
            }

    def forget(self, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
        """Drop the globals that are these arrays, so that their memory is released."""
        ids = {id(array) for array in arrays}
        for values in self._globals.values():
            for name in [name for name, value in values.items() if id(value) in ids]:
                del values[name]


namespaces = Namespaces()
"""The one of this process; functions that travelled by value hold its dicts."""


def globals_of(module: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """As :meth:`Namespaces.of`; what a pickle calls in the process where it arrives."""
    return namespaces.of(module, attributes)


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
    from shmpar.arrays.sharedarray import Lease, over
    from shmpar.memory.manager import default_manager
    from shmpar.memory.segment import Location

    place = Location(segment, offset)
    return over(array, Lease(place, array, default_manager(), start=start, owner=False))


def unpack(body: bytes, segments: Sequence[Segment] = ()) -> tuple[Any, list[np.ndarray[Any, Any]]]:
    """Open a parcel.

    Parameters
    ----------
    body : bytes
        As :func:`shmpar.pickling.pack.pack` made it.
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
