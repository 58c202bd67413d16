"""``ledger=``: record on disk the finished chunks of a call, so that the same call can resume.

The file belongs to one call, by its identity (:mod:`shmpar.runtime.call_identity`). For a list of
items it has no chunks: the results lie in the file beside it with the suffix ``.results``
(:mod:`shmpar.worker.results`), and a later call computes only the items without a result.

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
- The result of an item belongs to the verb, the function with its keywords, and the item. So items
  may be added, removed or put in another order. Of equal items each has a result of its own.
- If the function gets ``rng`` or ``block_id``, the result also belongs to the position of the item.
- A result counts only as a whole: a process that was killed while it wrote one loses that alone. A
  failed item has no result. Without the ledger file, which may be removed to begin anew, no result
  counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import secrets
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from shmpar.errors import format_count
from shmpar.memory.allocate import atomic_file
from shmpar.memory.limits import open_with_retry
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment
from shmpar.memory.system import HELD, is_at
from shmpar.plan import (
    KEY_BYTES,
    Announcement,
    Function,
    InBlocks,
    Items,
    Output,
    Plan,
    ResultsFile,
    Rows,
)
from shmpar.runtime.call_identity import call_identity, fingerprint
from shmpar.runtime.error_texts import warn_user
from shmpar.runtime.outputs import LEDGER_NEEDS_FILES, Given, NewFile, Outputs, file_path
from shmpar.stores.store import Store, StoreRows
from shmpar.worker import results
from shmpar.worker.verify import StoredChecksum

Array = np.ndarray[Any, Any]
InWorkers = Callable[[Callable[[int], int], list[int]], Sequence[int]]

_RESULTS_SUFFIX = ".results"
_MADE = "made"  # the part of an identity that is new with each file

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


def resume_items(
    ledger: Any,
    plan: Plan,
    function: Function,
    arrays: list[Any],
    outputs: Outputs,
    *,
    seeded: bool,
) -> tuple[Plan, tuple[int, ...] | None]:
    """Open the ledger of a call over items, and take the results that an earlier call has written.

    Parameters
    ----------
    ledger, seeded
        As for :func:`resume`, which has the errors too.

    Returns
    -------
    plan : Plan
        The plan with the seed of the ledger and the file of the results.
    todo : tuple of int or None
        The items to compute; None for all.
    """
    values = outputs.values
    assert values is not None, "the results go into a list"
    path = checked_path(ledger, plan, outputs)
    header = Header.of(plan, 0, _item_identity(plan, function), seeded=seeded)
    # Why: without the ledger, the results beside it belong to nothing.
    header.identity[_MADE] = secrets.token_hex(8)
    file = outputs.ledger_file = LedgerFile.open(path, header)
    try:
        seed = file.header.seed if plan.seed is not None else None
        keys = _item_keys(plan, function, arrays, file.header)
        target = ResultsFile(f"{path}{_RESULTS_SUFFIX}", keys)
        plan = plan._replace(seed=seed, results_file=target)
        found, unread, todo = results.read(target.path), 0, list[int]()
        for chunk in range(plan.chunks):
            body = found.pop(target.key(chunk), None)
            if body is None:
                todo.append(chunk)
                continue
            try:
                values[chunk] = results.restore(body)
            except Exception:  # noqa: BLE001 - Why: its class may be gone; the item is computed
                unread += 1
                todo.append(chunk)
        if unread:
            text = (
                f"{plan.verb}: {format_count(unread, 'result')} in {target.path!r} cannot be read "
                "any more, since a class or an array of it is gone; the call computes "
                f"{'it' if unread == 1 else 'them'} again"
            )
            warn_user(text)
    except BaseException:
        # Lock: the traceback of an interrupt keeps this frame, and so the file, alive.
        file.unlock()
        raise
    return plan, None if len(todo) == plan.chunks else tuple(todo)


def _item_identity(plan: Plan, function: Function) -> dict[str, str]:
    """Return the fingerprints of the parts of a call over items, without the items."""
    call = function.call, function.keywords, sorted(plan.special_parameters)
    kinds = [type(one).__name__ for one in plan.arguments]
    return {"verb": plan.verb, "function": fingerprint(call), "inputs": ", ".join(kinds)}


def _item_keys(plan: Plan, function: Function, arrays: list[Any], header: Header) -> bytes:
    """Return the keys of all items, one after the other."""
    call = repr((sorted(header.identity.items()), header.seed))
    # Why: a unit of a store has many rows, and is decoded as a whole.
    arrays = [StoreRows(one) if isinstance(one, Store) else one for one in arrays]
    seen: Counter[str] = Counter()
    keys = []
    for chunk in range(plan.chunks):
        given = [_item(one, function, arrays, chunk) for one in plan.arguments]
        item = fingerprint(given[0] if len(given) == 1 else tuple(given))
        # Why: a random stream, and block_id, follow from the number of the chunk.
        which = chunk if plan.special_parameters else seen[item]
        seen[item] += 1
        text = f"{call} {item} {which}".encode("utf-8", "surrogatepass")
        keys.append(hashlib.sha256(text).digest()[:KEY_BYTES])
    return b"".join(keys)


def _item(argument: Any, function: Function, arrays: list[Any], chunk: int) -> Any:
    if isinstance(argument, Items):
        return function.values[argument.value][chunk]
    assert isinstance(argument, Rows), "a call over items has items and rows"
    return arrays[argument.array][chunk]


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
            files = one.path, getattr(one, "partial", one.path)
            if os.path.realpath(path) in map(os.path.realpath, files):
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
    changed = file.verify(functools.partial(_checksums, plan, arrays, in_workers))
    if changed:
        text = (
            f"{plan.verb}: of {format_count(done, 'chunk')} that {file.path!r} has as done, "
            f"{changed:,} {'is' if changed == 1 else 'are'} not in the output as written: it was "
            "emptied, changed or removed since; the call computes them again"
        )
        warn_user(text)
    if changed == done:
        return None
    if arrays:
        for one, array in zip(outputs.given or (), arrays, strict=True):
            if isinstance(one, NewFile):
                one.array = array
        found = tuple(Output(array.shape, array.dtype) for array in arrays)
        outputs.allocate(Announcement(found, is_tuple=bool(plan.is_tuple)))
    return tuple(np.flatnonzero(file.checksums == 0).tolist())


def _checksums(
    plan: Plan, arrays: list[Any] | None, in_workers: InWorkers, chunks: list[int]
) -> Sequence[int] | int:
    """Return the checksums of chunks as the outputs have them now; 0 if the outputs are lost."""
    if arrays is None:
        return 0
    found = StoredChecksum(plan, arrays)
    # Why workers: to read and decode a store takes as long as a run.
    return in_workers(found, chunks) if Store in map(type, arrays) else found.of(chunks)


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
    seed : int, list of seeds or None
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
                texts = all(isinstance(value, str) for value in identity.values())
                is_count = isinstance(chunks, int) and _is_seed(chunks)
                if is_count and texts and (seed is None or _is_seed(seed)):
                    return cls(chunks, seed, identity)
        raise ValueError("its header has other entries than expected")

    def differences(self, other: Header) -> list[str]:
        """Return the names of the parts in which another call differs."""
        names = sorted({*self.identity, *other.identity} - {_MADE})
        found = [name for name in names if self.identity.get(name) != other.identity.get(name)]
        return found or ["chunks"] * (self.chunks != other.chunks)


def _is_seed(value: Any) -> bool:
    """Return whether NumPy takes it: an int, 0 or more, or a list of seeds."""
    if isinstance(value, list):
        return all(map(_is_seed, value))
    return isinstance(value, int) and value >= 0


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
                if not is_at(fd, path):
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

    def verify(self, found: Callable[[list[int]], Sequence[int] | int]) -> int:
        """Mark chunks as not done whose output has changed; return their number.

        Parameters
        ----------
        found : callable
            Return the checksums of the windows of chunks as they are now.

        Notes
        -----
        Cost: a pass over the output of finished chunks.
        """
        done = np.flatnonzero(self.checksums)
        changed = done[self.checksums[done] != np.asarray(found(done.tolist()), _CHECKSUM)]
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
        return os.path.getsize(f"{path}{_RESULTS_SUFFIX}") > 0
    return False


def _create(path: str, header: Header, *, replace: bool = False) -> None:
    text = json.dumps(header._asdict()).encode()
    text += b" " * (-(_PREFIX.size + len(text)) % _ALIGNMENT)
    head = _PREFIX.pack(_MAGIC, len(text), zlib.crc32(text)) + text
    nbytes = len(head) + header.chunks * _CHECKSUM.itemsize
    with atomic_file(path, nbytes, replace=replace) as fd:
        os.pwrite(fd, head, 0)


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
