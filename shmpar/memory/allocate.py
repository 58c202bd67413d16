"""Allocate nameless files for segments, from the first source with room; write files atomically.

Guarantees
----------
Every byte of a file that is returned is reserved: writing to its mapping cannot raise SIGBUS.
A request that cannot fit is refused before memory is touched.  A refused or interrupted request
leaves nothing behind.  No file has a name, so nothing is left if all processes are killed.
A file of the user's appears whole or not at all.
"""

import contextlib
import errno
import gc
import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeGuard, TypeVar

import numpy as np

from shmpar.errors import SegmentError, SegmentFull
from shmpar.memory import huge, limits, reuse, system
from shmpar.memory.limits import ClosedOnError, open_with_retry

Array = np.ndarray[Any, Any]
T = TypeVar("T")

SHM: Final = "/dev/shm"  # noqa: S108 (shared memory is intended)
STEP: Final = 64 << 20  # Why: a longer system call delays signals
SMALL: Final = 16 << 20  # Why: for fewer bytes, the kernel's ENOSPC is answer enough
_FAULT_AROUND: Final = 64 << 10  # bytes that a fault on reading maps: the kernel's default
_UNMAP_SECONDS: Final = 1.0  # for workers to unmap the memory of a segment that has ended
_POLL_SECONDS: Final = 0.01
_FREE_SOME: Final = "free some, or write the file elsewhere"

Fill = Callable[[int, int], int | None]
"""Writes every byte of a new file, given (descriptor, bytes); returns those in huge pages."""


class File(NamedTuple):
    """A file that was made for a segment.

    Attributes
    ----------
    fd : int
        Its descriptor, not inheritable.
    kind : str
        The kind of its source.
    huge_bytes : int
        Bytes that lie in huge pages.
    """

    fd: int
    kind: str
    huge_bytes: int = 0


class Source(NamedTuple):
    """A kind of memory in which nameless files can be made.

    Attributes
    ----------
    kind : str
        The kind of its segments.
    where : str
        Its description in errors.
    open : callable
        Return the descriptor of a new, empty file, or raise OSError.
    """

    kind: str
    where: str
    open: Callable[[], int]


class Capacity(NamedTuple):
    """The room of a source at this moment.

    Attributes
    ----------
    source : Source
        The source.
    free : int
        Bytes of the largest segment that fits.
    refusal : str
        The reason that it cannot be used at all; empty if it can.
    in_memory : bool
        True if its files take memory.
    """

    source: Source
    free: int
    refusal: str = ""
    in_memory: bool = True


def _open_shm() -> int:
    return os.open(SHM, os.O_TMPFILE | os.O_RDWR, 0o600)


def _open_memfd() -> int:
    fd = os.memfd_create("shmpar", os.MFD_CLOEXEC)
    restrict(fd)
    return fd


def restrict(fd: int) -> None:
    """Take the permissions of other users from a memory file, which the kernel makes with 0o777."""
    # Why optional: other users reach a file without a name through /proc alone, which refuses them.
    system.granted("fchmod", lambda: os.fchmod(fd, 0o600))


def _open_tempfile() -> int:
    import tempfile  # Why: the last source is rarely needed

    with tempfile.TemporaryFile(prefix="shmpar_") as file:
        return os.dup(file.fileno())


SOURCES: Final = (
    Source("shm", SHM, _open_shm),
    Source("memfd", "memory", _open_memfd),
    Source("tempfile", "the directory for temporary files", _open_tempfile),
)


def make_file(nbytes: int, fill: Fill | None = None, sources: tuple[Source, ...] = ()) -> File:
    """Make a nameless file of ``nbytes`` reserved bytes in the first source with room.

    Parameters
    ----------
    nbytes : int
        Size in bytes, at least 1.
    fill : callable, optional
        Writes every byte.  Default: zeros.
    sources : tuple of Source, optional
        The sources to try, in order.  Default: all.

    Returns
    -------
    File
        The file, with the kind of its source.

    Raises
    ------
    SegmentFull
        No source has room.

    Notes
    -----
    Cost: two system calls, one more for each huge page, and the kernel zeroes the memory.
    """
    limits.keep_standard_streams()
    return _when_unmapped(lambda: _make_file(nbytes, fill, sources))


def _make_file(nbytes: int, fill: Fill | None, sources: tuple[Source, ...]) -> File:
    refusals, full = [], False
    for source in sources or SOURCES:
        try:
            fd = open_with_retry(source.open)
            with ClosedOnError(fd):
                huge_bytes = (fill or fill_zeros)(fd, nbytes) or 0
        except (OSError, AttributeError, SegmentFull) as error:
            if isinstance(error, OSError) and error.errno in system.NO_DESCRIPTORS:
                raise
            is_full = isinstance(error, SegmentFull) or _is_full(error)
            if is_full and reuse.clear():
                return _make_file(nbytes, fill, sources)
            refusals.append(f"{source.where}: {_reason(error)}")
            full = full or is_full
        else:
            return File(fd, source.kind, huge_bytes)
    if not full and sources:
        raise system.without_names("; ".join(refusals))
    if not full:
        raise SegmentError(f"this system refuses each kind of memory ({'; '.join(refusals)})")
    raise SegmentFull(
        f"no room for a segment of {nbytes:,} bytes ({'; '.join(refusals)}); "
        "drop arrays that are no longer needed, use smaller outputs or dtypes, "
        "or work on an np.memmap"
    )


_shared_ends: deque[float] = deque([float("-inf")], maxlen=1)  # the time of the last one


def note_shared_end() -> None:
    """Note the end of a run, or of a segment that other processes may still map."""
    _shared_ends.append(time.monotonic())


class _Shortage(threading.local):
    """The call of a thread that tells workers to unmap segments that have ended."""

    tell: Callable[[], object] | None = None


_shortage = _Shortage()


@contextlib.contextmanager
def telling(tell: Callable[[], object]) -> Iterator[None]:
    """Call `tell`, which informs workers of ended segments, while this block lacks room."""
    _shortage.tell = tell
    try:
        yield
    finally:
        _shortage.tell = None


def _when_unmapped(call: Callable[[], T]) -> T:
    """Return ``call()``; if room is lacking, release segments that have ended and try again."""
    refused: float | None = None
    while True:
        try:
            return call()
        except SegmentFull:
            now = time.monotonic()
            # Why: the thread that ends a run lets go of it later, and a worker unmaps as soon as
            # it reads, unless it is within a chunk. Why min: other threads may end runs for ever.
            if refused is not None and now > min(_shared_ends[0], refused) + _UNMAP_SECONDS:
                raise
            refused = refused or now
        if reuse.clear():
            continue
        gc.collect()  # Why: a failed run and its error refer to each other, and hold its memory.
        if _shortage.tell is not None:
            _shortage.tell()
        time.sleep(_POLL_SECONDS)


def _reason(error: Exception) -> str:
    if isinstance(error, AttributeError):
        return "not on this platform"
    if _is_full(error):
        return f"full ({system.lack(error.errno or 0)})"
    return str(error)


def _is_full(error: Exception) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in system.NO_ROOM


def fill_zeros(fd: int, nbytes: int) -> int:
    """Reserve the bytes of a new file, which read as zeros; return those in huge pages."""
    pages = huge.NewPages.of(fd, nbytes)
    for start, stop in checked_steps(fd, nbytes):
        if pages is None or not pages.make(stop):
            _reserve(fd, start if pages is None else max(start, pages.made), stop, new=True)
    return 0 if pages is None else pages.made


def _reserve(fd: int, start: int, stop: int, *, new: bool) -> None:
    if system.granted("fallocate", lambda: system.fallocate(fd, start, stop - start)):
        return
    if new:
        write_all(fd, memoryview(bytes(stop - start)), start)
    else:
        _check_room(fd, stop - start)


def write_all(fd: int, raw: memoryview, offset: int) -> None:
    """Write bytes at an offset of a file.

    Raises
    ------
    SegmentFull
        The file system, or memory, is full.
    SegmentError
        The bytes lie in a mapped file that was shortened since.
    """
    while raw.nbytes:  # Why: the kernel may stop early at a signal
        try:
            with system.room_for(f"{raw.nbytes:,} more bytes", "free some"):
                written = os.pwrite(fd, raw, offset)
        except OSError as error:
            if error.errno == errno.EFAULT:
                raise system.shortened("an array cannot be copied") from None
            raise
        raw, offset = raw[written:], offset + written


class Promised(Protocol):
    """A segment whose file was made by :func:`promise`, or a booking."""

    def unreserved(self) -> tuple[int, int]:
        """Return the device of its file, and the bytes that are not reserved yet."""


def promise(bookings: list[Promised], fd: int, nbytes: int) -> int:
    """Set the size of a new file in memory and reserve nothing, if its bytes are free now.

    Other files are filled with zeros.  :class:`LazyPages` reserves the bytes.

    Parameters
    ----------
    bookings : list
        Gets an object that keeps the room as long as it lives, until :func:`note_promise` does.
    """
    if system.is_reserved(fd, nbytes):  # Why: it is the file of a segment that has ended
        return 0
    in_pages = huge.refusal() is None and limits.is_in_memory(fd)
    if not in_pages or not system.granted("fallocate", lambda: system.fallocate(fd, 0, 1)):
        return fill_zeros(fd, nbytes)
    bookings.append(booking := _Booking(fd, nbytes))
    try:
        _check_free(fd, nbytes, booking, in_memory=True)
    except BaseException:
        bookings.clear()
        raise
    os.ftruncate(fd, nbytes)
    return 0


class LazyPages:
    """The memory of an output, which processes reserve and map before they write to it.

    Parameters
    ----------
    start, nbytes : int
        Address and bytes of a segment in this process.
    """

    def __init__(self, start: int, nbytes: int) -> None:
        self._nbytes = nbytes
        self._maker = huge.PageMaker(start)
        self._ready = bytearray(-(-nbytes // huge.PAGE))

    def missing(self, low: int, high: int, share: float) -> list[tuple[int, int]]:
        """Return the ranges of whole pages over [low, high) that are not ready in this process.

        Parameters
        ----------
        share : float
            The part of the pages that other processes begin with: each makes those that others
            have not made yet.
        """
        first, last = low // huge.PAGE, -(-high // huge.PAGE)
        if self._ready.find(0, first, last) < 0:
            return []
        begin = first + int(share * (last - first))
        return [*self._ranges(begin, last), *self._ranges(first, begin)]

    def _ranges(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of pages that are not ready, and that one system call can make."""
        while (page := self._ready.find(0, first, last)) >= 0:
            end = self._ready.find(1, page, last)
            first = min(page + huge.BATCH // huge.PAGE, last if end < 0 else end)
            yield page * huge.PAGE, first * huge.PAGE

    def reserve(self, fd: int, start: int, stop: int) -> int:
        """Reserve a range of pages; return the bytes that this call put into huge ones.

        Raises
        ------
        SegmentFull
            There is no room any more.
        """
        stop = min(stop, self._nbytes)
        pages = range(start, stop, huge.PAGE)
        # Why: other processes may have reserved some of them.
        missing = [one for one in pages if not _holds_data(fd, one, min(one + huge.PAGE, stop))]
        if not missing:
            return 0
        start, stop = missing[0], min(missing[-1] + huge.PAGE, stop)
        made = self._maker.make(fd, start, stop - stop % huge.PAGE)
        if made < stop:
            with system.room_for(f"{stop - made:,} bytes of an output", _FREE_SOME):
                system.fallocate(fd, made, stop - made)
        return huge.PAGE * sum(page < made for page in missing)

    def map(self, memory: Array, start: int, stop: int) -> None:
        """Map reserved pages, given the bytes of the segment."""
        map_pages(memory, start, stop)
        first, last = start // huge.PAGE, stop // huge.PAGE
        self._ready[first:last] = b"\1" * (last - first)


def map_pages(memory: Array, start: int, stop: int) -> None:
    """Map a range of a file that is reserved, given the bytes of the file."""
    # Why: a fault on reading maps all pages around that hold data, and they can be written to.
    memory[start:stop:_FAULT_AROUND].copy()


def _holds_data(fd: int, start: int, stop: int) -> bool:
    """Return whether a range of a file has no hole."""
    try:
        return os.lseek(fd, start, os.SEEK_HOLE) >= stop
    except OSError:
        return False


def checked_steps(fd: int, nbytes: int, begin: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges [start, stop) in which the bytes of a file from `begin` are written.

    Raises
    ------
    SegmentFull
        The rest no longer fits into free memory.
    """
    is_large, reserved = nbytes > SMALL, system.is_reserved(fd, nbytes)
    in_memory = is_large and not reserved and limits.is_in_memory(fd)
    booking = _Booking(fd, nbytes) if in_memory else None
    try:
        for start in range(begin, nbytes, STEP):
            # Why: another process may have taken memory since the first step.  A memory file, or a
            # /dev/shm as large as RAM, would fill the machine until the OOM killer comes. A small
            # file must not take the room of an output either.
            if (is_large or _promises) and not reserved:
                _check_free(fd, nbytes - start, booking, in_memory=in_memory)
            yield start, min(start + STEP, nbytes)
    finally:
        del booking  # Why: the traceback of an error keeps this frame.


# The promised segments by their keys, and the bookings.
_promises: weakref.WeakValueDictionary[int, Promised] = weakref.WeakValueDictionary()
_booking_keys = itertools.count(-1, -1)  # Why: no key of a segment is negative


class _Booking:
    """The room of a file that is being made, for as long as this object lives.

    Why: it is booked before it is looked for. Of two threads none then takes the other's room.
    """

    def __init__(self, fd: int, nbytes: int) -> None:
        self._fd, self._nbytes, self._file = fd, nbytes, os.fstat(fd)
        _promises[next(_booking_keys)] = self

    def unreserved(self) -> tuple[int, int]:
        # Why: a traceback may keep this object, and the file be closed by then.
        with contextlib.suppress(OSError):
            if os.path.samestat(found := os.fstat(self._fd), self._file):
                return found.st_dev, max(0, self._nbytes - 512 * found.st_blocks)
        return 0, 0


def note_promise(key: int, segment: Promised) -> None:
    """Keep the room for a segment that will be reserved, as long as it lives."""
    _promises[key] = segment


def _unreserved(own: Promised | None = None) -> list[tuple[int, int]]:
    """Return the device and the missing bytes of each promised segment and of other bookings."""
    found = []
    # Why references: another thread may note a promise meanwhile.
    for reference in _promises.valuerefs():
        segment = reference()
        device, missing = (0, 0) if segment is None else segment.unreserved()
        if not missing:
            _promises.pop(reference.key, None)
        elif segment is not own:
            found.append((device, missing))
    return found


def _check_free(fd: int, nbytes: int, own: Promised | None, *, in_memory: bool) -> None:
    if nbytes > (free := _free_bytes(fd, own, in_memory=in_memory)):
        raise SegmentFull(f"{nbytes:,} bytes needed, {free:,} free")


def _free_bytes(fd: int, own: Promised | None = None, *, in_memory: bool) -> int:
    promised = _unreserved(own)
    free = limits.free_on_device(fd)
    if promised:
        here = os.fstat(fd).st_dev
        free -= sum([missing for device, missing in promised if device == here])
    return max(0, min(free, _free_memory(promised)) if in_memory else free)


def _free_memory(promised: Sequence[tuple[int, int]]) -> int:
    return limits.free_memory() - sum([missing for _, missing in promised])


def reserve_range(fd: int, start: int, stop: int, *, new: bool = False) -> None:
    """Reserve the bytes [start, stop) of a file, and keep its values, unless it is a new file.

    A write through a mapping to a hole of a file on a full disk is SIGBUS.

    Raises
    ------
    SegmentFull
        The disk is full.
    """
    with system.room_for(f"{stop - start:,} bytes of a file on its disk", _FREE_SOME):
        for first in range(start, stop, STEP):
            _reserve(fd, first, min(first + STEP, stop), new=new)


def _check_room(fd: int, nbytes: int) -> None:
    """Raise an error if a file has holes that its disk has no room for."""
    # Why no more: no other call reserves bytes and keeps the values that others write meanwhile.
    found = os.fstat(fd)
    holes = min(nbytes, found.st_size - 512 * found.st_blocks)
    if holes > limits.free_on_device(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def capacities() -> list[Capacity]:
    """Return the room of each source, in the order in which they are tried; reserve nothing.

    Examples
    --------
    >>> [one.source.kind for one in capacities()]
    ['shm', 'memfd', 'tempfile']
    """
    return [_capacity(source) for source in SOURCES]


def _capacity(source: Source) -> Capacity:
    try:
        fd = open_with_retry(source.open)
    except (OSError, AttributeError) as error:
        return Capacity(source, 0, _reason(error))
    try:
        in_memory = limits.is_in_memory(fd)
        return Capacity(source, _free_bytes(fd, in_memory=in_memory), in_memory=in_memory)
    finally:
        os.close(fd)


def preflight(caller: str, needs: Sequence[tuple[str, int]]) -> None:
    """Raise `SegmentFull` unless there is room for several segments together.

    Parameters
    ----------
    caller : str
        The name of the caller, for the message.
    needs : sequence of (str, int)
        The purpose and the bytes of each segment.

    Notes
    -----
    This is an estimate, since other processes take memory too.  Each segment is checked again when
    it is made.

    Cost: opens a file in each source.  Files below :data:`SMALL` do not need this check.
    """
    _when_unmapped(lambda: _preflight(caller, needs))


def _preflight(caller: str, needs: Sequence[tuple[str, int]]) -> None:
    found = capacities()
    if _fits([nbytes for _, nbytes in needs], found, _free_memory(_unreserved())):
        return
    total = sum(nbytes for _, nbytes in needs)
    parts = " + ".join(f"{nbytes:,} for {purpose}" for purpose, nbytes in needs)
    free = ", ".join(f"{one.free:,} in {one.source.where}" for one in found)
    raise SegmentFull(
        f"{caller} needs {total:,} bytes of shared memory ({parts}), more than there is room for "
        f"({free}); nothing was begun. Pass inputs as np.memmap or make them shared once "
        "(pool.array), out= a .npy path or an np.memmap, smaller dtypes, or part of the array"
    )


def _fits(sizes: Sequence[int], found: Sequence[Capacity], memory: int) -> bool:
    """Return True if each size fits into a source, when all sources share the memory."""
    left = list(found)
    for size in sizes:
        for index, one in enumerate(left):
            if size <= one.free and (size <= memory or not one.in_memory):
                left[index] = one._replace(free=one.free - size)
                memory -= size if one.in_memory else 0
                break
        else:
            return False
    return True


@contextlib.contextmanager
def atomic_file(
    path: str, nbytes: int, *, mode: int = 0o600, replace: bool = False
) -> Iterator[int]:
    """Make a file of reserved zeros, for writing inside the ``with``; it appears at the end.

    Parameters
    ----------
    path : str
        Its name.
    nbytes : int
        Bytes, at least 1.
    mode : int
        Its permissions, before the umask.
    replace : bool
        Take the name from a file that has it; processes that have that file open keep it.

    Raises
    ------
    FileExistsError
        The name is taken, and the file is not to be replaced.
    SegmentFull
        Its disk has no room.

    Notes
    -----
    Until then the file has no name (``O_TMPFILE``), so nothing is left if this process is killed.
    Some file systems need a name while the file is written, and a replacement needs a name for an
    instant; this name ends in ``.tmp``.
    """
    with system.room_for(f"the file {path!r}", _FREE_SOME):
        fd, name = open_beside(path, mode)
        try:
            reserve_range(fd, 0, nbytes, new=True)
            yield fd
            give_path(fd, name, path, replace=replace)
        finally:
            os.close(fd)
            if name is not None:
                with contextlib.suppress(OSError):  # Why: it may have gone
                    os.unlink(name)


def open_beside(path: str, mode: int, *, named: bool = False) -> tuple[int, str | None]:
    """Open a new file in the folder of a path, for :func:`give_path`.

    Parameters
    ----------
    named : bool
        The file needs a name at once.

    Returns
    -------
    tuple of (int, str or None)
        The descriptor, and the name of the file. It is None unless the file needs one.
    """
    folder, name = os.path.dirname(path) or ".", _temporary_name(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL

    def open_named() -> tuple[int, str | None]:
        return open_with_retry(os.open, name, flags, mode), name

    if named:
        return open_named()
    return system.attempt(
        "O_TMPFILE", lambda: (open_with_retry(_open_nameless, folder, mode), None), open_named
    )


def _open_nameless(folder: str, mode: int) -> int:
    """Open a file without a name that can get a name, or raise OSError."""
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, mode)
    with ClosedOnError(fd):
        if not os.path.exists(f"/proc/self/fd/{fd}"):  # Why: a name is made through this link
            raise OSError(errno.EOPNOTSUPP, "/proc is not mounted")
    return fd


def give_path(fd: int, name: str | None, path: str, *, replace: bool) -> None:
    """Give a file of :func:`open_beside` its path; raises ``FileExistsError`` if that is taken."""
    if name is not None:
        _rename(name, path, replace=replace)
        return
    with contextlib.suppress(FileExistsError) if replace else contextlib.nullcontext():
        if _was_linked(fd, path):
            return
    name = _temporary_name(path)
    try:
        if not _was_linked(fd, name):
            _copy(fd, name)
        _rename(name, path, replace=replace)
    finally:
        with contextlib.suppress(OSError):  # Why: it has gone, or was never made
            os.unlink(name)


def _temporary_name(path: str) -> str:
    return f"{path}.{os.urandom(4).hex()}.tmp"


def _was_linked(fd: int, path: str) -> bool:
    """Give a nameless file a name; return False if the system refuses that."""
    return system.granted("linkat", lambda: link_file(fd, path))


def _copy(fd: int, path: str) -> None:
    import shutil  # Why here: few systems refuse links

    mode, flags = os.fstat(fd).st_mode & 0o777, os.O_WRONLY | os.O_CREAT | os.O_EXCL
    made = open_with_retry(os.open, path, flags, mode)
    with open(made, "wb") as target, open(fd, "rb", closefd=False) as source:
        source.seek(0)
        shutil.copyfileobj(source, target)


def _rename(temporary: str, path: str, *, replace: bool) -> None:
    """Rename a file; unless it replaces another, to a name that nobody has."""
    if not replace:
        if system.granted("link", lambda: os.link(temporary, path)):
            return
        # Why: a rename replaces, and a file system without links has no other way to be first.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    os.replace(temporary, path)


def link_file(fd: int, path: str) -> None:
    """Give a nameless file a name.

    Raises
    ------
    FileExistsError
        The name is taken.
    OSError
        The name is on another file system, or the system cannot link a nameless file.
    """
    folder = open_with_retry(os.open, os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY)
    try:  # Why: without folders, os.link() does not follow the symbolic link in /proc
        os.link(f"/proc/self/fd/{fd}", os.path.basename(path), src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)
