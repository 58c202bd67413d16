"""Refuse objects that mean nothing in another process; explain why an object does not pickle.

The message names the part that fails, and the remedy.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import reprlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import cloudpickle

from shmpar.errors import summarize
from shmpar.pickling.changes import CACHED, Walk, own_attributes, wrapped
from shmpar.pickling.modules import SCRIPTS, is_registered
from shmpar.pickling.unpack import (
    make_cached,
    make_cached_property,
    make_dispatcher,
    set_dispatcher,
)
from shmpar.plan import Function

DISPATCHER = functools.singledispatch(len).__code__  # type: ignore[attr-defined]

_INSIDE = "create it inside the function or in the pool's initializer"
_QUEUE = "return the values instead, or send them through multiprocessing.Manager().Queue()"
_SHARED = "use an array of shmpar.array(), which all workers share"
_LOCK = "use array.lock of a shared array, or multiprocessing.Manager()"
_THREADS = f"{_INSIDE}; to exclude other workers use array.lock of a shared array"
_REMEDIES = {
    "_queue": _QUEUE,
    "_thread": _THREADS,
    "ctypes.CDLL": "load the library inside the function, or in a module that workers can import",
    "multiprocessing.connection": _QUEUE,
    "multiprocessing.heap": _SHARED,
    "multiprocessing.queues": _QUEUE,
    "multiprocessing.sharedctypes": _SHARED,
    "multiprocessing.synchronize": _LOCK,
    "queue": _QUEUE,
    "threading": _THREADS,
}

_SHORT = reprlib.Repr()  # Why: the repr of a deep list raises, and that of a long one is long.
_SHORT.maxother = 60
_DEEPEST = 6  # parts of parts that a message follows


class ProcessLocal(pickle.PicklingError):
    """An object has a meaning in its own process alone; the message names it and the remedy."""

    def __init__(self, kind: str, remedy: str) -> None:
        self.kind, self.remedy = kind, remedy
        why = "it has a meaning in its own process alone"
        super().__init__(f"a {kind}, which does not pickle, since {why}; {remedy}")


class CheckedPickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles functions by value if needed; raises `ProcessLocal` for numbers of this process."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol=protocol)
        self._harmless: dict[int, type] = {}  # types without anything to check, by id

    def reducer_override(self, obj: Any) -> Any:
        """Check an object, then reduce it as cloudpickle does, which lacks parts of functools."""
        if id(type(obj)) in self._harmless:
            return NotImplemented
        if isinstance(obj, types.FunctionType):
            if obj.__code__ is DISPATCHER and not is_found(obj):
                return reduce_dispatcher(obj)
        elif type(obj) is CACHED:
            if not is_found(obj):
                return reduce_cached(obj)
        elif isinstance(obj, functools.cached_property) and hasattr(obj, "lock"):
            state = {name: value for name, value in vars(obj).items() if name != "lock"}
            return make_cached_property, (type(obj),), state
        elif isinstance(obj, functools.singledispatchmethod):
            # Why: since Python 3.13 it keeps the objects whose methods were looked up.
            state = {name: value for name, value in vars(obj).items() if name != "_method_cache"}
            return type(obj), (obj.func,), state
        elif not isinstance(obj, type):
            _check_process_local(obj)
            if not hasattr(type(obj), "fileno"):
                self._harmless[id(type(obj))] = type(obj)
        return super().reducer_override(obj)


def is_found(obj: Any) -> bool:
    """Return whether a definition is found in its module under its name, and not in a script."""
    module = obj.__module__ or ""
    if module in SCRIPTS or is_registered(module):
        return False
    found: Any = sys.modules.get(module)
    for name in getattr(obj, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found is obj


def reduce_cached(obj: Any) -> tuple[Any, ...]:
    """Reduce a function of lru_cache; its cache stays here."""
    state = {name: value for name, value in vars(obj).items() if name != "cache_parameters"}
    limits = obj.cache_parameters()
    return make_cached, (obj.__wrapped__, limits["maxsize"], limits["typed"]), state


def reduce_dispatcher(obj: Any) -> tuple[Any, ...]:
    """Reduce a function of singledispatch, with the functions that were registered."""
    own = vars(functools.singledispatch(len))
    state = {name: value for name, value in vars(obj).items() if name not in own}
    registered = list(obj.registry.items())
    default = obj.registry[object]
    return make_dispatcher, (default,), (registered, state), None, None, set_dispatcher


def _check_process_local(obj: Any) -> None:
    """Raise `ProcessLocal` for an object whose number or address means nothing in a worker."""
    kind = type(obj)
    by_author = _has_reducer(kind)
    for base in kind.__mro__:
        module = module_of(base)
        name = f"ctypes.{base.__name__}" if module == "ctypes" else module
        if name in _REMEDIES and (module.startswith("multiprocessing.") or not by_author):
            raise ProcessLocal(_type_name(kind), _REMEDIES[name])
    if by_author:
        return
    if _holds_descriptor(obj):
        raise ProcessLocal(_type_name(kind), _INSIDE)
    # Why private: ForkingPickler has no public table of the types that it knows.
    reduction: Any = sys.modules.get("multiprocessing.reduction")
    if reduction is not None and kind in reduction.ForkingPickler._extra_reducers:  # noqa: SLF001
        remedy = f"give its class a method __reduce__, or {_INSIDE}"
        raise ProcessLocal(_type_name(kind), remedy)


def _type_name(kind: type) -> str:
    """Return the name of a type with its module."""
    return f"{module_of(kind)}.{kind.__qualname__}"


def module_of(kind: type) -> str:
    """Return the name of a type's module; empty if the type has another attribute of that name.

    Why: the type of the functions of Cython has a descriptor there, for its instances.
    """
    name: Any = kind.__module__
    return name if isinstance(name, str) else ""


def _has_reducer(kind: type) -> bool:
    """Return whether the author of a class has said how its objects are pickled."""
    return kind in cloudpickle.Pickler.dispatch_table or any(
        getattr(kind, name) is not getattr(object, name)
        for name in ("__reduce_ex__", "__reduce__", "__getstate__")
    )


def _holds_descriptor(obj: Any) -> bool:
    if not hasattr(type(obj), "fileno"):
        return False
    try:
        number = obj.fileno()
    except Exception:  # noqa: BLE001 - a file that is not open may raise anything
        return False
    return isinstance(number, int) and number >= 0


def pickling_error(value: Any) -> BaseException | None:
    """Return the error of pickling a value; None if it pickles."""
    try:
        CheckedPickler(io.BytesIO(), protocol=5).dump(value)
    except Exception as error:  # noqa: BLE001 - pickling may raise any exception
        return error
    return None


def reason(error: object) -> str:
    """Return the words in parentheses for an error of pickling, which may have no message."""
    return str(error) if isinstance(error, ProcessLocal) else summarize(error)


def explain_failure(value: Any, error: Exception) -> str:
    """Return the message for an object that does not pickle and for the error that says so."""
    function: Any = None
    if isinstance(value, Function):
        function = value.call
        values = value.values
        if isinstance(function, functools.partial) and _is_of_batches(function.func):
            function = function.args[0]  # an item may be a tuple of arguments
            given = [item for batch in values for item in batch]
            values = tuple(
                [one for item in given for one in (item if type(item) is tuple else (item,))]
            )
        parts: tuple[Any, ...] = (function, value.keywords, *values)
    else:
        parts = value if isinstance(value, tuple) else (value,)
    for part in parts:
        # Why first: a class of Python is sent by its name, though its attributes do not pickle.
        if pickling_error(part) is not None and (found := _find(part)) is not None:
            return f"cannot send {_name(part, function)} to a worker: {_describe(*found)}"
    for module, names in Walk().visit(function).changes.items():
        for name in names:
            value, place = vars(module.module).get(name), f"the global {name!r}"
            direct = pickling_error(value)
            found = _find(value) if direct is None else (place, value, direct)
            if found is not None:
                why = "has changed" if module.importable else "cannot be imported by a worker"
                sent = f"module {module.name} {why} and is sent by value, but "
                where = sent + (f"in {place}, " if direct is None else "") + found[0]
                text = _describe(where, *found[1:])
                return f"cannot send {_name(function, function)} to a worker: {text}"
    failing = next((part for part in parts if pickling_error(part) is not None), parts[0])
    name = _name(failing, function)
    if isinstance(error, ProcessLocal):
        return f"cannot send {name} to a worker: it is or holds {error}"
    return f"cannot send {name} to a worker: it does not pickle ({reason(error)})"


def _describe(where: str, held: Any, error: BaseException) -> str:
    kind = _type_name(type(held))
    if not isinstance(error, ProcessLocal):
        remedy = f"pass it to the verb as an array, or {_INSIDE}" if "h5py" in kind else _INSIDE
        return f"{where} is a {kind}, which does not pickle ({reason(error)}); {remedy}"
    if error.kind != kind:
        return f"{where} is a {kind}, which holds {error}"
    return f"{where} is a {kind}, which has a meaning in its own process alone; {error.remedy}"


def _is_along_axis(value: Any) -> bool:
    return module_of(type(value)).startswith("shmpar.") and hasattr(value, "func1d")


def _is_of_batches(function: Any) -> bool:
    """Return whether a function calls that of the user with each item of a batch."""
    return getattr(function, "__module__", None) == "shmpar.worker.items"  # a higher layer


def _find(part: Any) -> tuple[str, Any, BaseException] | None:
    """Return the innermost object in a part that does not pickle: its place, itself, the error."""
    found: tuple[str, Any, BaseException] | None = None
    if not _is_followed(part):
        return None
    path: list[str] = []
    seen = {id(part)}
    while len(path) < _DEEPEST:
        for name, held in _contents(part, outermost=not path):
            if id(held) not in seen and (error := pickling_error(held)) is not None:
                path.append(name)
                found = (", ".join([*[f"in {one}" for one in path[:-1]], name]), held, error)
                break
        else:
            break
        if not _is_followed(held) or isinstance(found[2].__cause__, RecursionError):
            break
        seen.add(id(held))
        part = held
    return found


def _is_followed(held: Any) -> bool:
    """Return whether the parts of an object say more than the object itself."""
    kinds = (dict, type, functools.partial)
    if isinstance(held, (*kinds, types.FunctionType, types.MethodType, types.ModuleType)):
        return True
    return module_of(type(held)).partition(".")[0] not in sys.stdlib_module_names


def _contents(part: Any, *, outermost: bool) -> Iterator[tuple[str, Any]]:
    """Yield the objects that an object holds, each with the name that its user knows."""
    if isinstance(part, dict):
        place = "the keyword argument" if outermost else "its value of"
        yield from [(f"{place} {key!r}", held) for key, held in part.items()]
    function = part
    if isinstance(part, functools.partial):
        function = part.func
        yield "the partial's arguments", (part.args, part.keywords)
    elif _is_along_axis(part):
        function = part.func1d
        yield "the value of apply_along_axis's args and kwargs", (part.args, part.kwargs)
    function = wrapped(function) or function
    if isinstance(function, types.FunctionType):
        yield from _contents_of_function(function)
    elif hasattr(type(part), "__self__"):
        yield "the object of the method", part.__self__
    else:
        hidden = ("__dict__", "__weakref__", "__builtins__")
        for key, held in list(own_attributes(part).items()):
            if key not in hidden:
                yield f"its attribute {key!r}", held
        if not isinstance(part, (type, types.ModuleType)):
            yield f"its class {type(part).__qualname__}", type(part)


def _contents_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        # Why: a variable without a value raises ValueError, in inspect.getclosurevars for all.
        with contextlib.suppress(ValueError):
            yield f"its closure variable {name!r}", cell.cell_contents
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"the global {name!r}", function.__globals__[name]
    for number, default in enumerate(function.__defaults__ or ()):
        yield f"its default number {number}", default


def _name(value: Any, function: Any) -> str:
    if isinstance(value, dict):
        return "kwargs"
    value = value.func1d if _is_along_axis(value) else value
    with contextlib.suppress(Exception):  # Why: the class of an item may raise any error.
        if isinstance(value.__qualname__, str):
            return f"function {value.__qualname__}"
    if value is function:
        return f"the callable {_type_name(type(value))}"
    return f"an item such as {_SHORT.repr(value):.60}"
