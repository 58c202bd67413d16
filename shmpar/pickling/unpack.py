"""Unpickle payloads, and keep the globals of functions that were pickled by value."""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib
import io
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from shmpar.memory.segment import Location, Segment

Array = np.ndarray[Any, Any]

# Names in pickles of the other NumPy, 1 or 2: modules, and classes that have moved.
_NUMPY_1 = np.__version__.startswith("1.")
_OTHER_NAMES = (
    (b"numpy._core.", b"numpy.rec", b"numpy.char", b"RankWarning")
    if _NUMPY_1
    else (b"numpy.core.", b"RankWarning")
)


def builtin_base(kind: type[BaseException]) -> type[BaseException]:
    """Return the builtin exception that makes the objects of a class."""
    base: Any = kind
    while base.__module__ != "builtins":
        base = base.__base__
    return base  # type: ignore[no-any-return]


def rebuild_error(
    kind: type[BaseException],
    arguments: tuple[Any, ...],
    attributes: dict[str, Any],
    slots: dict[str, Any],
) -> BaseException:
    """Make an exception as it was, without a call of its class' own code."""
    base = builtin_base(kind)
    error = base.__new__(kind, *arguments)
    base.__init__(error, *arguments)
    vars(error).update(attributes)
    for name, value in slots.items():
        object.__setattr__(error, name, value)
    return error


class Namespaces:
    """The globals of modules whose functions were pickled by value, in a worker.

    Globals that an initializer has set belong to the worker. Later functions bring the parent's
    values of their globals, but never replace those of the initializer.

    Attributes
    ----------
    sent : dict of str to dict
        The globals of each module.
    live : dict of str to dict
        The globals of modules that were updated to their state in the parent.
    """

    def __init__(self) -> None:
        self.sent: dict[str, dict[str, Any]] = {}
        self._own: dict[str, dict[str, Any]] = {}
        self.live: dict[str, dict[str, Any]] = {}

    def restore_own(self) -> None:
        """Restore the globals that the initializer has set."""
        for module, values in self._own.items():
            self.sent[module].update(values)

    def run_initializer(self, initializer: Callable[[], object]) -> None:
        """Call the initializer, and remember each global that it has set."""
        before = {module: dict(values) for module, values in self.sent.items()}
        initializer()
        missing = object()
        for module, values in self.sent.items():
            old = before.get(module, {})
            self._own[module] = {
                name: value for name, value in values.items() if old.get(name, missing) is not value
            }

    def clear(self) -> None:
        """Drop all globals."""
        self.sent.clear()
        self._own.clear()

    def forget(self, arrays: Sequence[Array]) -> None:
        """Delete the globals that are these arrays, so that their memory is released."""
        ids = {id(array) for array in arrays}
        for values in (*self.sent.values(), *self.live.values()):
            for name in [name for name, value in values.items() if id(value) in ids]:
                del values[name]


namespaces = Namespaces()
"""The instance of this process; functions that were pickled by value use its dicts."""


def module_globals(
    module: str, attributes: dict[str, Any], deleted: Sequence[str]
) -> dict[str, Any]:
    """Return the globals dict of a module, with these changes; pickles call this function."""
    found = namespaces.sent.setdefault(module, {})
    found.update(attributes)
    for name in deleted:
        found.pop(name, None)
    return found


# Classes that are pickled by value: a process has one class for all pickles of it.

ClassState = tuple[Any, Callable[[type, Any], object], list[str]]
"""The state of a class, the function that sets it, and the names of its own attributes."""

class_attributes: weakref.WeakKeyDictionary[type, set[str]] = weakref.WeakKeyDictionary()
"""The classes that this process has sent or received by value, with the attributes that came."""


def own_names(definition: type) -> list[str]:
    """Return the names of the attributes of a class, without those that are its base's too.

    Why: cloudpickle leaves out attributes that a base has too.
    """
    inherited = dict[str, Any]()
    for base in reversed(definition.__bases__):
        inherited.update(vars(base))
    held = vars(definition).items()
    return [name for name, value in held if name not in inherited or inherited[name] is not value]


def set_class(definition: type, packed: ClassState) -> None:
    """Set the attributes of a class from the parent; delete those that it has deleted."""
    (values, slots), setter, names = packed
    for name in class_attributes.get(definition, set()).difference(names):
        with contextlib.suppress(AttributeError, TypeError):
            delattr(definition, name)
    class_attributes[definition] = set(names)
    if isinstance(definition, enum.EnumType):  # Why: it refuses to set a member, such as an alias.
        values = {
            name: value for name, value in values.items() if name not in definition.__members__
        }
    setter(definition, (values, slots))


def set_new_class(definition: type, packed: ClassState) -> None:
    """Set the attributes of a class that comes with a result, unless it is known here."""
    # Why: the worker's copy of a class of this process may have other attributes.
    if definition not in class_attributes:
        set_class(definition, packed)


# Modules that have changed in the parent


Place = tuple[str, dict[str, Any] | None, bool]
"""A module in a worker: its name, attributes if the parent's file is another one, importable."""

_made: set[str] = set()  # names of the modules that no import finds here


def live_module(place: Place) -> types.ModuleType:
    """Return a module of the user's: imported, or made with these attributes."""
    name, attributes, importable = place
    if importable:
        try:
            return importlib.import_module(name)
        except Exception:
            if attributes is None:
                raise  # Why: otherwise the file has changed since the parent imported it.
    if name not in _made or name not in sys.modules:
        vars(_make_module(name)).update(attributes or {})
        _made.add(name)
    return sys.modules[name]


def _make_module(name: str) -> types.ModuleType:
    """Return a new module of this name, in packages that may be new too."""
    module = sys.modules[name] = types.ModuleType(name)
    parent, _, last = name.rpartition(".")
    if parent:
        try:
            package = importlib.import_module(parent)
        except ImportError:
            package = _make_module(parent)
            vars(package).setdefault("__path__", [])
        setattr(package, last, module)
    return module


def live_globals(place: Place) -> dict[str, Any]:
    """Return the globals of :func:`live_module`; pickles call this function."""
    return vars(live_module(place))


def class_layout(definition: type) -> tuple[Any, ...]:
    """Return the parts of a class that cannot be changed in place."""
    held, members = vars(definition), dict[str, Any]()
    if isinstance(definition, enum.EnumType):
        members.update(definition.__members__)
    values = {name: repr(one.value) for name, one in members.items()}
    names = definition.__module__, definition.__qualname__
    bases = held.get("__orig_bases__", definition.__bases__)
    return type(definition), *names, bases, held.get("__slots__"), values


def live_class(
    place: Place, layout: tuple[Any, ...], make: Callable[..., type], arguments: tuple[Any, ...]
) -> type:
    """Return a class of a module, whose attributes follow; pickles call this function.

    It is the class that is there, so that the objects of the module have it too. A new one is made
    if the class there has another layout.
    """
    found: Any = live_module(place)
    for name in layout[2].split("."):
        found = getattr(found, name, None)
    if isinstance(found, type) and class_layout(found) == layout:
        class_attributes.setdefault(found, set(own_names(found)))
        return found
    return make(*arguments)


def update_module(
    place: Place, values: dict[str, Any], managed: dict[str, Any], deleted: Sequence[str]
) -> None:
    """Give globals of a module the parent's values; pickles call this function.

    Those that the module's functions manage are kept if they are there.
    """
    found = namespaces.live[place[0]] = live_globals(place)
    for own, value in managed.items():
        found.setdefault(own, value)
    found.update(values)
    for gone in deleted:
        found.pop(gone, None)


def after(_updates: list[None], value: Any) -> Any:
    """Return an object that was unpickled after updates of modules."""
    return value


# Functions of functools that pickles call, since neither pickle nor cloudpickle sends these.


def make_cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    """Return a function of :func:`functools.lru_cache`, with an empty cache."""
    return functools.lru_cache(maxsize, typed)(function)


def make_cached_property(kind: type) -> Any:
    """Return a :class:`functools.cached_property` with a lock of its own; its state follows."""
    made: Any = object.__new__(kind)
    made.lock = threading.RLock()
    return made


def make_dispatcher(default: Callable[..., Any]) -> Any:
    """Return a function of :func:`functools.singledispatch`."""
    return functools.singledispatch(default)


def set_dispatcher(function: Any, state: tuple[list[tuple[type, Any]], dict[str, Any]]) -> None:
    """Register the functions of a dispatcher, and set its attributes."""
    registered, attributes = state
    for kind, one in registered:
        function.register(kind, one)
    vars(function).update(attributes)


class _Arriving(threading.local):
    """The segments of the payload that this thread unpickles, and the private arrays in them."""

    segments: Sequence[Segment] = ()
    private: list[Array]


_arriving = _Arriving()


def segment_array(
    index: int, start: int | None, is_file: bool, writable: bool, *layout: Any
) -> Array:
    """Return an array in a segment of the payload; pickles call this function.

    Parameters
    ----------
    index : int
        Index of the segment in the payload.
    start : int or None
        Begin of the bytes of the shared array that this is a view of; None for a private array.
    is_file : bool
        Whether it was a np.memmap, which it stays.
    writable : bool
        Whether it may be written.
    *layout
        Its offset, shape, strides and dtype.
    """
    segment = _arriving.segments[index]
    array = segment.ndarray(*layout, writable=writable)
    if is_file:
        array = array.view(np.memmap)
    if start is None:
        _arriving.private.append(array)
        return array
    from shmpar.arrays.sharedarray import share_view
    from shmpar.memory.manager import default_manager

    return share_view(Location(segment, layout[0]), array, default_manager(), start=start)


def bytes_array(
    data: bytes | bytearray, shape: tuple[int, ...], dtype: Any, order: Literal["C", "F"]
) -> Array:
    """Return an array whose values came as bytes; pickles call this function."""
    return np.ndarray(shape, dtype, data, order=order)


def bit_generator(name: str, state: Any, seed_seq: Any) -> Any:
    """Return a bit generator of NumPy in this state; pickles call this function."""
    made = getattr(np.random, name)(seed_seq)
    made.state = state
    return made


def strided_array(
    memory: bytearray, writable: bool, shape: Any, dtype: Any, offset: int, strides: Any
) -> Array:
    """Return an array with these strides over some bytes; pickles call this function."""
    array = np.ndarray(shape, dtype, memory, offset, strides)
    array.flags.writeable = writable
    return array


class _OtherNumPy(pickle.Unpickler):
    """Finds the names of NumPy 1 in NumPy 2, and those of NumPy 2 in NumPy 1.

    Why not aliases in ``sys.modules``: they would change NumPy for the user's code.
    """

    def find_class(self, module: str, name: str) -> Any:
        if name == "RankWarning" and module.partition(".")[0] == "numpy":
            return getattr(np if _NUMPY_1 else np.exceptions, name)
        if not _NUMPY_1:
            return super().find_class(module.replace("numpy.core.", "numpy._core.", 1), name)
        module = {
            "numpy.rec": "numpy.core.records", "numpy.char": "numpy.core.defchararray"
        }.get(module, module)  # fmt: skip
        return super().find_class(module.replace("numpy._core.", "numpy.core.", 1), name)


def _loads(body: bytes) -> Any:
    if any(name in body for name in _OTHER_NAMES):
        return _OtherNumPy(io.BytesIO(body)).load()
    return pickle.loads(body)


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
        value = _loads(body)
        namespaces.restore_own()
        return value, _arriving.private
    finally:
        _arriving.segments, _arriving.private = (), []
