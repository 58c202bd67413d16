"""The identity of a call, by which ``ledger=`` knows it again in a later process.

A call is the same if its identity is equal: fingerprints of its function, its inputs, its grid and
its dtypes (:func:`call_identity`).

- A function is its name, its code and its constants: defaults, captured values, attributes, and the
  globals that it names. The functions and classes among these count likewise, and attributes of
  modules that it names, in all modules of the user. Objects of installed packages are their names:
  a changed library is not noticed. Comments and line numbers do not count.
- An array is its dtype, shape and values, and one of a subclass also its class and attributes. A
  store is its place, dtype, shape and order of axes, and for :func:`shmpar.opened` the function and
  all its arguments. Changed values of an input store are not noticed. A dict or a set is its items
  in any order. Another object is its class and its pickled state, with the function that restores
  it. A method is its code and its object. A ufunc of :func:`numpy.frompyfunc` is its function.
- Another version of Python compiles other bytecode, and so makes another function.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import hashlib
import importlib.util
import sys
import types
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np

from shmpar.arrays import SharedArray
from shmpar.pickling.changes import all_names, own_attributes, parts_of, wrapped
from shmpar.pickling.explain import DISPATCHER
from shmpar.pickling.modules import (
    ADDED,
    SCRIPTS,
    code_objects,
    is_folder,
    is_users,
    is_users_file,
)
from shmpar.plan import Function, Plan
from shmpar.stores.store import Part, Store
from shmpar.worker.verify import crc

Array = np.ndarray[Any, Any]


def call_identity(plan: Plan, function: Function, arrays: list[Array]) -> dict[str, str]:
    """Return the fingerprints of the parts of a call, by the names that errors give them.

    Notes
    -----
    Cost: a pass over the inputs.
    """
    chunks = plan.verb, plan.grid, plan.arguments, plan.placement, plan.halo, plan.trim
    call = function.call, sorted(plan.special_parameters), plan.pass_out
    return {
        "verb": plan.verb,
        "function": fingerprint(call),
        "kwargs": fingerprint(function.keywords),
        "inputs": fingerprint((*arrays, *function.values)),
        "chunks": fingerprint(chunks),
        "dtype": fingerprint((plan.dtypes, plan.is_tuple)),
    }


def fingerprint(value: Any) -> str:
    """Return hexadecimal digits that are the same for equal values in any process.

    Raises
    ------
    ValueError
        For objects that are nested too deeply.

    Examples
    --------
    >>> fingerprint({"a": 1, "b": {2, 3}}) == fingerprint({"b": {3, 2}, "a": 1})
    True
    >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 2)
    False
    """
    pending: list[Any] = []
    known, others = set[int](), set[str]()
    try:
        first = _Fingerprinter(pending).of(value)
        for one in pending:  # Why: it grows, so a long chain of functions needs no deep recursion.
            if id(one) not in known:
                known.add(id(one))
                others.add(_Fingerprinter(pending).of(one))
    except RecursionError:
        raise ValueError(
            "ledger=: an object that the function uses holds others that are nested too deeply to "
            "be compared with those of a later call; make it inside the function, or leave out "
            "ledger="
        ) from None
    return _hash(first, *sorted(others)) if others else first


# Why: repr gives the whole value of these types, in any process.
_SIMPLE = {type(None), bool, int, float, complex, str, bytes, range}
_SIMPLE |= {type(...), type(NotImplemented)}
_NO_STATE = {"__doc__", "__module__", "__dict__", "__weakref__", "__firstlineno__", "_abc_impl"}
# Why: the interpreter adds these to a class later, or in any order.
_NO_STATE |= {*ADDED, "__static_attributes__"}
_SMALL_BYTES = 16 << 20  # of an array of which there may be many


class _Fingerprinter:
    """Compute fingerprints of values that may refer to each other.

    Parameters
    ----------
    pending : list
        Gets the user's functions and classes of which a fingerprint has the name alone.
    """

    def __init__(self, pending: list[Any]) -> None:
        self._pending = pending
        self._modules: list[types.ModuleType] = []  # those in progress
        self._open: dict[int, int] = {}
        # Invariant: it holds each value, so that no other value gets its id.
        self._done: dict[int, tuple[str, Any]] = {}

    def of(self, value: Any) -> str:
        """Return the fingerprint; inside of a cycle, a hash of the distance to the same value."""
        is_simple = type(value) in _SIMPLE or isinstance(value, (np.dtype, np.generic))
        if is_simple and not isinstance(value, np.void):
            # Why: Python writes no int of thousands of digits in the decimal system.
            text = hex(value) if type(value) is int else repr(value)
            return _hash("plain", type(value).__name__, text)
        key = id(value)
        if key in self._open:
            return _hash("again", str(len(self._open) - self._open[key]))
        if key not in self._done:
            self._open[key] = len(self._open)
            self._done[key] = _hash(*self._parts(value)), value
            del self._open[key]
        return self._done[key][0]

    def _parts(self, value: Any) -> Iterator[str]:  # noqa: C901, PLR0912 - one case per kind of value
        match value:
            case np.void():  # Why: its repr leaves out elements.
                yield from ("void", *self._array(np.asarray(value)))
            case np.ma.core.MaskedConstant():
                yield "masked"
            case np.ndarray():  # Why: the bytes of a masked array lack the masked elements.
                yield from self._array(np.asarray(value))
                if type(value) not in {np.ndarray, np.memmap, SharedArray}:
                    yield from (self.of(type(value)), self.of(own_attributes(value)))
            case Store():  # Why: its values are not read, so a change of them is not noticed.
                kind, where, layout, *more = value.identity()
                yield from ("store", kind, where, layout, *map(self.of, more))
            case Part():
                yield from self._array(value.array)
            case types.FunctionType():
                yield from self._function(value)
            case types.MethodType() | types.BuiltinFunctionType() if _is_bound(value):
                if _is_global(value):
                    yield from ("named", _name(type(value.__self__)), value.__name__)
                    return
                code = getattr(value, "__func__", None)
                yield from ("method", value.__name__, self.of(code), self.of(value.__self__))
            case types.CodeType():
                yield from self._code(value)
            case staticmethod() | classmethod() | property():
                code = [getattr(value, one, None) for one in ("__func__", "fget", "fset", "fdel")]
                yield from (type(value).__name__, *map(self.of, code))
            case tuple() | list() if type(value) in {tuple, list}:
                yield from (_name(type(value)), *map(self.of, value))
            # Why: an unordered item has a fingerprint of its own, whatever its depth and order.
            case set() | frozenset():
                yield from ("set", *sorted(self._apart().of(one) for one in value))
                if type(value) not in {set, frozenset}:
                    yield from (self.of(type(value)), self.of(own_attributes(value)))
            case Mapping() if type(value) in {dict, types.MappingProxyType}:
                keys = [self._apart().of(key) for key in value]
                pairs = sorted(zip(keys, map(self.of, value.values()), strict=True))
                yield from ("mapping", *(part for pair in pairs for part in pair))
            case type() if _is_own(value.__module__):
                yield from self._class(value)
            case np.ufunc():  # Why: that of np.frompyfunc refers to its function.
                functions = filter(callable, gc.get_referents(value))
                yield from ("named", _name(value), *map(self._reference, functions))
            case type() | types.ModuleType() | types.BuiltinFunctionType():
                yield from ("named", _name(value))
            case _:
                yield from self._object(value)

    def _apart(self) -> _Fingerprinter:
        return _Fingerprinter(self._pending)

    def _array(self, array: Array) -> Iterator[str]:
        yield from ("array", repr(array.dtype), repr(array.shape))
        if array.dtype.names:  # Why: the padding between fields has no meaning.
            for name in array.dtype.names:
                yield from self._array(np.ascontiguousarray(array[name]))
            return
        if array.dtype.hasobject:
            yield self.of(array.tolist())
            return
        if array.dtype.char in "gG":  # Why: the padding behind a long double has no meaning.
            clean = np.zeros(array.shape, array.dtype.newbyteorder("="))
            array = np.positive(array, out=clean)
        # Why: of very many items, some have the same CRC, which is quicker.
        small = array.nbytes <= _SMALL_BYTES
        yield hashlib.sha256(array.tobytes()).hexdigest() if small else str(crc(array))

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        yield from ("function", _name(function), self.of(function.__code__))
        if function.__code__ is DISPATCHER:  # Why: it has a cache, which changes.
            yield self.of(function.registry)  # type: ignore[attr-defined]
            return
        attributes = {name: one for name, one in vars(function).items() if name != "__wrapped__"}
        if attributes:
            yield self.of(attributes)
        yield from (self.of(function.__defaults__), self.of(function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                yield self.of(cell.cell_contents)
            except ValueError:  # Why: the variable is not bound yet.
                yield "empty"
        if not _is_own(function.__globals__.get("__name__")):
            return
        names = set(all_names(function.__code__))
        yield from self._named(function.__globals__, names)
        for module in _imported_inside(function.__code__, function.__globals__):
            yield from self._named(vars(module), names)

    def _named(self, space: Mapping[str, Any], names: set[str]) -> Iterator[str]:
        """Yield the fingerprints of the globals that code names, and attributes of modules."""
        for name in sorted(names & space.keys()):
            value = space[name]
            if isinstance(value, types.ModuleType) and _is_followed(value.__name__):
                if value not in self._modules:
                    self._modules.append(value)
                    yield from (name, *self._named(vars(value), names))
                    self._modules.pop()
                continue
            yield from (name, self._reference(value))

    def _reference(self, value: Any) -> str:
        """Return the name of a definition that its module has; the fingerprint of all else."""
        is_code = isinstance(value, types.FunctionType | type) or _wrapped(value) is not None
        if not (is_code and _is_importable(value)):
            return self.of(value)
        if _is_own(value.__module__):
            self._pending.append(value)
        return _name(value)

    def _class(self, cls: type) -> Iterator[str]:
        yield from ("class", _name(cls), *map(self.of, cls.__bases__))
        for name, value in sorted(vars(cls).items()):
            if isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType):
                yield name
            elif name not in _NO_STATE:
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
        if (parts := parts_of(value)) is not None:
            yield from map(self.of, parts)
            return
        reduced = _reduced(value)
        if reduced is None:
            return
        if isinstance(reduced, str):
            yield reduced
            return
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        if isinstance(state, dict):
            kind, cached = type(value), functools.cached_property
            own = [one for one in state if not isinstance(getattr(kind, one, None), cached)]
            # Why: a value that an object has computed before is no part of it.
            state = state if len(own) == len(state) else {one: state[one] for one in own} or None
        yield from (self._reference(make), self.of(arguments), self.of(state))
        yield from (self.of(list(items or ())), self.of(list(pairs or ())))


def _reduced(value: Any) -> Any:
    """Return the state of an object as ``__reduce_ex__`` does; None if that is not known."""
    try:
        return value.__reduce_ex__(4)
    except RecursionError:  # Why: the rest of a deep value would not count.
        raise
    except Exception:  # noqa: BLE001 - the object does not pickle
        if isinstance(value, memoryview):
            return memoryview, (value.format, value.shape, value.tobytes())
        if isinstance(value, KeysView | ValuesView | ItemsView):
            return list, (list(value),)
        return None


def _is_own(name: str | None) -> bool:
    """Return whether a module is the user's; one that is in memory alone has no name or no file."""
    module: Any = sys.modules.get(name or "")
    if name in SCRIPTS or module is None:
        return True
    return isinstance(module, types.ModuleType) and is_users(module)


def _is_followed(name: str) -> bool:
    """Return whether a loaded module is the user's, or may hold modules of the user's."""
    return _is_own(name) or is_folder(sys.modules[name])


def _imported_inside(code: types.CodeType, space: dict[str, Any]) -> list[types.ModuleType]:
    """Return the user's modules that code imports by itself; import them too, as it would."""
    found: list[types.ModuleType] = []
    for part in (code, *code_objects(code)):
        steps = [one for one in dis.get_instructions(part) if one.opname != "EXTENDED_ARG"]
        for level, names, step in zip(steps, steps[1:], steps[2:], strict=False):
            if step.opname == "IMPORT_NAME":
                name = "." * level.argval + step.argval
                several = [name, *(f"{name}.{one}" for one in names.argval or ())]
                modules = [_own_module(one, space) for one in several]
                found += [module for module in modules if module is not None]
    return found


def _own_module(name: str, space: dict[str, Any]) -> types.ModuleType | None:
    with contextlib.suppress(Exception):  # Why: the module's code may raise anything.
        name = importlib.util.resolve_name(name, space.get("__package__"))
        # Why the first part: the look for the whole name imports it.
        for one in (name.partition(".")[0], name):
            if one not in sys.modules and not _is_own_spec(importlib.util.find_spec(one)):
                return None
            if one in sys.modules and not _is_followed(one):
                return None
        return importlib.import_module(name)
    return None


def _is_own_spec(spec: ModuleSpec | None) -> bool:
    """Return whether an import would load a module of the user's, or a folder of modules."""
    if spec is None or not spec.has_location:
        return spec is not None and spec.submodule_search_locations is not None
    is_package = spec.submodule_search_locations is not None
    return is_users_file(spec.origin or "", spec.name.count(".") + is_package)


def _is_importable(definition: Any) -> bool:
    """Return whether a definition is the one that its module has under its name."""
    space = vars(sys.modules.get(getattr(definition, "__module__", None) or "", types))
    return space.get(getattr(definition, "__qualname__", "")) is definition


def _is_bound(method: Any) -> bool:
    # Why: the __self__ of a function in C is its module.
    return not isinstance(method.__self__, types.ModuleType | None)


def _is_global(method: Any) -> bool:
    """Return whether a package has a method as a function, such as `random.choice`.

    The state of its object changes, and is another one in each process.
    """
    module = type(method.__self__).__module__
    return not _is_own(module) and getattr(sys.modules[module], method.__name__, None) is method


def _wrapped(value: Any) -> types.FunctionType | None:
    """Return the function behind a decorator object, for example of functools.cache."""
    function = wrapped(value)
    return function if isinstance(function, types.FunctionType) else None


def _name(value: Any) -> str:
    qualified = getattr(value, "__qualname__", None) or getattr(value, "__name__", repr(value))
    return f"{getattr(value, '__module__', None)}.{qualified}"


def _hash(*parts: str) -> str:
    result = hashlib.sha256()
    for part in parts:
        result.update(f"{len(part)}:{part}".encode("utf-8", "surrogatepass"))
    return result.hexdigest()[:32]
