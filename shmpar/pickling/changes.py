"""Find the changed globals of the user's modules that functions reach.

A worker imports a module of the user's from its file, once. The parent may have other values of its
globals (:mod:`shmpar.pickling.modules`). A pickle brings those that its functions reach and that a
worker has, or may have, in another state.

Guarantees
----------
- No object of the user's is called.
- A global that was different once is sent with every pickle that reaches it.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import operator
import sys
import types
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cloudpickle

from shmpar.pickling.modules import (
    COMPARED,
    CONTAINERS,
    LONGEST,
    MISSING,
    PASSED,
    SCRIPTS,
    UserModule,
    are_same,
    code_objects,
    identity,
    is_folder,
    is_registered,
    user_module,
)
from shmpar.pickling.plain import pack_plain

CACHED: type = type(functools.lru_cache(len))
_DEFINED = (types.FunctionType, type, types.MethodType, functools.partial, CACHED)
_READS = {"LOAD_GLOBAL", "LOAD_NAME"}
_WRITES = {"STORE_GLOBAL", "DELETE_GLOBAL"}


class GlobalNames(NamedTuple):
    """The names that code looks up as globals, and those that it sets or deletes."""

    read: frozenset[str]
    written: frozenset[str]


@functools.lru_cache(maxsize=256)  # Why: a function that is defined anew has the same code
def global_names(code: types.CodeType) -> GlobalNames:
    """Return the globals of the code, and of all functions and classes in it.

    Examples
    --------
    >>> global_names((lambda: len(print)).__code__).read == {"len", "print"}
    True
    """
    parts = (code, *code_objects(code))
    found = [(one.opname, one.argval) for part in parts for one in dis.get_instructions(part)]
    return GlobalNames(
        frozenset(name for operation, name in found if operation in _READS),
        frozenset(name for operation, name in found if operation in _WRITES),
    )


@functools.lru_cache(maxsize=256)  # Why: a function that is defined anew has the same code
def all_names(code: types.CodeType) -> tuple[str, ...]:
    """Return all names in the code of a function, and in the functions inside it."""
    parts = (code, *code_objects(code))
    return tuple(dict.fromkeys(name for one in parts for name in one.co_names))


def own_attributes(obj: Any) -> Mapping[str, Any]:
    """Return the attributes that an object has besides its class, without code of its class."""
    found: Any = None
    with contextlib.suppress(Exception):
        found = object.__getattribute__(obj, "__dict__")
    return found if type(found) in {dict, types.MappingProxyType} else {}


def _held_by(obj: Any) -> Sequence[Any]:
    """Return the objects whose changes may be seen by the code that uses an object."""
    kind = type(obj)  # Why not isinstance: it may call code of the user's.
    if issubclass(kind, (types.MethodType, staticmethod, classmethod)):
        return (obj.__func__,)
    if issubclass(kind, property):
        return obj.fget, obj.fset
    if issubclass(kind, functools.partial):
        return obj.func, obj.args, obj.keywords
    if issubclass(kind, dict) or kind in CONTAINERS:
        held = dict.values(obj) if issubclass(kind, dict) else obj
        # Why the pickle: it tells sooner than a visit that there are numbers and text alone.
        return kind, *(held if len(held) <= LONGEST and pack_plain(obj) is None else ())
    return kind, wrapped(obj), *_definitions_in(obj)


def _definitions_in(obj: Any) -> list[Any]:
    return [one for one in list(own_attributes(obj).values()) if issubclass(type(one), _DEFINED)]


_JITTED = "numba.core.registry.CPUDispatcher"
# Why: the state of these objects also has a random number, or the code that they have compiled.
_PARTS_OF: dict[str, tuple[str, ...]] = {
    _JITTED: ("py_func", "targetoptions"),
    "numba.np.ufunc.dufunc.DUFunc": ("_dispatcher",),
    "numba.np.ufunc.gufunc.GUFunc": ("gufunc_builder",),
    "numba.np.ufunc.ufuncbuilder.GUFuncBuilder": ("py_func", "targetoptions", "signature"),
    "numba.np.ufunc.ufuncbuilder.UFuncDispatcher": ("py_func", "targetoptions"),
    "numba.stencils.stencil.StencilFunc": ("kernel_ir", "mode", "options"),
    "numba.core.ir.FunctionIR": ("func_id.func",),
    "xarray.backends.file_manager.CachingFileManager": ("_opener", "_args", "_mode", "_kwargs"),
    "xarray.backends.locks.CombinedLock": (),
    "xarray.backends.locks.SerializableLock": (),
    "dask.utils.SerializableLock": (),
    "functools.singledispatchmethod": ("dispatcher",),
    "numpy.vectorize": ("pyfunc", "otypes", "excluded", "signature"),
}


def is_jitted(obj: Any) -> bool:
    """Return whether numba compiles an object from a Python function, its ``py_func``."""
    return _name_of(type(obj)) == _JITTED


def python_function(call: Any) -> types.FunctionType | None:
    """Return a function itself, or that which numba compiles; None for any other object."""
    if type(call) is types.FunctionType:
        return call
    function: types.FunctionType | None = call.py_func if is_jitted(call) else None
    return function


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def parts_of(obj: Any) -> list[Any] | None:
    """Return the parts that tell an object of some libraries from others; None for other objects.

    Examples
    --------
    >>> import numpy as np
    >>> parts_of(np.vectorize(abs, otypes="f"))
    [<built-in function abs>, 'f', set(), None]
    """
    names = _PARTS_OF.get(_name_of(type(obj)))
    if names is None:
        return None
    found = []
    for name in names:
        with contextlib.suppress(AttributeError):  # Why: other versions of the package
            found.append(operator.attrgetter(name)(obj))
    return found


def wrapped(obj: Any) -> Any:
    """Return the function that the object of a decorator holds; None if there is none."""
    # Why not getattr alone: a class with `__getattr__` may have any name, or raise any error.
    if any("__wrapped__" in vars(base) for base in type(obj).__mro__):
        with contextlib.suppress(Exception):
            return obj.__wrapped__
    return own_attributes(obj).get("__wrapped__")


class Walk:
    """Finds the globals of the user's modules that functions and classes reach, and the changed.

    Attributes
    ----------
    changes : dict of UserModule to dict of str to None
        Names of the globals that workers have in another state, in the order in which they were
        met.
    """

    def __init__(self) -> None:
        self.changes: dict[UserModule, dict[str, None]] = {}
        # Why objects: an id belongs to one object as long as that is alive.
        self._seen: dict[int, Any] = {}
        # Modules, which form circles, and names. Why the names: the id is theirs while they live.
        self._pairs: dict[tuple[int, int], tuple[str, ...]] = {}
        self._ahead: list[Any] = []
        # All that was compared, for a later look.
        self._modules: dict[UserModule, int] = {}  # with the number of its changed globals
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._objects: list[tuple[dict[str, Any], str, weakref.ref[Any]]] = []
        self._parts: list[tuple[Any, tuple[Any, ...]]] = []

    def visit(self, obj: Any) -> Walk:
        """Follow the globals from an object, unless it was met before."""
        self._ahead.append(obj)
        while self._ahead:
            one = self._ahead.pop()
            kind = type(one)
            if kind in PASSED or id(one) in self._seen:
                continue
            self._seen[id(one)] = one
            if kind is types.FunctionType:
                self._visit_function(one)
            elif not issubclass(kind, type):
                self._ahead.extend(_held_by(one))
            elif self._visit_name(one):
                self._ahead.extend((*vars(one).values(), *one.__bases__, kind))
        return self

    def forget(self) -> None:
        """Drop the objects that are needed for a visit alone."""
        self._seen.clear()
        self._pairs.clear()

    def is_current(self) -> bool:
        """Return whether each global that was met is still the same; without changes only."""
        # Why loops: this is on the way of each call, and a generator takes twice the time.
        for module, changed in self._modules.items():
            # Why the number: workers may have got a value that is the former one here again.
            if len(module.changed) != changed or not module.is_as_imported():
                return False
        for values, name, value in self._globals:
            if values.get(name, MISSING) is not value:
                return False
        for values, name, reference in self._objects:
            if (value := reference()) is None or values.get(name) is not value:
                return False
        return all(are_same(parts, identity(value)) for value, parts in self._parts)

    def _module(self, name: Any) -> UserModule | None:
        found = user_module(name)
        if found is not None and found not in self._modules:
            self._modules[found] = len(found.changed)
            found.refresh()
        return found

    def _visit_name(self, definition: Any) -> bool:
        """Look at the global that holds a function or a class; return whether it is a user's."""
        module = self._module(definition.__module__)
        if module is not None:
            self._look(module, definition.__qualname__.partition(".")[0])
        return module is not None

    def _visit_function(self, function: types.FunctionType) -> None:
        names, values = all_names(function.__code__), function.__globals__
        where = function.__module__
        by_value = where in SCRIPTS or where not in sys.modules or is_registered(where)
        if not (self._visit_name(function) or by_value):
            names = ()  # of Python or of an installed package, where nothing changes
        home = self._module(values.get("__name__"))
        if home is not None and vars(home.module) is not values:
            home = None
        for name in names:
            if home is not None:
                self._look(home, name)
            elif name in values:
                self._ahead.append(values[name])
            # Why the modules: the function may import one.
            value = values.get(name, sys.modules.get(name))
            if type(value) is types.ModuleType:
                self._visit_module(value, names)
        self._visit_cells(function, all_names(function.__code__))
        defaults, keywords = function.__defaults__ or (), function.__kwdefaults__ or {}
        self._ahead.extend((*defaults, *keywords.values(), *_definitions_in(function)))

    def _visit_cells(self, function: types.FunctionType, names: tuple[str, ...]) -> None:
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # an empty cell
                held = cell.cell_contents
                if type(held) is types.ModuleType:
                    self._visit_module(held, names)
                else:
                    self._ahead.append(held)

    def _visit_module(self, module: types.ModuleType, names: tuple[str, ...]) -> None:
        """Look at the attributes of a module that a function names."""
        found = self._module(module.__name__)
        pair = id(module), id(names)
        if pair in self._pairs or not (is_folder(module) or (found and found.module is module)):
            return
        self._pairs[pair] = names
        if found is not None and not found.importable:
            self.changes.setdefault(found, {})
        for name in names:
            value = vars(module).get(name)
            if found is not None:
                self._look(found, name)
            if type(value) is types.ModuleType and value is not module:
                self._visit_module(value, names)

    def _look(self, module: UserModule, name: str) -> None:
        values = vars(module.module)
        value = values.get(name, MISSING)
        different = module.lacks(name) if value is MISSING else module.differs(name, value)
        parts = identity(value)
        if type(parts[0]) is weakref.ref:
            self._objects.append((values, name, parts[0]))
        else:
            self._globals.append((values, name, value))
        if issubclass(type(value), COMPARED):
            self._parts.append((value, parts))
        if type(parts[0]) is not bytes:
            self._ahead.append(value)
        if different:
            self.changes.setdefault(module, {})[name] = None


_walks: weakref.WeakKeyDictionary[Any, tuple[tuple[Any, ...], Walk]] = weakref.WeakKeyDictionary()


class Walks:
    """The walks from the definitions of one pickle, which meet each object once.

    A walk without changes is cached at the end, since the next pickle often has the same
    definitions.
    """

    def __init__(self) -> None:
        self._walk = Walk()
        self._visited: list[tuple[Any, tuple[Any, ...]]] = []
        self._current: list[Walk] = []  # cached walks that were found to be current

    def below(self, definition: Any) -> Walk | None:
        """Return the walk from a function or class; None for one that reaches no user's globals.

        It may have changes that definitions before this one reach.
        """
        if _is_closed(definition):
            return None
        if type(definition) not in _WALKED:
            return self._walk.visit(definition)
        key, state = _key(definition)
        walk = _cached_walk(key, state, self._current)
        if walk is None:
            self._visited.append((key, state))
            return self._walk.visit(definition)
        if walk not in self._current:
            self._current.append(walk)
        return walk

    def close(self) -> None:
        """Cache the walk, if it has no changes."""
        # Invariant: a cached walk does not change any more, so other threads may look at it.
        if self._visited and not self._walk.changes:
            self._walk.forget()
            for key, state in self._visited:
                _walks[key] = state, self._walk


def _is_closed(definition: Any) -> bool:
    """Return whether a definition is of an installed module, and holds nothing of the user's."""
    name = definition.__module__
    if name in SCRIPTS or name not in sys.modules or is_registered(name):
        return False
    return user_module(name) is None and not getattr(definition, "__closure__", None)


def _key(definition: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the key of a cached walk, and the state for which it holds."""
    module = sys.modules.get(definition.__module__)
    key: Any = definition
    # Why: a lambda in a loop is a new function with the same code in each round.
    if module is not None and _is_bare(definition) and vars(module) is definition.__globals__:
        key = definition.__code__
    # Why the modules: a function may import one that this process had not imported before.
    by_value = cloudpickle.list_registry_pickle_by_value()
    return key, (id(module), definition.__qualname__, len(sys.modules), by_value)


def _cached_walk(key: Any, state: tuple[Any, ...], current: Sequence[Walk]) -> Walk | None:
    """Return a cached walk without changes; None if there is none, or it is out of date."""
    known = _walks.get(key)
    if known is None or known[0] != state:
        return None
    return known[1] if known[1] in current or known[1].is_current() else None


_WALKED = {types.FunctionType, type}


def _is_bare(definition: Any) -> bool:
    """Return whether a definition is a function that holds nothing but its code."""
    if type(definition) is not types.FunctionType:
        return False
    held = definition.__closure__, definition.__defaults__, definition.__kwdefaults__
    return not any(held) and not definition.__dict__
