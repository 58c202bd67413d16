"""Outputs of a run: allocate them, or use the arrays and files that the user passed as ``out=``.

Guarantees
----------
- Nothing is allocated or written before the shapes and dtypes of all outputs are known to fit.
- A plain array of the user gets the finished windows when the run ends, after an error too, and
  nothing else. An array in a segment or in a mapped file is written in place.
- Outputs in the ledger's scratch count only if all workers that wrote there agree on their shapes
  and dtypes, and at least one of them has announced these.
"""

from __future__ import annotations

import contextlib
import io
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from math import prod
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.errors import ShmparError
from shmpar.ipc.ledger import DONE, PENDING, Ledger
from shmpar.memory.allocate import atomic_file
from shmpar.memory.locate import locate
from shmpar.memory.segment import Slab, byte_bounds, new_output
from shmpar.plan import Announcement, Output, ResultError

if TYPE_CHECKING:
    from shmpar.runtime.checkpoint import LedgerFile

Array = np.ndarray[Any, Any]
DType = np.dtype[Any]
Window = tuple[slice | int, ...]


LEDGER_NEEDS_FILES = (
    "ledger= needs results that outlive this process: pass out='result.npy' or an np.memmap "
    "(mode 'r+' or 'w+')"
)


def file_path(path: str | os.PathLike[str], where: str) -> str:
    """Return the absolute path of a file; raise ``ValueError`` if no file can be created there."""
    found = os.path.abspath(os.fspath(path))
    if os.path.isdir(found) or not os.path.isdir(os.path.dirname(found)):
        raise ValueError(f"{where}: its folder does not exist, or the path is a folder")
    return found


class NpyFile:
    """A ``.npy`` file that the run creates.

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

    Raises
    ------
    ValueError
        If no such file can be created.
    """

    def __init__(self, path: str | os.PathLike[str], where: str) -> None:
        self.path = file_path(path, where)
        if not self.path.endswith(".npy"):
            raise ValueError(f"{where}: the name of a file for results must end in .npy")

    def create(self, shape: tuple[int, ...], dtype: DType) -> Array:
        """Create the file and return an array that maps it.

        A file of the same name is replaced. A process that has mapped the old file keeps it: the
        old file loses its name, but is not truncated.
        """
        header = _npy_header(shape, dtype)
        nbytes = len(header) + prod(shape) * dtype.itemsize
        with atomic_file(self.path, nbytes, mode=0o666, replace=True) as fd:
            os.pwrite(fd, header, 0)
        array: Array = np.lib.format.open_memmap(self.path, "r+")
        return array

    def reopen(self) -> Array | None:
        """Return the array that an earlier run wrote; None if the file is absent or damaged."""
        with contextlib.suppress(OSError, ValueError):
            array: Array = np.lib.format.open_memmap(self.path, "r+")
            return array
        return None


def _npy_header(shape: tuple[int, ...], dtype: DType) -> bytes:
    fields = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
    header = io.BytesIO()
    try:
        np.lib.format.write_array_header_1_0(header, fields)
    except ValueError:  # Why: version 1.0 has room for 64 KiB; a dtype of many fields needs more.
        np.lib.format.write_array_header_2_0(header, fields)
    return header.getvalue()


class Outputs:
    """Outputs of one run.

    Parameters
    ----------
    given : sequence of (ndarray or NpyFile), optional
        The user's ``out=``.
    returns_objects : bool
        The results are Python objects (``dtype=object``).
    fill : callable, optional
        Return the value for the windows of failed chunks, from a dtype; raise ``ValueError`` if
        there is none.

    Attributes
    ----------
    arrays : list of ndarray or None
        The arrays that are written to; None until shapes and dtypes are known.
    is_tuple : bool or None
        The verb returns a tuple.
    slab : Slab or None
        A segment in which small outputs may lie.
    expected : Announcement or None
        Shapes and dtypes, if they are known before the first result.
    ledger_file : LedgerFile or None
        The record of finished chunks on disk; then all outputs are files.
    checksums : ndarray of uint32 or None
        The checksum of each finished chunk, with a ledger file or ``check=True``.
    """

    def __init__(
        self,
        given: Sequence[Array | NpyFile] | None,
        *,
        returns_objects: bool = False,
        fill: Callable[[DType], Any] | None = None,
    ) -> None:
        self.given: Sequence[Array | NpyFile] | None = given
        self.arrays: list[Array] | None = None
        self.is_tuple: bool | None = None
        self.slab: Slab | None = None
        self.expected: Announcement | None = None
        self.ledger_file: LedgerFile | None = None
        self.checksums: Array | None = None
        self._returns_objects = returns_objects
        self._fill = fill

    def allocate(self, announcement: Announcement) -> list[Array]:
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
        outputs = announcement.outputs
        if self.ledger_file is not None and self.given is None and outputs:
            raise ValueError(f"{LEDGER_NEEDS_FILES}, or a function that returns None")
        self.check_fill([output.dtype for output in outputs])
        if self.given is not None:
            _check_fit(self.given, outputs)
            self.given = [
                mine.create(*output) if isinstance(mine, NpyFile) else mine
                for mine, output in zip(self.given, outputs, strict=True)
            ]
        pairs = zip(self._given(len(outputs)), outputs, strict=True)
        arrays = [self._writable(array, output) for array, output in pairs]
        # Invariant: a thread that sees `arrays` also sees `is_tuple`.
        self.is_tuple, self.arrays = announcement.is_tuple, arrays
        return arrays

    def _given(self, count: int) -> Sequence[Any]:
        return (None,) * count if self.given is None else self.given

    def _writable(self, array: Array | None, output: Output) -> Array:
        if self._returns_objects:
            return np.empty(output.shape, object)
        location = None if array is None else locate(array)
        if array is None or location is None:
            return new_output(*output, self.slab)
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
        for array in self.arrays or ():
            value = self._fill(array.dtype)
            for window in windows:
                array[window] = value

    def result(self) -> Any:
        """Return the result of the verb: an array, a scalar, a tuple of these, or None."""
        if not self.arrays:
            return None
        results = tuple(
            mine if mine is not None else array if array.ndim else array[()]
            for mine, array in zip(self._given(len(self.arrays)), self.arrays, strict=True)
        )
        return results if self.is_tuple else results[0]


def _check_fit(given: Sequence[Array | NpyFile], outputs: Sequence[Output]) -> None:
    """Raise ``ResultError`` if an array of the user does not have the shape of the results."""
    if len(given) != len(outputs):
        raise ResultError(
            f"out= has {len(given)} arrays, but the function returns {len(outputs)} outputs"
        )
    for mine, (shape, _) in zip(given, outputs, strict=True):
        if isinstance(mine, np.ndarray) and mine.shape != shape:
            raise ResultError(f"out= has shape {mine.shape}, but the results make {shape}")


class WeakResult:
    """A result whose arrays live only as long as the caller holds them."""

    def __init__(self, result: Any) -> None:
        self._is_tuple = isinstance(result, tuple)
        parts = result if self._is_tuple else (result,)
        # Why: a NumPy scalar cannot be referenced weakly, and holds no shared memory.
        self._parts = [weakref.ref(p) if isinstance(p, np.ndarray) else p for p in parts]

    def get(self) -> Any:
        """Return the result; raise ``ShmparError`` if the caller has dropped an array of it."""
        parts = [p() if isinstance(p, weakref.ref) else p for p in self._parts]
        if any(part is None and p is not None for part, p in zip(parts, self._parts, strict=True)):
            raise ShmparError(
                "the result of this run was returned to its caller, who has dropped it; the run of "
                "a call with wait=False keeps it"
            )
        return tuple(parts) if self._is_tuple else parts[0]


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
    # Why: an int of any size is a float of the same kind.
    number = float(value) if type(value) is int and dtype.kind in "fc" else value
    smallest = np.min_scalar_type(number)
    fits = np.can_cast(smallest, dtype, "same_kind")
    # Why: a cast of the same kind wraps integers around and cuts strings off.
    if fits and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        fits = bool(limits.min <= value <= limits.max)
    elif fits and dtype.kind in "SU":
        fits = np.can_cast(smallest, dtype, "safe")
    if not fits:
        raise ValueError(f"fill_value={brief(value)} does not fit an output of dtype {dtype}")
    return value


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
        return dtype.type("NaT" if dtype.kind in "Mm" else "nan")
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
        if not announced or not self._agreed or self._digests_of_lost - {announced.digest()}:
            ledger.status[ledger.status == DONE] = PENDING
        self._digests_of_lost.clear()

    def copy_out(self, ledger: Ledger, outputs: Outputs) -> None:
        """Allocate the outputs and copy the scratch into them."""
        if self._announcement is not None:
            small = ledger.carve(self._announcement.outputs) or ()
            for array, written in zip(outputs.allocate(self._announcement), small, strict=True):
                array[...] = written
