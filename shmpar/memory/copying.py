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

from shmpar.memory import allocate, huge
from shmpar.memory.segment import Array, Dtype, Segment, create

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


def write(fd: int, offset: int, array: Array, dtype: Dtype | None = None) -> int:
    """Write values in C order at a byte offset of a file, which grows as needed.

    Parameters
    ----------
    dtype : dtype, optional
        The values are cast to it; default: that of the array.

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
    as_they_are = dtype is None or dtype == array.dtype
    if as_they_are and array.flags.c_contiguous:
        array, dtype = array.reshape(-1).view(np.uint8), np.dtype(np.uint8)
    dtype = dtype or array.dtype
    nbytes, done = array.size * dtype.itemsize, 0
    pages = huge.NewPages.of(fd, nbytes) if offset == 0 else None
    if pages is not None:
        done = _fill_pages(fd, pages, array, dtype)
    if dtype == array.dtype and array.flags.c_contiguous:
        raw = memoryview(array)  # type: ignore[arg-type]
        for start, stop in allocate.checked_steps(fd, nbytes, done):
            allocate.write_all(fd, raw[start:stop], offset + start)
    elif done < nbytes:
        _write_strided(fd, offset, array, dtype, done)
    return 0 if pages is None else pages.made


def _fill_pages(fd: int, pages: huge.NewPages, array: Array, dtype: Dtype) -> int:
    """Copy values into huge pages as they are made; return how many leading bytes are copied."""
    start = checked = 0
    nbytes = array.size * dtype.itemsize
    steps = allocate.checked_steps(fd, nbytes)
    for block in _blocks(array, dtype.itemsize):
        stop = start + block.size * dtype.itemsize
        while checked < stop:
            _, checked = next(steps)
        if not pages.make(stop):
            return start
        # Why at once: a page that was just zeroed lies in the cache of the processor.
        pages.memory[start:stop].view(dtype).reshape(block.shape)[...] = block
        start = stop
    return nbytes


def _blocks(array: Array, itemsize: int) -> Iterator[Array]:
    """Yield blocks in C order that fill about a huge page with items of this size."""
    if array.ndim == 0 or array.size * itemsize <= huge.PAGE:
        yield array
        return
    count = huge.PAGE // (array[0].size * itemsize)
    for first in range(0, len(array), max(1, count)):
        if count:
            yield array[first : first + count]
        else:
            yield from _blocks(array[first], itemsize)


def _write_strided(fd: int, offset: int, array: Array, dtype: Dtype, done: int) -> None:
    """Gather values in a buffer, which is faster than writing through a mapping."""
    buffersize = max(1, _BUFFER_BYTES // dtype.itemsize)
    steps = allocate.checked_steps(fd, array.size * dtype.itemsize, done)
    checked = written = done
    flags: Any = ["external_loop", "buffered", "ranged"]
    pieces: Any = np.nditer(
        array, flags, op_dtypes=[dtype], casting="unsafe", order="C", buffersize=buffersize
    )
    pieces.iterrange = done // dtype.itemsize, array.size
    for piece in pieces:
        if written >= checked:
            _, checked = next(steps, (0, array.size * dtype.itemsize))
        values = np.ascontiguousarray(piece)
        raw = memoryview(values.view(np.uint8))  # type: ignore[arg-type]
        allocate.write_all(fd, raw, offset + written)
        written += values.nbytes
