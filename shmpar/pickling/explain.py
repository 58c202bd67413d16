"""Explain why an object does not pickle: name the part that fails as its user knows it."""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator
from typing import Any

import cloudpickle

from shmpar.plan import Function


def explain_failure(value: Any, error: Exception) -> str:
    """Return the message for an object that does not pickle and for the error that says so."""
    if isinstance(value, Function):
        parts: tuple[Any, ...] = (value.call, value.keywords, *value.values)
    else:
        parts = value if isinstance(value, tuple) else (value,)
    for part in parts:
        for name, held in _contents(part):
            if not _pickles(held):
                found = f"{name} is a {type(held).__module__}.{type(held).__qualname__}"
                remedy = "create it inside the function or in the pool's initializer"
                reason = f"{found}, which does not pickle ({error}); {remedy}"
                return f"cannot send {_name(part)} to a worker: {reason}"
    failing = next((part for part in parts if not _pickles(part)), parts[0])
    return f"cannot send {_name(failing)} to a worker: it does not pickle ({error})"


def _contents(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the objects that an object holds, each with the name that its user knows."""
    if isinstance(part, dict):
        for key, held in part.items():
            yield f"the keyword argument {key!r}", held
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
    elif hasattr(part, "__self__"):
        yield "the object of the method", part.__self__
    elif hasattr(part, "__dict__"):
        for key, held in vars(part).items():
            yield f"its attribute {key!r}", held


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


def _pickles(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:  # noqa: BLE001 - pickling may raise any exception
        return False
    return True


def _name(value: Any) -> str:
    if isinstance(value, dict):
        return "kwargs"
    value = getattr(value, "func1d", value)  # of apply_along_axis
    name = getattr(value, "__qualname__", None)
    return f"an item such as {value!r:.60}" if name is None else f"function {name}"
