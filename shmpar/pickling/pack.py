"""Pickle functions, arguments and results: functions by value if needed, arrays by their segments.

Pickling a function takes longer than all other work of a small call. Most functions are stateless:
they have no closure, no globals but modules, no defaults but numbers and text, and annotations that
are text or importable classes. The pickle of a stateless function is cached as long as the function
lives, and a worker may reuse the function that it unpickled from an equal pickle. Importable
compiled functions, such as those of NumPy, are cached too.

Guarantees
----------
- A cached pickle is used only while all objects that went into it are the same objects as before.
- A function is not stateless if it could leave anything for its next call: in a global, an
  attribute, a closure or a default.
"""

from __future__ import annotations

import copyreg
import dis
import io
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from operator import attrgetter, is_
from typing import Any, NamedTuple, cast

import cloudpickle
import numpy as np

from shmpar.arrays import SharedArray
from shmpar.errors import PlanError, ShmparError
from shmpar.memory.copying import share
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment
from shmpar.pickling.explain import explain_failure
from shmpar.pickling.unpack import builtin_base, module_globals, rebuild_error, segment_array
from shmpar.plan import Function

LARGE = 64 * 1024  # bytes; a smaller array is cheaper to pickle than to map

_COMPILED = (types.BuiltinFunctionType, type(np.sum))  # np.sum dispatches on __array_function__
_OWNERS = (types.NoneType, types.ModuleType)
_SCALARS = (bool, int, float, complex, str, bytes, types.NoneType)
_MODULE_NAMES = ("__name__", "__package__", "__path__", "__file__")  # sent with each function
_ATTRIBUTES = attrgetter(
    "__code__", "__closure__", "__doc__", "__module__", "__name__", "__qualname__", "__kwdefaults__"
)
_MISSING = object()


class Payload(NamedTuple):
    """An object as it is sent to another process.

    Attributes
    ----------
    body : bytes
        A pickle that refers to segments by their index in `segments`.
    segments : tuple of Segment
        The sender keeps them alive until the payload has arrived.
    private : tuple of bool
        Whether the worker maps the segment copy on write.
    stateless : bool
        Whether it is a function that leaves nothing for its next call. A worker that has unpickled
        an equal body last may reuse the function.
    """

    body: bytes
    segments: tuple[Segment, ...] = ()
    private: tuple[bool, ...] = ()
    stateless: bool = False


def pack(value: Any, *, importable_only: bool = False) -> Payload:
    """Pickle an object for a worker.

    Parameters
    ----------
    value : object
        A function with its arguments, or any other object.
    importable_only : bool
        Refuse functions that are pickled as bytecode: the worker runs another version of Python.

    Raises
    ------
    PlanError
        If a part of it does not pickle; the message names the part.

    Notes
    -----
    Cost: a plain array of more than 64 KiB is copied into shared memory once.
    """
    try:
        if isinstance(value, Function) and not importable_only:
            body = cached(value) or _pickle_stateless(value)
            if body is not None:
                return Payload(body, stateless=True)
        return _pickle(value, importable_only=importable_only)
    except (ShmparError, OSError):
        raise
    except Exception as error:
        raise PlanError(explain_failure(value, error)) from error


def pack_result(value: Any) -> Payload:
    """Pickle a result for the parent, which adopts the segments as its own.

    Raises
    ------
    PlanError
        If a part of it does not pickle.
    SegmentFull
        If there is no room for a large array in it.

    Notes
    -----
    Cost: an array of more than 64 KiB is copied once, into shared memory.
    """
    try:
        return _pickle(value, is_result=True)
    except (ShmparError, OSError):
        raise
    except Exception as error:
        raise PlanError(f"a {type(value).__qualname__} does not pickle ({error})") from error


def pack_error(error: BaseException) -> bytes:
    """Pickle an exception with all its attributes; pass on any exception of pickling.

    If the class has its own way of pickling, and that fails, the exception is rebuilt without it.
    """
    try:
        body = _ErrorPickler.dumps(error)
        if issubclass(type(pickle.loads(body)), BaseException):
            return body
    except BaseException:  # noqa: BLE001, S110 - the class is the user's code
        pass
    body = _AnyErrorPickler.dumps(error)
    pickle.loads(body)
    return body


class _ErrorPickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles exceptions so that the code of their classes is not run to rebuild them.

    Why: pickle calls the class with ``args``, and then sets attributes. An exception with keyword
    arguments, or one that refuses attributes, does not survive that.
    """

    @classmethod
    def dumps(cls, error: BaseException) -> bytes:
        file = io.BytesIO()
        cls(file, protocol=5).dump(error)
        return file.getvalue()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if issubclass(kind, BaseException) and self._is_rebuilt(kind, base := builtin_base(kind)):
            _, arguments, *state = cast("tuple[Any, ...]", base.__reduce__(obj))
            parts = object.__getstate__(obj)
            slots = parts[1] if isinstance(parts, tuple) else {}
            return rebuild_error, (kind, arguments, state[0] if state else {}, slots)
        return super().reducer_override(obj)

    def _is_rebuilt(self, kind: type[BaseException], base: type[BaseException]) -> bool:
        ways = ("__reduce__", "__reduce_ex__", "__setstate__")
        own = any(getattr(kind, way) is not getattr(base, way) for way in ways)
        return kind is not base and not own and kind not in copyreg.dispatch_table


class _AnyErrorPickler(_ErrorPickler):
    """Rebuilds the exceptions whose classes have their own way of pickling, too."""

    def _is_rebuilt(self, kind: type[BaseException], base: type[BaseException]) -> bool:
        return kind is not base and not issubclass(kind, ShmparError)


def _pickle(value: Any, *, importable_only: bool = False, is_result: bool = False) -> Payload:
    file = io.BytesIO()
    pickler = _Pickler(file, importable_only=importable_only, is_result=is_result)
    pickler.dump(value)
    segments, private = zip(*pickler.segments, strict=True) if pickler.segments else ((), ())
    return Payload(file.getvalue(), segments, private)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles functions by value if needed, and arrays by their segments."""

    def __init__(self, file: io.BytesIO, *, importable_only: bool, is_result: bool) -> None:
        super().__init__(file, protocol=5)
        self.segments: dict[tuple[Segment, bool], int] = {}
        self._importable_only, self._is_result = importable_only, is_result
        # Why: the pickler's memo holds ids, so each array that it has seen must stay alive.
        self._alive: list[Any] = []

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return self._reduce_array(obj)
        if isinstance(obj, types.FunctionType) and not _pickled_by_name(obj):
            self._share_globals(obj)
        return super().reducer_override(obj)

    def _share_globals(self, function: types.FunctionType) -> None:
        """Make the functions of one module share one globals dict in the worker."""
        if self._importable_only:
            reason = "which the workers' other version of Python cannot run"
            sent = f"function {function.__qualname__!r} would be sent as bytecode, {reason}"
            raise PlanError(f"{sent}; put it into a module that both can import")
        names = function.__globals__
        module = sys.modules.get(names.get("__name__", ""))
        if module is not None and vars(module) is names and id(names) not in self.globals_ref:
            self.globals_ref[id(names)] = _ModuleGlobals(module)

    def _reduce_array(self, array: np.ndarray[Any, Any]) -> Any:
        shared = isinstance(array, SharedArray)
        if not shared and (type(array) is not np.ndarray or array.nbytes <= LARGE):
            return NotImplemented
        if array.dtype.hasobject or (self._is_result and self._is_full()):
            return NotImplemented
        writable = array.flags.writeable
        # Why: others may write to the memory of a plain array in a result, so it is copied.
        place = None if self._is_result and not shared else locate(array)
        if place is not None:
            segment, offset = place.segment, place.offset
        elif shared or array.dtype.kind not in "?bBiufcmMSUV":  # bytes with the same meaning there
            return NotImplemented
        else:
            segment, array = share(array)
            offset = 0
            self._alive.append(array)
        private = not shared and not self._is_result
        index = self.segments.setdefault((segment, private), len(self.segments))
        start = array._handle.start if isinstance(array, SharedArray) and array._handle else None  # noqa: SLF001
        layout = offset, array.shape, array.strides, array.dtype
        return segment_array, (index, start, writable, *layout)

    def _is_full(self) -> bool:
        # Why: worker processes alone send results, so other engines do not need the module.
        from shmpar.ipc.wire import MAX_DESCRIPTORS

        return len(self.segments) >= MAX_DESCRIPTORS


class _ModuleGlobals:
    """Stands in a pickle for the globals of a module whose functions are pickled by value."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module

    def __reduce__(self) -> tuple[Any, ...]:
        names = vars(self._module)
        attributes = {name: names[name] for name in _MODULE_NAMES if name in names}
        return module_globals, (self._module.__name__, attributes)


class _Cached(NamedTuple):
    """The pickle of a stateless function, and all that went into it."""

    names: tuple[str, ...]
    parts: tuple[Any, ...]
    modules: int
    body: bytes


_functions: weakref.WeakKeyDictionary[types.FunctionType, _Cached] = weakref.WeakKeyDictionary()
_compiled: dict[Callable[..., Any], bytes] = {}  # Why: they live as long as their modules


def cached(function: Function) -> bytes | None:
    """Return the pickle of a stateless function; None if it is not cached or out of date."""
    call = function.call
    if function.keywords or function.values:
        return None
    if type(call) is not types.FunctionType:
        return _compiled.get(call) if _is_compiled(call) else None
    found = _functions.get(call)
    if found is None or cloudpickle.list_registry_pickle_by_value():
        return None
    # Why: cloudpickle may send along a module that was imported since then.
    if found.modules != len(sys.modules):
        return None
    parts = _parts(call, found.names)
    same = len(parts) == len(found.parts) and all(map(is_, parts, found.parts))
    return found.body if same else None


def _pickle_stateless(function: Function) -> bytes | None:
    """Pickle a stateless function and cache the pickle; return None for any other function."""
    call = function.call
    if function.keywords or function.values:
        return None
    if _is_compiled(call):
        body = _compiled[call] = _pickle(function).body
        return body
    if type(call) is not types.FunctionType or cloudpickle.list_registry_pickle_by_value():
        return None
    names = _stateless_names(call)
    if names is None:
        return None
    # Invariant: the parts are recorded before they are pickled, so a change meanwhile is noticed.
    parts, modules, body = _parts(call, names), len(sys.modules), _pickle(function).body
    _functions[call] = _Cached(names, parts, modules, body)
    return body


def is_importable(call: Any) -> bool:
    """Return whether an object is a compiled function that its module has under its name.

    Such a function lives as long as its module, and is pickled as its name.

    Examples
    --------
    >>> is_importable(np.sum), is_importable(np.ones(3).sum), is_importable(lambda row: row)
    (True, False, False)
    """
    if type(call) not in _COMPILED or type(getattr(call, "__self__", None)) not in _OWNERS:
        return False  # a method, whose object has a state: np.random.normal is such a method
    module = sys.modules.get(call.__module__ or "")
    return getattr(module, call.__name__, None) is call


def _is_compiled(call: Callable[..., Any]) -> bool:
    return type(call) is np.ufunc or is_importable(call)


def _pickled_by_name(definition: types.FunctionType | type) -> bool:
    """Return whether cloudpickle pickles a function or a class as its name."""
    # Why: this is a private name of cloudpickle, which has no public one. The public pickler gives
    # the same answer, but builds the whole reduced value of a function that is pickled by value.
    try:
        from cloudpickle.cloudpickle import _should_pickle_by_reference
    except ImportError:
        pickler = cloudpickle.Pickler(io.BytesIO())
        return pickler.reducer_override(definition) is NotImplemented
    return bool(_should_pickle_by_reference(definition))


def _stateless_names(function: types.FunctionType) -> tuple[str, ...] | None:
    """Return the globals that a stateless function uses; None for any other function."""
    if _pickled_by_name(function):
        return None if "." in function.__qualname__ else ()
    if not _holds_scalars_only(function):
        return None
    names: set[str] = set()
    for instruction in _instructions(function.__code__):
        if instruction.opname in {"STORE_GLOBAL", "DELETE_GLOBAL"}:
            return None
        if instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
            names.add(instruction.argval)
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if type(value) is not types.ModuleType or sys.modules.get(value.__name__) is not value:
            return None
    return (*names, *_MODULE_NAMES)


def _holds_scalars_only(function: types.FunctionType) -> bool:
    """Return whether all that a function holds, besides its code, are scalars and classes."""
    if function.__closure__ or function.__kwdefaults__ or function.__dict__:
        return False
    return all(type(default) in _SCALARS for default in function.__defaults__ or ()) and all(
        type(note) in _SCALARS or (type(note) is type and _pickled_by_name(note))
        for note in function.__annotations__.values()
    )


def _instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    """Yield the instructions of the code, and of all functions and classes in it."""
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)


def _parts(function: types.FunctionType, names: tuple[str, ...]) -> tuple[Any, ...]:
    """Return all objects that go into the pickle of a stateless function."""
    module = sys.modules.get(function.__module__ or "")
    return (
        *_ATTRIBUTES(function),
        getattr(module, function.__name__, None) is function,  # then its pickle is its name
        *(function.__defaults__ or ()),
        *function.__dict__.values(),
        *function.__annotations__,
        *function.__annotations__.values(),
        *[function.__globals__.get(name, _MISSING) for name in names],
    )
