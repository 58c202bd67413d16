"""Copy arrays into segments: into huge pages, or by writing to their files.

Guarantees
----------
Values are written in C order of the array given, whatever its strides.
Values are copied into huge pages that were made for them, or written to the file by system calls.
This saves the page faults that make ``view[:] = array`` slow, and a full file system is an error,
not SIGBUS.
A system call moves at most 64 MiB, so signals are handled.  The interpreter lock is released.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from shmpar.errors import SegmentFull
from shmpar.memory import allocate, huge
from shmpar.memory.segment import Array, Segment, create

_BUFFER_BYTES: Final = 1 << 20  # Why: a buffer for strided values that stays in the CPU's cache


def is_masked(value: Any) -> bool:
    """Return True for a masked array.

    Examples
    --------
    >>> import numpy as np
    >>> is_masked(np.ma.masked_equal([1, 2], 2)), is_masked(np.array([1, 2]))
    (True, False)
    """
    # Why: importing numpy.ma would slow the start of a worker, and without it there is no
    # masked array.
    module = sys.modules.get("numpy.ma.core")
    return isinstance(value, getattr(module, "MaskedArray", ()))


def share(array: Array, purpose: str = "copy of an input") -> tuple[Segment, Array]:
    """Copy an array into a nameless segment of its own.

    Returns
    -------
    tuple of (Segment, ndarray)
        The segment, and a writable array over it with the same values and memory order (Fortran
        stays Fortran, gaps are closed).

    Raises
    ------
    TypeError
        The array holds Python objects.
    SegmentFull
        There is no room.

    Notes
    -----
    Cost: one copy; as many bytes of shared memory as the array has.

    Examples
    --------
    >>> segment, copy = share(np.arange(6).reshape(2, 3).T)
    >>> copy.flags.f_contiguous, copy.tolist()
    (True, [[0, 3], [1, 4], [2, 5]])
    """
    if array.dtype.hasobject:
        raise TypeError(f"dtype {array.dtype} holds Python objects, which no process can share")
    axes = memory_order(array)
    dense = array.transpose(axes)
    segment = create(array.nbytes, lambda fd, _: write(fd, 0, dense), purpose=purpose)
    shared = segment.ndarray(0, dense.shape, None, array.dtype)
    return segment, shared.transpose(sorted(axes, key=axes.__getitem__))


def memory_order(array: Array) -> list[int]:
    """Return the axes from the slowest in memory to the fastest."""
    axes, steps = range(array.ndim), array.strides
    if array.flags.c_contiguous:  # Why: the strides of axes of length 1 mean nothing
        return list(axes)
    return sorted(axes, key=lambda axis: -abs(steps[axis]))


def write(fd: int, offset: int, array: Array) -> int:
    """Write values in C order at a byte offset of a file, which grows as needed.

    Returns
    -------
    int
        Bytes that lie in huge pages.

    Raises
    ------
    SegmentFull
        The file system, or memory, is full.
    """
    if array.nbytes == 0:
        if os.fstat(fd).st_size <= offset:  # Why: a mapping needs at least one byte
            os.pwrite(fd, b"\0", offset)
        return 0
    pages = huge.NewPages.of(fd, array.nbytes) if offset == 0 else None
    if array.flags.c_contiguous:
        array = array.reshape(-1).view(np.uint8)
    steps = allocate.checked_steps(fd, array.nbytes)
    done = 0 if pages is None else _fill_pages(pages, array, steps)
    if array.flags.c_contiguous:
        raw = memoryview(array)  # type: ignore[arg-type]
        for start, stop in allocate.checked_steps(fd, raw.nbytes, done):
            _write_all(fd, raw[start:stop], offset + start)
    elif done < array.nbytes:
        _write_strided(fd, offset, array, done)
    return 0 if pages is None else pages.made


def _fill_pages(pages: huge.NewPages, array: Array, steps: Iterator[tuple[int, int]]) -> int:
    """Copy values into huge pages as they are made; return how many leading bytes are copied."""
    checked = 0
    for block, start in _blocks(array, 0):
        stop = start + block.nbytes
        while checked < stop:
            _, checked = next(steps)
        if not pages.make(stop):
            return start
        # Why at once: a page that was just zeroed lies in the cache of the processor.
        pages.memory[start:stop].view(array.dtype).reshape(block.shape)[...] = block
    return array.nbytes


def _blocks(array: Array, start: int) -> Iterator[tuple[Array, int]]:
    """Yield blocks of about a huge page, in C order, each with the byte at which it begins."""
    if array.ndim == 0 or array.nbytes <= huge.PAGE:
        yield array, start
        return
    row = array[0].nbytes
    count = huge.PAGE // row
    for first in range(0, len(array), max(1, count)):
        if count:
            yield array[first : first + count], start + first * row
        else:
            yield from _blocks(array[first], start + first * row)


def _write_strided(fd: int, offset: int, array: Array, done: int = 0) -> None:
    """Gather values in a buffer, which is faster than writing through a mapping."""
    buffersize = max(1, _BUFFER_BYTES // array.dtype.itemsize)
    steps = allocate.checked_steps(fd, array.nbytes, done)
    checked = written = done
    flags: Any = ["external_loop", "buffered", "ranged"]
    pieces: Any = np.nditer(array, flags, order="C", buffersize=buffersize)
    pieces.iterrange = done // array.itemsize, array.size
    for piece in pieces:
        if written >= checked:
            _, checked = next(steps, (0, array.nbytes))
        values = np.ascontiguousarray(piece)
        _write_all(fd, memoryview(values.view(np.uint8)), offset + written)  # type: ignore[arg-type]
        written += values.nbytes


def _write_all(fd: int, raw: memoryview, offset: int) -> None:
    while raw.nbytes:  # Why: the kernel may stop early at a signal
        try:
            written = os.pwrite(fd, raw, offset)
        except OSError as error:
            if error.errno not in allocate.FULL:
                raise
            raise SegmentFull(f"{raw.nbytes:,} more bytes do not fit: {error.strerror}") from None
        raw, offset = raw[written:], offset + written
