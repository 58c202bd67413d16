"""Segments that an engine shares with its workers, and the event that wakes its thread."""

from __future__ import annotations

import contextlib
import functools
import os
import weakref
from collections import deque
from collections.abc import Iterable

from shmpar.ipc import protocol
from shmpar.ipc.ledger import Ledger
from shmpar.memory import limits, system
from shmpar.memory.huge import PAGE
from shmpar.memory.segment import Segment, create, open_segments

_ONE = (1).to_bytes(8, "little")
_SPARE_BYTES = 128 * 1024  # behind each ledger, for small outputs
_STEP = 64 * 1024  # Why: the segment also serves a ledger of a few more chunks
_NUMBER_BYTES = 8  # per chunk, in addition
_FREE_LEDGERS = 2
_LARGE_LEDGER = 1 << 20  # bytes of a ledger that is not kept for another run


class WakeUp:
    """Ends the wait of the thread that owns the engine, from any thread and any finalizer.

    Invariant: the descriptors are closed with the last reference to this object, and a writer has
    one. So nobody writes into a file that was given the number of a closed descriptor.
    """

    def __init__(self) -> None:
        self._files: list[int] = []
        self._files = system.attempt("eventfd", self._open_event, self._open_pipe)

    def _open_event(self) -> list[int]:
        fd = limits.open_with_retry(lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        return [fd, fd]

    def _open_pipe(self) -> list[int]:
        files = list(limits.open_with_retry(os.pipe))
        for fd in files:
            os.set_blocking(fd, False)
        return files

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._files[0]

    def set(self) -> None:
        """End the wait, or the next one."""
        # Why suppressed: a full pipe wakes as well.
        with contextlib.suppress(BlockingIOError):
            os.write(self._files[1], _ONE)

    def clear(self) -> None:
        """Wait again, in the thread that has found it set."""
        os.read(self._files[0], 1024)

    def __del__(self) -> None:
        for fd in set(self._files):
            os.close(fd)


class SegmentTracker:
    """Knows the segments that workers have, and collects those that are gone.

    Invariant: a finalizer, which may run in any thread and under any lock, only appends a key and
    wakes the pool thread. The pool thread alone sends messages.
    """

    def __init__(self, wake: WakeUp | None) -> None:
        self.wake = wake
        self._segments: weakref.WeakValueDictionary[int, Segment] = weakref.WeakValueDictionary()
        # Those of payloads and results, which no worker is told to forget.
        self._others: weakref.WeakValueDictionary[int, Segment] = weakref.WeakValueDictionary()
        self._gone: deque[int] = deque()

    def add(self, segments: Iterable[Segment]) -> None:
        """Track the end of these segments."""
        for segment in segments:
            if segment.key not in self._segments:
                self._segments[segment.key] = segment
                segment.subscribe(functools.partial(_gone, weakref.ref(self)))

    def note(self, segments: Iterable[Segment]) -> None:
        """Have segments listed while they live; any thread may ask."""
        for segment in segments:
            self._others[segment.key] = segment

    def adopt(self, record: protocol.SegmentRecord, fd: int) -> Segment:
        """Return the segment of a result, whose descriptor a worker has sent.

        It is the segment of this process if the function has returned an array of it.
        """
        known = self._segments.get(record.key)
        # Why the file too: a segment that the worker has made may have any key.
        if known is not None and not known.closed and known.is_file(fd):
            os.close(fd)
            return known
        segment = Segment.adopt(fd, record.size, kind=record.kind, writable=record.writable)
        segment.purpose = "result"
        self.note([segment])
        return segment

    def take_gone(self) -> list[int]:
        """Return the keys of the segments that have ended since the last call."""
        gone: list[int] = []
        while self._gone:
            gone.append(self._gone.popleft())
            self._segments.pop(gone[-1], None)
        return gone

    def note_huge(self, huge_bytes: Iterable[tuple[int, int]]) -> None:
        """Note the bytes that a worker has put into huge pages, by the key of the segment."""
        for key, nbytes in huge_bytes:
            if (segment := self._segments.get(key)) is not None:
                # Why min: two workers may have made the same page at the same time.
                whole = segment.size // PAGE * PAGE
                segment.huge_bytes = min(segment.huge_bytes + nbytes, whole)

    def live(self) -> list[Segment]:
        """Return the segments that have not ended; any thread may ask."""
        return [*open_segments(self._segments), *open_segments(self._others)]

    def tell(self, key: int) -> None:
        """Note the end of a segment; takes no lock."""
        self._gone.append(key)
        wake = self.wake
        if wake is not None:
            wake.set()


def _gone(tracker: weakref.ref[SegmentTracker], key: int) -> None:
    found = tracker()
    if found is not None:
        found.tell(key)


class Ledgers:
    """Ledgers in shared memory; the segments of a few are kept for later runs.

    Invariant: a worker that comes late to the plan of an earlier run finds no tickets, and writes
    nothing but its own slot. That lies at the same place for any number of chunks.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._free: deque[Ledger] = deque(maxlen=_FREE_LEDGERS)
        self._segments: weakref.WeakKeyDictionary[Ledger, Segment] = weakref.WeakKeyDictionary()

    def take(self, chunks: int) -> Ledger:
        """Return a zeroed ledger."""
        size = Ledger.nbytes(workers=self._workers, chunks=chunks) + _SPARE_BYTES
        if size + _NUMBER_BYTES * chunks <= _LARGE_LEDGER:
            # Why: workers wait for outputs that do not fit; often these are a number per chunk.
            size += _NUMBER_BYTES * chunks
        size = -(-size // _STEP) * _STEP
        # Why sorted: a ledger of as many chunks is ready.
        for free in sorted(self._free, key=lambda free: free.chunks != chunks):
            if (segment := self._segments[free]).size >= size:
                self._free.remove(free)
                ledger = free if free.chunks == chunks else self._new(segment, chunks)
                ledger.clear()
                return ledger
        return self._new(create(size, purpose="ledger"), chunks)

    def _new(self, segment: Segment, chunks: int) -> Ledger:
        """Return a ledger in a segment."""
        ledger = Ledger(segment.memory, workers=self._workers, chunks=chunks)
        self._segments[ledger] = segment
        return ledger

    def segment(self, ledger: Ledger) -> Segment:
        """Return the segment of a ledger."""
        return self._segments[ledger]

    def give_back(self, ledger: Ledger) -> None:
        """Keep the memory of a run that is over, unless it is large."""
        if self._segments[ledger].size <= _LARGE_LEDGER:
            self._free.append(ledger)

    def clear(self) -> None:
        """Drop the ledgers that are kept."""
        self._free.clear()
