"""How the user's function, and what it holds, travels to a worker, and results travel back.

Imports plan, segment and arrays.  :func:`pack` makes a :class:`Parcel`, bytes and the segments
that they speak of; :func:`unpack` opens it in the worker. :func:`pack_result` makes one there for
the way home.

Guarantees
----------
- A shared array in a closure, a global or an argument arrives as the same memory, writable as
  it was, and gets no name for it.
- A large plain array arrives as the function's own: its values lie in shared memory once, and
  each worker maps them privately (copy on write), as if they had been pickled.
- Functions of one module that travel by value share one globals dict in a worker, so what an
  ``initializer`` sets, later functions see; and every call brings today's values of the globals
  that its function names.
- A large array in a result lies in a segment of its own, which becomes the parent's.
- What cannot travel is named: the parameter, closure variable or global that holds it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from shmpar.arrays import SharedArray
from shmpar.arrays.lease import Lease
from shmpar.arrays.sharedarray import over
from shmpar.errors import PlanError, ShmparError
from shmpar.plan import Function
from shmpar.segment import Place, Segment, default_manager, locate, share
from shmpar.wire import MAX_DESCRIPTORS

__all__ = [
    "LARGE",
    "Namespaces",
    "Parcel",
    "namespaces",
    "pack",
    "pack_error",
    "pack_result",
    "unpack",
]

LARGE = 64 * 1024  # bytes; a smaller array is cheaper to pickle than to map


class Parcel(NamedTuple):
    """What is sent for one object.

    Attributes
    ----------
    body : bytes
        A pickle that names segments by their place in `segments`.
    segments : tuple of Segment
        Kept alive by whoever sends the parcel until it has arrived.
    private : tuple of bool
        Whether the worker maps the segment copy on write.
    """

    body: bytes
    segments: tuple[Segment, ...] = ()
    private: tuple[bool, ...] = ()


class _Namespace:
    """Stands in a pickle for the globals of a module whose functions travel by value."""

    def __init__(self, module: types.ModuleType) -> None:
        names = ("__name__", "__package__", "__path__", "__file__")
        self.name = module.__name__
        self.attributes = {name: vars(module)[name] for name in names if name in vars(module)}

    def __reduce__(self) -> tuple[Any, ...]:
        return _globals_of, (self.name, self.attributes)


def _by_reference(function: types.FunctionType) -> bool:
    """Whether the worker can import the function by its name."""
    from cloudpickle.cloudpickle import _should_pickle_by_reference

    return bool(_should_pickle_by_reference(function))


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles functions by value where needed and arrays by their segments."""

    def __init__(
        self, file: io.BytesIO, *, importable_only: bool = False, home: bool = False
    ) -> None:
        super().__init__(file, protocol=5)
        self.segments: list[Segment] = []
        self.private: list[bool] = []
        self._importable_only = importable_only
        self._home = home
        self._kept: list[Any] = []  # arrays whose ids are in the pickler's memo must stay alive

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return self._reduce_array(obj)
        if isinstance(obj, types.FunctionType):
            self._prepare_function(obj)
        return super().reducer_override(obj)

    def _prepare_function(self, function: types.FunctionType) -> None:
        """Make the functions of one module share one globals dict in the worker."""
        if _by_reference(function):
            return
        if self._importable_only:
            raise PlanError(
                f"function {function.__qualname__!r} would travel as bytecode, which the workers' "
                "other version of Python cannot run; put it into a module that both can import"
            )
        module = sys.modules.get(function.__globals__.get("__name__", ""))
        known = id(function.__globals__) in self.globals_ref
        if module is not None and vars(module) is function.__globals__ and not known:
            self.globals_ref[id(function.__globals__)] = _Namespace(module)

    def _reduce_array(self, array: np.ndarray[Any, Any]) -> Any:
        shared = isinstance(array, SharedArray)
        if not shared and (type(array) is not np.ndarray or array.nbytes <= LARGE):
            return NotImplemented
        if array.dtype.hasobject or (self._home and len(self.segments) >= MAX_DESCRIPTORS):
            return NotImplemented
        writable = array.flags.writeable
        # What a plain array of a result lies in may be written by others, and is left to them.
        place = None if self._home and not shared else locate(array)
        if place is None:
            if shared or not _is_plain(array.dtype):
                return NotImplemented
            segment, array = share(array)
            offset = 0
            self._kept.append(array)
        else:
            segment, offset = place.segment, place.offset
        index = self._add(segment, private=not shared and not self._home)
        layout = (offset, array.shape, array.strides, array.dtype, writable)
        start = array._lease.start if isinstance(array, SharedArray) and array._lease else None  # noqa: SLF001
        return _take, (index, start, *layout)

    def _add(self, segment: Segment, *, private: bool) -> int:
        for index, known in enumerate(self.segments):
            if known == segment and self.private[index] == private:
                return index
        self.segments.append(segment)
        self.private.append(private)
        return len(self.segments) - 1


def _is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether the values are bytes that mean the same in another process."""
    return dtype.kind in "?bBiufcmMSUV"


def pack(value: Any, *, importable_only: bool = False) -> Parcel:
    """Pickle an object for a worker.

    Parameters
    ----------
    value : object
        The function with what it is called with.
    importable_only : bool
        Refuse functions that would travel as bytecode: the worker is another version of Python.

    Raises
    ------
    PlanError
        If something in it does not pickle; the message names it.

    Notes
    -----
    Cost: a plain array of more than 64 KiB is copied into shared memory once.
    """
    try:
        if isinstance(value, Function) and _is_simple(value):
            return Parcel(pickle.dumps(value, 5))
        file = io.BytesIO()
        packer = _Packer(file, importable_only=importable_only)
        packer.dump(value)
    except (ShmparError, OSError):
        raise
    except Exception as error:
        raise PlanError(_diagnosis(value, error)) from error
    return Parcel(file.getvalue(), tuple(packer.segments), tuple(packer.private))


def pack_result(value: Any) -> Parcel:
    """Pickle what a function returned, for the parent: it adopts the segments as its own.

    Raises
    ------
    PlanError
        If something in it does not pickle.
    SegmentFull
        If there is no room for a large array in it.

    Notes
    -----
    Cost: an array of more than 64 KiB is copied once, into shared memory.
    """
    file = io.BytesIO()
    packer = _Packer(file, home=True)
    try:
        packer.dump(value)
    except (ShmparError, OSError):
        raise
    except Exception as error:
        raise PlanError(f"a {type(value).__qualname__} does not pickle ({error})") from error
    return Parcel(file.getvalue(), tuple(packer.segments), tuple(packer.private))


def pack_error(error: BaseException) -> bytes:
    """Pickle an exception with all that it holds, in one piece; raises whatever that raises."""
    return cloudpickle.dumps(error, 5)  # type: ignore[no-any-return]


def _is_simple(function: Function) -> bool:
    """Whether it is a compiled function of NumPy, alone: a name, for which no packer is needed."""
    return isinstance(function.call, np.ufunc) and not function.keywords and not function.values


def _diagnosis(value: Any, error: Exception) -> str:
    if isinstance(value, Function):
        parts: tuple[Any, ...] = (value.call, value.keywords, *value.values)
    else:
        parts = value if isinstance(value, tuple) else (value,)
    for part in parts:
        for where, held in _held_by(part):
            if not _pickles(held):
                return (
                    f"cannot send {_name(part)} to a worker: {where} is a "
                    f"{type(held).__module__}.{type(held).__qualname__}, which does not pickle "
                    f"({error}); create it inside the function or in the pool's initializer"
                )
    guilty = next((part for part in parts if not _pickles(part)), parts[0])
    return f"cannot send {_name(guilty)} to a worker: it does not pickle ({error})"


def _held_by(part: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, by the name its owner knows."""
    if isinstance(part, dict):
        for key, held in part.items():
            yield f"the keyword argument {key!r}", held
    function = part
    if isinstance(part, functools.partial):
        function = part.func
        yield "the partial's arguments", (part.args, part.keywords)
    function = getattr(function, "__wrapped__", function)
    if isinstance(function, types.FunctionType):
        yield from _held_by_function(function)
    elif hasattr(part, "__self__"):
        yield "the object of the method", part.__self__
    elif hasattr(part, "__dict__"):
        for key, held in vars(part).items():
            yield f"its attribute {key!r}", held


def _held_by_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        with contextlib.suppress(ValueError):  # a variable that has no value yet
            yield f"its closure variable {name!r}", cell.cell_contents
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"the global {name!r}", function.__globals__[name]
    for number, default in enumerate(function.__defaults__ or ()):
        yield f"its default number {number}", default


def _pickles(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:  # noqa: BLE001 - whatever it raises, it does not pickle
        return False
    return True


def _name(value: Any) -> str:
    if isinstance(value, dict):
        return "kwargs"
    name = getattr(value, "__qualname__", None)
    return f"an item such as {value!r:.60}" if name is None else f"function {name}"


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


def _globals_of(module: str, attributes: dict[str, Any]) -> dict[str, Any]:
    return namespaces.of(module, attributes)


class _Arriving(threading.local):
    """The segments of the parcel that this thread is opening, and what it took from them."""

    segments: Sequence[Segment] = ()
    taken: list[np.ndarray[Any, Any]]


_arriving = _Arriving()


def _take(  # noqa: PLR0913, PLR0917 - the layout of an array, flat in a pickle
    index: int,
    start: int | None,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
    writable: bool,
) -> np.ndarray[Any, Any]:
    segment = _arriving.segments[index]
    array = segment.ndarray(offset, shape, strides, dtype, writable=writable)
    if start is None:
        _arriving.taken.append(array)
        return array
    place = Place(segment, offset)
    return over(array, Lease(place, array, default_manager(), start=start, owner=False))


def unpack(body: bytes, segments: Sequence[Segment] = ()) -> tuple[Any, list[np.ndarray[Any, Any]]]:
    """Open a parcel.

    Parameters
    ----------
    body : bytes
        As :func:`pack` made it.
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
        value = cloudpickle.loads(body)
        namespaces.keep_own()
        return value, _arriving.taken
    finally:
        _arriving.segments, _arriving.taken = (), []
