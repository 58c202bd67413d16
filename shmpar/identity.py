"""What a call is, as digests: by them a ledger on disk is known to belong to it.

Imports checksum and plan.

What counts, and what does not
------------------------------
- A function is its name, its code and its constants: defaults, what it has captured, and the
  globals that it names, functions and classes of its own module among them by the same rule. Those
  of other modules are their names: a library that was changed is not noticed. Nor are comments
  and line numbers.
- An array is its dtype, shape and values; a dict or a set, what is in it in whatever order. Other
  objects are their class and what they pickle to, and a method is its object too.
- The same code compiles to other bytes on another version of Python, and so is another function.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from shmpar.checksum import crc
from shmpar.plan import Function, Plan

__all__ = ["digest", "identify"]

_NO_STATE = {"__doc__", "__module__", "__dict__", "__weakref__", "__firstlineno__", "_abc_impl"}
# What the interpreter notes in a class: when it first pickles an instance, and in any order.
_NO_STATE |= {"__slotnames__", "__static_attributes__"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented), range)


def identify(plan: Plan, function: Function, arrays: list[np.ndarray[Any, Any]]) -> dict[str, str]:
    """Digests of the parts of a call, by what an error calls them.

    Notes
    -----
    Cost: a pass over the inputs, at 3 GB/s.
    """
    cut = plan.verb, plan.grid, plan.arguments, plan.placement, plan.halo, plan.trim
    return {
        "verb": plan.verb,
        "function": digest((function.call, function.keywords, sorted(plan.wants), plan.pass_out)),
        "inputs": digest((*arrays, *function.values)),
        "chunks": digest(cut),
        "dtype": digest((plan.dtypes, plan.several)),
    }


def digest(value: Any) -> str:
    """A number, as hexadecimal digits, that is the same for equal values in any process.

    Examples
    --------
    >>> digest({"a": 1, "b": {2, 3}}) == digest({"b": {3, 2}, "a": 1})
    True
    >>> digest(lambda x: x + 1) == digest(lambda x: x + 2)
    False
    """
    return _Digest().of(value)


class _Digest:
    """Digests of values that may refer to one another."""

    def __init__(self, home: str | None = None) -> None:
        self._home = home  # the module of the function that is looked at
        self._open: dict[int, int] = {}
        self._done: dict[int, tuple[str, Any]] = {}  # kept alive, so that no id is used again

    def of(self, value: Any) -> str:
        """The digest of a value; of one that is being digested, how deep inside it lies."""
        if isinstance(value, _PLAIN):
            return _hash("plain", type(value).__name__, repr(value))
        key = id(value)
        if key in self._open:
            return _hash("again", str(len(self._open) - self._open[key]))
        if key not in self._done:
            self._open[key] = len(self._open)
            self._done[key] = _hash(*self._parts(value)), value
            del self._open[key]
        return self._done[key][0]

    def _parts(self, value: Any) -> Iterator[str]:  # noqa: C901 - one case a kind of value
        match value:
            case np.ndarray():
                yield from self._array(value)
            case np.dtype() | np.generic():
                yield from (type(value).__name__, repr(value))
            case types.FunctionType():
                yield from self._function(value)
            case types.MethodType() | types.BuiltinFunctionType() if _bound(value):
                code = getattr(value, "__func__", None)
                yield from ("method", value.__name__, self.of(code), self.of(value.__self__))
            case functools.partial():
                yield from ("partial", *map(self.of, (value.func, value.args, value.keywords)))
            case types.CodeType():
                yield from self._code(value)
            case tuple() | list():
                yield from (_name(type(value)), *map(self.of, value))
            case set() | frozenset():
                yield from ("set", *sorted(_Digest(self._home).of(item) for item in value))
            case Mapping() if type(value) in {dict, types.MappingProxyType}:
                items = [(_Digest(self._home).of(key), self.of(one)) for key, one in value.items()]
                yield from ("mapping", *(part for item in sorted(items) for part in item))
            case type() if value.__module__ in {self._home, "__main__"}:
                yield from self._class(value)
            case type() | types.ModuleType() | types.BuiltinFunctionType() | np.ufunc():
                yield from ("named", _name(value))
            case _:
                yield from self._object(value)

    def _array(self, array: np.ndarray[Any, Any]) -> Iterator[str]:
        yield from ("array", repr(array.dtype), repr(array.shape))
        if array.dtype.hasobject:
            yield self.of(array.tolist())
            return
        if array.dtype.names:  # what lies between fields says nothing
            from numpy.lib.recfunctions import repack_fields  # takes as long as the rest of this

            array = repack_fields(array, recurse=True)
        yield str(crc(array))

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        self._home = self._home or function.__module__
        yield from ("function", _name(function), self.of(function.__code__))
        yield from (self.of(function.__defaults__), self.of(function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                yield self.of(cell.cell_contents)
            except ValueError:  # not bound yet
                yield "empty"
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                value = function.__globals__[name]
                far = getattr(value, "__module__", None) != function.__module__
                is_code = isinstance(value, types.FunctionType) or _wrapped(value) is not None
                yield from (name, _name(value) if is_code and far else self.of(value))

    def _class(self, cls: type) -> Iterator[str]:
        yield from ("class", _name(cls), *map(self.of, cls.__bases__))
        for name, value in sorted(vars(cls).items()):
            match value:
                case staticmethod() | classmethod():
                    yield from (name, self.of(value.__func__))
                case property():
                    yield from (name, *map(self.of, (value.fget, value.fset, value.fdel)))
                case types.GetSetDescriptorType() | types.MemberDescriptorType():
                    yield name
                case _ if name not in _NO_STATE:
                    yield from (name, self.of(value))

    def _code(self, code: types.CodeType) -> Iterator[str]:
        yield from ("code", code.co_code.hex(), code.co_exceptiontable.hex())
        yield from (*code.co_names, "|", *code.co_varnames, "|", *code.co_freevars, "|")
        yield from (str(code.co_argcount), str(code.co_kwonlyargcount), str(code.co_flags))
        yield from map(self.of, code.co_consts)

    def _object(self, value: Any) -> Iterator[str]:
        yield from ("object", self.of(type(value)))
        call = getattr(type(value), "__call__", None)  # noqa: B004 - its code, if it has any
        for code in (call, _wrapped(value)):
            if isinstance(code, types.FunctionType):
                yield self.of(code)
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # noqa: BLE001 - what does not pickle is its type
            return
        if isinstance(reduced, str):
            yield reduced
            return
        _, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        yield from (self.of(arguments), self.of(state))
        yield from (self.of(list(items or ())), self.of(list(pairs or ())))


def _bound(method: Any) -> bool:
    """Whether it is called with an object of its own; a function in C has its module for one."""
    return not isinstance(method.__self__, types.ModuleType | type(None))


def _wrapped(value: Any) -> types.FunctionType | None:
    """The function behind a decorator that is not a function itself, such as functools.cache."""
    found = getattr(value, "__wrapped__", None)
    return found if isinstance(found, types.FunctionType) else None


def _names(code: types.CodeType) -> set[str]:
    """Names that the code, and code inside it, may look up in its globals."""
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _name(value: Any) -> str:
    qualified = getattr(value, "__qualname__", None) or getattr(value, "__name__", repr(value))
    return f"{getattr(value, '__module__', None)}.{qualified}"


def _hash(*parts: str) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{len(part)}:{part}".encode("utf-8", "surrogatepass"))
    return found.hexdigest()[:32]
