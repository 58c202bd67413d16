"""Answers of the system: optional calls and their fall-backs, and the meaning of errors.

A call may exist in Python and yet be refused: by an older kernel, by a filter of system calls (a
container, a sandbox), or by a file system.

Guarantees
----------
A call is tried before its fall-back.  A system that lacks it is asked once.
Only a refusal leads to the fall-back.  A lack of room, descriptors or processes is an error.
The meaning of an error number is told here alone.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

from shmpar.errors import SegmentError, SegmentFull

T = TypeVar("T")

REFUSED: Final = frozenset({
    errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EISDIR,
    errno.ENODEV, errno.ENOTTY, errno.EPROTONOSUPPORT, errno.EPROTOTYPE, errno.ENOLCK,
})  # fmt: skip
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG})
_M_TRIM_THRESHOLD: Final = -1  # of mallopt(3)
_M_MMAP_THRESHOLD: Final = -3
NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})
NO_PROCESSES: Final = frozenset({errno.EAGAIN, errno.ENOMEM})  # fork
HELD: Final = frozenset({errno.EAGAIN, errno.EACCES})  # a lock, by another process
GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})  # the end of a socket
# Why ETOOMANYREFS: too many descriptors are on the way.
LATER: Final = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ETOOMANYREFS})

ADDRESS_SPACE: Final = (
    "raise the limit on its address space (ulimit -v) or on the number of its mappings (sysctl "
    "vm.max_map_count), use smaller arrays, or drop some"
)

_absent: set[str] = set()


def attempt(name: str, call: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """Return the result of an optional system call, or of its fall-back if it is refused.

    Parameters
    ----------
    name : str
        The name under which a system that lacks the call is remembered.
    call, otherwise : callable
        The call and its fall-back.

    Raises
    ------
    OSError
        The call failed for another reason than a refusal.

    Examples
    --------
    >>> attempt("example", lambda: os.no_such_call(), lambda: "the fall-back")
    'the fall-back'
    """
    if name not in _absent:
        try:
            return call()
        except (AttributeError, ImportError):
            _absent.add(name)
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            # Why: any other refusal may hold for this file alone.
            if error.errno == errno.ENOSYS:
                _absent.add(name)
    return otherwise()


def granted(name: str, call: Callable[[], object]) -> bool:
    """Make an optional system call, as :func:`attempt`; return False if it is refused.

    Examples
    --------
    >>> granted("example", lambda: os.no_such_call())
    False
    """

    def make() -> bool:
        call()
        return True

    return attempt(name, make, lambda: False)


@functools.cache
def keep_freed_blocks(most: int) -> None:
    """Have malloc keep freed blocks of up to so many bytes for later ones; it returns larger ones.

    Why: the system clears each page of a block that is returned and allocated again, which takes
    longer than a simple function of the block.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "GLIBC_TUNABLES" in os.environ:
        return
    # Why suppressed: other C libraries have no such function.
    with suppress(AttributeError, OSError):
        libc().mallopt(_M_MMAP_THRESHOLD, most)
        libc().mallopt(_M_TRIM_THRESHOLD, 2 * most)


def return_freed_blocks() -> None:
    """Return the memory that malloc has kept to the system."""
    with suppress(AttributeError, OSError):
        libc().malloc_trim(0)


class room_for:  # noqa: N801 - as contextlib.suppress
    """Turn the errors of a full disk, a quota or a limit on memory into `SegmentFull`."""

    def __init__(self, purpose: str, advice: str) -> None:
        self._purpose, self._advice = purpose, advice

    def __enter__(self) -> None:
        """Do nothing; a function with a yield would be slower."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            text = f"no room for {self._purpose}: {lack(error.errno or 0)}; {self._advice}"
            raise SegmentFull(text) from None


def lack(number: int) -> str:
    """Return the text of an error of `NO_ROOM`; it names the limit on the size of files.

    Examples
    --------
    >>> lack(errno.EFBIG)
    'File too large (ulimit -f)'
    """
    return os.strerror(number) + " (ulimit -f)" * (number == errno.EFBIG)


def is_at(fd: int, path: str) -> bool:
    """Return whether a path leads to an open file, which may have been removed or replaced."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.path.samestat(os.fstat(fd), os.stat(path))
    return False


def without_names(reason: str) -> SegmentError:
    """Return the error for a name that the system refuses."""
    return SegmentError(
        f"this system gives a segment no name ({reason}): pass the array to the function of a "
        "pool, which needs no name, and drop name= (python -m shmpar doctor shows the cause)"
    )


def shortened(purpose: str) -> SegmentError:
    """Return the error for a file that was truncated under its mapping."""
    return SegmentError(
        f"{purpose}: the file was shortened (truncated) since it was mapped, so a part of its "
        "values is gone; map it again, or write a new file beside it and rename that"
    )


@functools.cache
def libc() -> Any:
    """Return the C library, for calls that Python lacks or makes with the interpreter lock held."""
    import ctypes  # Why here: NumPy has loaded it; without it there are no huge pages

    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    number, size, offset = ctypes.c_int, ctypes.c_size_t, ctypes.c_longlong
    library.mmap.argtypes = [ctypes.c_void_p, size, number, number, number, ctypes.c_long]
    library.madvise.argtypes = [ctypes.c_void_p, size, number]
    library.fallocate.argtypes = [number, number, offset, offset]
    return library


_PATH_BYTES: Final = 4096
_AT_FDCWD: Final = -100
_STATX_MASK: Final = 0x240  # STATX_MTIME and STATX_SIZE
_STATX_BYTES: Final = 256  # of the structure, and the places of two fields in it
_STATX_SIZE, _STATX_TIME = slice(40, 48), slice(112, 128)


@functools.cache
def _getcwd() -> Callable[[], bytes | None]:
    try:
        import ctypes

        call = ctypes.PyDLL(None).getcwd
    except (AttributeError, ImportError, OSError):
        return lambda: None
    memory = ctypes.create_string_buffer(_PATH_BYTES)
    call.restype = ctypes.c_char_p
    return functools.partial(call, memory, ctypes.c_size_t(_PATH_BYTES))


def working_directory() -> bytes | None:
    """Return the working directory; None if it was removed.

    Why not os.getcwdb alone: it releases the interpreter lock. A thread that submits many calls
    would wait for the pool thread at each of them.
    """
    found = _getcwd()()
    if found is None:  # Why again: a path may be longer.
        with suppress(OSError):
            found = os.getcwdb()
    return found


def file_stamp(path: str) -> bytes | None:
    """Return the size and time of a file, which change if it is edited; None if it is gone.

    Why not os.stat alone: it releases the interpreter lock, as os.getcwdb does.
    """
    found = _statx()(os.fsencode(path))
    if found is None:
        with suppress(OSError):
            status = os.stat(path)
            found = repr((status.st_size, status.st_mtime_ns)).encode()
    return found


@functools.cache
def _statx() -> Callable[[bytes], bytes | None]:
    try:
        import ctypes

        call = ctypes.PyDLL(None).statx
    except (AttributeError, ImportError, OSError):
        return lambda _: None

    def stamp(path: bytes) -> bytes | None:
        # Why not one buffer for all calls: another thread may fill it before this one reads.
        found = ctypes.create_string_buffer(_STATX_BYTES)
        failed = call(_AT_FDCWD, path, 0, _STATX_MASK, found)
        return None if failed else found.raw[_STATX_SIZE] + found.raw[_STATX_TIME]

    return stamp


def last_error() -> OSError:
    """Return the error of the last call of :func:`libc` in this thread."""
    import ctypes

    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def is_reserved(fd: int, nbytes: int) -> bool:
    """Return whether a file has memory, or room on its disk, for so many bytes."""
    return 512 * os.fstat(fd).st_blocks >= nbytes


def fallocate(fd: int, start: int, nbytes: int) -> None:
    """Reserve bytes of a file that other processes may write to at this moment.

    Why not os.posix_fallocate: where the kernel refuses, the C library reads and writes a byte of
    each page, and could overwrite the byte of another process.

    Raises
    ------
    OSError
        The kernel refuses, or there is no room.
    AttributeError, ImportError
        The system lacks the call.
    """
    while libc().fallocate(fd, 0, start, nbytes):
        if last_error().errno != errno.EINTR:
            # Why anew: a frame that holds the error which it raises is a cycle, and keeps memory.
            raise last_error()
