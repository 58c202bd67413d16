"""Keep the files of segments that have ended for about a second, for new segments of their size.

A program that makes a large array again and again drops one of the same size each time. The pages
of that one are made, zeroed and reserved already, which costs the kernel more than a copy into
them.

Guarantees
----------
- Nobody sees the new values but the new owner. The kernel grants a lease for writing only if no
  other process, mapping or message holds the file (fcntl(2), F_SETLEASE), and a file that others
  might open later by a name is never used again.
- Each byte of a kept file is reserved.
- A file is kept only while a pool thread runs that closes it in time, and only beside free memory
  of `_SHARE` times its bytes. A lack of room closes it at once.
- :func:`keep` may run in a finalizer, in any thread: it takes no lock.
- A forked child keeps none.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from shmpar.memory import limits, system

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

SECONDS: Final = 1.0
"""Time for which a file is kept."""

_MIN_BYTES: Final = 4 << 20  # Why: a smaller file is made quickly
_SHARE: Final = 8
_PATIENCE: Final = 1e-11  # seconds per byte
_POLL_SECONDS: Final = 1e-4
_MOST: Final = 32  # files, since each is a descriptor


class Kept:
    """A file of a segment that has ended; this object closes it, unless it is taken.

    Attributes
    ----------
    nbytes : int
        Its size.
    kind : str
        The kind of its segment.
    huge_bytes : int
        Bytes that lie in huge pages.
    until : float
        The end of its time, by ``time.monotonic()``.
    """

    __slots__ = ("_fds", "huge_bytes", "kind", "nbytes", "until")

    def __init__(self, fd: int, nbytes: int, kind: str, huge_bytes: int) -> None:
        self._fds = [fd]  # Why first: an interrupt then leaves an object that closes it
        self.nbytes, self.kind, self.huge_bytes = nbytes, kind, huge_bytes
        self.until = time.monotonic() + SECONDS

    def take(self) -> int:
        """Return the descriptor, which the caller closes from now on."""
        return self._fds.pop()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fds[0]

    def is_free(self) -> bool:
        """Return whether nobody else has the file open or mapped, or could find it by a name."""
        limits.keep_standard_streams()
        # Why: all descriptors and mappings of an earlier opening count as one with its own.
        own = limits.reopen(self._fds[0])
        self._fds.append(own)
        os.close(self._fds.pop(0))
        if os.fstat(own).st_nlink:  # Why: a worker may have given it a name
            return False
        # Why the signal: SIGIO, the default, would end this process if another opened the file now.
        fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(own, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return False
            raise
        fcntl.fcntl(own, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        fds = getattr(self, "_fds", [])  # Why: an interrupt may have stopped __init__
        while fds:
            _close(fds.pop())


# Invariant: an entry is popped by the thread that takes or closes its file, which is atomic.
_kept: dict[int, Kept] = {}
_keys = itertools.count()
# The calls that wake the pool threads. Lock: replaced under _attending, and read without.
_wakes: tuple[Callable[[], object], ...] = ()
_attending = threading.Lock()
_unchecked = False  # set when a file is kept for which nobody has looked for free memory
_refused = False  # set when the system has refused a lease


@contextlib.contextmanager
def attended(wake: Callable[[], object]) -> Iterator[None]:
    """Have files kept while this thread, which calls :func:`tend`, is in the block.

    Parameters
    ----------
    wake : callable
        Ends the wait of this thread; may be called in a finalizer.
    """
    global _wakes  # noqa: PLW0603 - the files of a process
    with _attending:
        _wakes = (*_wakes, wake)
    try:
        yield
    finally:
        with _attending:
            _wakes = tuple(one for one in _wakes if one is not wake)
        clear()


def keep(file: Kept) -> None:
    """Keep the file of a segment that has ended, if a pool thread runs and it has no holes."""
    global _unchecked  # noqa: PLW0603 - as above
    if file.nbytes < _MIN_BYTES or _refused or not _wakes:
        return
    # Why: a write to a hole would be SIGBUS if there is no room.
    if not system.is_reserved(file.fileno(), file.nbytes):
        return
    _kept[next(_keys)] = file
    _unchecked = True
    # Why all: one of them may be busy for long, or have no engine at this moment.
    for wake in _wakes:
        wake()
    if not _wakes:  # Why again: the last pool thread may have ended meanwhile
        clear()


def take(nbytes: int) -> Kept | None:
    """Return a kept file of exactly so many bytes that nobody else has; None if there is none.

    A worker may not have read yet that the segment has ended. So this waits for a tenth of the time
    in which new memory would be made.
    """
    until = time.monotonic() + nbytes * _PATIENCE
    while any(one.nbytes == nbytes for one in kept()):
        if (found := _take(nbytes)) is not None or time.monotonic() > until:
            return found
        time.sleep(_POLL_SECONDS)
    return None


def _take(nbytes: int) -> Kept | None:
    global _refused  # noqa: PLW0603 - as above
    for key, one in _newest_first():
        if one.nbytes != nbytes or _kept.pop(key, None) is None:
            continue
        try:
            if one.is_free():
                return one
        except (OSError, AttributeError) as error:
            lacks = {*system.NO_DESCRIPTORS, errno.ENOMEM}
            _refused = getattr(error, "errno", None) not in lacks
            continue
        _kept[key] = one
    return None


def tend() -> float | None:
    """Close the files whose time is over; return the seconds until the next one is due."""
    global _unchecked
    if not _kept:
        return None
    is_new, _unchecked = _unchecked, False
    if is_new:
        _drop_surplus()
    now, dues = time.monotonic(), list[float]()
    for key, one in _newest_first():
        if one.until > now:
            dues.append(one.until - now)
        else:
            _kept.pop(key, None)
    return min(dues, default=None)


def _drop_surplus() -> None:
    """Close the oldest files until the rest is few, and small beside the free memory."""
    free, total = limits.free_memory(), 0
    for count, (key, one) in enumerate(_newest_first()):
        total += one.nbytes
        with contextlib.suppress(OSError, IndexError):  # Why: another thread may have taken it
            free = min(free, limits.free_on_device(one.fileno()))
        if total * _SHARE > free or count >= _MOST:
            _kept.pop(key, None)


def _newest_first() -> Iterator[tuple[int, Kept]]:
    # Why not the items: a garbage collection could add one while they are listed.
    for key in reversed(list(_kept)):
        if (one := _kept.get(key)) is not None:
            yield key, one


def clear() -> bool:
    """Close all files; return True if there was one."""
    found = bool(_kept)
    while _kept:
        with contextlib.suppress(KeyError):  # another thread has popped the last one
            _kept.popitem()
    return found


def kept() -> list[Kept]:
    """Return the files that are kept now, the newest first; any thread may ask."""
    return [one for _, one in _newest_first()]


def _after_fork() -> None:
    # Lock: another thread of the parent may have held it.
    global _attending, _wakes
    _attending, _wakes = threading.Lock(), ()
    clear()  # Why at once: later, the numbers of the descriptors may denote other files


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
