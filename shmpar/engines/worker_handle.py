"""The parent's end of one worker process: the messages it was sent, and its work.

Only the pool thread uses it.

Guarantees
----------
- No send blocks: a message that the socket does not take waits in the outbox, in order.
- A message that cannot be sent to a worker that lives costs that worker: otherwise the segments
  that it has and those that it is believed to have would differ. The sender of a plan or call
  gets the error; the other work of that worker is told of its death.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import pickle
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from shmpar.engines.engine import ActivePlan, Exit, Generation
from shmpar.engines.launch import Launched
from shmpar.ipc.protocol import (
    AddSegments,
    Environment,
    ForgetSegment,
    SegmentRecord,
    WorkerLost,
    encoded,
)
from shmpar.ipc.tickets import Tickets
from shmpar.memory import limits, system
from shmpar.memory.segment import Segment
from shmpar.pickling.pack import Payload
from shmpar.worker.items import STOP

MAX_OUTSTANDING = 2
"""Generations at a worker: the one that it runs and the one that it runs next."""

EXIT_SECONDS = 2.0
"""Time for a worker to exit by itself."""

_MOST_ATTACHED = 64  # Why few: the kernel and a hard limit bound the descriptors of a process.


class Attached:
    """Segments that go to a worker with a message: records, and duplicates of their descriptors.

    Why duplicates: another thread may close a segment before the message is sent. Its number may
    denote another file then, which the worker would map.
    """

    def __init__(self) -> None:
        self.records: list[SegmentRecord] = []
        self.descriptors: list[int] = []

    def drop(self) -> None:
        """Drop the segments: they were sent, or will not be."""
        while self.descriptors:
            os.close(self.descriptors.pop())
        self.records = []

    __del__ = drop


@dataclass(eq=False, repr=False, slots=True)
class WorkerHandle:
    """A worker process, as its parent sees it.

    Attributes
    ----------
    number : int
        Number of the worker.
    launched : Launched
        Its process and descriptors.
    begun : Tickets
        Its counter of calls. The worker claims a ticket when it begins a call, and the parent
        claims one to withdraw the calls that the worker has not begun. Invariant: a call is begun
        if and only if the worker got the ticket that came with it.
    oom_kills : int
        Out-of-memory kills that the kernel had counted when it was started.
    killed_for : int or None
        The run for which it was killed.
    ready : bool
        Whether it has started, and does not exit.
    exiting : bool
        Whether it exits by itself.
    announced : bool
        Whether it has said so, after its last task: its death is no fault.
    worked : bool
        Whether it has finished a plan or a call.
    segments : set of int
        Keys of the segments that it has.
    outstanding : list of (int, int)
        Numbers of the runs and generations that it has and has not reported as exhausted; such
        a run may be over already.
    calls : dict of int to int
        The tickets of the calls that it has, by number: of its present one and its next one.
    next_ticket : int
        The ticket of its next call.
    queue : deque
        Generations that it is sent when it has fewer.
    outbox : deque
        Messages that its socket did not take yet, with duplicated descriptors.
    environment : Environment or None
        The environment that it was last sent.
    stack : str
        Begin of the text that :mod:`faulthandler` has written there.
    """

    number: int
    launched: Launched
    begun: Tickets
    oom_kills: int = field(default_factory=limits.oom_kills)
    killed_for: int | None = None
    ready: bool = False
    exiting: bool = False
    announced: bool = False
    worked: bool = False
    segments: set[int] = field(default_factory=set)
    outstanding: list[tuple[int, int]] = field(default_factory=list)
    calls: dict[int, int] = field(default_factory=dict)
    next_ticket: int = 0
    queue: deque[tuple[ActivePlan, Generation]] = field(default_factory=deque)
    outbox: deque[tuple[bytes, list[int]]] = field(default_factory=deque)
    environment: Environment | None = None
    stack: str = ""

    def set_exiting(self) -> None:
        """The worker has said that it exits: it is given nothing more."""
        self.ready, self.exiting = False, True

    def kill(self, run: int | None) -> None:
        """Kill the worker, for a run or because it does not exit."""
        self.killed_for = run
        self.launched.kill()

    def reap(self) -> WorkerLost:
        """Wait for the process, whose messages have ended; return how it ended."""
        # Why a deadline: without a pidfd only the end of its socket tells, and a function may close
        # that.
        code = self.launched.wait(time.monotonic() + EXIT_SECONDS)
        end = Exit(code, limits.oom_kills() > self.oom_kills, self.stack)
        announced = self.announced or (self.exiting and not code)
        waiting = tuple(self.withdraw_calls())
        loading = self.outstanding[0][0] if self.outstanding else None
        lost = WorkerLost(self.number, end, announced, self.killed_for, waiting=waiting)
        return lost._replace(loading=loading, idle=self.worked and loading is None)

    def take_ticket(self, call: int) -> int:
        """Note a call; return its ticket."""
        ticket = self.calls[call] = self.next_ticket
        self.next_ticket += 1
        return ticket

    def withdraw_calls(self, *, stop: bool = False) -> list[int]:
        """Take back the calls that the worker has not begun; return their numbers.

        Parameters
        ----------
        stop : bool
            End a call over items before its next items.
        """
        if not self.calls:
            return []
        taken = STOP if stop else 1
        first = self.begun.claim(taken)
        # Why: the worker still takes a number for each of its calls.
        self.next_ticket += taken
        waiting = [call for call, ticket in self.calls.items() if ticket >= first]
        for call in waiting:
            del self.calls[call]
        return waiting

    def is_calling(self) -> bool:
        """Return whether the worker has begun a call whose end it has not reported."""
        if not self.calls:
            return False
        first = self.begun.claim(0)
        return any(ticket < first for ticket in self.calls.values())

    def is_late(self, run: int | None) -> bool:
        """Return whether the worker still exits, or still loads the plan of a run."""
        if run is None:
            return True
        return bool(self.outstanding) and self.outstanding[0][0] == run and not self.is_calling()

    def takes_plan(self) -> bool:
        """Return whether the worker may be sent one more generation."""
        return not self.exiting and len(self.outstanding) < MAX_OUTSTANDING

    def attach(self, segments: Iterable[Segment], attached: Attached) -> None:
        """Add the segments that the worker does not have yet; send many of them ahead.

        Raises
        ------
        SegmentGone
            A segment was closed; nothing in `attached` will be sent.
        """
        for segment in segments:
            if segment.key not in self.segments:
                self._attach(segment, attached, private=False)

    def attach_payload(self, payload: Payload, attached: Attached) -> None:
        """Add the segments of a payload; private ones are sent each time."""
        for segment, private in zip(payload.segments, payload.private, strict=True):
            if private:
                self._attach(segment, attached, private=True)
            else:
                self.attach([segment], attached)

    def _attach(self, segment: Segment, attached: Attached, *, private: bool) -> None:
        try:
            fd = segment.duplicate(os.dup)
        except OSError:  # also SegmentGone
            self.segments -= {record.key for record in attached.records if not record.private}
            attached.drop()  # Why: the error keeps this frame.
            raise
        attached.records.append(
            SegmentRecord(
                segment.key,
                segment.size,
                segment.kind,
                segment.writable,
                private,
                segment.reserved,
            )
        )
        attached.descriptors.append(fd)
        if not private:
            self.segments.add(segment.key)
        if len(attached.descriptors) == _MOST_ATTACHED:
            self.send(AddSegments(attached.records), attached.descriptors)
            attached.drop()

    def changed(self, environment: Environment) -> Environment | None:
        """Return the environment if the worker does not have it, else None."""
        known, self.environment = self.environment, environment
        return None if known is environment or known == environment else environment

    def forget(self, key: int) -> None:
        """Tell the worker to drop a segment."""
        if key in self.segments:
            self.segments.discard(key)
            self.notify(ForgetSegment(key))

    def notify(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send a message; a failure is told by the worker's death alone."""
        with contextlib.suppress(OSError):
            self.send(message, descriptors)

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send a message now, or when the worker reads again.

        Raises
        ------
        OSError
            If it cannot be sent, now or later, although the worker lives; it is killed.
        """
        body = pickle.dumps(encoded(message), 5)
        try:
            if self.outbox or not self._sent(body, descriptors):
                self.outbox.append((body, _duplicates(descriptors)))
        except OSError:
            self.launched.kill()
            raise

    def flush(self) -> None:
        """Send the outbox, as far as the socket takes it."""
        try:
            while self.outbox and self._sent(*self.outbox[0]):
                for fd in self.outbox.popleft()[1]:
                    os.close(fd)
        except OSError:
            self.launched.kill()
            self._discard()

    def _sent(self, body: bytes, descriptors: Sequence[int]) -> bool:
        wire = self.launched.wire
        try:
            limits.open_with_retry(wire.send_packed, body, descriptors)
        except OSError as error:
            if error.errno in system.LATER:
                return False
            closed = error.errno == errno.EBADF and wire.fileno() < 0
            if not closed and error.errno not in system.GONE:
                raise
            # Why nothing for a worker that is gone: its pidfd tells.
        return True

    def close(self) -> None:
        """Close the descriptors; the process, if it lives, is killed by it."""
        self._discard()
        self.launched.close()
        self.begun.close()

    def _discard(self) -> None:
        while self.outbox:
            for fd in self.outbox.popleft()[1]:
                os.close(fd)


def _duplicates(descriptors: Sequence[int]) -> list[int]:
    """Return duplicates of all descriptors, or raise `OSError` and leave none."""
    found: list[int] = []
    with contextlib.ExitStack() as undo:
        for fd in descriptors:
            found.append(limits.open_with_retry(functools.partial(os.dup, fd)))
            undo.callback(os.close, found[-1])
        undo.pop_all()
    return found
