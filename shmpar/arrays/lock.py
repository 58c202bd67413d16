"""Locks for threads and processes, released by the kernel when their holder dies.

Guarantees
----------
At most one thread of all processes holds the lock of an array.
The kernel releases the lock when the process that holds it exits, in any way.
"""

from __future__ import annotations

import contextlib
import operator
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

from shmpar.errors import SegmentError
from shmpar.memory import system

_FIRST_PAUSE: Final = 0.0002  # seconds
_LONGEST_PAUSE: Final = 0.01

_locks: weakref.WeakValueDictionary[tuple[int, int, int], Lock] = weakref.WeakValueDictionary()
_locks_lock = threading.Lock()


class Lock:
    """Lock on the bytes of one array, for threads and processes.

    It is not reentrant, like :class:`threading.Lock`.

    Parameters
    ----------
    reopen : callable
        Opens the segment and returns a new descriptor.
    start : int
        Byte of the segment that is locked.
    view : callable
        Returns a shared array that has this lock, for the pickle.
    """

    # Lock: the kernel's lock belongs to an open file description. Processes that share one, by
    # inheritance or over a socket, do not exclude each other: each must open the segment again.
    def __init__(self, reopen: Callable[[], int], start: int, view: Callable[[], object]) -> None:
        self._reopen, self._start, self._view = reopen, start, view
        self._fd, self._held = -1, False
        # Lock: threads of this process share a description; acquired before the kernel's lock.
        self._thread_lock = threading.Lock()

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for the lock, at most ``timeout`` seconds (None: without limit; 0: do not wait).

        Returns
        -------
        bool
            True if the lock was acquired, False after the timeout.

        Raises
        ------
        ValueError
            The timeout is negative.
        TypeError
            The timeout is a bool, as for other locks.

        Notes
        -----
        Cost: one system call if the lock is free.
        """
        if isinstance(timeout, bool):  # Why: it would be a timeout of 1 s, or of 0 s.
            raise TypeError("write acquire() to wait, and acquire(timeout=0) not to wait")
        if timeout is not None and timeout < 0:
            raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout}")
        if timeout is not None and timeout > threading.TIMEOUT_MAX:
            timeout = None  # Why: no clock goes so far.
        deadline = None if timeout is None else time.monotonic() + timeout
        taken: list[bool] = []
        try:
            # Why by extend: no interrupt comes between the lock and the note of it.
            taken.extend(
                map(self._thread_lock.acquire, [True], [-1 if timeout is None else timeout])
            )
            if taken[0]:
                self._held = self._acquire_from_processes(deadline)
        except BaseException:
            if any(taken):  # Why: an interrupt may come after the kernel has given the lock.
                with contextlib.suppress(OSError, SegmentError):
                    self._let_go()
            raise
        if not taken[0]:
            return False
        if not self._held:
            self._thread_lock.release()
            return False
        return True

    def release(self) -> None:
        """Release the lock.

        Raises
        ------
        RuntimeError
            No thread of this process holds the lock.
        """
        if not self._held:
            raise RuntimeError("cannot release a lock that is not held")
        self._let_go()

    def _let_go(self) -> None:
        self._held = False
        try:
            if self._fd >= 0:
                _set_lock(self._fd, self._start, lock=False)
        finally:  # Why: an interrupt may come after the kernel has taken the lock back.
            self._thread_lock.release()

    def locked(self) -> bool:
        """Return True if a thread of this process holds the lock."""
        return self._held

    def __reduce__(self) -> Any:
        """Pickle as a view of the array: in another process this is the lock of the same bytes."""
        return operator.attrgetter("lock"), (self._view(),)

    def __copy__(self, _: object = None) -> Lock:
        """Return itself: there is one lock for the bytes."""
        return self

    __deepcopy__ = __copy__

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _acquire_from_processes(self, deadline: float | None) -> bool:
        if self._fd < 0:
            self._fd = self._reopen()
        if deadline is None:
            return _set_lock(self._fd, self._start, wait=True)
        pause = _FIRST_PAUSE
        while not _set_lock(self._fd, self._start):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))  # Why: an alarm would take the user's SIGALRM
            pause = min(2 * pause, _LONGEST_PAUSE)
        return True

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = _close

    def _reset_after_fork(self) -> None:
        # Lock: the inherited description would keep the lock of a parent that has died.
        self._close()
        self._held, self._thread_lock = False, threading.Lock()


def _set_lock(fd: int, start: int, *, lock: bool = True, wait: bool = False) -> bool:
    """Lock or unlock one byte; return False if another process holds it."""
    import fcntl  # Why here: Windows lacks it, and has no segments of ours.

    def lock_bytes() -> None:
        command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        kind = fcntl.F_WRLCK if lock else fcntl.F_UNLCK
        # Why: fcntl.lockf locks for the whole process; struct flock asks for a description.
        fcntl.fcntl(fd, command, struct.pack("@hhqqi4x", kind, os.SEEK_SET, start, 1, 0))

    def lock_file() -> None:  # coarser, and as safe
        kind = fcntl.LOCK_EX if lock else fcntl.LOCK_UN
        fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)

    try:
        system.attempt("F_OFD_SETLK", lock_bytes, lock_file)
    except OSError as error:
        if error.errno in system.REFUSED:
            raise SegmentError(
                f"this system has no locks for arrays ({error.strerror}): let the function return "
                "its values, and combine them in the caller"
            ) from None
        if wait or error.errno not in system.HELD:
            raise
        return False
    return True


def lock_of(
    identity: tuple[int, int],
    start: int,
    reopen: Callable[[], int],
    view: Callable[[], object],
) -> Lock:
    """Return the lock of this process for a byte of a file (device, inode).

    All callers get the same object while it exists.
    """
    with _locks_lock:
        return _locks.setdefault((*identity, start), Lock(reopen, start, view))


def _after_fork() -> None:
    global _locks_lock  # noqa: PLW0603
    _locks_lock = threading.Lock()  # Lock: another thread of the parent may have held it
    for lock in list(_locks.values()):
        lock._reset_after_fork()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
