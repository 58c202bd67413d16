"""Whether a value is a masked array, without loading what knows them.

Imports nothing of the package.

Copying values into a segment, by writing to its file.

Imports NumPy, and the ladder, extent and segment beside it.

Guarantees
----------
Values arrive in C order of the array given, whatever its strides.
No byte is written through a mapping, so the page faults and the zeroing that make
``view[:] = array`` slow do not happen, and a full file system is an error, not SIGBUS.
A system call moves at most 64 MiB: signals get through.  The interpreter lock is released.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, Final

import numpy as np

from shmpar.errors import SegmentFull
from shmpar.memory import allocate
from shmpar.memory.segment import Segment


def is_masked(value: Any) -> bool:
    """Whether it is a masked array.

    Where nobody has loaded ``numpy.ma`` there is none, and it stays so: loading it costs a tenth
    of the start of a worker.

    Examples
    --------
    >>> import numpy as np
    >>> is_masked(np.ma.masked_equal([1, 2], 2)), is_masked(np.array([1, 2]))
    (True, False)
    """
    module = sys.modules.get("numpy.ma.core")
    kind = getattr(module, "MaskedArray", None)
    return kind is not None and isinstance(value, kind)


Array = np.ndarray[Any, Any]

_BOUNCE: Final = 1 << 20  # bytes of the buffer that gathers strided values: stays in the cache


def copy_in(segment: Segment, offset: int, array: Array) -> None:
    """Write an array's values, in C order, into a segment.

    Parameters
    ----------
    segment : Segment
        Where to.
    offset : int
        Byte at which the first value goes.
    array : ndarray
        Any layout; no object dtype.

    Raises
    ------
    ValueError
        The values would not fit, or the segment is read-only.
    SegmentGone
        The segment was closed.
    SegmentFull
        A mapped file's disk is full.

    Notes
    -----
    Cost: one write; 2 GB/s into fresh memory, against 1.1 through a mapping.
    """
    if offset < 0 or offset + array.nbytes > segment.size:
        raise ValueError(
            f"{array.nbytes:,} bytes at offset {offset:,} do not fit into "
            f"a segment of {segment.size:,} bytes"
        )
    if not segment.writable:
        raise ValueError("the segment is read-only")
    if segment.private:  # the file must not see it
        segment.ndarray(offset, array.shape, None, array.dtype)[...] = array
    else:
        write(segment.fileno(), offset, array)


def share(array: Array) -> tuple[Segment, Array]:
    """Copy an array into a nameless segment of its own.

    Returns
    -------
    tuple of (Segment, ndarray)
        The segment, and an array over it with the same values and memory order (Fortran stays
        Fortran, gaps are closed), writable.

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
    order = memory_order(array)
    dense = array if order is None else array.transpose(order)
    segment = Segment.make(array.nbytes, lambda fd, _: write(fd, 0, dense))
    shared = segment.ndarray(0, dense.shape, None, array.dtype)
    return segment, shared if order is None else shared.transpose(np.argsort(order))


def memory_order(array: Array) -> list[int] | None:
    """Axes from the slowest in memory to the fastest; None if that is how they are."""
    if array.flags.c_contiguous:
        return None
    steps = array.strides
    order = sorted(range(array.ndim), key=lambda axis: -abs(steps[axis]))
    return None if order == list(range(array.ndim)) else order


def write(fd: int, offset: int, array: Array) -> None:
    """Write values in C order at a byte offset of a file, which may grow.

    Raises
    ------
    SegmentFull
        The file system, or memory, is full.
    """
    if array.nbytes == 0:
        _pad(fd, offset)
    elif array.flags.c_contiguous:
        _write_bytes(fd, offset, array)
    else:
        _write_strided(fd, offset, array)


def _pad(fd: int, offset: int) -> None:
    """Give an array without values the one byte that a mapping needs."""
    if os.fstat(fd).st_size <= offset:
        os.pwrite(fd, b"\0", offset)


def _write_bytes(fd: int, offset: int, array: Array) -> None:
    raw = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    if raw.nbytes <= allocate.SMALL:
        _pwrite(fd, raw, offset)
        return
    for start, stop in allocate.steps(fd, raw.nbytes):
        _pwrite(fd, raw[start:stop], offset + start)


def _write_strided(fd: int, offset: int, array: Array) -> None:
    """Gather values a buffer at a time; faster than writing through the mapping."""
    room = max(1, _BOUNCE // array.dtype.itemsize)
    pieces = np.nditer(array, ["external_loop", "buffered"], order="C", buffersize=room)
    step = allocate.STEP - allocate.STEP % array.dtype.itemsize
    checks = allocate.steps(fd, array.nbytes)
    checked = 0
    done = 0
    for piece in pieces:
        if done >= checked:
            _, checked = next(checks, (0, done + step))
        values = np.ascontiguousarray(piece)
        _pwrite(fd, memoryview(values.view(np.uint8)), offset + done)  # type: ignore[arg-type]
        done += values.nbytes


def _pwrite(fd: int, raw: memoryview, offset: int) -> None:
    """Write all of it: the kernel may stop early at a signal, or where space ends."""
    done = 0
    while done < raw.nbytes:
        try:
            done += os.pwrite(fd, raw[done:] if done else raw, offset + done)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG}:
                raise
            raise SegmentFull(
                f"{raw.nbytes - done:,} more bytes do not fit: {os.strerror(error.errno)}"
            ) from None
