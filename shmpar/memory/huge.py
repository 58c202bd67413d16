"""Put segments into huge pages of 2 MiB, which Linux makes on request since version 6.1.

A fresh page of 4 KiB costs a fault for each process that writes to it, and entries of the
translation buffers afterwards. ``madvise(MADV_COLLAPSE)`` puts the 2 MiB around an address into a
huge page, whatever the settings under ``/sys/kernel/mm/transparent_hugepage`` say. The page is
zeroed, reserved and mapped at once, and still lies in the cache of the processor when it is filled.

Guarantees
----------
- A page that was made is reserved as a whole: a write to it cannot raise SIGBUS.
- The first page that is refused, or is slow, ends the attempt for its file. The caller reserves
  the rest in small pages.
- The end of a file that fills no huge page lies in small pages: a file takes no more memory than
  its bytes.
- A mapping is congruent to its file modulo 2 MiB, as the kernel asks.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import time
from typing import Final, TypeVar

import numpy as np

from shmpar.memory import limits, system
from shmpar.memory.layout import address_of

T = TypeVar("T", bound="Range")

PAGE: Final = 2 << 20
BATCH: Final = 4 * PAGE
"""Bytes that a system call puts into huge pages, at most.

Why some pages: at each call, the kernel has all processors empty their lists of pages. Why few:
pages that were just zeroed lie in the cache of the processor.
"""
MIN_BYTES: Final = 2 * PAGE
"""Files with fewer bytes lie in small pages."""
KINDS: Final = {"shm", "memfd"}
"""The kinds of segments that can lie in huge pages."""
VARIABLE: Final = "SHMPAR_HUGE_PAGES"
"""The environment variable that forbids huge pages, by a value of `_OFF`."""

_OFF: Final = {"0", "false", "never", "no", "off"}
_MADV_COLLAPSE: Final = 25
_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000
_SLOW_SECONDS: Final = 0.02  # of the processor, for a page
_STALL_SECONDS: Final = 0.5  # Why: on a busy machine, other processes have their turns meanwhile
_SLOW_RATIO: Final = 16
_RECENT: Final = 9

_refusal: str | None = None  # the reason why no page is tried any more in this process


def refusal() -> str | None:
    """Return the reason why this process makes no huge pages; None if it tries."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() in _OFF:
        return f"{VARIABLE}={chosen}"
    if sys.platform != "linux":
        return "not on this platform"
    return _refusal


class Range(mmap.mmap):
    """A file in the memory of this process, perhaps over a part of a longer range of addresses.

    Attributes
    ----------
    lead : int
        Bytes of this object before the first byte of the file.
    """

    __slots__ = ("lead",)
    lead: int


def new_range(cls: type[T], fd: int, nbytes: int, prot: int) -> T:
    """Return a mapping of a file, of class `cls`, that is aligned to huge pages.

    The object owns a range that is longer than the file, and unmaps all of it at its end.

    Raises
    ------
    OSError
        There is no room for the addresses.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    memory = mmap.mmap.__new__(cls, -1, nbytes + PAGE, flags, prot)
    start = address_of(np.ndarray(1, np.uint8, memory))
    memory.lead = -start % PAGE
    place = start + memory.lead
    if system.libc().mmap(place, nbytes, prot, mmap.MAP_SHARED | _MAP_FIXED, fd, 0) != place:
        raise system.last_error()
    return memory


class PageMaker:
    """Makes huge pages of a file through a mapping that is aligned to them.

    Attributes
    ----------
    stopped : bool
        A page was refused or slow: no further one is tried.
    """

    def __init__(self, start: int) -> None:
        self.stopped = start % PAGE != 0 or refusal() is not None
        self._start = start
        self._seconds: list[float] = []

    def make(self, fd: int, start: int, stop: int) -> int:
        """Make the pages of [start, stop) of the file in order; return the end of those made.

        The bytes keep their values, and other processes may write to them meanwhile.
        """
        return self.make_reserved(fd, start, self.reserve(fd, start, stop))

    def reserve(self, fd: int, start: int, stop: int) -> int:
        """Reserve the first bytes of each page, until no page is to be made; return their end.

        The kernel makes no huge page of a range without any small page.
        """
        for page in range(start, stop, PAGE):
            if self.stopped:
                return page
            try:
                system.fallocate(fd, page, 1)
            except (OSError, AttributeError):
                self.stopped = True
                return page
        return stop

    def make_reserved(self, fd: int, start: int, stop: int) -> int:
        """Make pages whose first bytes are reserved, as :meth:`make`."""
        for low in range(start, stop, BATCH):
            high = min(low + BATCH, stop)
            if (end := self._collapse(fd, low, high)) < high:
                return end
        return stop

    def _collapse(self, fd: int, start: int, stop: int) -> int:
        if self.stopped:
            return start
        began, worked = time.monotonic(), time.thread_time()
        while system.libc().madvise(self._start + start, stop - start, _MADV_COLLAPSE):
            error = system.last_error()
            # Why: another thread or process may hold one of the small pages at this moment.
            if error.errno == errno.EAGAIN and time.thread_time() - worked < _SLOW_SECONDS:
                continue
            if stop - start > PAGE:
                return self._collapse_each(fd, start, stop)
            self._note(error, fd)
            return start
        pages = (stop - start) // PAGE
        stalled = time.monotonic() - began > pages * _STALL_SECONDS
        if self._is_slow((time.thread_time() - worked) / pages) or stalled:
            self.stopped = True
        return stop

    def _collapse_each(self, fd: int, start: int, stop: int) -> int:
        """Make pages of which the kernel refused one; it does not tell which."""
        for page in range(start, stop, PAGE):
            if self._collapse(fd, page, page + PAGE) == page:
                return page
        return stop

    def _is_slow(self, seconds: float) -> bool:
        recent = self._seconds
        median = sorted(recent)[len(recent) // 2] if recent else seconds
        recent[:] = [*recent[1 - _RECENT :], seconds]
        # Why: the kernel moves other pages to find room, and would do so for each page.
        return seconds > max(_SLOW_SECONDS, _SLOW_RATIO * median)

    def _note(self, error: OSError, fd: int) -> None:
        global _refusal  # noqa: PLW0603 - a process has one kernel
        self.stopped = True
        # Why the last two: the kernel refuses a file on a disk, and one in a file system that is
        # full, and may still take another one.
        refused = not self._seconds and error.errno in system.REFUSED
        if refused and limits.is_in_memory(fd) and limits.free_on_device(fd) >= PAGE:
            _refusal = f"the kernel refuses: {error.strerror}"


class NewPages:
    """The huge pages of a new file, made in order, or one by one.

    A file that is reserved already, since a segment that has ended had it, gets no further pages.

    Attributes
    ----------
    memory : ndarray of uint8
        The bytes of the file; those that are not reserved must not be touched.
    """

    def __init__(self, fd: int, nbytes: int) -> None:
        self._is_reserved = system.is_reserved(fd, nbytes)
        os.ftruncate(fd, nbytes)
        mapping = new_range(Range, fd, nbytes, mmap.PROT_READ | mmap.PROT_WRITE)
        self.memory = np.ndarray(nbytes, np.uint8, mapping, mapping.lead)
        self._made: list[int] = []  # Why a list of bytes: several threads may append to it
        self._maker = PageMaker(address_of(self.memory))
        self._fd = fd
        self._whole = nbytes // PAGE * PAGE

    @classmethod
    def of(cls, fd: int, nbytes: int) -> NewPages | None:
        """Return the pages of a new, empty file; None if it shall lie in small pages."""
        if nbytes < MIN_BYTES or refusal() is not None:
            return None
        try:
            return cls(fd, nbytes)
        except (OSError, ImportError):
            return None

    def reserve(self, start: int, stop: int) -> int:
        """Reserve the first bytes of each page, in the thread that owns the descriptor."""
        if self._is_reserved:
            return stop
        return self._maker.reserve(self._fd, start, min(stop, self._whole))

    def make_reserved(self, start: int, stop: int) -> int:
        """Make pages whose first bytes are reserved, as :class:`PageMaker`, in any thread."""
        if self._is_reserved:
            return stop
        end = self._maker.make_reserved(self._fd, start, stop)
        self._made.append(end - start)
        return end

    def make(self, stop: int) -> bool:
        """Make the pages of the bytes before `stop`; return False if one of them is refused."""
        if self._is_reserved:
            return True
        if (start := self.made) < (end := min(-(-stop // BATCH) * BATCH, self._whole)):
            self._made.append(self._maker.make(self._fd, start, end) - start)
            if self.made < end:
                self._whole = self.made
        return stop <= self.made

    @property
    def made(self) -> int:
        """Bytes of the pages that were made."""
        return sum(self._made)
