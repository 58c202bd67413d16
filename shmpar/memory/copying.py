"""Copy arrays into segments, by writing to their files.

Guarantees
----------
Values are written in C order of the array given, whatever its strides.
No byte is written through a mapping.  This saves the page faults and the zeroing that make
``view[:] = array`` slow, and a full file system is an error, not SIGBUS.
A system call moves at most 64 MiB, so signals are handled.  The interpreter lock is released.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import numpy as np

from shmpar.memory import allocate
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


def share(array: Array) -> tuple[Segment, Array]:
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
    segment = create(array.nbytes, lambda fd, _: write(fd, 0, dense))
    shared = segment.ndarray(0, dense.shape, None, array.dtype)
    return segment, shared.transpose(sorted(axes, key=axes.__getitem__))


def memory_order(array: Array) -> list[int]:
    """Return the axes from the slowest in memory to the fastest."""
    axes, steps = range(array.ndim), array.strides
    if array.flags.c_contiguous:  # Why: the strides of axes of length 1 mean nothing
        return list(axes)
    return sorted(axes, key=lambda axis: -abs(steps[axis]))


def write(fd: int, offset: int, array: Array) -> None:
    """Write values in C order at a byte offset of a file, which grows as needed.

    Raises
    ------
    SegmentFull
        The file system, or memory, is full.
    """
    if array.nbytes == 0:
        if os.fstat(fd).st_size <= offset:  # Why: a mapping needs at least one byte
            os.pwrite(fd, b"\0", offset)
    elif array.flags.c_contiguous:
        raw = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        for start, stop in allocate.checked_steps(fd, raw.nbytes):
            allocate.write_all(fd, raw[start:stop], offset + start)
    else:
        _write_strided(fd, offset, array)


def _write_strided(fd: int, offset: int, array: Array) -> None:
    """Gather values in a buffer, which is faster than writing through a mapping."""
    buffersize = max(1, _BUFFER_BYTES // array.dtype.itemsize)
    steps = allocate.checked_steps(fd, array.nbytes)
    checked = written = 0
    for piece in np.nditer(array, ["external_loop", "buffered"], order="C", buffersize=buffersize):
        if written >= checked:
            _, checked = next(steps, (0, array.nbytes))
        values = np.ascontiguousarray(piece)
        raw = memoryview(values.view(np.uint8))  # type: ignore[arg-type]
        allocate.write_all(fd, raw, offset + written)
        written += values.nbytes
