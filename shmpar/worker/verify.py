"""Checksums of outputs, and the checks of ``Pool(check=True)``.

A checksum tells later whether an output still holds the values that a worker has written. With
``check=True`` each window of an output must be written once and whole, and nothing else may be
written.

Guarantees
----------
- Outputs are filled with a pattern before the first chunk. The windows of a chunk that may have
  been begun are filled again before it is computed again.
- After the run each finished window is as its worker has left it, and each window that was not
  begun still has the pattern. The inputs are unchanged.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar.errors import ChunkError, format_count
from shmpar.ipc.ledger import DONE, PENDING, Ledger
from shmpar.memory.segment import new_output
from shmpar.plan import Plan, ResultError, describe_region
from shmpar.stores.store import Store

if TYPE_CHECKING:
    from shmpar.worker.compute import Assignment

Array = np.ndarray[Any, Any]
Compute = Callable[[int], None]

# Why: a value that looks like the first pattern by chance does not look like the second one.
PATTERN, SECOND_PATTERN = 0xA5, 0x5A
_OUTSIDE = "the function, or another process, writes outside of its window"
_STEP = 64 << 20  # bytes; between two steps Python handles signals


def checksum(windows: Iterable[Array]) -> int:
    """Return the CRC-32 of the elements of windows, in C order, one after the other; never 0.

    Notes
    -----
    Cost: a pass over the bytes; a copy of each window that is not contiguous.

    Examples
    --------
    >>> checksum([np.arange(3, dtype="<u2")]) == checksum([np.array([0, 1], "<u2"), np.uint16([2])])
    True
    """
    return functools.reduce(lambda start, window: crc(window, start), windows, 0) or 1


def crc(array: Array, start: int = 0) -> int:
    """Return the CRC-32 of the bytes of an array in C order, continued from `start`."""
    if array.dtype.kind == "V" and array.itemsize:
        array = array.view(f"V{array.itemsize}")  # Why: else padding between fields is not copied
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


class StoredChecksum:
    """Function of a chunk that returns the checksum of its windows in the outputs; 0 without one.

    Attributes
    ----------
    plan : Plan
        The plan of the call.
    outputs : list of (ndarray or Store)
        The outputs.
    """

    def __init__(self, plan: Plan, outputs: list[Any]) -> None:
        self.plan, self.outputs = plan, outputs

    def __call__(self, chunk: int) -> int:
        """Return the checksum of a chunk; 0 if it cannot be read."""
        try:
            return _stored_checksum(self.plan, chunk, self.outputs)
        except OSError:  # Why: a unit that was cut off is not as it was written either.
            return 0

    def of(self, chunks: Sequence[int]) -> list[int]:
        """Return the checksums of chunks."""
        return list(map(self, chunks))


def _stored_checksum(plan: Plan, chunk: int, outputs: Sequence[Any]) -> int:
    """Return the checksum of the windows of a chunk, as a worker has recorded it."""
    pairs = zip(plan.windows(chunk, outputs), outputs, strict=True)
    return checksum([_native(one) if isinstance(out, Store) else one for one, out in pairs])


def _native(values: Array) -> Array:
    """Return values of a store in the order of bytes of this machine.

    Why: the third format of zarr forgets another order, so a later call reads them in this one.
    """
    dtype = values.dtype
    return values if dtype.isnative else values.astype(dtype.newbyteorder("="))


def fill_pattern(window: Array, byte: int) -> None:
    """Set each byte of a window's elements.

    Examples
    --------
    >>> window = np.zeros(2, "u2")
    >>> fill_pattern(window, PATTERN)
    >>> [hex(value) for value in window.tolist()]
    ['0xa5a5', '0xa5a5']
    """
    if window.itemsize:
        window.view(f"V{window.itemsize}")[...] = np.void(bytes([byte]) * window.itemsize)


def still_filled(window: Array, byte: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return for each element of a window, in C order, whether all its bytes are this byte.

    Notes
    -----
    Cost: a copy of the window.
    """
    if not window.itemsize:
        return np.ones(window.size, bool)
    raw = window.view(f"V{window.itemsize}").tobytes()  # with the padding between fields
    found = np.frombuffer(raw, np.uint8).reshape(-1, window.itemsize)
    same: np.ndarray[Any, np.dtype[np.bool_]] = (found == byte).all(axis=1)
    return same


def with_checksums(assignment: Assignment, outputs: Sequence[Any], compute: Compute) -> Compute:
    """Return a function that computes a chunk, and then writes the checksum of its output."""
    plan, sums, written = assignment.plan, assignment.sums, assignment.written
    if sums is None:
        return compute
    memory = {k: one for k, one in enumerate(outputs) if isinstance(one, np.ndarray)}

    def record(chunk: int) -> None:
        windows = dict(zip(memory, plan.windows(chunk, [*memory.values()]), strict=True))
        if plan.check:
            places = [*windows.values()]
            _compute_checked(plan, places, lambda: compute(chunk), computed=bool(sums[chunk]))
        else:
            compute(chunk)
        windows |= {number: _native(values) for number, values in written.items()}
        sums[chunk] = checksum([windows[k] for k in range(len(outputs))])
        written.clear()

    return record


def _compute_checked(
    plan: Plan, windows: Sequence[Array], compute: Callable[[], None], *, computed: bool
) -> None:
    """Compute a chunk.

    Raises
    ------
    ResultError
        If a window was written before, or is not written whole now.
    """
    if computed:
        raise ResultError("check=True: the chunk was computed before")
    if not all(still_filled(window, PATTERN).all() for window in windows):
        early = "its window of the output was written before it was computed"
        raise ResultError(f"check=True: {early}; {_OUTSIDE}")
    compute()
    if not plan.pass_out:
        return
    missing = [still_filled(window, PATTERN) for window in windows]
    if not any(one.any() for one in missing):
        return
    # Why: an element with the pattern is unwritten, or its value looks like the pattern. After
    # another call over the second pattern it has that pattern only if it is unwritten.
    for window in windows:
        fill_pattern(window, SECOND_PATTERN)
    compute()
    pairs = zip(missing, windows, strict=True)
    count = sum(int((one & still_filled(w, SECOND_PATTERN)).sum()) for one, w in pairs)
    if count:
        left = f"the function left {format_count(count, 'element')} of its window unwritten"
        raise ResultError(f"check=True: {left}")


class Verification:
    """The checks of one run with ``check=True``, in the parent.

    Parameters
    ----------
    plan : Plan
        Of the run.
    inputs : sequence of ndarray
        The inputs that share no memory with an output.
    todo : tuple of int or None
        The chunks to compute; None for all.
    sums : ndarray of uint32 or None
        Existing checksums of the chunks.

    Attributes
    ----------
    sums : ndarray of uint32
        Workers write the checksum of each chunk here.
    """

    def __init__(
        self, plan: Plan, inputs: Sequence[Any], todo: tuple[int, ...] | None, sums: Array | None
    ) -> None:
        self._plan, self._todo = plan, todo
        # Why: a store is not read as a whole, and no function can write to its blocks.
        self._inputs = [one for one in inputs if isinstance(one, np.ndarray)]
        self._before = [crc(one) for one in self._inputs]
        self._outputs: Sequence[Any] = ()
        self._memory: Sequence[Array] = ()  # those in memory, which have a pattern
        self.sums = new_output((plan.chunks,), np.dtype("<u4")) if sums is None else sums

    def fill_outputs(self, outputs: Sequence[Any]) -> None:
        """Fill the windows of the chunks to compute with the pattern."""
        self._outputs = outputs
        self._memory = [one for one in outputs if isinstance(one, np.ndarray)]
        if self._todo is not None:
            self.refill(self._todo)
            return
        for output in self._memory:
            fill_pattern(output, PATTERN)

    def refill(self, chunks: Iterable[int]) -> None:
        """Fill the windows of chunks that may have been begun and will be computed again."""
        for chunk in chunks:
            self.sums[chunk] = 0
            for window in self._plan.windows(chunk, self._memory):
                fill_pattern(window, PATTERN)

    def find_error(self, ledger: Ledger, run: Any) -> ChunkError | None:
        """Return the error of a run, after the last write of its workers; None if all is right."""
        plan, statuses = self._plan, enumerate(ledger.status)
        wrong = [chunk for chunk, status in statuses if self._differs(chunk, status)]
        if wrong:
            first, region = wrong[0], plan.region(wrong[0])
            rest = format_count(len(wrong) - 1, "more chunk")
            more = f", and those of {rest}" if len(wrong) > 1 else ""
            chunk = f"chunk {first} at {describe_region(region)}"
            changed = "its window of the output was changed by another writer than its worker"
            message = f"{plan.verb}, {chunk}: check=True: {changed}{more}; {_OUTSIDE}"
            return ChunkError(message, chunk=first, region=region, run=run)
        for number, (one, before) in enumerate(zip(self._inputs, self._before, strict=True)):
            if crc(one) != before:
                changed = f"input {number} (shape {one.shape}) was changed"
                message = f"{plan.verb}: check=True: {changed} while the run was in progress"
                return ChunkError(message, run=run)
        return None

    def _differs(self, chunk: int, status: int) -> bool:
        if status == DONE:
            found = _stored_checksum(self._plan, chunk, self._outputs)
            return bool(found != self.sums[chunk])
        if status == PENDING:
            windows = self._plan.windows(chunk, self._memory)
            return not all(still_filled(window, PATTERN).all() for window in windows)
        return False
