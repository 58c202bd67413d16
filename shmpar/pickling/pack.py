"""A payload: what is sent for one object.

Imports segment, for types alone.

Compiled functions that every process knows by the same name, like ``np.sum`` and ``math.sqrt``.

Imports nothing of the package.

Functions that are nothing but their code, and what they were pickled to.

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

Making a payload of an object: functions by value where needed, arrays by their segments.

Imports explain_failure, namespaces, payload, plain and unpacking; plan, segment and arrays.
"""

from __future__ import annotations

import dis
import io
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

import cloudpickle
import numpy as np

from shmpar.arrays import SharedArray
from shmpar.errors import PlanError, ShmparError
from shmpar.ipc.wire import MAX_DESCRIPTORS
from shmpar.memory.copying import share
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment
from shmpar.pickling.explain import explain_failure
from shmpar.pickling.unpack import globals_of, take
from shmpar.plan import Function

if TYPE_CHECKING:
    from shmpar.memory.segment import Segment

__all__ = [
    "LARGE",
    "OF_MODULE",
    "Payload",
    "cached",
    "is_importable",
    "kept",
    "pack",
    "pack_error",
    "pack_result",
    "pickled_by_name",
]


class Payload(NamedTuple):
    """What is sent for one object.

    Attributes
    ----------
    body : bytes
        A pickle that names segments by their place in `segments`.
    segments : tuple of Segment
        Kept alive by whoever sends the payload until it has arrived.
    private : tuple of bool
        Whether the worker maps the segment copy on write.
    stateless : bool
        Whether it is a function that leaves nothing for its next call, so that who has opened the
        same payload last may use what it got.
    """

    body: bytes
    segments: tuple[Segment, ...] = ()
    private: tuple[bool, ...] = ()
    stateless: bool = False


_COMPILED = (types.BuiltinFunctionType, type(np.sum))  # the latter looks for __array_function__
_OWNERS = (types.NoneType, types.ModuleType)


def is_importable(call: Any) -> bool:
    """Whether it is a compiled function of a module, which has it under its name.

    Such a function lives as long as its module, and is pickled as its name.

    Examples
    --------
    >>> is_importable(np.sum), is_importable(np.ones(3).sum), is_importable(lambda row: row)
    (True, False, False)
    """
    if type(call) not in _COMPILED or type(getattr(call, "__self__", None)) not in _OWNERS:
        return False  # a method, whose object has a state: np.random.normal is one
    home = sys.modules.get(call.__module__ or "")
    return getattr(home, call.__name__, None) is call


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


def pickled_by_name(one: types.FunctionType | type) -> bool:
    """Whether the worker can import a function, or a class, by its name."""
    from cloudpickle.cloudpickle import _should_pickle_by_reference

    return bool(_should_pickle_by_reference(one))


def cached(value: Function) -> bytes | None:
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
    body, call = cached(value), value.call
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
    return type(call) is np.ufunc or is_importable(call)


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
    if pickled_by_name(function):
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
    return type(value) in _SCALARS or (type(value) is type and pickled_by_name(value))


def _is_importable(value: Any) -> bool:
    """Whether it is a module that goes by its name."""
    return type(value) is types.ModuleType and sys.modules.get(value.__name__) is value


def _instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    """Those of the code, and of all functions and classes in it."""
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)


LARGE = 64 * 1024  # bytes; a smaller array is cheaper to pickle than to map


class _Namespace:
    """Stands in a pickle for the globals of a module whose functions travel by value."""

    def __init__(self, module: types.ModuleType) -> None:
        held = vars(module)
        self.name = module.__name__
        self.attributes = {name: held[name] for name in OF_MODULE if name in held}

    def __reduce__(self) -> tuple[Any, ...]:
        return globals_of, (self.name, self.attributes)


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles functions by value where needed and arrays by their segments."""

    def __init__(
        self, file: io.BytesIO, *, importable_only: bool = False, home: bool = False
    ) -> None:
        super().__init__(file, protocol=5)
        self.segments: list[Segment] = []
        self.private: list[bool] = []
        self._importable_only = importable_only
        self._home = home
        self._kept: list[Any] = []  # arrays whose ids are in the pickler's memo must stay alive

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return self._reduce_array(obj)
        if isinstance(obj, types.FunctionType):
            self._prepare_function(obj)
        return super().reducer_override(obj)

    def _prepare_function(self, function: types.FunctionType) -> None:
        """Make the functions of one module share one globals dict in the worker."""
        if pickled_by_name(function):
            return
        if self._importable_only:
            raise PlanError(
                f"function {function.__qualname__!r} would travel as bytecode, which the workers' "
                "other version of Python cannot run; put it into a module that both can import"
            )
        module = sys.modules.get(function.__globals__.get("__name__", ""))
        known = id(function.__globals__) in self.globals_ref
        if module is not None and vars(module) is function.__globals__ and not known:
            self.globals_ref[id(function.__globals__)] = _Namespace(module)

    def _reduce_array(self, array: np.ndarray[Any, Any]) -> Any:
        shared = isinstance(array, SharedArray)
        if not shared and (type(array) is not np.ndarray or array.nbytes <= LARGE):
            return NotImplemented
        if array.dtype.hasobject or (self._home and len(self.segments) >= MAX_DESCRIPTORS):
            return NotImplemented
        writable = array.flags.writeable
        # What a plain array of a result lies in may be written by others, and is left to them.
        place = None if self._home and not shared else locate(array)
        if place is None:
            if shared or not _is_plain(array.dtype):
                return NotImplemented
            segment, array = share(array)
            offset = 0
            self._kept.append(array)
        else:
            segment, offset = place.segment, place.offset
        index = self._add(segment, private=not shared and not self._home)
        layout = (offset, array.shape, array.strides, array.dtype, writable)
        start = array._lease.start if isinstance(array, SharedArray) and array._lease else None  # noqa: SLF001
        return take, (index, start, *layout)

    def _add(self, segment: Segment, *, private: bool) -> int:
        for index, known in enumerate(self.segments):
            if known == segment and self.private[index] == private:
                return index
        self.segments.append(segment)
        self.private.append(private)
        return len(self.segments) - 1


def _is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether the values are bytes that mean the same in another process."""
    return dtype.kind in "?bBiufcmMSUV"


def pack(value: Any, *, importable_only: bool = False) -> Payload:
    """Pickle an object for a worker.

    Parameters
    ----------
    value : object
        The function with what it is called with.
    importable_only : bool
        Refuse functions that would travel as bytecode: the worker is another version of Python.

    Raises
    ------
    PlanError
        If something in it does not pickle; the message names it.

    Notes
    -----
    Cost: a plain array of more than 64 KiB is copied into shared memory once.
    """
    try:
        if isinstance(value, Function) and not importable_only:
            body = kept(value, lambda function: _packed(function).body)
            if body is not None:
                return Payload(body, stateless=True)
        return _packed(value, importable_only=importable_only)
    except (ShmparError, OSError):
        raise
    except Exception as error:
        raise PlanError(explain_failure(value, error)) from error


def _packed(value: Any, *, importable_only: bool = False) -> Payload:
    file = io.BytesIO()
    packer = _Packer(file, importable_only=importable_only)
    packer.dump(value)
    return Payload(file.getvalue(), tuple(packer.segments), tuple(packer.private))


def pack_result(value: Any) -> Payload:
    """Pickle what a function returned, for the parent: it adopts the segments as its own.

    Raises
    ------
    PlanError
        If something in it does not pickle.
    SegmentFull
        If there is no room for a large array in it.

    Notes
    -----
    Cost: an array of more than 64 KiB is copied once, into shared memory.
    """
    file = io.BytesIO()
    packer = _Packer(file, home=True)
    try:
        packer.dump(value)
    except (ShmparError, OSError):
        raise
    except Exception as error:
        raise PlanError(f"a {type(value).__qualname__} does not pickle ({error})") from error
    return Payload(file.getvalue(), tuple(packer.segments), tuple(packer.private))


def pack_error(error: BaseException) -> bytes:
    """Pickle an exception with all that it holds, in one piece; raises whatever that raises."""
    return cloudpickle.dumps(error, 5)  # type: ignore[no-any-return]
