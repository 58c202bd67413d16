"""The outputs of a run: allocated, or the user's; delivered when the run ends.

Imports errors, ledgerfile, plan and segment.

Guarantees
----------
- Nothing is allocated or written before the shapes and dtypes of all outputs are known to fit.
- An output of the user's in plain memory gets the finished windows at the end of the run, however
  it ended, and nothing else; one in a segment or a mapped file is written in place.

Small outputs: what the workers say of those that they put into the ledger's scratch.

Imports ledger, outputs and plan.

Guarantees
----------
- What lies in the scratch counts only if a worker has lived to say what it is.
- All workers must say the same; the first that says otherwise has failed on its first chunk.
"""

from __future__ import annotations

import io
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.errors import ShmparError
from shmpar.ipc.ledger import DONE, PENDING, Ledger
from shmpar.memory.allocate import atomic_file
from shmpar.memory.locate import locate
from shmpar.memory.segment import Slab, byte_bounds, new_output
from shmpar.plan import Announcement, Failure, Output, ResultError

if TYPE_CHECKING:
    from shmpar.runtime.checkpoint import LedgerFile

__all__ = ["HandedOver", "NpyFile", "Outputs", "Scratch", "filler", "missing"]

Array = np.ndarray[Any, Any]
DType = np.dtype[Any]


class NpyFile:
    """A ``.npy`` file that is to be made.

    Attributes
    ----------
    path : str
        Absolute.
    """

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def parse(cls, path: str | os.PathLike[str], where: str) -> NpyFile:
        """Check a path; raises ``ValueError`` if no such file could be made there."""
        found = os.path.abspath(os.fspath(path))
        if not found.endswith(".npy"):
            raise ValueError(f"{where}: a file for results ends in .npy")
        if os.path.isdir(found) or not os.path.isdir(os.path.dirname(found)):
            raise ValueError(f"{where}: its folder is not there, or it is one")
        return cls(found)

    def make(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Make the file, in the place of one that is there; an array over it.

        Who has mapped an older file of this name keeps it: that one is not cut short, but loses
        its name.
        """
        head = _npy_head(shape, dtype)
        size = len(head) + prod(shape) * dtype.itemsize
        with atomic_file(self.path, size, mode=0o666, replace=True) as fd:
            os.pwrite(fd, head, 0)
        made: Array = np.lib.format.open_memmap(self.path, "r+")
        return made

    def reopen(self) -> Array | None:
        """The array that an earlier run has made there, or None if there is no such file."""
        try:
            found: Array = np.lib.format.open_memmap(self.path, "r+")
        except (OSError, ValueError):
            return None
        return found


def _npy_head(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The bytes of a ``.npy`` file before its values."""
    said = {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
    head = io.BytesIO()
    try:
        np.lib.format.write_array_header_1_0(head, said)
    except ValueError:  # too many fields
        np.lib.format.write_array_header_2_0(head, said)
    return head.getvalue()


class Outputs:
    """The outputs of one run.

    Parameters
    ----------
    given : sequence of (ndarray or NpyFile)
        The user's ``out=``.
    collects : bool
        The results are objects.
    fill : callable, optional
        Gives the value for the windows of chunks that failed, from a dtype; raises ValueError if
        there is none.

    Attributes
    ----------
    arrays : list of ndarray or None
        What is written to; None until the first result has said what it must be.
    several : bool or None
        Whether the result is a tuple.
    slab : Slab or None
        Where small outputs may lie.
    known : Announcement or None
        What they are going to be, if that is known before the first result.
    ledger : LedgerFile or None
        Where it is recorded what is done; all results are the user's files then.
    """

    def __init__(
        self,
        given: Sequence[Array | NpyFile] | None,
        *,
        collects: bool = False,
        fill: Callable[[DType], Any] | None = None,
    ) -> None:
        self.given: Sequence[Array | NpyFile | None] | None = given
        self.arrays: list[Array] | None = None
        self.several: bool | None = None
        self.slab: Slab | None = None
        self.known: Announcement | None = None
        self.ledger: LedgerFile | None = None
        self._collects = collects
        self._fill = fill

    def allocate(self, announcement: Announcement) -> list[Array]:
        """Make what is not given.

        Raises
        ------
        ResultError
            If the user's array has another shape than the results make.
        ValueError
            If the results are to outlive this process, and have no file.
        SegmentFull
            If there is no room.
        """
        if self.ledger is not None and self.given is None and announcement.outputs:
            raise ValueError(
                "ledger= needs results that outlive this process: pass out='result.npy' or an "
                "np.memmap, or a function that returns None"
            )
        self.check_fill([needed.dtype for needed in announcement.outputs])
        if self.given is None:
            arrays = [self._array(None, needed) for needed in announcement.outputs]
        else:
            arrays = self._into(self.given, announcement.outputs)
        self.arrays, self.several = arrays, announcement.several
        return arrays

    def _into(
        self, given: Sequence[Array | NpyFile | None], outputs: Sequence[Output]
    ) -> list[Array]:
        """The user's outputs, whose files are made here; what is returned is written to."""
        if len(given) != len(outputs):
            raise ResultError(
                f"out= has {len(given)} arrays, but the function returns {len(outputs)} outputs"
            )
        for mine, needed in zip(given, outputs, strict=True):
            if isinstance(mine, np.ndarray) and mine.shape != needed.shape:
                raise ResultError(
                    f"out= has shape {mine.shape}, but the results make {needed.shape}"
                )
        made = [
            mine.make(*needed) if isinstance(mine, NpyFile) else mine
            for mine, needed in zip(given, outputs, strict=True)
        ]
        self.given = made
        return [self._array(mine, needed) for mine, needed in zip(made, outputs, strict=True)]

    def needs(self) -> list[int]:
        """Bytes of each output that is going to be made in shared memory, as far as is known."""
        if self.known is None or self.arrays is not None or self._collects:
            return []
        given = self.given or (None,) * len(self.known.outputs)
        return [
            prod(needed.shape) * needed.dtype.itemsize
            for mine, needed in zip(given, self.known.outputs, strict=True)
            if mine is None or (isinstance(mine, np.ndarray) and locate(mine) is None)
        ]

    def _array(self, mine: Array | None, needed: Output) -> Array:
        if self._collects:
            return np.empty(needed.shape, object)
        place = None if mine is None else locate(mine)
        if mine is not None and place is not None:
            # A hole of a mapped file on a full disk would be SIGBUS for whoever writes there.
            low, high = byte_bounds(mine.shape, mine.strides, mine.itemsize)
            place.segment.reserve(place.offset + low, place.offset + high)
            return mine.view(np.ndarray)
        return new_output(*needed, self.slab)

    def deliver(self, windows: Iterable[tuple[slice | int, ...]] | None) -> None:
        """Copy finished windows into what the user gave in plain memory.

        Parameters
        ----------
        windows : iterable of windows, or None
            None: all of it is finished.
        """
        if self.given is None:
            return
        pairs = [
            (mine, array)
            for mine, array in zip(self.given, self.arrays or (), strict=False)
            if isinstance(mine, np.ndarray) and not np.may_share_memory(mine, array)
        ]
        if not pairs:
            return
        for window in [...] if windows is None else windows:
            for mine, array in pairs:
                mine[window] = array[window]

    def check_fill(self, dtypes: Iterable[DType | None]) -> None:
        """Raise ValueError if the windows of failed chunks could not be filled."""
        for dtype in dtypes:
            if self._fill is not None and dtype is not None:
                self._fill(dtype)

    def fill(self, windows: Sequence[tuple[slice | int, ...]]) -> None:
        """Fill the windows of chunks that failed."""
        if self._fill is None:
            return
        for array in self.arrays or ():
            value = self._fill(array.dtype)
            for window in windows:
                array[window] = value

    def result(self) -> Any:
        """What the verb returns."""
        if self.arrays is None or not self.arrays:
            return None
        given = self.given or (None,) * len(self.arrays)
        results = tuple(
            _scalar_or_array(array) if mine is None else mine
            for mine, array in zip(given, self.arrays, strict=True)
        )
        return results if self.several else results[0]


class HandedOver:
    """A result that lives as long as its caller wants it to."""

    def __init__(self, result: Any) -> None:
        self._is_tuple = isinstance(result, tuple)
        self._none = result is None
        parts = result if self._is_tuple else (result,)
        self._parts = [
            weakref.ref(part) if isinstance(part, np.ndarray) else lambda part=part: part
            for part in parts
        ]

    def again(self) -> Any:
        """The result, if it is still there.

        Raises
        ------
        ShmparError
            If its caller has dropped it.
        """
        parts = tuple(part() for part in self._parts)
        if any(now is None for now in parts) and not self._none:
            raise ShmparError(
                "the result of this run was returned to its caller, who has dropped it; the run "
                "of a call with wait=False keeps it"
            )
        return parts if self._is_tuple else parts[0]


def _scalar_or_array(array: Array) -> Any:
    return array[()] if array.ndim == 0 else array


def filler(value: Any, dtype: DType) -> Any:
    """The value for windows of chunks that failed: `value`, or for None what says "not known".

    Raises
    ------
    ValueError
        If the dtype has none, or cannot hold the value.

    Examples
    --------
    >>> filler(-1, np.dtype("f4"))
    -1
    """
    if value is None or dtype.hasobject:
        return missing(dtype) if value is None else value
    least = np.min_scalar_type(value)
    if not np.can_cast(least, dtype, "same_kind") or not _holds(dtype, value, least):
        raise ValueError(f"fill_value={value!r} does not fit an output of dtype {dtype}")
    return value


def _holds(dtype: DType, value: Any, least: DType) -> bool:
    """Whether a value of the right kind, whose smallest dtype is `least`, is not cut off."""
    if dtype.kind in "iu" and np.ndim(value) == 0:
        limits = np.iinfo(dtype)
        return bool(limits.min <= value <= limits.max)
    return dtype.kind not in "SU" or np.can_cast(least, dtype, "safe")


def missing(dtype: np.dtype[Any]) -> Any:
    """The value that says "not known" in a dtype.

    Raises
    ------
    ValueError
        If it has none.

    Examples
    --------
    >>> missing(np.dtype("f4"))
    nan
    >>> bool(np.isnat(missing(np.dtype("M8[s]"))))
    True
    """
    if dtype.kind in "fc":
        return float("nan")
    if dtype.kind == "M":
        return np.datetime64("NaT")
    if dtype.kind == "m":
        return np.timedelta64("NaT")
    if dtype.kind == "O":
        return None
    raise ValueError(
        f"on_error='fill' needs fill_value=: dtype {dtype} has no value that says 'not known'"
    )


class Scratch:
    """The small outputs of one run."""

    def __init__(self) -> None:
        self._said: Announcement | None = None
        self._last_words: set[int] = set()
        self._agreed = True

    def lost(self, digest: int) -> None:
        """A worker has died that took the outputs for what has this digest (0: for nothing)."""
        if digest:
            self._last_words.add(digest)

    def hear(self, announcement: Announcement) -> Failure | None:
        """Take what a worker says; if it is not what another has said, its chunk has failed."""
        if self._said is None:
            self._said = announcement
            return None
        reason = announcement.disagrees(self._said)
        self._agreed = self._agreed and reason is None
        return None if reason is None else Failure(announcement.chunk, ResultError(reason), None)

    def void(self, ledger: Ledger) -> None:
        """Nobody works: what is done counts only if all who wrote there meant the same."""
        meant = set() if self._said is None else {self._said.digest()}
        if self._said is None or not self._agreed or not self._last_words <= meant:
            ledger.status[ledger.status == DONE] = PENDING
        self._last_words.clear()

    def take(self, ledger: Ledger, outputs: Outputs) -> None:
        """Copy it to where it stays."""
        if self._said is not None:
            small = ledger.carve(self._said.outputs) or ()
            for array, written in zip(outputs.allocate(self._said), small, strict=True):
                array[...] = written
