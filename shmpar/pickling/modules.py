"""Compare the globals of the user's modules with their files, which a worker imports.

A global of a module may have another value here than in a worker: after an assignment, a reload or
a monkeypatch, or because the file was edited.

Guarantees
----------
- No file of the user's is executed.
- A global that was different once counts as different for ever.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import functools
import importlib.util
import itertools
import marshal
import os
import sys
import time
import tokenize
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from operator import is_
from typing import Any

import cloudpickle
import numpy as np

from shmpar.memory.system import file_stamp
from shmpar.pickling.plain import pack_plain
from shmpar.pickling.unpack import Place

MISSING = object()
SCALARS = (bool, int, float, complex, str, bytes, types.NoneType)
SCRIPTS = ("__main__", "__mp_main__")  # the latter in a process that multiprocessing has spawned
MODULE_NAMES = ("__name__", "__package__", "__path__", "__file__")  # sent with each function
ADDED = {"__slotnames__", "__annotations__", "__annotations_cache__"}
"""Attributes that Python adds to a class at a first pickle of an object, or a first look."""
_IMPLICIT = {"__new__", "__init_subclass__", "__class_getitem__"}  # become methods by themselves
_IN_TABLES = {*SCALARS, type, types.FunctionType, types.BuiltinFunctionType}
_MUTABLE = (dict, list, set)
CONTAINERS = (*_MUTABLE, frozenset, tuple)
_CONTENTS: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys((collections.Counter, collections.defaultdict, collections.OrderedDict), dict),
    collections.deque: list,
    types.SimpleNamespace: vars,
}
COMPARED = (type, types.FunctionType, *CONTAINERS, *_CONTENTS)  # more than by their ids
PLAIN = {*SCALARS, *CONTAINERS}
PASSED = {*SCALARS, types.ModuleType}  # A module's attributes are followed by their names.
LONGEST = 4096  # characters, or items, of a value that is compared by its contents
_LARGEST = 64 * 1024  # bytes of an array in a container that is compared by its contents
_LOOK_SECONDS = 5e-5  # between two looks at a file


class _Source:
    """The bindings in the file of a module, which is read and not executed.

    Attributes
    ----------
    bound : dict of str to object
        Names that the module binds while it is imported, ``Class.name`` for attributes. Each has
        its only definition: a literal as bytes, a function or class as its node, an import as
        (module, name). None stands for any other definition, and for several.
    managed : set of str
        Globals that the module's own functions bind.
    """

    def __init__(self, module: types.ModuleType, file: str) -> None:
        self.bound: dict[str, Any] = {}
        self.managed: set[str] = set()
        self._globals = vars(module)
        self._codes: list[types.CodeType] | None = None
        self._all_of: list[str] = []  # modules from which it imports all names
        self._is_open = False  # it binds names that this does not see
        self._has_open_classes = False  # also as attributes of classes
        try:
            with tokenize.open(file) as opened:
                tree = ast.parse(opened.read())
        except (OSError, SyntaxError, ValueError):
            self._is_open = True
            return
        self._read(tree.body, "", module.__package__ or "")
        words = set[str]()
        for node in ast.walk(tree):
            if isinstance(node, ast.Global):
                self.managed.update(node.names)
            elif isinstance(node, (ast.Name, ast.Attribute)):
                words.add(node.id if isinstance(node, ast.Name) else node.attr)
        # Why the modules: most calls of setattr() and vars() are for other objects.
        of_modules = {"setattr", "vars"} if {"modules", "import_module"} & words else set[str]()
        self._is_open |= bool(words & {"globals", "exec", *of_modules})
        self._has_open_classes = bool(words & {"locals", "setattr", "exec"})
        get_code = getattr(module.__loader__, "get_code", None)
        if get_code is not None:  # Why: pytest changes the code of its modules, and has none.
            with contextlib.suppress(Exception):
                self._codes = list(code_objects(get_code(module.__name__)))

    def _read(self, body: list[ast.stmt], prefix: str, package: str) -> None:
        """Read the statements of a module or class."""
        for node in body:
            found: dict[str, Any] = {}
            match node:
                case (
                    ast.Assign(targets=[target], value=value)
                    | ast.AnnAssign(target=target, value=ast.expr() as value)
                ):
                    found = dict(_literals(target, value))
                case ast.FunctionDef(name=name, decorator_list=[]):
                    found[name] = node
                case ast.ClassDef(name=name, decorator_list=[]):
                    found[name] = node
                    self._read(node.body, f"{prefix}{name}.", package)
                case ast.ImportFrom(module=source, names=names, level=level):
                    origin = source or ""
                    with contextlib.suppress(ImportError):  # Why: it may have been edited.
                        origin = importlib.util.resolve_name("." * level + origin, package)
                    found = {one.asname or one.name: (origin, one.name) for one in names}
                    self._all_of += [origin] * ("*" in found)
            for name in _bindings(node):
                several = prefix + name in self.bound
                self.bound[prefix + name] = None if several else found.get(name)

    def agrees(self, name: str, value: Any) -> bool:
        """Return whether a global may be the one that an import of the file makes."""
        match self.bound.get(name):
            case bytes() as literal:
                plain = _plain(value)
                return plain == literal or (plain is None and type(value) in CONTAINERS)
            case ast.FunctionDef():
                return self._defines(value)
            case ast.ClassDef():
                return self._defines_class(name, value)
            case (origin, known):
                return _is_imported(value, origin, known, or_missing=True)
        return (
            name in self.bound
            or isinstance(value, types.ModuleType)
            or name in MODULE_NAMES
            or name.startswith("@")
            or any(_is_imported(value, origin, name, or_missing=False) for origin in self._all_of)
            or (self._is_open and self._may_make(value))
        )

    def _may_make(self, value: Any) -> bool:
        """Return whether code that binds names by itself may make a value, or none tells."""
        # Why functions and plain values: others set these, and a pickle can bring them.
        if isinstance(value, types.FunctionType):
            return value.__globals__ is self._globals
        return _plain(value) is None

    def _defines_class(self, path: str, definition: Any) -> bool:
        if not isinstance(definition, type):
            return False
        for key, value in list(vars(definition).items()):
            name, plain = f"{path}.{key}", _plain(value)
            match self.bound.get(name):
                case ast.FunctionDef():
                    if not self._defines(value) and key not in _IMPLICIT:
                        return False
                case ast.ClassDef():
                    if not self._defines_class(name, value):
                        return False
                # Why not mutable ones: a class counts or registers there, which is no definition.
                case due if plain is not None and type(value) not in _MUTABLE:
                    is_implicit = key.startswith("_") or self._has_open_classes
                    is_due = is_implicit or name in self.bound or _adds_attributes(definition)
                    is_other = type(due) is bytes and plain != due
                    if not key.startswith("__") and (is_other or not is_due):
                        return False
        return True

    def _defines(self, function: Any) -> bool:
        if not isinstance(function, types.FunctionType):
            return False
        return self._codes is None or function.__code__ in self._codes


class UserModule:
    """A module of the user's, and all that tells whether a worker's import of it is the same.

    Functions, classes and literals are compared with the file, which a worker imports. Any other
    global is compared with the first object that was met here.

    Attributes
    ----------
    module, name : module, str
        The module.
    importable : bool
        Whether an import in a worker finds this file.
    changed : set of str
        Globals that were different at any time; each pickle brings them.
    managed : set of str
        Those of them that the module's functions set, and nobody has set here. A worker that has
        such a global keeps it, since it may have set another value.
    """

    def __init__(self, module: types.ModuleType) -> None:
        self.module, self.name = module, module.__name__
        self.changed: set[str] = set()
        self.managed: set[str] = set()
        self.importable = False
        self._file = getattr(module, "__file__", None) or ""
        self._stamp = file_stamp(self._file)
        self._looked = 0.0
        self._edited = False
        self._path: list[Any] | None = None
        self._first: dict[str, tuple[Any, ...]] = {}

    def follow(self, former: UserModule) -> None:
        """Note that workers may have the former module of this name, which was imported before."""
        self.changed |= former.changed
        self.managed |= former.managed
        self._edited = former._edited or former._stamp != self._stamp

    @functools.cached_property
    def source(self) -> _Source:
        """The bindings in the file."""
        return _Source(self.module, self._file)

    def place(self) -> Place:
        """Return the place of the module in a worker."""
        values, names = vars(self.module), MODULE_NAMES
        attributes = {name: value for name, value in values.items() if name in names}
        same_file = self.importable and not self._edited
        return self.name, None if same_file else attributes, self.importable

    def is_as_imported(self) -> bool:
        """Return whether workers find the file that was imported here."""
        self.refresh()
        return self.importable and not self._edited

    def refresh(self) -> None:
        """Look at the file and at ``sys.path`` again."""
        # Why not at each call: a look is a system call. A call that was sent so short a time ago
        # may meet the edited file as well, since its worker has not begun it.
        if (now := time.monotonic()) - self._looked > _LOOK_SECONDS:
            self._looked = now
            if file_stamp(self._file) != self._stamp:
                self._edited = True  # Why for ever: workers may have any of the versions.
        if self._path != sys.path:
            self._path = list(sys.path)
            self.importable = self._is_found()

    def _is_found(self) -> bool:
        """Return whether a new interpreter with this path would import the same file."""
        spec = _find_spec(self.name)
        in_archive = type(getattr(spec, "loader", None)).__name__ == "zipimporter"
        if spec is None or (self._stamp is None and not in_archive):
            return False
        return os.path.realpath(spec.origin or "") == os.path.realpath(self._file)

    def differs(self, name: str, value: Any) -> bool:
        """Return whether a worker has, or may have, another value of a global."""
        if name in self.changed and name not in self.managed:
            return True
        is_as_imported = self.importable and not self._edited and name not in self.changed
        if is_as_imported or name in self.source.managed:
            if self._is_as_first(name, value):
                if is_as_imported:
                    return False
                self.managed.add(name)
            else:
                self.managed.discard(name)
        self.changed.add(name)
        return True

    def _is_as_first(self, name: str, value: Any) -> bool:
        """Return whether a global has the value that the file, or the first look, shows."""
        parts, first = identity(value), self._first.get(name)
        # Why the first part: a container may get an object of this process, such as a connection.
        if first is not None and (are_same(first, parts) or are_same(first[:1], parts)):
            return True
        # Why the length: a table of functions is compared, although a literal may have made it.
        is_known = first is None or (len(first) == 1 and type(self.source.bound.get(name)) is bytes)
        self._first[name] = parts  # Why before: modules may import a name from each other.
        if is_known and self.source.agrees(name, value):
            return True
        self._first.pop(name, None)
        return False

    def lacks(self, name: str) -> bool:
        """Return whether a worker has, or may have, a global that is missing here."""
        if name in self.changed or name in self._first or name in self.source.bound:
            self.changed.add(name)
            return True
        return False


def code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the code of all functions and classes inside this code."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from code_objects(constant)


def _is_imported(value: Any, origin: str, name: str, *, or_missing: bool) -> bool:
    """Return whether a worker that imports a name from a module gets the value."""
    # Why not getattr: a module may have a function of this name.
    found = getattr(sys.modules.get(origin), "__dict__", {}).get(name, MISSING)
    if found is MISSING:
        return or_missing
    user = user_module(origin)
    if user is None or found is not value:
        return found is value
    user.refresh()
    return not user.differs(name, value)


def _adds_attributes(definition: type) -> bool:
    """Return whether a class may have attributes that its metaclass, base or a descriptor adds."""
    if type(definition) is not type or type(definition.__init_subclass__) is types.MethodType:
        return True
    return any(hasattr(type(one), "__set_name__") for one in vars(definition).values())


def _literals(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, bytes]]:
    """Yield the names that an assignment gives literal values, with these values."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        if len(target.elts) == len(value.elts):
            for one, its in zip(target.elts, value.elts, strict=True):
                yield from _literals(one, its)
    elif isinstance(target, ast.Name):
        with contextlib.suppress(ValueError):
            if (plain := _plain(ast.literal_eval(value))) is not None:
                yield target.id, plain


def _bindings(node: ast.AST) -> Iterator[str]:
    """Yield the names that a statement binds in its own scope."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from ((one.asname or one.name).partition(".")[0] for one in node.names)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if isinstance(node.ctx, ast.Store):
            yield f"{node.value.id}.{node.attr}"
    elif not isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp)):
        for inner in ast.iter_child_nodes(node):
            yield from _bindings(inner)


def _plain(value: Any, large: list[Any] | None = None) -> bytes | None:
    """Return the contents of a value of numbers and text; None for any other value.

    Arrays in containers count by their bytes, and those in `large`, which gets them, by their ids.
    """
    if type(value) not in PLAIN or (hasattr(value, "__len__") and len(value) > LONGEST):
        return None
    try:
        if pack_plain(value) is None:
            value = _without_large(value, [] if large is None else large)
        return marshal.dumps(value, 2)  # Why 2: later versions mark references.
    except (ValueError, RecursionError):
        return None


def _without_large(value: Any, large: list[Any]) -> Any:
    kind = type(value)
    if issubclass(kind, np.ndarray):
        if value.nbytes <= _LARGEST:  # Why the tuple: marshal takes the bytes alone.
            return str(value.dtype), value.shape, value
        large.append(value)
        return id(value)
    if kind is dict:
        return {key: _without_large(one, large) for key, one in value.items()}
    return kind([_without_large(one, large) for one in value]) if kind in {list, tuple} else value


def identity(value: Any) -> tuple[Any, ...]:
    """Return all objects by which a global is known to be the same as before."""
    kind = type(value)
    if kind in PASSED:
        return (value,)
    if kind is types.FunctionType:
        return value, value.__code__, value.__defaults__, value.__kwdefaults__
    if issubclass(kind, type):
        return _class_identity(value)
    contents = _CONTENTS[kind](value) if kind in _CONTENTS else value
    items: tuple[Any, ...] = ()
    if type(contents) in CONTAINERS and len(contents) <= LONGEST:
        items = _items_identity(contents)
        if contents is value and items and items[0] is not None:
            return items  # Why: an equal container is the same.
    try:  # Why: a reference keeps no memory, and is the same one as long as the object lives.
        return (weakref.ref(value), *items)
    except TypeError:
        return (value, *items)


def _items_identity(contents: Any) -> tuple[Any, ...]:
    """Return the contents of a container as bytes, or None and its items; empty for others."""
    large: list[Any] = []
    if (plain := _plain(contents, large)) is not None:
        return (plain, *map(weakref.ref, large))
    items = [*contents, *contents.values()] if type(contents) is dict else [*contents]
    return (None, *items) if _IN_TABLES.issuperset(map(type, items)) else ()


def _class_identity(value: type) -> tuple[Any, ...]:
    held: Mapping[str, Any] = vars(value)
    if not ADDED.isdisjoint(held):
        held = {key: one for key, one in held.items() if key not in ADDED}
    parts = value, *held.values()
    if type not in map(type, held.values()):  # Why first: few classes hold others.
        return parts
    inside = f"{value.__qualname__}."
    nested = [one for one in parts if type(one) is type and one.__qualname__.startswith(inside)]
    return (*parts, *itertools.chain(*map(_class_identity, nested)))


def are_same(first: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Return whether two results of :func:`identity` are those of the same state."""
    if len(first) != len(now):
        return False
    return all(map(is_, first, now)) or all(map(_is_same, first, now))


def _is_same(first: Any, now: Any) -> bool:
    return first is now or (type(first) is bytes and type(now) is bytes and first == now)


def _find_spec(name: str) -> ModuleSpec | None:
    """Return the spec of a module as an import finds it, without regard to `sys.modules`."""
    parent, path = name.rpartition(".")[0], None
    if parent:
        path = getattr(sys.modules.get(parent), "__path__", None)
        if path is None or _find_spec(parent) is None:
            return None
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = None if find is None else find(name, path, None)
        if spec is not None:
            return spec
    return None


_users: dict[str, tuple[types.ModuleType, UserModule | None]] = {}


def user_module(name: Any) -> UserModule | None:
    """Return the record of a module of the user's; None for any other name.

    The modules of Python, of installed packages and of shmpar are not the user's. Nor are
    the script and modules that cloudpickle was told to send by value: each pickle has them.
    """
    known = _users.get(name)
    module = sys.modules.get(name)
    if known is None or known[0] is not module:
        if not isinstance(module, types.ModuleType) or name != module.__name__:
            return None
        made = UserModule(module) if name not in SCRIPTS and is_users(module) else None
        if made is not None and known is not None and known[1] is not None:
            made.follow(known[1])
        known = _users[name] = module, made
    return None if is_registered(name) else known[1]


def is_registered(name: str) -> bool:
    """Return whether cloudpickle was told to send a module, or a package around it, by value."""
    registered = cloudpickle.list_registry_pickle_by_value()
    return any(f"{name}.".startswith(f"{one}.") for one in registered)


def is_users(module: types.ModuleType) -> bool:
    """Return whether a module is no part of Python, of an installed package or of this package."""
    top = module.__name__.partition(".")[0]
    file, spec = getattr(module, "__file__", None), getattr(module, "__spec__", None)
    # Why _cython_: a module without a file, in which Cython keeps the types of its functions.
    if top == "shmpar" or top.startswith("_cython_"):
        return False
    if file is not None:
        depth = module.__name__.count(".") + hasattr(module, "__path__")
        return is_users_file(str(file), depth)
    package = sys.modules.get(top)
    of_user = package is None or package is module or is_users(package)
    return spec is None and module.__name__ not in sys.builtin_module_names and of_user


def is_users_file(file: str, depth: int) -> bool:
    """Return whether a file, at this depth below a folder of ``sys.path``, has a user's module."""
    if file.startswith(_PYTHON) or _INSTALLED.intersection(file.split(os.sep)):
        return False
    folder = file
    for _ in range(depth + 1):
        folder = os.path.dirname(folder)
    return not _has_installed(folder)


def is_folder(module: types.ModuleType) -> bool:
    """Return whether a module is a package without a file, which has nothing but modules."""
    return hasattr(module, "__path__") and getattr(module, "__file__", None) is None


_INSTALLED = {"site-packages", "dist-packages"}
_PYTHON = os.path.join(os.path.dirname(ast.__file__), "")


@functools.lru_cache(maxsize=256)
def _has_installed(folder: str) -> bool:
    """Return whether packages were installed into a folder, as by ``pip install --target``."""
    try:
        return any(name.endswith(".dist-info") for name in os.listdir(folder or os.curdir))
    except OSError:
        return False
