"""Copy arrays into segments: into huge pages, or by writing to their files.

Guarantees
----------
:func:`write` writes values in C order of the array given, whatever its strides.
Values are copied into huge pages that were made for them, or written to the file by system calls.
This saves the page faults that make ``view[:] = array`` slow, and a full file system is an error,
not SIGBUS. An array with wide gaps is copied through a mapping whose memory is reserved.
A system call moves at most 64 MiB, so signals are handled.  The interpreter lock is released.
Threads that help are over when :func:`write` returns, and within a moment when it raises.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Final

import numpy as np

from shmpar.memory import allocate, huge, limits
from shmpar.memory.layout import Layout, spanned_bytes
from shmpar.memory.segment import Array, Dtype, Segment, create
from shmpar.memory.system import return_freed_blocks

MOST_THREADS: Final = 4  # Why: a few threads take all of the memory's speed
"""Threads that copy an array in the process of the caller, whose workers wait meanwhile."""

_BYTES_PER_THREAD: Final = 32 << 20  # Why: a thread takes a while to begin
_SLOW_BYTES: Final = 64 << 20  # Why: a copy of so many is slow beside the search for freed blocks


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


def loses(value: Any) -> str | None:
    """Return the part of an array that its bytes do not tell, with a remedy; None if there is none.

    Examples
    --------
    >>> class Length(np.ndarray):
    ...     unit = "m"
    >>> loses(np.ones(2).view(Length))
    'its unit (m); give the numbers alone, as np.asarray(x)'
    >>> loses(np.ones(2)), loses(np.ones((2, 2)).view(np.matrix))
    (None, None)
    """
    if type(value) is np.ndarray or not isinstance(value, np.ndarray):
        return None
    # Why not getattr alone: the attributes of a record array may be its fields.
    own, kind = getattr(value, "__dict__", {}), type(value)
    if "_coldefs" in own or hasattr(kind, "_coldefs"):
        return "the scale of its columns; give each column by itself, as np.array(table['name'])"
    for name in ("unit", "units"):
        unit = getattr(value, name, None) if name in own or hasattr(kind, name) else None
        if unit is not None:
            return f"its unit ({str(unit) or repr(unit)}); give the numbers alone, as np.asarray(x)"
    return None


def computes_itself(value: Any) -> bool:
    """Return whether a subclass of ndarray, not of NumPy's own, has another meaning of values.

    Examples
    --------
    >>> computes_itself(np.ones(2)), computes_itself(np.ones((2, 2)).view(np.matrix))
    (False, False)
    """
    if type(value) is np.ndarray or not isinstance(value, np.ndarray):
        return False
    # Why functions alone: compiled methods, such as those of astropy's columns, are only faster.
    return any(
        isinstance(vars(kind).get(name), types.FunctionType)
        for kind in type(value).__mro__[: type(value).__mro__.index(np.ndarray)]
        if kind.__module__.partition(".")[0] not in {"numpy", "shmpar"}
        for name in ("__getitem__", "__array__", "__array_ufunc__")
    )


def share(
    array: Array, purpose: str = "copy of an input", *, threads: int = MOST_THREADS
) -> tuple[Segment, Array]:
    """Copy an array into a nameless segment of its own.

    Parameters
    ----------
    threads : int
        As in :func:`write`.

    Returns
    -------
    tuple of (Segment, ndarray)
        The segment, and a writable array over it with the same values and the strides of
        :class:`Layout`.

    Raises
    ------
    TypeError
        The array holds Python objects.
    SegmentFull
        There is no room.

    Notes
    -----
    Cost: one copy. Of shared memory, as many bytes as the array spans, and mostly at most three
    times as many as it has; more if only some of its elements overlap.

    Examples
    --------
    >>> segment, copy = share(np.arange(6).reshape(2, 3).T)
    >>> copy.flags.f_contiguous, copy.tolist()
    (True, [[0, 3], [1, 4], [2, 5]])
    """
    if array.dtype.hasobject:
        raise TypeError(f"dtype {array.dtype} holds Python objects, which no process can share")
    layout, fill = Layout.of(array), None
    if layout.is_exact:
        raw = array if array.flags.c_contiguous or not array.nbytes else spanned_bytes(array)
        fill = filling(raw, offset=layout.nbytes - raw.nbytes, threads=threads)
    segment = create(layout.nbytes, fill, purpose=purpose)
    copy = segment.ndarray(layout.offset, array.shape, layout.strides, array.dtype)
    if fill is None:
        copy[...] = array
    return segment, copy


def filling(
    array: Array, dtype: Dtype | None = None, *, offset: int = 0, threads: int = MOST_THREADS
) -> allocate.Fill:
    """Return the function that writes values to a new file, as :func:`write`."""
    return lambda fd, _: write(fd, offset, array, dtype, threads=threads)


class Copies:
    """The copies of arguments that several calls take, each made once.

    An array is known by its identity. Its copy lives as long as the array and this record.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[Array], Segment, Array]] = {}

    def share(self, array: Array) -> tuple[Segment, Array]:
        """Return the copy of an array and its segment; make it at the first time."""
        known = self._found.get(id(array))
        if known is None or known[0]() is not array:
            key, found = id(array), self._found
            alive = weakref.ref(array, lambda _: found.pop(key, None))
            if array.nbytes >= _SLOW_BYTES:
                # Why: the copy and the freed blocks would take memory at the same time.
                return_freed_blocks()
            known = found[key] = alive, *share(array, "argument")
        return known[1:]

    def clear(self) -> None:
        """Forget the copies; they go when the last call that takes them is over."""
        self._found.clear()


class _Current(threading.local):
    copies: Copies | None = None


_current = _Current()


@contextlib.contextmanager
def shared_once(copies: Copies) -> Iterator[None]:
    """Have the arguments that this thread pickles in the block taken from a record of copies."""
    before, _current.copies = _current.copies, copies
    try:
        yield
    finally:
        _current.copies = before


def share_argument(array: Array) -> tuple[Segment, Array]:
    """Copy an argument into shared memory, unless its copy is on record."""
    copies = _current.copies
    return share(array, "argument") if copies is None else copies.share(array)


def copied_nbytes(array: Array) -> int:
    """Return the bytes of shared memory that :func:`share` takes."""
    return Layout.of(array).nbytes


def memory_order(array: Array) -> list[int]:
    """Return the axes from the slowest in memory to the fastest."""
    axes, steps = list(range(array.ndim)), array.strides
    # Why these first: the strides of axes of length 1 mean nothing.
    if array.flags.c_contiguous:
        return axes
    if array.flags.f_contiguous:
        return axes[::-1]
    return sorted(axes, key=lambda axis: -abs(steps[axis]))


def write(
    fd: int, offset: int, array: Array, dtype: Dtype | None = None, *, threads: int = 1
) -> int:
    """Write values in C order at a byte offset of a file, which grows as needed.

    Parameters
    ----------
    dtype : dtype, optional
        The values are cast to it; default: that of the array.
    threads : int
        At most so many threads, and no more than there are CPUs, copy contiguous values as they
        are into huge pages.

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
    nbytes = array.size * dtype.itemsize
    pages = huge.NewPages.of(fd, nbytes) if offset == 0 else None
    if dtype == array.dtype and array.flags.c_contiguous:
        done = 0 if pages is None else _Filling(pages, array).run(fd, threads)
        raw = memoryview(array)  # type: ignore[arg-type]
        for start, stop in allocate.checked_steps(fd, nbytes, done):
            allocate.write_all(fd, raw[start:stop], offset + start)
    else:
        _gather(fd, offset, array, dtype, pages)
    return 0 if pages is None else pages.made


class _Filling:
    """The copying of bytes into huge pages, each of which is filled as it is made.

    The calling thread and its helpers each take the next pages, so that a thread with less time of
    a processor takes fewer.

    Invariant: a helper writes to no descriptor. After an interrupt it may outlive the caller's.
    """

    def __init__(self, pages: huge.NewPages, raw: Array) -> None:
        self._pages, self._raw = pages, raw
        # Pages whose first bytes are reserved.
        self._todo: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        self._ends: SimpleQueue[int] = SimpleQueue()

    def run(self, fd: int, threads: int) -> int:
        """Copy by at most so many threads; return how many leading bytes are copied."""
        most = min(threads, self._raw.nbytes // _BYTES_PER_THREAD)
        wanted = min(most, limits.available_cpus()) - 1 if most > 1 else 0
        helpers, end = 0, self._raw.nbytes
        try:
            with contextlib.suppress(RuntimeError):  # there may be no more threads
                while helpers < wanted:
                    _thread.start_new_thread(self._help, ())
                    helpers += 1
            for step in allocate.checked_steps(fd, self._raw.nbytes):
                end = min(self._reserve(step), self._fill(self._next))
                if end < self._raw.nbytes:
                    break
        finally:
            while self._next() is not None:
                pass
            for _ in range(wanted):
                self._todo.put(None)
        return min([end, *(self._ends.get() for _ in range(helpers))])

    def _reserve(self, step: tuple[int, int]) -> int:
        """Reserve pages for all threads; return the first byte that has none."""
        for start in range(*step, huge.BATCH):
            stop = min(start + huge.BATCH, step[1])
            if start < (end := self._pages.reserve(start, stop)):
                self._todo.put((start, end))
            if end < stop:
                return end
        return self._raw.nbytes

    def _next(self) -> tuple[int, int] | None:
        with contextlib.suppress(Empty):
            return self._todo.get_nowait()
        return None

    def _fill(self, take: Callable[[], tuple[int, int] | None]) -> int:
        """Fill pages until there is none; return the first byte that is not copied."""
        while (part := take()) is not None:
            start, stop = part
            end = self._pages.make_reserved(start, stop)
            # Why at once: a page that was just zeroed lies in the cache of the processor.
            self._pages.memory[start:end] = self._raw[start:end]
            if end < stop:
                return end
        return self._raw.nbytes

    def _help(self) -> None:
        end = 0
        try:
            end = self._fill(self._todo.get)
        finally:
            self._ends.put(end)


def _gather(fd: int, offset: int, array: Array, dtype: Dtype, pages: huge.NewPages | None) -> None:
    """Write values with gaps, or cast to a dtype: into huge pages, else by a buffer.

    Why not through a mapping: each page would be a fault.
    """
    nbytes, start, checked = array.size * dtype.itemsize, 0, 0
    buffer = np.empty(min(nbytes, max(huge.PAGE, dtype.itemsize)), np.uint8)
    steps = allocate.checked_steps(fd, nbytes)
    for block in _blocks(array, dtype.itemsize):
        stop = start + block.size * dtype.itemsize
        while checked < stop:
            _, checked = next(steps)
        # Why at once: a page that was just zeroed lies in the cache of the processor.
        made = None if pages is None or not pages.make(stop) else pages.memory[start:stop]
        memory = buffer[: stop - start] if made is None else made
        memory.view(dtype).reshape(block.shape)[...] = block
        if made is None:
            allocate.write_all(fd, memoryview(memory), offset + start)  # type: ignore[arg-type]
        start = stop


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
            yield from _blocks(array[first, ...], itemsize)
