"""Explain why an object does not pickle: name the part of it that fails, and the remedy."""

from __future__ import annotations

import contextlib
import functools
import pickle
import reprlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from shmpar.pickling.changes import Walk
from shmpar.plan import Function

INSIDE = "create it inside the function or in the pool's initializer"

_SHORT = reprlib.Repr()  # Why: the repr of a deep list raises, and that of a long one is long.
_SHORT.maxother = 60
_DEEPEST = 6  # parts of parts that a message follows


class ProcessLocal(pickle.PicklingError):
    """An object has a meaning in its own process alone; the message names it and the remedy."""

    def __init__(self, kind: str, remedy: str) -> None:
        self.kind, self.remedy = kind, remedy
        why = "it has a meaning in its own process alone"
        super().__init__(f"a {kind}, which does not pickle, since {why}; {remedy}")


def explain_failure(
    value: Any, error: Exception, failure: Callable[[Any], BaseException | None]
) -> str:
    """Return the message for an object that does not pickle and for the error that says so.

    The function `failure` returns the error of pickling an object, None if it pickles.
    """
    function: Any = None
    if isinstance(value, Function):
        function = value.call
        values = value.values
        if isinstance(function, functools.partial) and _is_ours(function.func):  # of Pool.map
            function = function.args[0]
            values = tuple([one for batch in values for given in batch for one in given])
        parts: tuple[Any, ...] = (function, value.keywords, *values)
    else:
        parts = value if isinstance(value, tuple) else (value,)
    for part in parts:
        if (found := _find(part, failure)) is not None:
            return f"cannot send {_name(part, function)} to a worker: {_describe(*found)}"
    for module, names in Walk().visit(function).changes.items():
        for name in names:
            value, place = vars(module.module).get(name), f"the global {name!r}"
            direct = failure(value)
            found = _find(value, failure) if direct is None else (place, value, direct)
            if found is not None:
                why = "has changed" if module.importable else "cannot be imported by a worker"
                sent = f"module {module.name} {why} and is sent by value, but "
                where = sent + (f"in {place}, " if direct is None else "") + found[0]
                text = _describe(where, *found[1:])
                return f"cannot send {_name(function, function)} to a worker: {text}"
    failing = next((part for part in parts if failure(part) is not None), parts[0])
    name = _name(failing, function)
    if isinstance(error, ProcessLocal):
        return f"cannot send {name} to a worker: it is or holds {error}"
    return f"cannot send {name} to a worker: it does not pickle ({error})"


def _describe(where: str, held: Any, error: BaseException) -> str:
    kind = f"{type(held).__module__}.{type(held).__qualname__}"
    if not isinstance(error, ProcessLocal):
        remedy = f"pass it to the verb as an array, or {INSIDE}" if "h5py" in kind else INSIDE
        return f"{where} is a {kind}, which does not pickle ({error}); {remedy}"
    if error.kind != kind:
        return f"{where} is a {kind}, which holds {error}"
    return f"{where} is a {kind}, which has a meaning in its own process alone; {error.remedy}"


def _is_ours(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("shmpar.")


def _find(
    part: Any, failure: Callable[[Any], BaseException | None]
) -> tuple[str, Any, BaseException] | None:
    """Return the innermost object in a part that does not pickle: its place, itself, the error."""
    found: tuple[str, Any, BaseException] | None = None
    if not _is_followed(part):
        return None
    path: list[str] = []
    seen = {id(part)}
    while len(path) < _DEEPEST:
        for name, held in _contents(part, outermost=not path):
            if id(held) not in seen and (error := failure(held)) is not None:
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
    return type(held).__module__.partition(".")[0] not in sys.stdlib_module_names


def _contents(part: Any, *, outermost: bool) -> Iterator[tuple[str, Any]]:
    """Yield the objects that an object holds, each with the name that its user knows."""
    if isinstance(part, dict):
        place = "the keyword argument" if outermost else "its value of"
        yield from [(f"{place} {key!r}", held) for key, held in part.items()]
    function = part
    if isinstance(part, functools.partial):
        function = part.func
        yield "the partial's arguments", (part.args, part.keywords)
    elif hasattr(part, "func1d"):
        function = part.func1d
        yield "the value of apply_along_axis's args and kwargs", (part.args, part.kwargs)
    function = getattr(function, "__wrapped__", function)
    if isinstance(function, types.FunctionType):
        yield from _contents_of_function(function)
    elif hasattr(part, "__self__") and not isinstance(part, types.ModuleType):
        yield "the object of the method", part.__self__
    elif hasattr(part, "__dict__"):
        hidden = ("__dict__", "__weakref__", "__builtins__")
        for key, held in list(vars(part).items()):
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
    value = getattr(value, "func1d", value)  # of apply_along_axis
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return f"function {name}"
    if value is function:
        return f"the callable {type(value).__module__}.{type(value).__qualname__}"
    return f"an item such as {_SHORT.repr(value):.60}"
