"""Allocate nameless files for segments, from the first source with room; write files atomically.

Guarantees
----------
Every byte of a file that is returned is reserved: writing to its mapping cannot raise SIGBUS.
A request that cannot fit is refused before memory is touched.  A refused or interrupted request
leaves nothing behind.  No file has a name, so nothing is left if all processes are killed.
A file of the user's appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from shmpar.errors import SegmentFull
from shmpar.memory import limits
from shmpar.memory.limits import ClosedOnError, open_with_retry

SHM: Final = "/dev/shm"  # noqa: S108 (shared memory is intended)
STEP: Final = 64 << 20  # Why: a longer system call delays signals
SMALL: Final = 16 << 20  # Why: for fewer bytes, the kernel's ENOSPC is answer enough
FULL: Final = {errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG}

Fill = Callable[[int, int], object]


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
    os.fchmod(fd, 0o600)  # Why: the kernel creates it with mode 0o777
    return fd


def _open_tempfile() -> int:
    import tempfile  # Why: the last source is rarely needed

    with tempfile.TemporaryFile(prefix="shmpar_") as file:
        return os.dup(file.fileno())


SOURCES: Final = (
    Source("shm", SHM, _open_shm),
    Source("memfd", "memory", _open_memfd),
    Source("tempfile", "the directory for temporary files", _open_tempfile),
)


def make_file(
    nbytes: int, fill: Fill | None = None, sources: tuple[Source, ...] = ()
) -> tuple[int, str]:
    """Make a nameless file of ``nbytes`` reserved bytes in the first source with room.

    Parameters
    ----------
    nbytes : int
        Size in bytes, at least 1.
    fill : callable, optional
        Called with (descriptor, nbytes); writes every byte.  Default: zeros.
    sources : tuple of Source, optional
        The sources to try, in order.  Default: all.

    Returns
    -------
    tuple of (int, str)
        The descriptor, not inheritable, and the kind of the source.

    Raises
    ------
    SegmentFull
        No source has room.

    Notes
    -----
    Cost: two system calls, and the kernel zeroes the memory.
    """
    limits.keep_standard_streams()
    refusals = []
    for source in sources or SOURCES:
        try:
            fd = open_with_retry(source.open)
            with ClosedOnError(fd):
                (fill or fill_zeros)(fd, nbytes)
        except (OSError, AttributeError, SegmentFull) as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise
            refusals.append(f"{source.where}: {_reason(error)}")
        else:
            return fd, source.kind
    raise SegmentFull(
        f"no room for a segment of {nbytes:,} bytes ({'; '.join(refusals)}); "
        "drop arrays that are no longer needed, use smaller outputs or dtypes, "
        "or work on an np.memmap"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, AttributeError):
        return "not on this platform"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"full ({os.strerror(error.errno or 0)})"
    return str(error)


def fill_zeros(fd: int, nbytes: int) -> None:
    """Reserve the first ``nbytes`` bytes of a file; new bytes read as zeros."""
    for start, stop in checked_steps(fd, nbytes):
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, start, stop - start)
        else:  # Why: on macOS only a write reserves
            os.pwrite(fd, bytes(stop - start), start)


def checked_steps(fd: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """Yield the byte ranges [start, stop) in which ``nbytes`` are written to a file.

    Raises
    ------
    SegmentFull
        The rest no longer fits into free memory.
    """
    in_memory = nbytes > SMALL and limits.is_in_memory(fd)
    for start in range(0, nbytes, STEP):
        # Why: another process may have taken memory since the first step.  A memory file, or a
        # /dev/shm as large as RAM, would fill the machine until the OOM killer comes.
        if nbytes > SMALL and nbytes - start > (free := _free_bytes(fd, in_memory=in_memory)):
            raise SegmentFull(f"{nbytes - start:,} bytes needed, {free:,} free")
        yield start, min(start + STEP, nbytes)


def _free_bytes(fd: int, *, in_memory: bool) -> int:
    free = limits.free_on_device(fd)
    return min(free, limits.free_memory()) if in_memory else free


def reserve_range(fd: int, start: int, stop: int) -> None:
    """Reserve the bytes [start, stop) of a file that exists, and keep its values.

    A write through a mapping to a hole of a file on a full disk is SIGBUS.

    Raises
    ------
    SegmentFull
        The disk is full.
    """
    if not hasattr(os, "posix_fallocate"):
        return  # Why: no other call reserves bytes and keeps the values
    for first in range(start, stop, STEP):
        try:
            os.posix_fallocate(fd, first, min(first + STEP, stop) - first)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise SegmentFull(
                f"{stop - first:,} bytes of a mapped file have no room on its disk "
                f"({limits.free_on_device(fd):,} free): free some, or write the file elsewhere"
            ) from None


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
    found = capacities()
    if _fits([nbytes for _, nbytes in needs], found, limits.free_memory()):
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


# Why: file systems refuse O_TMPFILE with these errors.
_NO_TMPFILE: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}


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
    fd, name = open_beside(path, mode)
    try:
        reserve_range(fd, 0, nbytes)
        yield fd
        give_path(fd, name, path, replace=replace)
    finally:
        os.close(fd)
        if name is not None:
            with contextlib.suppress(OSError):  # Why: it may have gone
                os.unlink(name)


def open_beside(path: str, mode: int) -> tuple[int, str | None]:
    """Open a new file in the folder of a path, for :func:`give_path`.

    Returns
    -------
    tuple of (int, str or None)
        The descriptor, and the name of the file. It is None unless the file system needs one.
    """
    folder = os.path.dirname(path) or "."
    try:
        return open_with_retry(lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR, mode)), None
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_TMPFILE:
            raise
    name = _temporary_name(path)
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), name


def give_path(fd: int, name: str | None, path: str, *, replace: bool) -> None:
    """Give a file of :func:`open_beside` its path; raises ``FileExistsError`` if that is taken."""
    if name is not None:
        (os.replace if replace else os.link)(name, path)
        return
    with contextlib.suppress(FileExistsError) if replace else contextlib.nullcontext():
        link_file(fd, path)
        return
    name = _temporary_name(path)
    try:
        link_file(fd, name)
        os.replace(name, path)
    finally:
        with contextlib.suppress(OSError):  # Why: it has gone, or was never made
            os.unlink(name)


def _temporary_name(path: str) -> str:
    return f"{path}.{os.urandom(4).hex()}.tmp"


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
