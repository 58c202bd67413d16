"""Functions that are nothing but their code, and what they were pickled to.

Imports cloudpickle, named and plan.

To pickle a function takes longer than all else of a small call.  Most functions hold nothing that
could have changed since their last call: no closure, no globals but modules, no defaults but
numbers and text.  What such a function was pickled to is kept as long as the function lives, and a
worker may call what it has opened once again.  It may be annotated, with text and with classes that
go by their names.  Compiled functions that go by a name, NumPy's above all, are treated alike.

Guarantees
----------
- What is kept is used only while all that went into it is the same object as then.
- A function that could leave anything for its next call, in a global, an attribute, a closure or
  a default, is none of these.
"""

from __future__ import annotations

import dis
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from operator import is_
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from shmpar.named import is_named
from shmpar.plan import Function

__all__ = ["OF_MODULE", "by_reference", "kept", "known"]

OF_MODULE = ("__name__", "__package__", "__path__", "__file__")
"""Names of a module's globals that travel with each of its functions."""

_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_absent = object()


class _Kept(NamedTuple):
    """The pickle of a plain function, and all that went into it."""

    names: tuple[str, ...]
    held: tuple[Any, ...]
    modules: int
    body: bytes


_functions: weakref.WeakKeyDictionary[types.FunctionType, _Kept] = weakref.WeakKeyDictionary()
_compiled: dict[Callable[..., Any], bytes] = {}  # those, too, that live as long as their module


def by_reference(one: types.FunctionType | type) -> bool:
    """Whether the worker can import a function, or a class, by its name."""
    from cloudpickle.cloudpickle import _should_pickle_by_reference

    return bool(_should_pickle_by_reference(one))


def known(value: Function) -> bytes | None:
    """What :func:`kept` gives, if it would not have to pickle anything."""
    call = value.call
    if value.keywords or value.values:
        return None
    if _is_compiled(call):
        return _compiled.get(call)
    if type(call) is not types.FunctionType or cloudpickle.list_registry_pickle_by_value():
        return None
    found = _functions.get(call)
    # A module that was imported since then may be one that cloudpickle sends along.
    if found is None or found.modules != len(sys.modules) or not _same(call, found):
        return None
    return found.body


def kept(value: Function, pickled: Callable[[Function], bytes]) -> bytes | None:
    """The pickle of a function that is nothing but its code; None if it may be more than that.

    Parameters
    ----------
    value : Function
        With what it is called with, which is nothing for such a one.
    pickled : callable
        Pickles it, the first time.
    """
    body, call = known(value), value.call
    if body is not None or value.keywords or value.values:
        return body
    if _is_compiled(call):
        _compiled[call] = body = pickled(value)
        return body
    if type(call) is not types.FunctionType or cloudpickle.list_registry_pickle_by_value():
        return None
    names = _plain_names(call)
    if names is None:
        return None
    found = _Kept(names, _held(call, names), len(sys.modules), pickled(value))
    _functions[call] = found
    return found.body


def _is_compiled(call: Callable[..., Any]) -> bool:
    return type(call) is np.ufunc or is_named(call)


def _same(function: types.FunctionType, then: _Kept) -> bool:
    held = _held(function, then.names)
    return len(held) == len(then.held) and all(map(is_, held, then.held))


def _held(function: types.FunctionType, names: tuple[str, ...]) -> tuple[Any, ...]:
    """All that a pickle of the function says, but for what :func:`_plain_names` rules out."""
    names_of = function.__globals__
    module = sys.modules.get(function.__module__ or "")
    return (
        function.__code__,
        function.__closure__,
        function.__doc__,
        function.__module__,
        function.__name__,
        function.__qualname__,
        getattr(module, function.__name__, None) is function,  # it may go by its name
        function.__kwdefaults__,
        *(function.__defaults__ or ()),
        *function.__dict__.values(),
        *function.__annotations__,
        *function.__annotations__.values(),
        *[names_of.get(name, _absent) for name in names],
    )


def _plain_names(function: types.FunctionType) -> tuple[str, ...] | None:
    """Names of the globals of a function that is nothing but its code; None for any other."""
    if by_reference(function):
        return None if "." in function.__qualname__ else ()
    if function.__closure__ or function.__kwdefaults__ or function.__dict__:
        return None
    if not all(type(one) in _SCALARS for one in function.__defaults__ or ()):
        return None
    if not all(map(_is_plain_note, function.__annotations__.values())):
        return None
    names: set[str] = set()
    for instruction in _instructions(function.__code__):
        if instruction.opname in {"STORE_GLOBAL", "DELETE_GLOBAL"}:
            return None
        if instruction.opname in {"LOAD_GLOBAL", "LOAD_NAME"}:
            names.add(instruction.argval)
    values = [function.__globals__.get(name, _absent) for name in names]
    plain = all(value is _absent or _is_importable(value) for value in values)
    return (*names, *OF_MODULE) if plain else None


def _is_plain_note(value: Any) -> bool:
    """Whether an annotation is text, or a class that goes by its name."""
    return type(value) in _SCALARS or (type(value) is type and by_reference(value))


def _is_importable(value: Any) -> bool:
    """Whether it is a module that goes by its name."""
    return type(value) is types.ModuleType and sys.modules.get(value.__name__) is value


def _instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    """Those of the code, and of all functions and classes in it."""
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)
