"""``ledger=``: record on disk the finished chunks of a call, so that the same call can resume.

A call is the same if its identity is equal: fingerprints of its function, its inputs, its grid and
its dtypes (:func:`call_identity`).

- A function is its name, its code and its constants: defaults, captured values, and the globals
  that it names. The functions and classes among these count likewise, and attributes of modules
  that it names, in all modules of the user (:func:`_is_own`). Objects of installed packages are
  their names: a changed library is not noticed. Comments and line numbers do not count.
- An array is its dtype, shape and values. A store is its place, dtype, shape and units: changed
  values of an input store are not noticed. A dict or a set is its items in any order. Another
  object is its class and its pickled state. A method is its code and its object.
- Another version of Python compiles other bytecode, and so makes another function.

The ledger file, in order:

=============  ============================================================================
bytes          content
=============  ============================================================================
16             ``shmpar ledger 3`` and a line feed
4, 4           length and CRC-32 of the header, little-endian
length         the header: a :class:`Header` as JSON, padded with spaces
4 per chunk    the checksum of the chunk's windows in the outputs; 0 if it is not done
=============  ============================================================================

Guarantees
----------
- The checksum of a chunk is written after its output. A chunk counts as done only if its output
  still has this checksum. So an output that was emptied, changed or lost is computed again.
- The file appears as a whole or not at all, and a killed process leaves no other file behind.
- A single run uses the file at a time. The lock belongs to the open file description that workers
  share. So it is held until the last writer has exited, also if the parent was killed.
- Nothing in the file is executed or unpickled, and the file names no other file.
- A damaged file is refused, or its chunks are computed again. The checksums are no signature: a
  process that may write to the file can mark chunks as done, as it can change the outputs.
"""

from __future__ import annotations

import contextlib
import dis
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import site
import struct
import sys
import sysconfig
import time
import types
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shmpar.errors import format_count
from shmpar.memory.allocate import atomic_file
from shmpar.memory.limits import open_with_retry
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment
from shmpar.memory.system import HELD
from shmpar.pickling.changes import all_names, code_objects
from shmpar.plan import Announcement, Function, InBlocks, Output, Plan
from shmpar.runtime.error_texts import levels_to_user
from shmpar.runtime.outputs import LEDGER_NEEDS_FILES, Given, NewFile, Outputs, file_path
from shmpar.stores.store import Part, Store
from shmpar.worker.verify import StoredChecksum, crc

Array = np.ndarray[Any, Any]
InWorkers = Callable[[Callable[[int], int], list[int]], Sequence[int]]

RESULTS_SUFFIX = ".results"
MADE = "made"  # the part of an identity that is new with each file

_MAGIC = b"shmpar ledger 3\n"
_PREFIX = struct.Struct("<16sII")  # magic, length and CRC-32 of the header
_ALIGNMENT = 64  # bytes; the checksums begin at a multiple
_MAX_HEADER_BYTES = 1 << 20
_CHECKSUM = np.dtype("<u4")
_LOCK_WAIT_SECONDS = 2.0  # Why: the workers of a killed parent need a moment to exit.


def resume(  # noqa: PLR0913 - the parts of a call
    ledger: Any,
    plan: Plan,
    function: Function,
    arrays: list[Array],
    outputs: Outputs,
    *,
    seeded: bool,
    in_place: bool,
    in_workers: InWorkers,
    named: tuple[Any, ...] | None,
) -> tuple[Plan, tuple[int, ...] | None]:
    """Open the ledger file of a call, or create it, and find the chunks that an earlier run left.

    Parameters
    ----------
    ledger : object
        The user's ``ledger=``.
    seeded : bool
        The user chose the seed. Otherwise the seed of the first run holds for all.
    in_place : bool
        The output is the input.
    in_workers : callable
        Calls a function for each chunk number in a sequence, in workers.
    named : tuple of (dtype or None) or None
        The declared dtypes, without those of arrays that the first call may have made.

    Returns
    -------
    plan : Plan
        The plan with the seed of the ledger file.
    todo : tuple of int or None
        The chunks to compute; None for all.

    Raises
    ------
    TypeError
        If `ledger` is not a path.
    ValueError
        If the file is no ledger or belongs to another call, or if the results of this call do not
        outlive this process.
    RuntimeError
        If another run uses the file.
    SegmentFull
        If the disk has no room.
    """
    path = checked_path(ledger, plan, outputs, in_place=in_place)
    for one in outputs.given or ():
        if isinstance(one, NewFile):
            one.keeps_partial = True
    identity = call_identity(plan._replace(dtypes=named), function, arrays)
    header = Header.of(plan, plan.chunks, identity, seeded=seeded)
    file = outputs.ledger_file = LedgerFile.open(path, header)
    try:
        outputs.checksums = file.checksums
        if plan.seed is not None:
            plan = plan._replace(seed=file.header.seed)
        todo = _unfinished(plan, outputs, file, in_workers) if file.checksums.any() else None
    except BaseException:
        # Lock: the traceback of an interrupt keeps this frame, and so the file, alive.
        file.unlock()
        raise
    return plan, todo


def checked_path(ledger: Any, plan: Plan, outputs: Outputs, *, in_place: bool = False) -> str:
    """Return the absolute path of a ledger; raise an error if the call cannot have one."""
    verb, given, of_items = plan.verb, outputs.given, outputs.values is not None
    if not isinstance(ledger, str | os.PathLike):
        raise TypeError(f"{verb}: ledger= is the path of a file, not {type(ledger).__name__}")
    path = file_path(ledger, f"{verb}: ledger={ledger!r}")
    if in_place:
        raise ValueError(
            f"{verb}: ledger= cannot resume a call in place: a chunk that has begun may have "
            "overwritten its input"
        )
    if plan.returns_objects and not of_items:
        remedy = "parallel_map over a list, without dtype=, records them"
        raise ValueError(f"{verb}: ledger= cannot record arrays of Python objects; {remedy}")
    # Why: a function that writes its own files may return None, but no block can be None.
    has_files = of_items or given is not None
    if not has_files and (isinstance(plan.placement, InBlocks) or plan.dtypes is not None):
        raise ValueError(f"{verb}: {LEDGER_NEEDS_FILES}")
    for one in given or ():
        if isinstance(one, Store):
            continue
        if isinstance(one, NewFile):
            if one.path == path:
                raise ValueError(f"{verb}: ledger= and out= are the same file, {path!r}")
            continue
        location = locate(one)
        if location is None or location.segment.kind != "file":
            raise ValueError(f"{verb}: {LEDGER_NEEDS_FILES}; out= of shape {one.shape} is not")
    return path


def _unfinished(
    plan: Plan, outputs: Outputs, file: LedgerFile, in_workers: InWorkers
) -> tuple[int, ...] | None:
    """Return the chunks to compute, None for all; warn of chunks whose output has changed."""
    done = int(np.count_nonzero(file.checksums))
    arrays = _reopened(plan, outputs.given or ())
    changed = file.verify(_verifier(plan, arrays, in_workers))
    if changed:
        text = (
            f"{plan.verb}: of {format_count(done, 'chunk')} that {file.path!r} has as done, "
            f"{changed:,} {'is' if changed == 1 else 'are'} not in the output as written: it was "
            "emptied, changed or removed since; the call computes them again"
        )
        warnings.warn(text, RuntimeWarning, stacklevel=levels_to_user())
    if changed == done:
        return None
    if arrays:
        for one, array in zip(outputs.given or (), arrays, strict=True):
            if isinstance(one, NewFile):
                one.array = array
        found = tuple(Output(array.shape, array.dtype) for array in arrays)
        outputs.allocate(Announcement(found, is_tuple=bool(plan.is_tuple)))
    return tuple(np.flatnonzero(file.checksums == 0).tolist())


def _verifier(
    plan: Plan, arrays: list[Any] | None, in_workers: InWorkers
) -> Callable[[list[int]], Sequence[int]] | None:
    """Return the function that reads the checksums of chunks; None if the outputs are lost."""
    if arrays is None:
        return None
    found = StoredChecksum(plan, arrays)
    # Why workers: to read and decode a store takes as long as a run.
    return functools.partial(in_workers, found) if Store in map(type, arrays) else found.of


def _reopened(plan: Plan, given: Sequence[Given]) -> list[Any] | None:
    """Return the outputs of the earlier run; None if one is absent or does not fit this call."""
    arrays: list[Any] = []
    for one, dtype in zip(given, plan.dtypes or (None,) * len(given), strict=True):
        array = one.reopen() if isinstance(one, NewFile) else one
        if array is None or (dtype is not None and array.dtype != dtype):
            return None
        try:
            plan.check_shape(array)
        except ValueError:
            return None
        arrays.append(array)
    return arrays


class Header(NamedTuple):
    """The call that a ledger file belongs to.

    Attributes
    ----------
    chunks : int
        Number of chunks.
    seed : int, list of int or None
        Entropy of the random streams, if the function gets ``rng``.
    identity : dict of str to str
        The result of :func:`call_identity`.
    """

    chunks: int
    seed: Any
    identity: dict[str, str]

    @classmethod
    def of(cls, plan: Plan, chunks: int, identity: dict[str, str], *, seeded: bool) -> Header:
        """Make the header of a call; a seed that the user chose belongs to its identity."""
        # Why: a seed may be made of NumPy's integers.
        seed = json.loads(json.dumps(plan.seed, default=lambda value: value.tolist()))
        if seeded:
            identity["seed"] = repr(seed)
        return cls(chunks, seed, identity)

    @classmethod
    def parse(cls, text: bytes) -> Header:
        """Read a header from JSON; raise ``ValueError`` for anything else."""
        match json.loads(text.decode()):  # Why: from bytes, json guesses the encoding.
            case {"chunks": chunks, "seed": seed, "identity": dict(identity), **rest} if not rest:
                parts = seed if isinstance(seed, list) else [seed] * (seed is not None)
                numbers = all(type(part) is int and part >= 0 for part in (chunks, *parts))
                if numbers and all(isinstance(value, str) for value in identity.values()):
                    return cls(chunks, seed, identity)
        raise ValueError("its header has other entries than expected")

    def differences(self, other: Header) -> list[str]:
        """Return the names of the parts in which another call differs."""
        names = sorted({*self.identity, *other.identity} - {MADE})
        found = [name for name in names if self.identity.get(name) != other.identity.get(name)]
        return found or ["chunks"] * (self.chunks != other.chunks)


class LedgerFile:
    """The ledger file of a call, open and locked.

    Attributes
    ----------
    path : str
        Path of the file.
    header : Header
        The call that the file belongs to.
    checksums : ndarray of uint32
        The checksum of each finished chunk, written by workers; 0 for other chunks.
    """

    def __init__(self, path: str, fd: int, header: Header, offset: int) -> None:
        self.path, self.header = path, header
        # Lock: the duplicate shares the open file description, and so the lock.
        copy = open_with_retry(lambda: os.dup(fd))
        size = offset + header.chunks * _CHECKSUM.itemsize
        self._segment = Segment.adopt(copy, size, kind="file")
        self.checksums = self._segment.ndarray(offset, (header.chunks,), None, _CHECKSUM)

    @classmethod
    def open(cls, path: str, expected: Header) -> LedgerFile:
        """Open and lock the ledger file of a call, or create it.

        Raises
        ------
        ValueError
            If there is a file that is no ledger, or that belongs to another call.
        RuntimeError
            If another run uses it.
        SegmentFull
            If the disk has no room.
        OSError
            If it cannot be opened or created.
        """
        while True:
            try:
                fd = open_with_retry(lambda: os.open(path, os.O_RDWR | os.O_NOFOLLOW))
            except FileNotFoundError:
                with contextlib.suppress(FileExistsError):  # Why: another process was faster.
                    _create(path, expected)
                continue
            with open(fd, "r+b", 0) as file:
                _lock(fd, path)
                if not _is_at(fd, path):
                    continue  # Why: it was replaced while this run waited for the lock.
                header, offset = _read_header(fd, path)
                different = header.differences(expected)
                if not different:
                    try:
                        return cls(path, fd, header, offset)
                    except BaseException:
                        # Lock: the traceback keeps the duplicate of the descriptor open.
                        fcntl.flock(fd, fcntl.LOCK_UN)
                        raise
                if np.fromfile(file, _CHECKSUM, offset=offset).any() or _has_results(path):
                    size = format_count(header.chunks, "chunk") if header.chunks else "items"
                    raise ValueError(
                        f"ledger={path!r} belongs to another call, of "
                        f"{header.identity.get('verb', '?')} with {size}, that differs in: "
                        f"{', '.join(different)}; pass another ledger=, or remove it to begin anew"
                    )
                # Why: nothing is lost with the ledger of another call if none of its chunks is
                # done. Lock: it is held until the new file has the name.
                _create(path, expected, replace=True)

    def verify(self, found: Callable[[list[int]], Sequence[int]] | None) -> int:
        """Mark chunks as not done whose output has changed; return their number.

        Parameters
        ----------
        found : callable or None
            Return the checksums of the windows of chunks; None if the outputs are lost.

        Notes
        -----
        Cost: a pass over the output of finished chunks.
        """
        done = np.flatnonzero(self.checksums)
        sums = 0 if found is None else np.asarray(found(done.tolist()), _CHECKSUM)
        changed = done[self.checksums[done] != sums]
        self.checksums[changed] = 0
        return len(changed)

    def lock(self) -> None:
        """Lock it again, for a run that resumes; raise ``RuntimeError`` if another run uses it."""
        _lock(self._segment.fileno(), self.path)

    def unlock(self) -> None:
        """Release the lock; call it when the last writer is idle."""
        fcntl.flock(self._segment.fileno(), fcntl.LOCK_UN)


def _has_results(path: str) -> bool:
    """Return whether the file of results beside a ledger has any."""
    with contextlib.suppress(OSError):
        return os.path.getsize(f"{path}{RESULTS_SUFFIX}") > 0
    return False


def _create(path: str, header: Header, *, replace: bool = False) -> None:
    text = json.dumps(header._asdict()).encode()
    text += b" " * (-(_PREFIX.size + len(text)) % _ALIGNMENT)
    head = _PREFIX.pack(_MAGIC, len(text), zlib.crc32(text)) + text
    nbytes = len(head) + header.chunks * _CHECKSUM.itemsize
    with atomic_file(path, nbytes, replace=replace) as fd:
        os.pwrite(fd, head, 0)


def _is_at(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(fd: int, path: str) -> None:
    deadline = time.monotonic() + _LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD:
                raise OSError(
                    error.errno,
                    f"{error.strerror}: ledger={path!r} cannot be locked, so two runs could use it "
                    "at once; put it on another file system",
                ) from None
        else:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"ledger={path!r} is in use by another run, here or in another process; wait for "
                "it, or pass another ledger="
            )
        time.sleep(0.01)


def _read_header(fd: int, path: str) -> tuple[Header, int]:
    """Return the header of a ledger file and the offset of its checksums."""
    try:
        return _parse(fd)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"ledger={path!r} is no ledger of this library, or was damaged: {error}; pass another "
            "name, or remove it to begin anew"
        ) from None


def _parse(fd: int) -> tuple[Header, int]:
    magic, length, crc32 = _PREFIX.unpack(os.pread(fd, _PREFIX.size, 0).ljust(_PREFIX.size))
    if magic != _MAGIC:
        is_other = magic.startswith(_MAGIC[:-2])
        raise ValueError("another version wrote it" if is_other else "it has another format")
    text = os.pread(fd, min(length, _MAX_HEADER_BYTES), _PREFIX.size)
    if len(text) < length or zlib.crc32(text) != crc32:
        raise ValueError("its header was changed")
    header, offset, size = Header.parse(text), _PREFIX.size + length, os.fstat(fd).st_size
    if size != offset + header.chunks * _CHECKSUM.itemsize:
        raise ValueError(f"it has {size:,} bytes and {format_count(header.chunks, 'chunk')}")
    return header, offset


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

    Examples
    --------
    >>> fingerprint({"a": 1, "b": {2, 3}}) == fingerprint({"b": {3, 2}, "a": 1})
    True
    >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 2)
    False
    """
    pending: list[Any] = []
    first, known, others = _Fingerprinter(pending).of(value), set[int](), set[str]()
    for one in pending:  # Why: it grows, so that a long chain of functions needs no deep recursion.
        if id(one) not in known:
            known.add(id(one))
            others.add(_Fingerprinter(pending).of(one))
    return _hash(first, *sorted(others)) if others else first


# Why: repr gives the whole value of these types, in any process.
_SIMPLE: tuple[type, ...] = (type(None), bool, int, float, complex, str, bytes, range)
_SIMPLE += (type(...), type(NotImplemented), np.dtype, np.generic)
_NO_STATE = {"__doc__", "__module__", "__dict__", "__weakref__", "__firstlineno__", "_abc_impl"}
# Why: the interpreter adds these to a class when an instance is pickled, or in any order.
_NO_STATE |= {"__slotnames__", "__static_attributes__"}


class _Fingerprinter:
    """Compute fingerprints of values that may refer to each other.

    Parameters
    ----------
    pending : list
        Gets the user's functions and classes of which a fingerprint has the name alone.
    module : str, optional
        Module of the outermost function.
    """

    def __init__(self, pending: list[Any], module: str | None = None) -> None:
        self._pending, self._module = pending, module
        self._modules: list[types.ModuleType] = []  # those in progress
        self._open: dict[int, int] = {}
        # Invariant: it holds each value, so that no other value gets its id.
        self._done: dict[int, tuple[str, Any]] = {}

    def of(self, value: Any) -> str:
        """Return the fingerprint; inside of a cycle, a hash of the distance to the same value."""
        if isinstance(value, _SIMPLE):
            return _hash("plain", type(value).__name__, repr(value))
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
            case np.ndarray():
                yield from self._array(value)
            case Store():  # Why: its values are not read, so a change of them is not noticed.
                yield from ("store", value.kind, value.where, repr((value.shape, value.dtype)))
            case Part():
                yield from self._array(value.array)
            case types.FunctionType():
                yield from self._function(value)
            case types.MethodType() | types.BuiltinFunctionType() if _is_bound(value):
                code = getattr(value, "__func__", None)
                yield from ("method", value.__name__, self.of(code), self.of(value.__self__))
            case types.CodeType():
                yield from self._code(value)
            case staticmethod() | classmethod() | property():
                code = [getattr(value, one, None) for one in ("__func__", "fget", "fset", "fdel")]
                yield from (type(value).__name__, *map(self.of, code))
            case tuple() | list():
                yield from (_name(type(value)), *map(self.of, value))
            # Why: an unordered item has a fingerprint of its own, whatever its depth and order.
            case set() | frozenset():
                yield from ("set", *sorted(self._apart().of(one) for one in value))
            case Mapping() if type(value) in {dict, types.MappingProxyType}:
                keys = [self._apart().of(key) for key in value]
                pairs = sorted(zip(keys, map(self.of, value.values()), strict=True))
                yield from ("mapping", *(part for pair in pairs for part in pair))
            case type() if self._is_own(value):
                yield from self._class(value)
            case type() | types.ModuleType() | types.BuiltinFunctionType() | np.ufunc():
                yield from ("named", _name(value))
            case _:
                yield from self._object(value)

    def _apart(self) -> _Fingerprinter:
        return _Fingerprinter(self._pending, self._module)

    def _is_own(self, definition: Any) -> bool:
        module = getattr(definition, "__module__", None)
        return module is not None and (module == self._module or _is_own(module))

    def _array(self, array: Array) -> Iterator[str]:
        yield from ("array", repr(array.dtype), repr(array.shape))
        if array.dtype.names:  # Why: the padding between fields has no meaning.
            for name in array.dtype.names:
                yield from self._array(np.ascontiguousarray(array[name]))
        elif array.dtype.hasobject:
            yield self.of(array.tolist())
        else:
            yield str(crc(array))

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        self._module = self._module or function.__module__
        yield from ("function", _name(function), self.of(function.__code__))
        yield from (self.of(function.__defaults__), self.of(function.__kwdefaults__))
        for cell in function.__closure__ or ():
            try:
                yield self.of(cell.cell_contents)
            except ValueError:  # Why: the variable is not bound yet.
                yield "empty"
        names = set(all_names(function.__code__))
        yield from self._named(function.__globals__, names)
        for module in _imported_inside(function.__code__, function.__globals__):
            yield from self._named(vars(module), names)

    def _named(self, space: Mapping[str, Any], names: set[str]) -> Iterator[str]:
        """Yield the fingerprints of the globals that code names, and attributes of modules."""
        for name in sorted(names & space.keys()):
            value = space[name]
            if isinstance(value, types.ModuleType) and _is_own(value.__name__):
                if value not in self._modules:
                    self._modules.append(value)
                    yield from (name, *self._named(vars(value), names))
                    self._modules.pop()
                continue
            is_code = isinstance(value, types.FunctionType | type) or _wrapped(value) is not None
            if is_code and not self._is_own(value):
                yield from (name, _name(value))
            elif is_code and _is_importable(value):
                self._pending.append(value)
                yield from (name, _name(value))
            else:
                yield from (name, self.of(value))

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
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # noqa: BLE001 - Why: an object that does not pickle has no known state
            return
        if isinstance(reduced, str):
            yield reduced
            return
        _, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        yield from map(self.of, (arguments, state, list(items or ()), list(pairs or ())))


@functools.cache
def _foreign_folders() -> tuple[str, ...]:
    """Return the folders of the standard library, of installed packages and of this package."""
    paths = sysconfig.get_paths()
    found = {paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    found.update([*site.getsitepackages(), site.getusersitepackages()])
    found.add(os.path.dirname(os.path.dirname(__file__)))
    return tuple(os.path.join(os.path.realpath(folder), "") for folder in sorted(found))


def _is_own(name: str) -> bool:
    """Return whether a module is the user's: it is no part of Python and no installed package."""
    if name == "__main__":
        return True
    spec = getattr(sys.modules.get(name), "__spec__", None)
    path = getattr(sys.modules.get(name), "__file__", None)
    if path is None:  # Why: a module that the user made in memory has no spec either.
        return name in sys.modules and spec is None
    return _is_own_path(path)


def _is_own_path(path: str) -> bool:
    path = os.path.realpath(path)
    # Why a separator: "built-in" and "frozen" are no paths.
    known = path.startswith(_foreign_folders()) or "-packages" + os.sep in path
    return os.path.exists(path) and not known


def _imported_inside(code: types.CodeType, space: dict[str, Any]) -> list[types.ModuleType]:
    """Return the user's modules that code imports by itself; import them too, as it would."""
    found: list[types.ModuleType] = []
    for part in (code, *code_objects(code)):
        steps = list(dis.get_instructions(part))
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
        top = name.partition(".")[0]
        if top not in sys.modules:
            spec = importlib.util.find_spec(top)
            if spec is None or spec.origin is None or not _is_own_path(spec.origin):
                return None
        if _is_own(top) or top not in sys.modules:
            return importlib.import_module(name)
    return None


def _is_importable(definition: Any) -> bool:
    """Return whether a definition is the one that its module has under its name."""
    space = vars(sys.modules.get(getattr(definition, "__module__", None) or "", types))
    return space.get(getattr(definition, "__qualname__", "")) is definition


def _is_bound(method: Any) -> bool:
    # Why: the __self__ of a function in C is its module.
    return not isinstance(method.__self__, types.ModuleType | None)


def _wrapped(value: Any) -> types.FunctionType | None:
    """Return the function behind a decorator object, for example of functools.cache."""
    function = getattr(value, "__wrapped__", None)
    return function if isinstance(function, types.FunctionType) else None


def _name(value: Any) -> str:
    qualified = getattr(value, "__qualname__", None) or getattr(value, "__name__", repr(value))
    return f"{getattr(value, '__module__', None)}.{qualified}"


def _hash(*parts: str) -> str:
    result = hashlib.sha256()
    for part in parts:
        result.update(f"{len(part)}:{part}".encode("utf-8", "surrogatepass"))
    return result.hexdigest()[:32]
