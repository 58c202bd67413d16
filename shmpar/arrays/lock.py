"""Locks that die with their holder.

Imports the standard library only.

Guarantees
----------
At most one thread of all processes holds the lock of an array.  The kernel takes it back when its
holder ends, however it ends.
The lock belongs to an *open file description*.  One that was passed over a socket, or inherited,
is shared, and then nothing excludes; so each process opens the segment again, and a forked
child closes its copy (which would else keep a dead parent's lock).
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Lock", "lock_of"]

try:
    import fcntl
except ImportError:  # Windows has no segments of ours
    fcntl = None  # type: ignore[assignment]


_BUSY: Final = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}
_FIRST_PAUSE: Final = 0.0002  # seconds
_LONGEST_PAUSE: Final = 0.01

_locks: weakref.WeakValueDictionary[tuple[int, int, int], Lock] = weakref.WeakValueDictionary()
_locks_lock = threading.Lock()


class Lock:
    """A lock that threads and processes share, for the bytes of one array.

    It is not reentrant, as :class:`threading.Lock`.

    Parameters
    ----------
    reopen : callable
        Opens the segment anew.
    start : int
        Byte of the segment that is locked.
    """

    def __init__(self, reopen: Callable[[], int], start: int) -> None:
        self._reopen = reopen
        self._start = start
        self._fd = -1
        self._threads = threading.Lock()

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for the lock, at most ``timeout`` seconds (None: for ever; 0: not at all).

        Returns
        -------
        bool
            Whether it is held now.

        Raises
        ------
        ValueError
            The timeout is negative.

        Notes
        -----
        Cost: 2 us where nobody holds it.
        """
        if timeout is not None and timeout < 0:
            raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout}")
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._threads.acquire(timeout=-1 if timeout is None else timeout):
            return False
        held = False
        try:
            held = self._from_processes(deadline)
        finally:
            if not held:
                self._threads.release()
        return held

    def release(self) -> None:
        """Let the next one have it.

        Raises
        ------
        RuntimeError
            It is not held.
        """
        if not self._threads.locked():
            raise RuntimeError("cannot release a lock that is not held")
        _set(self._fd, self._start, fcntl.F_UNLCK)
        self._threads.release()

    def locked(self) -> bool:
        """Whether a thread of this process holds it."""
        return self._threads.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _from_processes(self, deadline: float | None) -> bool:
        if self._fd < 0:
            self._fd = self._reopen()
        if deadline is None:
            return _wait(self._fd, self._start)
        pause = _FIRST_PAUSE
        while not _set(self._fd, self._start, fcntl.F_WRLCK):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))  # no alarm: it would be the user's
            pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    def _forget(self) -> None:
        """In a forked child: the parent's description is not ours, nor who holds it."""
        fd, self._fd = self._fd, -1
        self._threads = threading.Lock()
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _request(start: int, kind: int) -> bytes:
    """Fill in the C structure ``flock`` for one byte."""
    return struct.pack("@hhqqi4x", kind, os.SEEK_SET, start, 1, 0)


def _set(fd: int, start: int, kind: int) -> bool:
    try:
        if hasattr(fcntl, "F_OFD_SETLK"):
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _request(start, kind))
        else:  # the whole file: coarser, and as safe
            fcntl.flock(fd, fcntl.LOCK_UN if kind == fcntl.F_UNLCK else _EXCLUSIVE_NOW())
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def _wait(fd: int, start: int) -> bool:
    """Sleep in the kernel; signals get through."""
    if hasattr(fcntl, "F_OFD_SETLKW"):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _request(start, fcntl.F_WRLCK))
    else:
        fcntl.flock(fd, fcntl.LOCK_EX)
    return True


def _EXCLUSIVE_NOW() -> int:  # noqa: N802 (a constant that Windows lacks)
    return fcntl.LOCK_EX | fcntl.LOCK_NB


def lock_of(identity: tuple[int, int], start: int, reopen: Callable[[], int]) -> Lock:
    """Give the one lock of this process for a byte of a file (device, inode)."""
    with _locks_lock:
        key = (*identity, start)
        found = _locks.get(key)
        if found is None:
            found = _locks[key] = Lock(reopen, start)
        return found


def _after_fork() -> None:
    global _locks_lock  # noqa: PLW0603 (another thread of the parent may have held it)
    _locks_lock = threading.Lock()
    for lock in list(_locks.values()):
        lock._forget()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
