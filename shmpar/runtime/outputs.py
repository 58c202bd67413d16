"""Outputs of a run: allocate them, or use the arrays and files that the user passed as ``out=``.

Guarantees
----------
- Nothing is allocated or written before the shapes and dtypes of all outputs are known to fit.
- A plain array of the user gets the finished windows when the run ends, after an error too, and
  nothing else. An array in a segment or in a mapped file is written in place.
- A file that the run creates gets its path when every chunk is done, and not before.
- Outputs in the ledger's scratch count only if all workers that wrote there agree on their shapes
  and dtypes. At least one of these workers has announced them.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import weakref
from collections.abc import Callable, Iterable, Sequence
from math import prod
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.errors import ShmparError, format_count
from shmpar.ipc.ledger import DONE, PENDING, Ledger
from shmpar.memory import huge
from shmpar.memory.allocate import give_path, open_beside, reserve_range
from shmpar.memory.layout import byte_bounds
from shmpar.memory.limits import ClosedOnError, open_with_retry
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment, Slab, new_output
from shmpar.memory.system import ADDRESS_SPACE, is_at, room_for
from shmpar.plan import Announcement, Output, Plan, ResultError
from shmpar.stores.formats import absolute
from shmpar.stores.store import Store
from shmpar.stores.targets import ZarrPath, refresh_dataset

if TYPE_CHECKING:
    from shmpar.runtime.checkpoint import LedgerFile

Array = np.ndarray[Any, Any]
DType = np.dtype[Any]
Window = tuple[slice | int, ...]


LEDGER_NEEDS_FILES = (
    "ledger= needs results that outlive this process: pass out='result.npy', out='result.zarr', a "
    "zarr array or an np.memmap (mode 'r+' or 'w+')"
)


def file_path(path: str | os.PathLike[str], where: str) -> str:
    """Return the absolute path of a file; raise ``ValueError`` if no file can be created there."""
    found = absolute(path)
    if os.path.isdir(found) or not os.path.isdir(os.path.dirname(found)):
        raise ValueError(f"{where}: its folder does not exist, or the path is a folder")
    return found


class NpyFile:
    """A ``.npy`` file that the run creates: it appears whole at the end, or not at all.

    Until then the results lie in a file without a name, which ends with its last user.

    Parameters
    ----------
    path : str or path-like
        Path of the file.
    where : str
        Beginning of an error message.

    Attributes
    ----------
    path : str
        Absolute path.
    partial : str
        Name of the unfinished file of a run with a ledger.
    keeps_partial : bool
        The unfinished file has that name, so that a later process can complete it.
    array : ndarray or None
        The file in memory, once it was created.

    Raises
    ------
    ValueError
        If no such file can be created, or the path leads to a file that is read-only.
    """

    def __init__(self, path: str | os.PathLike[str], where: str) -> None:
        # Why: the file that a symbolic link leads to is replaced, and not the link.
        link = os.path.islink(path)
        self.path = file_path(os.path.realpath(path) if link else path, where)
        if not self.path.endswith(".npy"):
            raise ValueError(f"{where}: the name of a file for results must end in .npy")
        # Why the mode too: the superuser may write to every file, but was asked not to.
        if os.path.exists(self.path) and not (
            os.access(self.path, os.W_OK) and os.stat(self.path).st_mode & 0o222
        ):
            raise ValueError(
                f"{where}: the file exists and is read-only, so it is not replaced; make it "
                "writable (chmod u+w), remove it, or pass another name"
            )
        self.partial = f"{self.path}.partial"
        self.keeps_partial = False
        self.array: Array | None = None
        self._name: str | None = None  # of the file, until it has its path
        self._unfinished = False

    def create(self, shape: tuple[int, ...], dtype: DType) -> Array:
        """Create the unfinished file; return an array that maps it."""
        header = _npy_header(shape, dtype)
        nbytes = len(header) + prod(shape) * dtype.itemsize
        fd, name = open_beside(self.path, 0o666, named=self.keeps_partial)
        with ClosedOnError(fd):
            with contextlib.suppress(OSError):  # Why: the file that it replaces may be private.
                os.fchmod(fd, os.stat(self.path).st_mode & 0o777)
            if name is not None:  # Why: the file system needs a name, which ends with this object.
                weakref.finalize(self, _remove, name)
            reserve_range(fd, 0, nbytes, new=True)
            os.pwrite(fd, header, 0)
            if self.keeps_partial:
                give_path(fd, name, self.partial, replace=True)
                name = self.partial
            segment = Segment.adopt(fd, nbytes, kind="file")
        self._name, self._unfinished = name, True
        self.array = segment.ndarray(len(header), shape, None, dtype)
        return self.array

    def reopen(self) -> Array | None:
        """Return the array that an earlier run wrote; None if the file is absent or damaged."""
        for path in (self.partial, self.path):
            with contextlib.suppress(OSError, ValueError):
                array: Array = np.lib.format.open_memmap(path, "r+")
                self._name, self._unfinished = path, path == self.partial
                return array
        return None

    def publish(self) -> Array:
        """Give the complete file its path; return an array that maps it.

        A file of the same name is replaced. A process that has mapped the old file keeps it: the
        old file loses its name, but is not truncated.
        """
        if self._unfinished and self.array is not None:
            place, name = locate(self.array), self._name
            if place is None or not (name is None or is_at(place.segment.fileno(), name)):
                raise FileNotFoundError(
                    f"the results are complete, but {name!r}, in which they lie until the end, was "
                    "removed or replaced; they are in run.out"
                )
            give_path(place.segment.fileno(), name, self.path, replace=True)
            with room_for("a mapping of the results in this process", ADDRESS_SPACE):
                self.array = open_with_retry(np.lib.format.open_memmap, self.path, "r+")
            self._unfinished = False
        assert self.array is not None, "it was created or reopened"
        return self.array


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _npy_header(shape: tuple[int, ...], dtype: DType) -> bytes:
    fields = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
    header = io.BytesIO()
    try:
        np.lib.format.write_array_header_1_0(header, fields)
    except ValueError:  # Why: version 1.0 has 64 KiB of Latin-1, too little for some fields.
        text = repr(fields).encode()
        text += b" " * (-(len(text) + 13) % 64) + b"\n"
        header.write(np.lib.format.magic(3, 0) + struct.pack("<I", len(text)) + text)
    return header.getvalue()


NewFile = NpyFile | ZarrPath
"""A file or store that the run creates."""
Given = Array | Store | NewFile


class Outputs:
    """Outputs of one run.

    Parameters
    ----------
    given : sequence of (ndarray, Store, NpyFile or ZarrPath), optional
        The user's ``out=``.
    users : sequence of object, optional
        For each of these, the object that the call returns instead of it; None for itself.
    returns_objects : bool
        The results are Python objects (``dtype=object``).
    fill : callable, optional
        Return the value for the windows of failed chunks, from a dtype; raise ``ValueError`` if
        there is none.
    values : list, optional
        Takes the results of items, one per chunk.

    Attributes
    ----------
    arrays : list of (ndarray or Store) or None
        The arrays that are written to; None until shapes and dtypes are known.
    is_tuple : bool or None
        The verb returns a tuple.
    slab : Slab or None
        A segment in which small outputs may lie.
    lazy : bool
        Workers reserve the memory of large outputs; nobody else looks at these before the end.
    blank : bool
        Windows read as zeros before they are written.
    expected : Announcement or None
        Shapes and dtypes, if they are known before the first result.
    ledger_file : LedgerFile or None
        The record of finished chunks on disk; then all outputs are files.
    checksums : ndarray of uint32 or None
        The checksum of each finished chunk, with a ledger file or ``check=True``.
    values : list or None
        The results of items, in a list; None if the results go into arrays.
    """

    arrays: list[Any] | None = None
    is_tuple: bool | None = None
    slab: Slab | None = None
    expected: Announcement | None = None
    ledger_file: LedgerFile | None = None
    checksums: Array | None = None
    lazy = False
    blank = True

    def __init__(
        self,
        given: Sequence[Given] | None,
        *,
        users: Sequence[Any] | None = None,
        returns_objects: bool = False,
        fill: Callable[[DType], Any] | None = None,
        values: list[Any] | None = None,
    ) -> None:
        self.given: Sequence[Given] | None = given
        self._users = users
        self.values = values
        self._unreserved: list[Segment] = []
        self._stale: list[Array] = []  # those with values of earlier arrays
        self._returns_objects = returns_objects
        self._fill = fill

    def allocate(self, announcement: Announcement) -> list[Any]:
        """Allocate the outputs that the user did not pass, and create the user's files.

        Raises
        ------
        ResultError
            If an array of the user does not have the shape of the results.
        ValueError
            If ``ledger=`` needs a file for the results and there is none.
        SegmentFull
            If there is no room.
        """
        if self.values is not None:
            self.is_tuple, self.arrays = False, []
            return self.arrays
        outputs = announcement.outputs
        if self.ledger_file is not None and self.given is None and outputs:
            raise ValueError(f"{LEDGER_NEEDS_FILES}, or a function that returns None")
        self.check_fill([output.dtype for output in outputs])
        if self.given is not None:
            _check_fit(self.given, outputs)
            for mine, output in zip(self.given, outputs, strict=True):
                if isinstance(mine, NewFile) and mine.array is None:
                    mine.create(*output)
        pairs = zip(self._given(len(outputs)), outputs, strict=True)
        arrays = [self._writable(array, output) for array, output in pairs]
        # Invariant: a thread that sees `arrays` also sees `is_tuple`.
        self.is_tuple, self.arrays = announcement.is_tuple, arrays
        return arrays

    def _given(self, count: int) -> Sequence[Any]:
        return (None,) * count if self.given is None else self.given

    def _writable(self, mine: Given | None, output: Output) -> Any:
        if self._returns_objects:
            return np.empty(output.shape, object)
        array = mine.array if isinstance(mine, NewFile) else mine
        if isinstance(array, Store):
            return array
        location = None if array is None else locate(array)
        if array is None or location is None:
            made = new_output(*output, self.slab, lazy=self.lazy, blank=self.blank)
            # Why the size: for a small array the look takes longer than its memory.
            found = locate(made) if self.lazy and made.nbytes >= huge.MIN_BYTES else None
            if found is not None and not found.segment.reserved:
                self._unreserved.append(found.segment)
            if found is not None and found.segment.stale:
                self.note_stale(made)
            return made
        # Why: a write to a hole of a mapped file on a full disk is SIGBUS.
        low, high = byte_bounds(array.shape, array.strides, array.itemsize)
        location.segment.reserve(location.offset + low, location.offset + high)
        return array.view(np.ndarray)

    def shared_nbytes(self) -> list[int]:
        """Return the bytes of each expected output that will be allocated in shared memory."""
        if self.expected is None or self.arrays is not None or self._returns_objects:
            return []
        outputs = self.expected.outputs
        return [
            prod(shape) * dtype.itemsize
            for array, (shape, dtype) in zip(self._given(len(outputs)), outputs, strict=True)
            if array is None or (isinstance(array, np.ndarray) and locate(array) is None)
        ]

    def reserve_rest(self, *, complete: bool = False) -> None:
        """Reserve the memory that no chunk has written to, so that all of it can be read.

        Raises
        ------
        SegmentFull
            There is no room.
        """
        if complete:
            self._stale.clear()
        for segment in self._unreserved:
            if complete:  # Why: the windows of all chunks are the whole output
                segment.reserved = True
            else:
                segment.reserve_rest()

    def note_stale(self, array: Array) -> None:
        """Note that windows of an output which no chunk has written have values of earlier runs."""
        self._stale.append(array)

    def erase(self, windows: Callable[[], Iterable[Any]]) -> None:
        """Write zeros to windows that may have values of earlier arrays."""
        for array in self._stale:
            zero = np.zeros((), array.dtype)
            for window in windows():
                array[window] = zero
        self._stale.clear()

    @property
    def is_stale(self) -> bool:
        """True while some windows may have values of earlier arrays."""
        return bool(self._stale)

    def deliver(self, windows: Sequence[Window] | None) -> None:
        """Copy finished windows into the user's plain arrays; None stands for all windows."""
        every = [...] if windows is None else windows
        for mine, array in zip(self.given or (), self.arrays or (), strict=False):
            if isinstance(mine, np.ndarray) and not np.may_share_memory(mine, array):
                for window in every:
                    mine[window] = array[window]

    def check_fill(self, dtypes: Iterable[DType | None]) -> None:
        """Raise ``ValueError`` if an output of these dtypes cannot hold the fill value."""
        for dtype in dtypes:
            if self._fill is not None and dtype is not None:
                self._fill(dtype)

    def fill(self, windows: Sequence[Window]) -> None:
        """Write the fill value to the windows of failed chunks."""
        if self._fill is None:
            return
        if self.values is not None:
            for (chunk,) in windows:
                self.values[chunk] = self._fill(np.dtype(object))
        self.reserve_rest()
        for array in self.arrays or ():
            value = self._fill(array.dtype)
            for window in windows:
                array[window] = value

    def put(self, results: Iterable[tuple[int, Any]], plan: Plan) -> None:
        """Take the results of chunks that are objects."""
        if (values := self.values) is not None:
            for chunk, value in results:
                values[chunk] = value
        elif self.arrays:
            for chunk, value in results:
                self.arrays[0][plan.window(chunk)] = value

    def value(self, chunk: int) -> Any:
        """Return the result of one item."""
        if self.values is not None:
            return self.values[chunk]
        return _value_in(self.arrays or (), chunk, bool(self.is_tuple))

    def result(self) -> Any:
        """Return the result of the verb: an array, a scalar, a list, a tuple of arrays, or None.

        The user's files get their paths, so every chunk must be done.

        Raises
        ------
        StoreError
            A store was removed or has another shape by now, so results are lost.
        """
        if self.values is not None:
            return self.values
        if not self.arrays:
            return None
        for one in self.arrays:
            # Why not other stores: their openers are the user's code.
            if isinstance(one, Store) and one.kind == "zarr":
                one.check()
        users = self._users or (None,) * len(self.arrays)
        found: list[Any] = []
        for mine, user, array in zip(
            self._given(len(self.arrays)), users, self.arrays, strict=True
        ):
            if isinstance(mine, NewFile):
                found.append(mine.publish())
            elif mine is None:
                found.append(array if array.ndim else array[()])
            else:
                found.append(mine if user is None else user)
        return tuple(found) if self.is_tuple else found[0]

    def refresh(self) -> None:
        """Let the objects of the user see the values that workers have written."""
        for user, array in zip(self._users or (), self.arrays or (), strict=False):
            if user is not None and isinstance(array, np.ndarray):
                refresh_dataset(user, array)


def as_user(array: Array | Store) -> Any:
    """Return an output as the user knows it: a zarr array instead of its store."""
    return array.user if isinstance(array, Store) and array.user is not None else array


def _check_fit(given: Sequence[Given], outputs: Sequence[Output]) -> None:
    """Raise ``ResultError`` if an array of the user does not have the shape of the results."""
    if len(given) != len(outputs):
        raise ResultError(
            f"out= has {format_count(len(given), 'array')}, but the function returns "
            f"{format_count(len(outputs), 'output')}"
        )
    for mine, (shape, _) in zip(given, outputs, strict=True):
        if isinstance(mine, np.ndarray | Store) and mine.shape != shape:
            raise ResultError(f"out= has shape {mine.shape}, but the results make {shape}")


_KEPT_BYTES = 64 * 1024  # Why: a larger array of a list lies in a segment of its own.


class Weak(weakref.ref[Any]):
    """A weak reference that no value of the user is."""


def held(value: Any) -> Any:
    """Return a value of a list, or a weak reference if it is a large array."""
    is_large = isinstance(value, np.ndarray) and value.nbytes > _KEPT_BYTES
    return Weak(value) if is_large else value


def _value_in(arrays: Sequence[Any], chunk: int, is_tuple: bool) -> Any:
    values = tuple([array[chunk] for array in arrays])
    return values if is_tuple else values[0] if values else None


class WeakResult:
    """A result whose arrays live only as long as the caller holds them.

    Small arrays in a list stay, as all other objects in it do.
    """

    def __init__(self, result: Any) -> None:
        self._kind: type = type(result)
        if self._kind is list:
            self._parts = [held(part) for part in result]
            return
        parts = result if self._kind is tuple else (result,)
        # Why: a NumPy scalar cannot be referenced weakly, and holds no shared memory.
        self._parts = [Weak(p) if isinstance(p, np.ndarray) else p for p in parts]

    def get(self) -> Any:
        """Return the result; raise ``ShmparError`` if the caller has dropped an array of it."""
        parts = [p() if isinstance(p, Weak) else p for p in self._parts]
        if any(part is None and p is not None for part, p in zip(parts, self._parts, strict=True)):
            raise ShmparError(
                "the result of this run was returned to its caller, who has dropped it; the run of "
                "a call with wait=False keeps it"
            )
        return self._kind(parts) if self._kind in {list, tuple} else parts[0]

    def value(self, chunk: int) -> Any:
        """Return the result of one item; None if the caller has dropped it."""
        if self._kind is list:
            part = self._parts[chunk]
            return part() if isinstance(part, Weak) else part
        parts = [p() if isinstance(p, Weak) else p for p in self._parts]
        if any(part is None for part in parts):
            return None
        return _value_in(parts, chunk, self._kind is tuple)


def fill_value_for(value: Any, dtype: DType) -> Any:
    """Return the value for windows of failed chunks: `value`, or for None the missing value.

    Raises
    ------
    ValueError
        If the dtype has no missing value, or cannot hold `value`.

    Examples
    --------
    >>> fill_value_for(-1, np.dtype("f4"))
    -1
    """
    if value is None:
        return missing_value(dtype)
    if dtype.hasobject:
        return value
    if isinstance(value, list | tuple) or np.ndim(value):
        remedy = "pass a scalar, which fills each element"
        raise ValueError(f"fill_value={brief(value)} is an array; {remedy}")
    if not _fits(value, dtype):
        raise ValueError(f"fill_value={brief(value)} does not fit an output of dtype {dtype}")
    return value


def _fits(value: Any, dtype: DType) -> bool:
    """Return whether a dtype holds a scalar, which may be rounded."""
    if type(value) is int and dtype.kind in "fc":  # Why: of any size it is a float of the same kind
        try:
            value = float(value)
        except OverflowError:
            return False
    smallest = np.min_scalar_type(value)
    if not np.can_cast(smallest, dtype, "same_kind"):
        return False
    try:
        with np.errstate(all="ignore"):
            held = np.array(value, dtype)
    except (OverflowError, TypeError):  # Why: the rule says that raw bytes hold any number.
        return False
    # Why: such a cast wraps integers around, cuts strings off, and makes large floats infinite.
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return bool(limits.min <= value <= limits.max)
    if dtype.kind in "fc":
        return bool(np.isfinite(held) or not np.isfinite(value))
    return dtype.kind not in "SU" or np.can_cast(smallest, dtype, "safe")


def missing_value(dtype: DType) -> Any:
    """Return the value that stands for "not known" in a dtype: NaN, NaT or None.

    Raises
    ------
    ValueError
        If the dtype has no such value.

    Examples
    --------
    >>> bool(np.isnan(missing_value(np.dtype("f4"))))
    True
    >>> bool(np.isnat(missing_value(np.dtype("M8[s]"))))
    True
    """
    if dtype.kind == "O":
        return None
    if dtype.kind in "fcMm":
        return np.array("NaT" if dtype.kind in "Mm" else "nan", dtype)[()]
    raise ValueError(
        f"on_error='fill' needs fill_value=: dtype {dtype} has no value for 'not known'"
    )


class Scratch:
    """Small outputs of one run, which workers write into the ledger's spare memory."""

    def __init__(self) -> None:
        self._announcement: Announcement | None = None
        self._digests_of_lost: set[int] = set()
        self._agreed = True

    def worker_lost(self, digest: int) -> None:
        """Note the digest of the announcement by which a dead worker wrote; 0: it wrote nothing."""
        if digest:
            self._digests_of_lost.add(digest)

    def announce(self, announcement: Announcement) -> ResultError | None:
        """Take a worker's announcement; return a failure of its chunk if it contradicts another."""
        self._announcement = self._announcement or announcement
        reason = announcement.disagrees(self._announcement)
        self._agreed = self._agreed and reason is None
        return None if reason is None else ResultError(reason)

    def invalidate(self, ledger: Ledger) -> None:
        """Mark finished chunks as pending if workers may have written by different announcements.

        Call it only when no worker computes.
        """
        announced = self._announcement
        # Why: a worker that died before it could announce its outputs left its digest in its slot.
        lost = self._digests_of_lost
        if not announced or not self._agreed or (lost and lost - {announced.digest()}):
            ledger.status[ledger.status == DONE] = PENDING
        self._digests_of_lost.clear()

    def copy_out(self, ledger: Ledger, outputs: Outputs) -> None:
        """Allocate the outputs; copy the scratch, with values of earlier runs, into them."""
        if self._announcement is not None:
            small = ledger.carve(self._announcement.outputs) or ()
            for array, written in zip(outputs.allocate(self._announcement), small, strict=True):
                array[...] = written
                outputs.note_stale(array)
