"""Checksums of what was written, so that a later look can tell whether it is still there.

Imports numpy.

Windows filled with a pattern, to see what was written and what was not.

Imports numpy.

Around the computing of a chunk: what it has put into the outputs is with_checksums, and checked.

Imports checksum, pattern and plan, and the neighbours in this package.

``Pool(check=True)``: was every window written once and whole, and nothing else.

Imports checksum, outputs, pattern, plan and segment.

Guarantees
----------
- Outputs are filled with a pattern before the first chunk; the windows of a chunk that was begun
  and is computed again, before it is.
- At the end each window that is done is as its worker has left it, each that was not begun has its
  pattern, and the inputs are as they were.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.errors import ChunkError
from shmpar.ipc.ledger import DONE, PENDING, Ledger
from shmpar.memory.segment import new_output
from shmpar.plan import Plan, ResultError, describe_region

if TYPE_CHECKING:
    from shmpar.worker.compute import Assignment

__all__ = ["FIRST", "SECOND", "Verification", "checksum", "crc", "fill", "left", "with_checksums"]

_STEP = 64 << 20  # bytes at a time, so that signals get through


def checksum(windows: Iterable[np.ndarray[Any, Any]]) -> int:
    """The CRC-32 of the elements of some windows, in C order, one after the other; never 0.

    Notes
    -----
    Cost: a pass at 3 GB/s; a copy of each window that is not contiguous.

    Examples
    --------
    >>> checksum([np.arange(3, dtype="<u2")]) == checksum([np.array([0, 1], "<u2"), np.uint16([2])])
    True
    """
    found = 0
    for window in windows:
        found = crc(window, found)
    return found or 1


def crc(array: np.ndarray[Any, Any], start: int = 0) -> int:
    """The CRC-32 of the bytes of an array's elements in C order, continued from `start`."""
    if array.dtype.kind == "V" and array.itemsize:  # else padding between fields is not copied
        array = array.view(f"V{array.itemsize}")
    if array.nbytes <= _STEP or not array.ndim:
        return zlib.crc32(array.tobytes(), start)
    if array.flags.c_contiguous:
        whole = array.reshape(-1).view(np.uint8)
        for begin in range(0, len(whole), _STEP):
            start = zlib.crc32(whole[begin : begin + _STEP].data, start)
        return start
    for part in array:
        start = crc(part, start)
    return start


Array = np.ndarray[Any, Any]

FIRST, SECOND = 0xA5, 0x5A  # bytes; what looks like one of them by chance does not like the other


def fill(window: Array, byte: int) -> None:
    """Make every byte of a window's elements this one.

    Examples
    --------
    >>> window = np.zeros(2, "u2")
    >>> fill(window, FIRST)
    >>> [hex(value) for value in window.tolist()]
    ['0xa5a5', '0xa5a5']
    """
    if window.itemsize:
        window.view(f"V{window.itemsize}")[...] = np.void(bytes([byte]) * window.itemsize)


def left(window: Array, byte: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which elements of a window, in C order, are still filled with this byte.

    Notes
    -----
    Cost: a copy of the window.
    """
    if not window.itemsize:
        return np.ones(window.size, bool)
    raw = window.view(f"V{window.itemsize}").tobytes()  # padding between fields too
    found = np.frombuffer(raw, np.uint8).reshape(-1, window.itemsize)
    same: np.ndarray[Any, np.dtype[np.bool_]] = (found == byte).all(axis=1)
    return same


Compute = Callable[[int], None]


def with_checksums(assignment: Assignment, outputs: Sequence[Array], compute: Compute) -> Compute:
    """Note the checksum of what a chunk has put into the outputs, once it is there."""
    plan, sums = assignment.plan, assignment.sums
    if sums is None:
        return compute
    if plan.check:
        compute = _checked(assignment, outputs, compute)

    def record(chunk: int) -> None:
        compute(chunk)
        sums[chunk] = checksum(plan.windows(chunk, outputs))

    return record


def _checked(assignment: Assignment, outputs: Sequence[Array], compute: Compute) -> Compute:
    """Refuse a window that somebody has written before, and one that is not written whole."""
    plan, sums = assignment.plan, assignment.sums

    def check(chunk: int) -> None:
        windows = plan.windows(chunk, outputs)
        if sums is not None and sums[chunk]:
            raise ResultError("check=True: the chunk was computed before")
        if not all(left(window, FIRST).all() for window in windows):
            raise ResultError(
                "check=True: its window of the output was written before it was computed; the "
                "function, or another process, writes outside of its window"
            )
        compute(chunk)
        if plan.pass_out:
            _check_whole(windows, lambda: compute(chunk))

    return check


def _check_whole(windows: Sequence[Array], again: Callable[[], None]) -> None:
    """Raise `ResultError` if the function has not written all of its window.

    A value that looks like the pattern by chance is told from one that was never written by
    another pattern, and another call.
    """
    missing = [left(window, FIRST) for window in windows]
    if not any(one.any() for one in missing):
        return
    for window in windows:
        fill(window, SECOND)
    again()
    count = sum(
        int((one & left(window, SECOND)).sum())
        for one, window in zip(missing, windows, strict=True)
    )
    if count:
        raise ResultError(
            f"check=True: the function left {count:,} elements of its window unwritten"
        )


class Verification:
    """What is checked of one run.

    Parameters
    ----------
    plan : Plan
        Of the run.
    inputs : sequence of ndarray
        Those that no output lies in.
    todo : tuple of int or None
        The chunks that are to be computed; None: all.
    sums : ndarray of uint32 or None
        Where checksums are kept already.

    Attributes
    ----------
    sums : ndarray of uint32
        Where workers write the checksum of each chunk.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: Sequence[Array],
        todo: tuple[int, ...] | None,
        sums: Array | None,
    ) -> None:
        self._plan, self._inputs, self._todo = plan, inputs, todo
        self._before = [crc(one) for one in inputs]
        self._outputs: Sequence[Array] = ()
        self.sums = new_output((plan.chunks,), np.dtype("<u4")) if sums is None else sums

    def fill_outputs(self, outputs: Sequence[Array]) -> None:
        """Fill the outputs, as far as they are to be computed."""
        self._outputs = outputs
        if self._todo is not None:
            self.refill(self._todo)
            return
        for output in outputs:
            fill(output, FIRST)

    def refill(self, chunks: Iterable[int]) -> None:
        """Fill the windows of chunks that were begun, perhaps, and are to be computed."""
        for chunk in chunks:
            self.sums[chunk] = 0
            for window in self._plan.windows(chunk, self._outputs):
                fill(window, FIRST)

    def find_error(self, ledger: Ledger, run: Any) -> ChunkError | None:
        """What is wrong, now that nobody writes any more; None if nothing is."""
        wrong = [
            chunk for chunk, status in enumerate(ledger.status) if self._differs(chunk, status)
        ]
        if wrong:
            first, plan = wrong[0], self._plan
            more = f", and those of {len(wrong) - 1:,} more chunks" if len(wrong) > 1 else ""
            return ChunkError(
                f"{plan.verb}, chunk {first} at {describe_region(plan.region(first))}: check=True: "
                f"its window of the output was changed by somebody else than its worker{more}; the "
                "function, or another process, writes outside of its window",
                chunk=first,
                region=plan.region(first),
                run=run,
            )
        for number, (one, before) in enumerate(zip(self._inputs, self._before, strict=True)):
            if crc(one) != before:
                return ChunkError(
                    f"{self._plan.verb}: check=True: input {number} (shape {one.shape}) was "
                    "changed while the run was in progress",
                    run=run,
                )
        return None

    def _differs(self, chunk: int, status: int) -> bool:
        windows = self._plan.windows(chunk, self._outputs)
        if status == DONE:
            return bool(checksum(windows) != self.sums[chunk])
        if status == PENDING:
            return not all(left(window, FIRST).all() for window in windows)
        return False
