"""Unpickle payloads, and keep the globals of functions that were pickled by value."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shmpar.memory.segment import Location, Segment

Array = np.ndarray[Any, Any]


class Namespaces:
    """The globals of modules whose functions were pickled by value, in a worker.

    Globals that an initializer has set belong to the worker. Later functions bring the parent's
    values of their globals, but never replace those of the initializer.
    """

    def __init__(self) -> None:
        self._globals: dict[str, dict[str, Any]] = {}
        self._own: dict[str, dict[str, Any]] = {}

    def of(self, module: str, attributes: dict[str, Any]) -> dict[str, Any]:
        """Return the globals dict of a module, updated with these attributes."""
        found = self._globals.setdefault(module, {})
        found.update(attributes)
        return found

    def restore_own(self) -> None:
        """Restore the globals that the initializer has set."""
        for module, values in self._own.items():
            self._globals[module].update(values)

    def run_initializer(self, initializer: Callable[[], object]) -> None:
        """Call the initializer, and remember each global that it has set."""
        before = {module: dict(values) for module, values in self._globals.items()}
        initializer()
        missing = object()
        for module, values in self._globals.items():
            old = before.get(module, {})
            self._own[module] = {
                name: value for name, value in values.items() if old.get(name, missing) is not value
            }

    def clear(self) -> None:
        """Drop all globals."""
        self._globals.clear()
        self._own.clear()

    def forget(self, arrays: Sequence[Array]) -> None:
        """Delete the globals that are these arrays, so that their memory is released."""
        ids = {id(array) for array in arrays}
        for values in self._globals.values():
            for name in [name for name, value in values.items() if id(value) in ids]:
                del values[name]


namespaces = Namespaces()
"""The instance of this process; functions that were pickled by value use its dicts."""


def module_globals(module: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the globals dict of a module; pickles call this function."""
    return namespaces.of(module, attributes)


class _Arriving(threading.local):
    """The segments of the payload that this thread unpickles, and the private arrays in them."""

    segments: Sequence[Segment] = ()
    private: list[Array]


_arriving = _Arriving()


def segment_array(index: int, start: int | None, writable: bool, *layout: Any) -> Array:
    """Return an array in a segment of the payload; pickles call this function.

    Parameters
    ----------
    index : int
        Index of the segment in the payload.
    start : int or None
        Begin of the bytes of the shared array that this is a view of; None for a private array.
    writable : bool
        Whether it may be written.
    *layout
        Its offset, shape, strides and dtype.
    """
    segment = _arriving.segments[index]
    array = segment.ndarray(*layout, writable=writable)
    if start is None:
        _arriving.private.append(array)
        return array
    from shmpar.arrays.sharedarray import share_view
    from shmpar.memory.manager import default_manager

    return share_view(Location(segment, layout[0]), array, default_manager(), start=start)


def unpack(body: bytes, segments: Sequence[Segment] = ()) -> tuple[Any, list[Array]]:
    """Unpickle a payload.

    Parameters
    ----------
    body : bytes
        From :func:`shmpar.pickling.pack.pack`.
    segments : sequence of Segment
        In the order of the payload.

    Returns
    -------
    value : object
        The object that was packed.
    private : list of ndarray
        The arrays in it that are mapped privately; :meth:`Namespaces.forget` takes them.
    """
    _arriving.segments, _arriving.private = segments, []
    try:
        value = pickle.loads(body)
        namespaces.restore_own()
        return value, _arriving.private
    finally:
        _arriving.segments, _arriving.private = (), []
