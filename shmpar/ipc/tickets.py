"""Tickets: the right to compute one chunk, handed out once, by the kernel.

Imports the segment package's descriptors.

Guarantees
----------
- Each number from 0 on is handed out exactly once, among threads and processes, and no holder
  that dies keeps anything locked.
- While anybody may draw from it, a counter only goes up, and a claim that overshoots the end has
  consumed the numbers behind it; a retry takes another counter. :meth:`Tickets.rewind` is for
  the next run, when all workers have said that they are through with it.
- Whoever claims touches nothing but the counter's descriptor: no memory, no lock of the parent.

Why two mechanisms: ``lseek`` relative to the current offset is a fetch-and-add where the system
locks the offset of an open file description, which POSIX.1-2017 (XSI 2.9.7) asks for and Linux
does for files that were opened by path (not for a plain ``memfd``). Elsewhere a record lock
around a number in the file does the same, about ten times slower.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
from typing import Protocol

from shmpar.memory import limits

__all__ = ["LockTickets", "OffsetTickets", "Tickets", "new_tickets", "open_tickets"]

_NUMBER = 8  # bytes of the counter kept in a file


class Tickets(Protocol):
    """A counter that several processes draw from."""

    kind: str

    def fileno(self) -> int:
        """Descriptor to hand to another process."""
        ...

    def claim(self, count: int) -> int:
        """Take `count` tickets; return the first one's number."""
        ...

    def stop(self, end: int) -> int:
        """Hand out no more below `end`; return how many claims had been handed out."""
        ...

    def rewind(self) -> None:
        """Start again at 0; nobody draws from it."""
        ...

    def close(self) -> None:
        """Release the descriptor."""
        ...


class _Descriptor:
    """Owns one descriptor of the counter's file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()


class OffsetTickets(_Descriptor):
    """The counter is the file offset that all holders of one open file description share.

    Cost: one system call a claim (0.3 us).
    """

    kind = "offset"

    def claim(self, count: int) -> int:
        """Take `count` tickets; return the first one's number."""
        return os.lseek(self._fd, count, os.SEEK_CUR) - count

    def stop(self, end: int) -> int:
        """Hand out no more below `end`; return how many had been handed out."""
        # One step: a claim is either before it, and counted, or behind it, and empty.
        return self.claim(end)

    def rewind(self) -> None:
        """Start again at 0; nobody draws from it."""
        os.lseek(self._fd, 0, os.SEEK_SET)


class LockTickets(_Descriptor):
    """The counter is a number in the file, under a POSIX record lock.

    The lock belongs to the process, so threads of one process exclude each other by a lock of
    their own; the kernel drops it when the holder dies. One descriptor a process: closing any
    other descriptor of the file would drop the lock.

    Cost: four system calls a claim (2 to 3 us).
    """

    kind = "lock"

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._threads = threading.Lock()

    def claim(self, count: int) -> int:
        """Take `count` tickets; return the first one's number."""
        with self._threads:
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
            try:
                first = int.from_bytes(os.pread(self._fd, _NUMBER, 0), "little")
                os.pwrite(self._fd, (first + count).to_bytes(_NUMBER, "little"), 0)
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)
        return first

    def stop(self, end: int) -> int:
        """Hand out no more below `end`; return how many had been handed out."""
        return self.claim(end)

    def rewind(self) -> None:
        """Start again at 0; nobody draws from it."""
        os.pwrite(self._fd, bytes(_NUMBER), 0)


def _counter_file() -> int:
    """Open a nameless file whose offset is locked by the kernel."""
    try:
        return os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)  # noqa: S108
    except (OSError, AttributeError):
        return _counter_file_elsewhere()


def _counter_file_elsewhere() -> int:
    if hasattr(os, "memfd_create"):
        plain = os.memfd_create("shmpar-tickets")
        try:
            os.fchmod(plain, 0o600)  # it is made with 0o777
            # A plain memfd's offset is not locked; one that was opened by path is.
            return os.open(f"/proc/self/fd/{plain}", os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.close(plain)
    import tempfile

    fd, path = tempfile.mkstemp(prefix="shmpar")
    os.unlink(path)
    return fd


def _offset_is_atomic() -> bool:
    """Whether relative seeks of one open file description are a fetch-and-add here."""
    # Linux locks the offset since 3.14. gVisor and WSL 1, which call themselves 4.4.0, are systems
    # of their own.
    return sys.platform == "linux" and not os.uname().release.startswith("4.4.0")


KINDS: dict[str, type[OffsetTickets | LockTickets]] = {
    "offset": OffsetTickets,
    "lock": LockTickets,
}


def new_tickets(kind: str | None = None) -> OffsetTickets | LockTickets:
    """Make a counter that stands at 0.

    Parameters
    ----------
    kind : {"offset", "lock"}, optional
        The mechanism; by default the faster one that this system guarantees.

    Examples
    --------
    >>> tickets = new_tickets()
    >>> tickets.claim(3), tickets.claim(1)
    (0, 3)
    >>> tickets.stop(10)
    4
    >>> tickets.claim(1) >= 10
    True
    >>> tickets.close()
    """
    if kind is None:
        kind = "offset" if _offset_is_atomic() else "lock"
    return KINDS[kind](limits.open_with_retry(_counter_file))


def open_tickets(kind: str, fd: int) -> OffsetTickets | LockTickets:
    """Take over the descriptor of a counter that another process made."""
    return KINDS[kind](fd)
