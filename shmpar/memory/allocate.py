"""Nameless files for segments: the best place that has room.

Imports ``shmpar.errors`` and the room and descriptors beside it.

Guarantees
----------
A file that is returned has every byte reserved: writing to its mapping cannot raise SIGBUS.
A request that cannot fit is refused before memory is touched, and a refused or interrupted one
leaves nothing behind.  No file has a name, so not even SIGKILL of everything can leak one.

Will it fit: all the memory that a call is going to need, looked at before any of it is made.

Imports ``shmpar.errors``, and the ladder and room beside it.

Files of the user's that appear whole or not at all.

Imports the ladder and descriptors beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from shmpar.errors import SegmentFull
from shmpar.memory import limits

SHM: Final = "/dev/shm"  # noqa: S108 (shared memory is what is wanted)
STEP: Final = 64 << 20  # bytes in one system call: longer ones delay signals
SMALL: Final = 16 << 20  # bytes below which the kernel's ENOSPC is answer enough
FULL: Final = {errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG}
_MODE: Final = os.O_RDWR | getattr(os, "O_CLOEXEC", 0)

Fill = Callable[[int, int], object]


class Source(NamedTuple):
    """One way to make a nameless file.

    Attributes
    ----------
    kind : str
        What a segment of it says that it is.
    where : str
        What an error calls the place.
    open : callable
        Gives an open descriptor of an empty file, or raises OSError.
    """

    kind: str
    where: str
    open: Callable[[], int]


class Capacity(NamedTuple):
    """What a rung would take now.

    Attributes
    ----------
    source : Source
        Which one.
    free : int
        Bytes of the largest segment that it has room for.
    refusal : str
        Why it cannot be used at all; empty if it can.
    in_memory : bool
        Whether what is there takes memory.
    """

    source: Source
    free: int
    refusal: str = ""
    in_memory: bool = True


def _open_shm() -> int:
    return os.open(SHM, os.O_TMPFILE | _MODE, 0o600)


def _open_memfd() -> int:
    fd = os.memfd_create("shmpar", os.MFD_CLOEXEC)
    os.fchmod(fd, 0o600)  # it is made with 0o777
    return fd


def _open_tempfile() -> int:
    import tempfile  # the last rung, which few come to

    folder = tempfile.gettempdir()
    try:
        return os.open(folder, os.O_TMPFILE | _MODE, 0o600)
    except (AttributeError, OSError):  # not on Linux, or not on this file system
        fd, path = tempfile.mkstemp(prefix="shmpar_", dir=folder)
        os.unlink(path)
        return fd


SOURCES: Final = (
    Source("shm", SHM, _open_shm),
    Source("memfd", "memory", _open_memfd),
    Source("tempfile", "the directory for temporary files", _open_tempfile),
)


def make(nbytes: int, fill: Fill | None = None, rungs: tuple[Source, ...] = ()) -> tuple[int, str]:
    """Make a nameless file of ``nbytes`` reserved bytes on the first rung that has room.

    Parameters
    ----------
    nbytes : int
        Size in bytes, at least 1.
    fill : callable, optional
        Called with (descriptor, nbytes): writes every byte.  Default: zeros.
    rungs : tuple of Source, optional
        Where to try, in order.  Default: all.

    Returns
    -------
    tuple of (int, str)
        The descriptor, not inheritable, and the kind of the rung.

    Raises
    ------
    SegmentFull
        No rung has room.

    Notes
    -----
    Cost: about 6 us and the kernel's zeroing (3.6 GB/s).
    """
    refusals = []
    for rung in rungs or SOURCES:
        try:
            return _on(rung, nbytes, fill or fill_zeros), rung.kind
        except (OSError, AttributeError, SegmentFull) as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise
            refusals.append(f"{rung.where}: {_reason(error)}")
    raise SegmentFull(
        f"no room for a segment of {nbytes:,} bytes ({'; '.join(refusals)}); "
        "drop arrays that are no longer needed, use smaller outputs or dtypes, "
        "or work on an np.memmap"
    )


def capacities() -> list[Capacity]:
    """Ask each rung how much it would take, in the order in which they are tried.

    Reserves nothing.  Cost: 100 us a rung.

    Examples
    --------
    >>> [one.source.kind for one in capacities()]
    ['shm', 'memfd', 'tempfile']
    """
    return [_outlook(rung) for rung in SOURCES]


def _outlook(rung: Source) -> Capacity:
    try:
        fd = limits.open_with_retry(rung.open)
    except (OSError, AttributeError) as error:
        return Capacity(rung, 0, _reason(error))
    try:
        in_memory = limits.volatile(fd)
        return Capacity(rung, _free(fd, in_memory=in_memory), in_memory=in_memory)
    finally:
        os.close(fd)


def _on(rung: Source, nbytes: int, fill: Fill) -> int:
    limits.keep_standard_streams()
    fd = limits.open_with_retry(rung.open)
    try:
        fill(fd, nbytes)
    except BaseException:  # a Ctrl-C between two steps too
        os.close(fd)
        raise
    return fd


def _reason(error: Exception) -> str:
    if isinstance(error, AttributeError):
        return "not on this platform"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"full ({os.strerror(error.errno or 0)})"
    return str(error)


def fill_zeros(fd: int, nbytes: int) -> None:
    """Reserve the first ``nbytes`` bytes of a file; new ones read as zeros."""
    for start, stop in steps(fd, nbytes):
        _reserve(fd, start, stop - start)


def _reserve(fd: int, start: int, length: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, start, length)
    else:  # macOS: only a write reserves, and the file must read as zeros anyway
        os.pwrite(fd, bytes(length), start)


def steps(fd: int, nbytes: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Cut ``nbytes`` from ``start`` into ranges [a, b), as long as there is room for the rest.

    Raises
    ------
    SegmentFull
        What is left to write no longer fits into free memory.  Another process may have taken
        it since the first step, which is why each step looks again: a memory file, or a
        ``/dev/shm`` as large as RAM, would fill the machine until the OOM killer comes.
    """
    stop = start + nbytes
    in_memory = nbytes > SMALL and limits.volatile(fd)
    while start < stop:
        if nbytes > SMALL:
            _check_room(fd, stop - start, in_memory=in_memory)
        end = min(start + STEP, stop)
        yield start, end
        start = end


def _check_room(fd: int, needed: int, *, in_memory: bool) -> None:
    free = _free(fd, in_memory=in_memory)
    if needed > free:
        raise SegmentFull(f"{needed:,} bytes needed, {free:,} free")


def _free(fd: int, *, in_memory: bool) -> int:
    free = limits.device(fd)
    return min(free, limits.free_memory()) if in_memory else free


def reserve_range(fd: int, start: int, stop: int) -> None:
    """Reserve the bytes [start, stop) of a file that is going to be written through a mapping.

    Raises
    ------
    SegmentFull
        The disk is full.
    """
    for first in range(start, stop, STEP):
        try:
            _reserve_existing(fd, first, min(first + STEP, stop) - first)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise SegmentFull(
                f"{stop - first:,} bytes of a mapped file have no room on its disk "
                f"({limits.device(fd):,} free): free some, or write the file elsewhere"
            ) from None


def _reserve_existing(fd: int, start: int, length: int) -> None:
    if hasattr(os, "posix_fallocate"):  # keeps what is there; elsewhere nothing does both
        os.posix_fallocate(fd, start, length)


def preflight(who: str, needs: Sequence[tuple[str, int]]) -> None:
    """Raise `SegmentFull` unless there is room for all of some segments at once.

    Parameters
    ----------
    who : str
        Who needs them, for the message.
    needs : sequence of (str, int)
        What each segment is for, and its bytes.

    Notes
    -----
    A forecast: other processes take memory too. Each segment looks for itself when it is made.

    Cost: 300 us, so ask only for what is not :data:`SMALL`.
    """
    total = sum(nbytes for _, nbytes in needs)
    outlooks = capacities()
    if _fits([nbytes for _, nbytes in needs], outlooks, limits.free_memory()):
        return
    parts = " + ".join(f"{nbytes:,} for {what}" for what, nbytes in needs)
    free = ", ".join(f"{one.free:,} in {one.source.where}" for one in outlooks)
    raise SegmentFull(
        f"{who} needs {total:,} bytes of shared memory ({parts}), more than there is room for "
        f"({free}); nothing was begun. Pass inputs as np.memmap or make them shared once "
        "(pool.array), out= a .npy path or an np.memmap, smaller dtypes, or part of the array"
    )


def _fits(sizes: Sequence[int], outlooks: Sequence[Capacity], memory: int) -> bool:
    """Whether each finds a rung, when all take from one memory."""
    free = {one.source.kind: one.free for one in outlooks}
    for size in sizes:
        for one in outlooks:
            if size <= free[one.source.kind] and (size <= memory or not one.in_memory):
                free[one.source.kind] -= size
                memory -= size if one.in_memory else 0
                break
        else:
            return False
    return True


_NAMELESS = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}


@contextlib.contextmanager
def atomic_file(
    path: str, nbytes: int, *, mode: int = 0o600, replace: bool = False
) -> Iterator[int]:
    """Make a file of reserved zeros, to be written inside the ``with``; it is there at its end.

    Parameters
    ----------
    path : str
        Its name.
    nbytes : int
        Bytes, at least 1.
    mode : int
        Its permissions, before the umask.
    replace : bool
        Take the name from a file that has it; who has that one open keeps it.

    Raises
    ------
    FileExistsError
        If there is one and it is not to be replaced.
    SegmentFull
        If its disk has no room.

    Notes
    -----
    The file has no name before (``O_TMPFILE``), so nothing is left of it when this process is
    killed. Where the file system does not know such files, or one is replaced, it has a name that
    ends in ``.tmp`` for as long as it takes to rename it, or to write it.
    """
    folder, flags = os.path.dirname(path) or ".", os.O_RDWR | os.O_CLOEXEC
    rough: str | None = None
    try:
        fd = limits.open_with_retry(lambda: os.open(folder, flags | os.O_TMPFILE, mode))
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NAMELESS:
            raise
        rough = _rough(path)
        fd = os.open(rough, flags | os.O_CREAT | os.O_EXCL, mode)
    try:
        reserve_range(fd, 0, nbytes)
        yield fd
        if replace and rough is None and os.path.lexists(path):
            _link(fd, rough := _rough(path))
        if rough is None:
            _link(fd, path)
        elif replace:
            os.replace(rough, path)
            rough = None
        else:
            os.link(rough, path)
    finally:
        os.close(fd)
        if rough is not None:
            os.unlink(rough)


def _rough(path: str) -> str:
    return f"{path}.{os.urandom(4).hex()}.tmp"


def _link(fd: int, path: str) -> None:
    name, flags = os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    folder = limits.open_with_retry(lambda: os.open(name, flags))
    try:  # linkat alone follows the link in /proc, and needs a folder
        os.link(f"/proc/self/fd/{fd}", os.path.basename(path), src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)
