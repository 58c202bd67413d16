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

A ledger on disk: which chunks of a call are done, for a process that makes the call again.

Imports checksum, errors, interrupts, plan and segment.  The file, in order:

=========  ==========================================================================
bytes      what
=========  ==========================================================================
16         ``shmpar ledger 1`` and a line feed
8, 4       length of the next and its checksum, little-endian
so many    JSON: whose ledger it is, see :class:`Owner`
padding    zeros up to a multiple of 4096
4 each     the checksum of what each chunk has put into the outputs; 0: not done
=========  ==========================================================================

Guarantees
----------
- A chunk's checksum is written after its output. What lies in the outputs counts as done only if
  it still has that checksum, so a ledger never vouches for what was emptied, changed or lost.
- The file appears whole, or not at all; whoever is killed leaves no other behind.
- One run has it at a time. The lock belongs to the open file that workers share, and so it is
  held until the last writer is gone, though its parent was killed.
- Nothing in it is executed or unpickled, and no place in another file is taken from it.
- What was damaged is refused, or computed again. It is no signature: who may write to a ledger
  can have chunks taken for done, as who may write to the outputs can change them.

``ledger=``: what an earlier process has done of the same call.

Imports identity, ledgerfile, outputs, plan and segment, and the neighbours in this package.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import stat
import struct
import time
import types
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shmpar.memory.allocate import atomic_file
from shmpar.memory.limits import open_with_retry
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment
from shmpar.plan import Announcement, Function, InBlocks, Output, Plan
from shmpar.runtime.failures import levels_to_user
from shmpar.runtime.interrupts import allowed
from shmpar.runtime.outputs import NpyFile, Outputs
from shmpar.verbs.outputs import Targets, check_shape
from shmpar.worker.verify import checksum, crc

__all__ = ["LedgerFile", "Owner", "check_kept", "digest", "identify", "take_up"]

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


Array = np.ndarray[Any, Any]
Windows = Callable[[int], Iterable[Array]]

_MAGIC = b"shmpar ledger 1\n"
_HEAD = struct.Struct("<QI")  # length and checksum
_PAGE = 4096
_MOST = 1 << 20  # bytes of JSON that are read
_SUM = 4  # bytes
_PATIENCE = 2.0  # seconds for the workers of a parent that was killed to be gone


class Owner(NamedTuple):
    """Whose ledger it is.

    Attributes
    ----------
    chunks : int
        How many the call has.
    seed : int, list of int or None
        Entropy of the random streams, if the function is passed one.
    call : dict of str to str
        As :func:`shmpar.runtime.checkpoint.identify` gives it.
    """

    chunks: int
    seed: Any
    call: dict[str, str]

    @classmethod
    def parse(cls, text: bytes) -> Owner:
        """Read what a file says; raises ``ValueError`` for anything else than an owner."""
        found = json.loads(text.decode())  # of bytes it would guess the encoding
        match found:
            case {"chunks": int(chunks), "seed": seed, "call": dict(call), **rest} if not rest:
                parts = seed if isinstance(seed, list) else [seed] * (seed is not None)
                plain = all(type(part) is int and part >= 0 for part in parts)
                named = all(isinstance(text, str) for item in call.items() for text in item)
                if chunks >= 0 and type(chunks) is int and plain and named:
                    return cls(chunks, seed, call)
        raise ValueError("it says nothing sensible")

    def differs(self, other: Owner) -> list[str]:
        """Names of the parts of the call in which another one differs."""
        parts = sorted({*self.call, *other.call})
        found = [part for part in parts if self.call.get(part) != other.call.get(part)]
        return found or ["chunks"] * (self.chunks != other.chunks)


class LedgerFile:
    """The ledger of one call, open and locked.

    Attributes
    ----------
    path : str
        Where it lies.
    owner : Owner
        Whose it is.
    sums : ndarray of uint32
        The checksum of each chunk; workers write it.
    """

    def __init__(self, path: str, fd: int, owner: Owner, begin: int) -> None:
        size = begin + _SUM * owner.chunks
        self.path, self.owner = path, owner
        self._segment = Segment.adopt(fd, size, kind="file")
        self.sums = self._segment.ndarray(begin, (owner.chunks,), None, np.dtype("<u4"))

    @classmethod
    def open(cls, path: str, owner: Owner) -> LedgerFile:
        """Open the ledger of a call, or make it.

        Raises
        ------
        ValueError
            If there is a file that is no ledger, or that of another call.
        RuntimeError
            If another run has it.
        SegmentFull
            If there is no room on the disk.
        OSError
            If it cannot be opened or made.
        """
        while True:
            try:
                fd = open_with_retry(
                    lambda: os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                )
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):  # another process was quicker
                    _make(path, owner)
                continue
            with contextlib.ExitStack() as stack:
                stack.callback(os.close, fd)
                _lock(fd, path)
                if not _is_at(fd, path):
                    continue  # it was replaced while we waited
                found, begin = _read(fd, path)
                if found.differs(owner) and _is_empty(fd, begin):
                    _make(path, owner, replace=True)
                    continue
                _compare(path, found, owner)
                stack.pop_all()
            return cls(path, fd, found, begin)

    def forget(self) -> int:
        """Have nothing as done; return how many chunks were."""
        done = int(np.count_nonzero(self.sums))
        self.sums[:] = 0
        return done

    def settle(self, windows: Windows) -> int:
        """Forget the chunks whose output is not what was written.

        Parameters
        ----------
        windows : callable
            Gives the chunk's windows in the outputs.

        Returns
        -------
        int
            How many these are.

        Notes
        -----
        Cost: a pass over what is done, at 3 GB/s.
        """
        with allowed():
            lost = [
                chunk
                for chunk in np.flatnonzero(self.sums).tolist()
                if checksum(windows(chunk)) != self.sums[chunk]
            ]
        self.sums[lost] = 0
        return len(lost)

    def pending(self) -> tuple[int, ...]:
        """Numbers of the chunks that are not done."""
        return tuple(np.flatnonzero(self.sums == 0).tolist())

    def lock(self) -> None:
        """Have it again, for a run that goes on; raises ``RuntimeError`` if another has it."""
        _lock(self._segment.fileno(), self.path)

    def unlock(self) -> None:
        """Let another run have it; the last writer is idle."""
        fcntl.flock(self._segment.fileno(), fcntl.LOCK_UN)


def _make(path: str, owner: Owner, *, replace: bool = False) -> None:
    text = json.dumps(owner._asdict()).encode()
    head = _MAGIC + _HEAD.pack(len(text), zlib.crc32(text)) + text
    begin = _begin(len(text))
    with atomic_file(path, begin + _SUM * owner.chunks, replace=replace) as fd:
        os.pwrite(fd, head, 0)


def _is_at(fd: int, path: str) -> bool:
    """Whether a file still has its name."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _is_empty(fd: int, begin: int) -> bool:
    """Whether nothing is done; then it does not matter whose it was."""
    with open(fd, "rb", closefd=False) as file:
        file.seek(begin)
        return not any(any(part) for part in iter(lambda: file.read(_MOST), b""))


def _begin(length: int) -> int:
    """Where the checksums begin, behind so many bytes of JSON."""
    return -(-(len(_MAGIC) + _HEAD.size + length) // _PAGE) * _PAGE


def _lock(fd: int, path: str) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
        else:
            return
        if time.monotonic() > until:
            raise RuntimeError(
                f"ledger={path!r} is in use by another run, here or in another process; wait for "
                "it, or pass another ledger="
            )
        with allowed():
            time.sleep(0.01)


def _read(fd: int, path: str) -> tuple[Owner, int]:
    """Whose ledger a file is, and where its checksums begin."""
    try:
        return _parsed(fd)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"ledger={path!r} is no ledger of this library, or was damaged: {error}; pass another "
            "name, or remove it to begin anew"
        ) from None


def _parsed(fd: int) -> tuple[Owner, int]:
    found = os.fstat(fd)
    head = os.pread(fd, len(_MAGIC) + _HEAD.size, 0) if stat.S_ISREG(found.st_mode) else b""
    if not head.startswith(_MAGIC) or len(head) < len(_MAGIC) + _HEAD.size:
        raise ValueError("it does not begin as one")
    length, sum_ = _HEAD.unpack(head[len(_MAGIC) :])
    if length > _MOST:
        raise ValueError("it says too much")
    text = os.pread(fd, length, len(head))
    if len(text) < length or zlib.crc32(text) != sum_:
        raise ValueError("its beginning was changed")
    owner, begin = Owner.parse(text), _begin(length)
    if found.st_size != begin + _SUM * owner.chunks:
        raise ValueError(f"it has {found.st_size:,} bytes, and {owner.chunks:,} chunks")
    return owner, begin


def _compare(path: str, found: Owner, owner: Owner) -> None:
    """Raise ``ValueError`` if a ledger belongs to another call."""
    parts = found.differs(owner)
    if parts:
        raise ValueError(
            f"ledger={path!r} belongs to another call, of {found.call.get('verb', '?')} with "
            f"{found.chunks:,} chunks, that differs in: {', '.join(parts)}; pass another ledger=, "
            "or remove it to begin anew"
        )


_OUTLIVE = (
    "ledger= needs results that outlive this process: pass out='result.npy' or an np.memmap "
    "(mode 'r+' or 'w+')"
)


def check_kept(plan: Plan, ledger: Any, targets: Targets, *, in_place: bool) -> str:
    """The absolute path of a ledger on disk, for a call whose results are there too.

    Raises
    ------
    TypeError
        If it is no path.
    ValueError
        If no ledger can be there, or the results of the call cannot outlive this process.
    """
    verb = plan.verb
    if not isinstance(ledger, str | os.PathLike):
        raise TypeError(f"{verb}: ledger= is the path of a file, not {type(ledger).__name__}")
    path = os.path.abspath(os.fspath(ledger))
    if os.path.isdir(path) or not os.path.isdir(os.path.dirname(path)):
        raise ValueError(f"{verb}: ledger={path!r}: its folder is not there, or it is one")
    if in_place:
        raise ValueError(
            f"{verb}: ledger= cannot serve a call in place: a chunk that was begun has overwritten "
            "what it would be computed from"
        )
    if targets.collects:
        raise ValueError(f"{verb}: ledger= cannot keep Python objects (dtype=object)")
    # Where blocks are put together there are results; elsewhere the function may return None.
    blocks = isinstance(plan.placement, InBlocks)
    if targets.given is None and (blocks or targets.dtypes is not None):
        raise ValueError(f"{verb}: {_OUTLIVE}")
    for one in targets.given or ():
        if isinstance(one, NpyFile):
            if one.path == path:
                raise ValueError(f"{verb}: ledger= and out= are one file, {path!r}")
        elif not _on_disk(one):
            raise ValueError(f"{verb}: {_OUTLIVE}; out= (shape {one.shape}) lies in memory")
    return path


def _on_disk(array: Array) -> bool:
    place = locate(array)
    return place is not None and place.segment.kind == "file"


def take_up(
    path: str,
    plan: Plan,
    function: Function,
    arrays: list[Array],
    outputs: Outputs,
    *,
    seeded: bool,
) -> tuple[Plan, tuple[int, ...] | None]:
    """Open the ledger of a call, and go on where an earlier process has ended.

    Parameters
    ----------
    seeded : bool
        Whether the user chose the seed; else the first process' holds for all.

    Returns
    -------
    plan : Plan
        With the seed that is in the ledger.
    todo : tuple of int or None
        The chunks that are to be computed; None for all.

    Raises
    ------
    ValueError
        If the ledger belongs to another call, or is none.
    RuntimeError
        If another run has it.
    """
    call, seed = identify(plan, function, arrays), _plain(plan.seed)
    if seeded:
        call["seed"] = repr(seed)
    ledger = outputs.ledger = LedgerFile.open(path, Owner(plan.chunks, seed, call))
    if plan.seed is not None:
        plan = plan._replace(seed=ledger.owner.seed)
    return plan, _todo(plan, outputs, ledger) if ledger.sums.any() else None


def _plain(seed: Any) -> Any:
    """A seed as JSON has it."""
    return [int(part) for part in seed] if isinstance(seed, Sequence) else seed


def _todo(plan: Plan, outputs: Outputs, ledger: LedgerFile) -> tuple[int, ...] | None:
    """The chunks that are to be computed, None for all; the others' outputs are there.

    What the ledger says of chunks that are not in the outputs as they were written is not
    believed; a warning counts them.
    """
    begun, found = int(np.count_nonzero(ledger.sums)), _found(plan, outputs)
    if found is None:
        lost = ledger.forget()
    else:
        lost = ledger.settle(lambda chunk: plan.windows(chunk, found))
    if lost:
        warnings.warn(
            f"{plan.verb}: of {begun:,} chunks that {ledger.path!r} has as done, {lost:,} are "
            "not in the output as they were written: it was emptied, changed or removed since; "
            "they are computed again",
            RuntimeWarning,
            stacklevel=levels_to_user(),
        )
    if lost == begun:
        return None
    if found:
        outputs.given = found
        shapes = tuple(Output(one.shape, one.dtype) for one in found)
        outputs.allocate(Announcement(shapes, several=bool(plan.several)))
    return ledger.pending()


def _found(plan: Plan, outputs: Outputs) -> list[Array] | None:
    """The outputs of an earlier run, if all are there and could be this run's; none is all."""
    found: list[Array] = []
    dtypes = plan.dtypes or (None,) * len(outputs.given or ())
    for one, dtype in zip(outputs.given or (), dtypes, strict=True):
        array = one.reopen() if isinstance(one, NpyFile) else one
        if array is None or (dtype is not None and array.dtype != dtype):
            return None
        try:
            check_shape(plan, array)
        except ValueError:
            return None
        found.append(array)
    return found
