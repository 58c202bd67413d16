"""Counters that hand out tickets: each ticket is the right to compute one chunk.

Guarantees
----------
- Each number from 0 on is handed out exactly once, among threads and processes. A process that
  dies leaves no lock behind.
- A counter only goes up. A claim that overshoots the end has consumed the numbers behind the end,
  so a counter serves one generation of a run and is closed after it.
- A claim touches nothing but the counter's descriptor: no shared memory and no lock of the parent.
- A claim from another file, to which the user's code has given the descriptor, is an error: the
  numbers begin so high that no offset of such a file is one.

Mechanisms
----------
``lseek`` relative to the current offset is a fetch-and-add if the system locks the offset of an
open file description. POSIX.1-2017 (XSI 2.9.7) asks for that lock. Linux takes it for files that
were opened by path, but not for a plain ``memfd``. On other systems a record lock around a number
in the file does the same with more system calls. A system without record locks has no worker
processes; a lock of :mod:`threading` suffices there.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import os
import sys
import threading

from shmpar.memory import allocate, limits

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NUMBER_BYTES = 8  # of the number in the file of LockTickets
_BEGIN = 1 << 42  # Why not more: a file system may not allow a larger offset.


def _ticket(number: int) -> int:
    if number < _BEGIN:
        raise OSError(errno.EBADF, "another file has the number of the ticket counter")
    return number - _BEGIN


class Tickets(abc.ABC):
    """A counter that owns one descriptor of its file.

    Attributes
    ----------
    kind : str
        Name of the mechanism, as :func:`open_tickets` takes it.
    """

    kind: str

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor to send to another process, or -1."""
        return self._fd

    @abc.abstractmethod
    def claim(self, count: int) -> int:
        """Take `count` tickets and return the first number."""

    def stop(self, end: int) -> int:
        """Hand out no more tickets below `end`; return how many were handed out before."""
        # Invariant: this is one step. Each claim is either before it and counted, or behind it and
        # empty.
        return self.claim(end)

    def close(self) -> None:
        """Close the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if self._fd >= 0:  # Why: most were closed, and this is on the way of each call.
            with contextlib.suppress(OSError):
                self.close()


class OffsetTickets(Tickets):
    """Count with the file offset that all holders of one open file description share.

    Cost: one system call per claim.
    """

    kind = "offset"

    def claim(self, count: int) -> int:
        """Take `count` tickets and return the first number."""
        return _ticket(os.lseek(self._fd, count, os.SEEK_CUR) - count)


class LockTickets(Tickets):
    """Count with a number in the file, under a POSIX record lock.

    Cost: four system calls per claim.
    """

    kind = "lock"

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        # Lock: a record lock belongs to the process, so threads exclude each other by this one.
        # Why: closing any other descriptor of the file would drop the record lock, so a process
        # has a single descriptor. The kernel drops the record lock of a process that dies.
        self._threads = threading.Lock()

    def claim(self, count: int) -> int:
        """Take `count` tickets and return the first number."""
        with self._threads:
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
            try:
                number = int.from_bytes(os.pread(self._fd, _NUMBER_BYTES, 0), "little")
                first = _ticket(number)
                os.pwrite(self._fd, (number + count).to_bytes(_NUMBER_BYTES, "little"), 0)
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)
        return first


class ThreadTickets(Tickets):
    """Count for the threads of this process alone."""

    kind = "thread"

    def __init__(self) -> None:
        super().__init__(-1)
        self._threads = threading.Lock()
        self._next = 0

    def claim(self, count: int) -> int:
        """Take `count` tickets and return the first number."""
        with self._threads:
            first = self._next
            self._next += count
        return first


class Counters:
    """Makes the counters of an engine; those that count by an offset share one file."""

    def __init__(self) -> None:
        self._first: Tickets | None = None  # Why: it is never counted with; it holds the file open

    def new(self) -> Tickets:
        """Make a counter that stands at 0."""
        first = self._first
        if first is None:
            first = self._first = new_tickets()
        if first.kind == "offset":
            # Why: an open file description of its own has an offset of its own.
            with contextlib.suppress(FileNotFoundError):  # /proc is not mounted
                return _from_begin(limits.reopen(first.fileno()))
        return new_tickets()


def new_tickets(kind: str | None = None) -> Tickets:
    """Make a counter that stands at 0, with a file of its own.

    Parameters
    ----------
    kind : {"offset", "lock", "thread"}, optional
        The mechanism; by default the fastest one that this system guarantees.

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
        kind = "offset" if _offset_is_atomic() else "lock" if hasattr(fcntl, "lockf") else "thread"
    if kind == "thread":
        return ThreadTickets()
    try:
        fd = _counter_file()
    except FileNotFoundError:  # Why: without /proc a memory file cannot be opened by path
        kind, fd = "lock", allocate.make_file(_NUMBER_BYTES).fd
    if kind == "offset":
        return _from_begin(fd)
    os.pwrite(fd, _BEGIN.to_bytes(_NUMBER_BYTES, "little"), 0)
    return open_tickets(kind, fd)


def _from_begin(fd: int) -> OffsetTickets:
    """Return a counter by the offset of a file that was just opened."""
    os.lseek(fd, _BEGIN, os.SEEK_SET)
    return OffsetTickets(fd)


def open_tickets(kind: str, fd: int) -> Tickets:
    """Return the counter that another process made, given its descriptor."""
    return {"offset": OffsetTickets, "lock": LockTickets}[kind](fd)


def _offset_is_atomic() -> bool:
    """Return whether a relative seek is a fetch-and-add on this system."""
    # Why: Linux locks the offset since 3.14. gVisor and WSL 1 report 4.4.0 and are other systems.
    return sys.platform == "linux" and not os.uname().release.startswith("4.4.0")


def _counter_file() -> int:
    """Open a nameless file with an offset that the kernel locks."""
    fd, kind, _ = allocate.make_file(_NUMBER_BYTES, lambda *_: None)  # Why: it may be empty
    if kind != "memfd":
        return fd
    try:  # Why: the kernel locks the offset only of a file that was opened by path.
        return limits.reopen(fd)
    finally:
        os.close(fd)
