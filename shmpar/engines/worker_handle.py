"""The parent's end of one worker process: what it was sent, what it knows, what waits.

Imports launch, protocol, segment, travel, wire and worker.messages.

Guarantees
----------
- No send blocks: what the socket does not take waits in the outbox, in order.
- A message that cannot be sent to a worker that lives costs that worker: what it knows, and what
  is believed of it, would differ. Who sends a plan or a task gets the error; what else the worker
  had is told of its death.
- :meth:`Link.forget` takes no lock and waits for nothing, so a finalizer may call it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import pickle
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shmpar.engines.engine import Execution, Exit, Generation, Lost
from shmpar.engines.launch import Launched
from shmpar.errors import SegmentGone
from shmpar.ipc.protocol import Environment, SegmentRecord
from shmpar.ipc.wire import MAX_DESCRIPTORS
from shmpar.memory import limits
from shmpar.memory.limits import open_with_retry
from shmpar.memory.segment import Segment
from shmpar.pickling.pack import Parcel

__all__ = ["Link", "Loan"]

OUTSTANDING = 2
"""Generations at a worker: the one that it runs and the one that it runs next."""

_GONE = {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN}
_LATER = {errno.EAGAIN, errno.EWOULDBLOCK, errno.ETOOMANYREFS}  # the last: too many are on the way


@dataclass(eq=False, slots=True)
class Loan:
    """Segments that go to a worker with a message: records, and their descriptors."""

    records: list[SegmentRecord] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def add(self, segment: Segment, *, private: bool) -> None:
        """Send this segment's descriptor along."""
        kind, writable, fd = segment.kind, segment.writable, segment.fileno()
        self.records.append(SegmentRecord(segment.key, segment.size, kind, writable, private))
        self.descriptors.append(fd)


@dataclass(eq=False, slots=True)
class Link:
    """One worker process, as its parent knows it.

    Attributes
    ----------
    number : int
        The worker's.
    launched : Launched
        Its process and descriptors.
    oom_kills : int
        How many processes the kernel had ended for lack of memory when it was started.
    killed_for : int or None
        The run for whose sake it was killed.
    leaving : bool
        It ends of its own accord.
    ready : bool
        Whether it has said hello.
    known : set of int
        Keys of the segments that it has.
    sent : list of (int, int)
        Runs and generations, by number, that it has and has not reported as drained. A run may be
        over before that.
    tasks : set of int
        Tasks that it has; at most one.
    queue : deque
        Generations that it gets when it has fewer.
    outbox : deque
        Messages that its socket did not take yet, with duplicated descriptors.
    environment : Environment or None
        The one that it was last told.
    counters : set of int
        Numbers of the counters that it has.
    untold : deque
        One entry for each message that it was sent and has not been told of. Taken and added one
        by one, which is atomic: a finalizer may send in the middle of :meth:`ring`.
    flushing : Lock
        Held by the thread that empties the outbox.
    """

    number: int
    launched: Launched
    oom_kills: int = field(default_factory=limits.oom_kills)
    killed_for: int | None = None
    leaving: bool = False
    ready: bool = False
    known: set[int] = field(default_factory=set)
    sent: list[tuple[int, int]] = field(default_factory=list)
    tasks: set[int] = field(default_factory=set)
    queue: deque[tuple[Execution, Generation]] = field(default_factory=deque)
    outbox: deque[tuple[bytes, list[int]]] = field(default_factory=deque)
    environment: Environment | None = None
    counters: set[int] = field(default_factory=set)
    untold: deque[None] = field(default_factory=deque)
    flushing: threading.Lock = field(default_factory=threading.Lock)

    def leave(self) -> None:
        """It has said that it ends: it is given nothing more."""
        self.ready, self.leaving = False, True

    def kill(self, run: int) -> None:
        """End it with SIGKILL, for the sake of a run."""
        self.killed_for = run
        self.launched.process.kill()

    def lost(self) -> Lost:
        """Reap it; say how it ended."""
        code = self.launched.process.wait()
        end = Exit(code, limits.oom_kills() > self.oom_kills)
        return Lost(self.number, end, self.leaving and not code, self.killed_for)

    def has(self, run: int) -> bool:
        """Whether it was sent something of this run that it has not drained."""
        return run in [number for number, _ in self.sent]

    def next_to_send(self) -> tuple[Execution, Generation] | None:
        """Take the next generation off the queue if it may have one more."""
        if not self.queue or self.leaving or len(self.sent) >= OUTSTANDING:
            return None
        execution, generation = item = self.queue.popleft()
        self.sent.append((execution.number, generation.number))
        return item

    def drained(self, run: int, generation: int) -> None:
        """It has nothing more of this generation."""
        self.sent.remove((run, generation))

    def withdraw(self, execution: Execution) -> list[Generation]:
        """Take back what was not sent."""
        if not self.queue:
            return []
        mine = [item for item in self.queue if item[0] is execution]
        for item in mine:
            self.queue.remove(item)
        return [generation for _, generation in mine]

    def lend(self, segments: Mapping[int, Segment], loan: Loan) -> list[Segment]:
        """Add to `loan` those, of segments by key, that it does not know yet; return them.

        Raises
        ------
        SegmentGone
            One was closed; what is in `loan` will not be sent.
        """
        fresh = [segment for key, segment in segments.items() if key not in self.known]
        for segment in fresh:
            self._add(segment, loan, private=False)
            self.known.add(segment.key)
        return fresh

    def _add(self, segment: Segment, loan: Loan, *, private: bool) -> None:
        try:
            loan.add(segment, private=private)
        except SegmentGone:
            self.known -= {record.key for record in loan.records if not record.private}
            raise

    def lend_parcel(self, parcel: Parcel, loan: Loan) -> tuple[int, ...]:
        """Add the segments of a parcel; return their keys, ~key for private ones."""
        held = []
        for segment, private in zip(parcel.segments, parcel.private, strict=True):
            if private:
                self._add(segment, loan, private=True)
            else:
                self.lend({segment.key: segment}, loan)
            held.append(~segment.key if private else segment.key)
        return tuple(held)

    def send_ahead(self, loan: Loan) -> None:
        """Send segments by themselves while there are more than one message carries."""
        limit = MAX_DESCRIPTORS - 1  # one more descriptor goes with a plan
        while len(loan.descriptors) > limit:
            body = pickle.dumps(("segments", loan.records[:limit]), 5)
            self.post_silently(body, loan.descriptors[:limit])
            del loan.records[:limit], loan.descriptors[:limit]

    def forget(self, key: int) -> None:
        """Tell it to drop a segment."""
        if key in self.known:
            self.known.discard(key)
            self.post(("forget", key))

    def post(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send now, or as soon as the worker reads again; a worker that lives is ended else."""
        with contextlib.suppress(OSError):  # its death will be told
            self.post_silently(pickle.dumps(message, 5), descriptors)
        self.ring()

    def post_task(self, number: int, parcel: Parcel, environment: Environment) -> None:
        """Give it a task; raises ``OSError`` if it cannot be sent."""
        loan = Loan()
        held = self.lend_parcel(parcel, loan)
        self.send_ahead(loan)
        changed = environment if self.environment != environment else None
        self.environment = environment
        self.tasks.add(number)
        message = ("task", number, parcel.body, held, changed, loan.records)
        self.post_silently(pickle.dumps(message, 5), loan.descriptors)
        self.ring()

    def ring(self) -> None:
        """Tell the worker of what it was sent."""
        messages = 0
        try:
            while self.untold:
                self.untold.popleft()
                messages += 1
        except IndexError:  # a finalizer has taken the last
            pass
        if messages:
            with contextlib.suppress(OSError):
                self.launched.ring(messages)

    def post_silently(self, body: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a pickled message, and leave it to a later :meth:`ring` to tell the worker.

        Raises
        ------
        OSError
            If it cannot be sent, now or later, although the worker lives; it is ended.
        """
        try:
            if self.outbox or not self._send(body, descriptors):
                self.outbox.append((body, _duplicates(descriptors)))
        except OSError:
            self.launched.process.kill()
            raise

    def flush(self) -> None:
        """Send what waits in the outbox, as far as the socket takes it, and ring."""
        if self.flushing.acquire(blocking=False):  # else another thread is at it
            try:
                while self.outbox and self._send(*self.outbox[0]):
                    for fd in self.outbox.popleft()[1]:
                        os.close(fd)
            except OSError:
                self.launched.process.kill()
                self._discard()
            finally:
                self.flushing.release()
        self.ring()

    def _send(self, body: bytes, descriptors: Sequence[int]) -> bool:
        wire = self.launched.wire
        try:
            open_with_retry(lambda: wire.send_packed(body, descriptors))
        except OSError as error:
            if error.errno in _LATER:
                return False
            closed = error.errno == errno.EBADF and wire.fileno() < 0
            if not closed and error.errno not in _GONE:  # else its pidfd will say that it is gone
                raise
        # Counted after it was sent: a worker that is told finds at least so many.
        self.untold.append(None)
        return True

    def close(self) -> None:
        """Close the descriptors; the process, if it lives, is killed by it."""
        self._discard()
        self.launched.close()

    def _discard(self) -> None:
        while self.outbox:
            for fd in self.outbox.popleft()[1]:
                os.close(fd)


def _duplicates(descriptors: Sequence[int]) -> list[int]:
    """Their duplicates, or an ``OSError`` and none."""
    found: list[int] = []
    with contextlib.ExitStack() as undo:
        for fd in descriptors:
            found.append(open_with_retry(functools.partial(os.dup, fd)))
            undo.callback(os.close, found[-1])
        undo.pop_all()
    return found
