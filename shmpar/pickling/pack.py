"""Pickle functions, arguments and results: functions by value if needed, arrays by their segments.

Pickling a function takes longer than all other work of a small call. Most functions are stateless:
they have no closure, no globals but modules and the functions and classes of installed ones, no
defaults but numbers and text, and annotations that are text or importable classes. A function that
numba compiles is stateless if its Python function is. The pickle of a stateless function is cached
as long as the function lives, and a worker may reuse the function that it unpickled from an equal
pickle. Importable compiled functions, such as those of NumPy, are cached too.

Guarantees
----------
- A cached pickle is used only while all objects that went into it are the same objects as before.
- A function is not stateless if it could leave anything for its next call: in a global, an
  attribute, a closure or a default.
"""

from __future__ import annotations

import enum
import io
import itertools
import os
import pickle
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter, is_
from typing import Any, Literal, NamedTuple

import cloudpickle
import numpy as np

from shmpar.arrays import SharedArray
from shmpar.errors import PlanError, ShmparError
from shmpar.memory.copying import share, share_argument
from shmpar.memory.layout import Layout, address_of
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment
from shmpar.pickling.changes import (
    CACHED,
    Walk,
    Walks,
    all_names,
    global_names,
    is_jitted,
    python_function,
)
from shmpar.pickling.explain import (
    DISPATCHER,
    CheckedPickler,
    explain_failure,
    is_found,
    module_of,
    pickling_error,
    reason,
    reduce_cached,
    reduce_dispatcher,
)
from shmpar.pickling.modules import (
    MISSING,
    MODULE_NAMES,
    PLAIN,
    SCALARS,
    SCRIPTS,
    UserModule,
    user_module,
)
from shmpar.pickling.plain import is_plain
from shmpar.pickling.unpack import (
    after,
    bit_generator,
    bytes_array,
    class_attributes,
    class_layout,
    live_class,
    live_globals,
    module_globals,
    own_names,
    segment_array,
    set_class,
    set_new_class,
    strided_array,
    update_module,
)
from shmpar.plan import Function

LARGE = 64 * 1024  # bytes; a smaller array is cheaper to pickle than to map

_DEFINITIONS = (types.FunctionType, type, CACHED)  # found in a module under their names
_WITH_SETTER = 6  # parts of a reduced value with a function that sets the state
_COMPILED = (types.BuiltinFunctionType, type(np.sum))  # np.sum dispatches on __array_function__
_OWNERS = (types.NoneType, types.ModuleType)
_ATTRIBUTES = attrgetter(
    "__closure__", "__doc__", "__module__", "__name__", "__qualname__", "__kwdefaults__"
)
_SPAWNED = SCRIPTS[1]
_HIDDEN = "<dynamic-code>"  # cloudpickle's name for the file of each function
_PLAIN = "?bBiufcmMSUV"  # kinds of dtype whose bytes have the same meaning in another process


class Interpreter(NamedTuple):
    """The version of a Python of workers that has other bytecode than this one."""

    version: str


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


def pack(value: Any, python: Interpreter | None = None, *, frozen: bool = False) -> Payload:
    """Pickle an object for a worker.

    Parameters
    ----------
    value : object
        A function with its arguments, or any other object.
    python : Interpreter, optional
        The Python of the worker, if it has other bytecode. Then functions that are not importable
        are refused.
    frozen : bool
        Copy the plain arrays that lie in shared memory or in a file mapped for writing: their
        values may change before the worker looks.

    Raises
    ------
    PlanError
        If a part of it does not pickle; the message names the part.

    Notes
    -----
    Cost: a plain array of more than 64 KiB is copied into shared memory once, unless it lies in
    shared memory or in a mapped file. It is copied from there only if `frozen`.
    """
    try:
        alone = isinstance(value, Function) and not (value.keywords or value.values)
        if alone and python is None:
            body = pack_stateless(value.call)
            if body is not None:
                return Payload(body, stateless=True)
        return _pickle(value, python, frozen=frozen)
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
    if is_plain(value):  # Why: it is many times as fast.
        return Payload(pickle.dumps(value, 5))
    try:
        return _pickle(value, is_result=True)
    except (ShmparError, OSError):
        raise
    except Exception as error:
        raise PlanError(
            f"a {type(value).__qualname__} does not pickle ({reason(error)})"
        ) from error


def _pickle(
    value: Any,
    python: Interpreter | None = None,
    *,
    is_result: bool = False,
    frozen: bool = False,
) -> Payload:
    file = io.BytesIO()
    pickler = _Pickler(file, python, is_result=is_result, frozen=frozen)
    pickler.dump(value)
    pickler.walks.close()
    segments, private = zip(*pickler.segments, strict=True) if pickler.segments else ((), ())
    return Payload(file.getvalue(), segments, private)


class _Pickler(CheckedPickler):
    """Pickles functions by value if needed, and arrays by their segments."""

    def __init__(
        self, file: io.BytesIO, python: Interpreter | None, *, is_result: bool, frozen: bool
    ) -> None:
        super().__init__(file, protocol=5)
        self.segments: dict[tuple[Segment, bool], int] = {}
        self._python, self._is_result, self._frozen = python, is_result, frozen
        # Why: the pickler's memo holds ids, so each array that it has seen must stay alive.
        self._alive: list[Any] = []
        self._visited: dict[int, Any] = {}
        self._updated: set[tuple[str, str]] = set()  # modules and names that the pickle brings
        self._sent: set[UserModule] = set()  # modules of which the pickle brings changes
        self._live: dict[UserModule, _Call] = {}  # the globals of modules that workers have
        self.walks = Walks()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if id(obj) in _OURS or kind in _RECORDS or id(kind) in self._harmless:
            return NotImplemented
        if kind is types.CodeType:
            build, parts = self.dispatch_table[types.CodeType](obj)
            # Why: cloudpickle hides the file, which warnings and tracebacks of the worker name.
            hidden = {_HIDDEN: obj.co_filename}
            # Why the type: with -b, a comparison of bytes and text is a warning.
            return build, tuple(hidden.get(x, x) if type(x) is str else x for x in parts)
        if isinstance(obj, np.ndarray):
            return self._reduce_array(obj)
        if obj is os.environ:
            # Why: a worker has variables of its own, which a function that holds them has to see.
            return NotImplemented if self._is_result else (getattr, (os, "environ"))
        if isinstance(obj, _DEFINITIONS):
            return self._reduce_definition(obj)
        is_random = module_of(kind).startswith("numpy.random.")
        return _reduce_random(obj) if is_random else super().reducer_override(obj)

    def _reduce_definition(self, obj: Any) -> Any:
        is_updated = False
        if not (self._python or self._is_result):
            updates = self._updates(obj)
            if updates:
                # Why twice: the pickle brings the updates, then the object, which they may hold.
                return after, (updates, obj)
            # Why a default: a function of lru_cache over a partial has no such name.
            top = getattr(obj, "__qualname__", "").partition(".")[0]
            is_updated = (obj.__module__, top) in self._updated or _uses_state(obj)
        if isinstance(obj, types.FunctionType) and not (is_updated or is_pickled_by_name(obj)):
            self._share_globals(obj)
        if is_updated:
            reduced = self._reduce_updated(obj)
        elif obj.__module__ == _SPAWNED and not isinstance(obj, CACHED):
            reduced = self._reduce_by_value(obj)
        else:
            reduced = super().reducer_override(obj)
        if isinstance(obj, type) and isinstance(reduced, tuple) and len(reduced) == _WITH_SETTER:
            return self._with_setter(obj, reduced, is_updated=is_updated)
        return reduced

    def _reduce_by_value(self, obj: Any) -> Any:
        """Reduce a function or class that workers lack, or have in another state."""
        if isinstance(obj, type):
            return _reduce_class(obj)
        is_dispatcher = obj.__code__ is DISPATCHER
        return reduce_dispatcher(obj) if is_dispatcher else self._dynamic_function_reduce(obj)

    def _with_setter(self, definition: type, reduced: Any, *, is_updated: bool) -> Any:
        """Return a class that is reduced by value with this package's function of its state.

        The state comes with a function of cloudpickle, which sets the attributes anew.
        """
        class_attributes.setdefault(definition, set())
        make, arguments, state, items, pairs, setter = reduced
        if "__slots__" in vars(definition) and not issubclass(definition, enum.Enum):
            # Why: cloudpickle sets them afterwards, which makes no slots. The attributes would then
            # lie in a dict, which an object of this process does not have.
            _, _, bases, namespace, *_ = arguments
            if typing.NamedTuple not in bases:  # Why: it has slots of its own, and refuses others.
                namespace["__slots__"] = vars(definition)["__slots__"]
        module = user_module(definition.__module__) if is_updated else None
        if module is not None and is_found(definition):
            arguments = module.place(), class_layout(definition), make, arguments
            make = live_class
        place = set_new_class if self._is_result else set_class
        return make, arguments, (state, setter, own_names(definition)), items, pairs, place

    def _updates(self, obj: Any) -> list[_Call]:
        """Return the changes of the modules that an object reaches, unless they were pickled."""
        if id(obj) in self._visited:
            return []
        self._visited[id(obj)] = obj
        walk, updates = self.walks.below(obj), []
        for module, names in walk.changes.items() if walk is not None else ():
            new = [name for name in names if (module.name, name) not in self._updated]
            self._updated.update((module.name, name) for name in new)
            if new or not (module.importable or module in self._sent):
                self._sent.add(module)
                updates.append(_update(module, new))
        return updates

    def _reduce_updated(self, obj: Any) -> Any:
        """Reduce a definition of a module that workers have too, in another state."""
        if isinstance(obj, CACHED):
            return reduce_cached(obj)
        module = None if isinstance(obj, type) else _home(obj)
        if module is None:  # Why by value: a decorator of an installed package may have made it.
            return self._reduce_by_value(obj)
        live = self._live.setdefault(module, _Call(live_globals, module.place()))
        make, (code, _, *parts), state, *others = self._dynamic_function_reduce(obj)
        state[1]["__globals__"] = {}  # Why: an update brings those that have changed.
        return make, (code, live, *parts), state, *others

    def _share_globals(self, function: types.FunctionType) -> None:
        """Make the functions of one module share one globals dict in the worker."""
        if self._python is not None:
            reason = f"which the workers' Python {self._python.version} cannot run"
            sent = f"function {function.__qualname__!r} would be sent as bytecode, {reason}"
            raise PlanError(
                f"{sent}; put it into a module that the workers can import too, for instance from "
                'a folder in env={"PYTHONPATH": folder}, or into a file for shmpar.from_file(path, '
                "name)"
            )
        names, name = function.__globals__, function.__globals__.get("__name__", "")
        # Why not spawned ones: multiprocessing runs the script in a dict, and copies that.
        if name == _SPAWNED or getattr(sys.modules.get(name), "__dict__", None) is names:
            known = _brought.setdefault(name, {})
            # Why the type: cloudpickle puts a dict there for a function of a changed module.
            if type(self.globals_ref.get(id(names))) is not _Call:
                attributes = {one: names[one] for one in MODULE_NAMES if one in names}
                # Why a list: another thread may add names meanwhile.
                deleted = [one for one in list(known) if one not in names]
                self.globals_ref[id(names)] = _Call(module_globals, name, attributes, deleted)
            known.update(dict.fromkeys(one for one in all_names(function.__code__) if one in names))

    def _reduce_array(self, array: np.ndarray[Any, Any]) -> Any:
        shared = isinstance(array, SharedArray)
        if array.base is not None:
            locate(array)  # Why: it raises an error for a file that was truncated
        is_file = type(array) is np.memmap and not self._is_result
        if not shared and (array.nbytes <= LARGE or not (is_file or type(array) is np.ndarray)):
            return self._reduce_as_bytes(array)
        if array.dtype.hasobject or (self._is_result and not shared and self._is_full()):
            return self._reduce_as_bytes(array)
        writable = array.flags.writeable
        # Why: others may write to the memory of a plain array in a result, so it is copied.
        place = None if self._is_result and not shared else locate(array)
        if self._frozen and not shared and place is not None and place.segment.writable:
            place = None
        if place is not None:
            segment, offset = place.segment, place.offset
        elif shared or array.dtype.kind not in _PLAIN:
            return NotImplemented
        else:
            # Why one thread: workers send their results at the same time.
            one = self._is_result
            segment, array = share(array, "result", threads=1) if one else share_argument(array)
            offset = address_of(array) - segment.mapping.start
            self._alive.append(array)
        private = not shared and not self._is_result
        if self._is_result and (segment, private) not in self.segments and self._is_full():
            # Why no address: the worker would have dropped the array, and its name, by then.
            raise TypeError(
                f"it holds more than {len(self.segments)} shared arrays: return copies, as "
                "np.array(a), or fewer arrays at a time"
            )
        index = self.segments.setdefault((segment, private), len(self.segments))
        start = array._handle.start if isinstance(array, SharedArray) and array._handle else None  # noqa: SLF001
        layout = offset, array.shape, array.strides, array.dtype
        return segment_array, (index, start, is_file, writable, *layout)

    def _reduce_as_bytes(self, array: np.ndarray[Any, Any]) -> Any:
        plain = array.dtype.kind in _PLAIN and not array.dtype.hasobject
        if type(array) is not np.ndarray or not plain:
            return NotImplemented
        # Why: NumPy 1 and NumPy 2 have the functions that their own pickles call elsewhere.
        if array.size and not self._is_result and not array.flags.forc:
            return _reduce_strided(array)
        order: Literal["C", "F"] = "F" if array.flags.fnc else "C"
        data = array.tobytes(order)
        held = bytearray(data) if array.flags.writeable else data
        return bytes_array, (held, array.shape, array.dtype, order)

    def _is_full(self) -> bool:
        # Why: worker processes alone send results, so other engines do not need the module.
        from shmpar.ipc.wire import MAX_DESCRIPTORS

        return len(self.segments) >= MAX_DESCRIPTORS


def _reduce_random(obj: Any) -> Any:
    """Reduce a random generator so that NumPy 1 and NumPy 2 load it; their own pickles differ."""
    kind = type(obj)
    if issubclass(kind, np.random.BitGenerator):
        return bit_generator, (kind.__name__, obj.state, obj.seed_seq)
    if kind is np.random.Generator:
        return kind, (obj.bit_generator,)
    if kind is np.random.RandomState:
        return kind, (obj._bit_generator,), obj.get_state(legacy=False)  # noqa: SLF001 - no other way
    return NotImplemented


def _reduce_strided(array: np.ndarray[Any, Any]) -> Any:
    """Reduce an array with gaps or zero strides so that it keeps them, as a large one does."""
    layout = Layout.of(array)
    memory, form = bytearray(layout.nbytes), (array.shape, array.dtype)
    np.ndarray(*form, memory, layout.offset, layout.strides)[...] = array
    return strided_array, (memory, array.flags.writeable, *form, layout.offset, layout.strides)


class _Call:
    """Stands in a pickle for the value of a call that the worker makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._reduced = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


_brought: dict[str, dict[str, None]] = {}  # globals that pickles have brought, by module


def _update(module: UserModule, names: Sequence[str]) -> _Call:
    """Return the call that gives globals of a module, which workers have in another state."""
    values: dict[str, Any] = {}
    managed: dict[str, Any] = {}
    deleted: list[str] = []
    for name in names:
        value = vars(module.module).get(name, MISSING)
        if value is MISSING:
            deleted.append(name)
        elif _is_sent(module, name, value):
            (managed if name in module.managed else values)[name] = value
    return _Call(update_module, module.place(), values, managed, deleted)


def _is_sent(module: UserModule, name: str, value: Any) -> bool:
    """Return False for an object that the worker's own module makes, such as a connection."""
    if not module.importable or type(value) in PLAIN or isinstance(value, _DEFINITIONS):
        return True
    return name not in module.source.managed or pickling_error(value) is None


def _home(function: types.FunctionType) -> UserModule | None:
    """Return the module of the user's whose globals a function has; None if there is none."""
    module = user_module(function.__globals__.get("__name__"))
    is_home = module is not None and vars(module.module) is function.__globals__
    return module if is_home else None


def _uses_state(function: Any) -> bool:
    """Return whether a function without a name in its module uses globals that this manages."""
    module = _home(function) if isinstance(function, types.FunctionType) else None
    if module is None:
        return False
    names = all_names(function.__code__)
    return not (module.source.managed.isdisjoint(names) or is_pickled_by_name(function))


def _definition_ids(*names: str) -> Iterator[int]:
    for name in names:
        for one in vars(sys.modules[name]).values():
            if isinstance(one, _DEFINITIONS) and one.__module__ == name:
                yield id(one)


# The functions and classes that pickles of functions call, by id: they live as long as the process.
# Why: a look for changes in them takes longer than all other work for them.
_OURS = frozenset(
    _definition_ids(cloudpickle.Pickler.__module__, after.__module__, Function.__module__)
)
_RECORDS = {Function, _Call}  # types with nothing to check


class _Cached(NamedTuple):
    """The pickle of a stateless function, and all that went into it."""

    key: weakref.ref[Any]
    names: tuple[str, ...]
    parts: list[Any]
    epoch: tuple[int, ...]
    walk: Walk | None
    body: bytes


# By code, if numba does not compile it. Why: a lambda in a loop is a new function with the same
# code in each round.
_functions: weakref.WeakKeyDictionary[Any, _Cached] = weakref.WeakKeyDictionary()
_compiled: dict[Callable[..., Any], bytes] = {}  # Why: they live as long as their modules


def cached(call: Callable[..., Any]) -> bytes | None:
    """Return the pickle of a stateless function; None if it is not cached or out of date."""
    function = python_function(call)
    if function is None:
        return _compiled.get(call) if _is_compiled(call) else None
    key = _key(call)
    found = _functions.get(key)
    if found is None or cloudpickle.list_registry_pickle_by_value():
        return None
    if found.key() is not key or found.epoch != _epoch(call):
        return None
    parts = _parts(function, found.names)
    if len(parts) != len(found.parts) or not all(map(is_, parts, found.parts)):
        return None
    return found.body if found.walk is None or found.walk.is_current() else None


def pack_stateless(call: Callable[..., Any]) -> bytes | None:
    """Return the pickle of a stateless function without arguments; None for any other function."""
    return cached(call) or _pickle_stateless(call)


def _pickle_stateless(call: Callable[..., Any]) -> bytes | None:
    """Pickle a stateless function and cache the pickle; return None for any other function."""
    if _is_compiled(call):
        body = _compiled[call] = _pickle(Function(call, {}, ())).body
        return body
    function = python_function(call)
    if function is None or cloudpickle.list_registry_pickle_by_value():
        return None
    names = _stateless_names(function)
    if names is None:
        return None
    # Invariant: the parts are recorded before they are pickled, so a change meanwhile is noticed.
    parts, epoch = _parts(function, names), _epoch(call)
    walks = Walks()
    walk = walks.below(call)
    walks.close()
    if walk is not None and walk.changes:
        return None
    body = _pickle(Function(call, {}, ())).body
    key = _key(call)
    _functions[key] = _Cached(weakref.ref(key), names, parts, epoch, walk, body)
    return body


def _key(call: Callable[..., Any]) -> Any:
    return call.__code__ if type(call) is types.FunctionType else call


def _epoch(function: Callable[..., Any]) -> tuple[int, ...]:
    """Return numbers that change when a pickle of a function may have to."""
    # Why: cloudpickle sends along a module that was imported since then, and a global that another
    # function has brought to the workers since then may be deleted now.
    modules = sys.modules
    return id(modules.get(function.__module__)), len(modules), sum(map(len, _brought.values()))


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


def is_pickled_by_name(definition: types.FunctionType | type) -> bool:
    """Return whether cloudpickle pickles a function or a class as its name."""
    if definition.__module__ == _SPAWNED:
        return False
    # Why: this is a private name of cloudpickle, which has no public one. The public pickler gives
    # the same answer, but builds the whole reduced value of a function that is pickled by value.
    try:
        from cloudpickle.cloudpickle import _should_pickle_by_reference
    except ImportError:
        pickler = cloudpickle.Pickler(io.BytesIO())
        return pickler.reducer_override(definition) is NotImplemented
    return bool(_should_pickle_by_reference(definition))


def _reduce_class(definition: type) -> Any:
    """Return the reduced value of a class that is pickled by value."""
    # Why private: the public way is to register the module for all picklers of this process.
    from cloudpickle.cloudpickle import _dynamic_class_reduce

    return _dynamic_class_reduce(definition)


def _stateless_names(
    function: types.FunctionType, *, may_call_jitted: bool = True
) -> tuple[str, ...] | None:
    """Return the globals that a stateless function uses; None for any other function."""
    if is_pickled_by_name(function):
        return None if "." in function.__qualname__ else ()
    if not _holds_scalars_only(function):
        return None
    names, written = global_names(function.__code__)
    if written:
        return None
    values = function.__globals__
    if not all(_is_fixed(values[name], may_call_jitted) for name in names & values.keys()):
        return None
    return (*names, *MODULE_NAMES)


def _is_fixed(value: Any, may_be_jitted: bool) -> bool:
    """Return whether a worker has an object of its own, in which a call leaves nothing new."""
    if type(value) is types.ModuleType:
        return sys.modules.get(value.__name__) is value
    if type(value) in {types.FunctionType, type}:
        # Why: the user's modules may change, and hold random generators.
        return user_module(value.__module__) is None and is_pickled_by_name(value)
    if may_be_jitted and is_jitted(value):
        # Why one level: numba's functions may call each other in circles.
        return _stateless_names(value.py_func, may_call_jitted=False) is not None
    return _is_compiled(value)


def _holds_scalars_only(function: types.FunctionType) -> bool:
    """Return whether all that a function holds, besides its code, are scalars and classes."""
    if function.__closure__ or function.__kwdefaults__ or function.__dict__:
        return False
    return all(type(default) in SCALARS for default in function.__defaults__ or ()) and all(
        type(note) in SCALARS or (type(note) is type and is_pickled_by_name(note))
        for note in function.__annotations__.values()
    )


def _parts(function: types.FunctionType, names: tuple[str, ...]) -> list[Any]:
    """Return all objects that go into the pickle of a stateless function."""
    module, values = sys.modules.get(function.__module__ or ""), function.__globals__
    found = [
        *_ATTRIBUTES(function),
        getattr(module, function.__name__, None) is function,  # then its pickle is its name
        module is not None and vars(module) is values,
        *map(values.get, names, itertools.repeat(MISSING)),
    ]
    # Why a condition: most functions have nothing of these, and this is on the way of each call.
    defaults, notes, more = function.__defaults__, function.__annotations__, function.__dict__
    if defaults or notes or more:
        found += [*(defaults or ()), *more.values(), *notes, *notes.values()]
    return found
