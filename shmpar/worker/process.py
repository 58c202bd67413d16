"""A worker process: takes plans from its socket, memory by descriptor, and works.

Imports layers 0 to 2.  Its parent starts it with :data:`shmpar.engines.launch.BOOT`.

Guarantees
----------
- It is idle only in one place, the read of the next message, and holds nothing there but the
  segments that the parent has not told it to forget.
- A message that is not for the step at hand is kept for the next one; none is dropped.
- It ends when its parent does: :func:`shmpar.worker.life.end_with_parent`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pickle
import resource
import socket
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from shmpar.errors import PlanError
from shmpar.ledger import SAID, Ledger
from shmpar.plan import Announcement, Failure, Function, Plan, ResultError
from shmpar.segment import Segment
from shmpar.tickets import LockTickets, OffsetTickets, Tickets, open_tickets
from shmpar.travel import Parcel, namespaces, pack_error, pack_result, unpack
from shmpar.wire import MAX_DESCRIPTORS, Wire
from shmpar.worker.assignment import Abandoned, Assignment
from shmpar.worker.inside import entered
from shmpar.worker.loop import work

__all__ = ["Environment", "PlanMessage", "SegmentRecord", "main"]

Array = np.ndarray[Any, Any]
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
Reference = tuple[int, int, tuple[int, ...], tuple[int, ...], str | np.dtype[Any]]
"""Key of a segment, offset (bytes), shape, strides (bytes), dtype or its name."""


class SegmentRecord(NamedTuple):
    """A segment whose descriptor comes with the message."""

    key: int
    size: int
    kind: str
    writable: bool
    private: bool


class Environment(NamedTuple):
    """What of the parent's state a function may depend on; sent when it has changed."""

    directory: str | None
    path: list[str] | None
    errors: dict[str, Any]
    filters: bytes | None


class PlanMessage(NamedTuple):
    """All of a plan and one generation of it.

    Attributes
    ----------
    run, generation, todo
        What to work on.
    workers, chunks
        Of the ledger.
    counter : int
        Number under which to keep the counter; -1: not. If it is not known, its descriptor is
        the first one.
    tickets : str
        Kind of the counter.
    ledger : int
        Key of the ledger's segment.
    arrays : tuple of Reference
        The inputs.
    outputs : tuple of Reference or None
        None if they are not known yet.
    several : bool or None
        Goes with them.
    scratch : bool
        Outputs that are not known go into the ledger's scratch if they fit.
    plan : bytes
        Pickled :class:`Plan`.
    function : bytes
        Parcel of :class:`Function`.
    held : tuple of int
        Keys of the parcel's segments, in its order; ~key for one that is private.
    environment : Environment or None
        None: as before.
    """

    run: int
    generation: int
    todo: tuple[int, ...] | None
    workers: int
    chunks: int
    counter: int
    tickets: str
    ledger: int
    arrays: tuple[Reference, ...]
    outputs: tuple[Reference, ...] | None
    several: bool | None
    scratch: bool
    plan: bytes
    function: bytes
    held: tuple[int, ...]
    environment: Environment | None


class WorkerProcess:
    """The state of a worker process.

    Attributes
    ----------
    wire : Wire
        To the parent.
    segments : dict of int to Segment
        What is mapped here, by the parent's key.
    backlog : deque
        Messages that came before their time.
    bell : int
        The event counter to wait on while there is no message; -1: wait on the socket.
    due : int
        Messages that the bell has told of and that were not received yet.
    number : int
        The worker's, which is that of its slot.
    counters : dict of int to Tickets
        Counters that are used again.
    """

    def __init__(self, wire: Wire, bell: int, number: int) -> None:
        self.wire = wire
        self.bell = bell
        self.due = 0
        self.number = number
        self.counters: dict[int, OffsetTickets | LockTickets] = {}
        self.segments: dict[int, Segment] = {}
        self.private: dict[int, Segment] = {}
        self.backlog: deque[tuple[Any, list[int]]] = deque()

    def serve(self) -> None:
        """Handle messages until the parent says that it was the last."""
        while True:
            message, descriptors = self.backlog.popleft() if self.backlog else self._next()
            match message:
                case ("plan", fields, records):
                    plan = PlanMessage(*fields)
                    counter = self._counter(plan, descriptors)
                    self._adopt(records, descriptors)
                    self._run(plan, counter)
                case ("initialize", body, held, records):
                    self._adopt(records, descriptors)
                    self._initialize(body, held)
                case ("outputs", _, _, _, records):  # of a run that had no need of them here
                    self._adopt(records, descriptors)
                case ("forget", key):
                    self._forget(key)
                case ("exit",):
                    return

    def _next(self) -> tuple[Any, list[int]]:
        while True:
            message, descriptors = self._receive()
            if not self._at_once(message, descriptors):
                return message, descriptors

    def _receive(self) -> tuple[Any, list[int]]:
        if self.bell >= 0 and not self.due:
            self.due = os.eventfd_read(self.bell)
        self.due -= 1
        return self.wire.receive()

    def _at_once(self, message: Any, descriptors: list[int]) -> bool:
        """Handle what needs no order."""
        match message:
            case ("segments", records):
                self._adopt(records, descriptors)
            case ("forget", key) if not self.backlog:  # else a plan there may speak of it
                self._forget(key)
            case _:
                return False
        return True

    def _forget(self, key: int) -> None:
        """Drop a segment; the mapping lives as long as a view that the user's code has kept."""
        self.segments.pop(key, None)

    def _adopt(self, records: Sequence[SegmentRecord], descriptors: Sequence[int]) -> None:
        for record, fd in zip(records, descriptors, strict=True):
            segment = Segment.adopt(
                fd,
                record.size,
                key=record.key,
                kind=record.kind,
                writable=record.writable,
                private=record.private,
            )
            (self.private if record.private else self.segments)[record.key] = segment

    def _held(self, keys: Sequence[int]) -> list[Segment]:
        return [self.segments[key] if key >= 0 else self.private.pop(~key) for key in keys]

    def _initialize(self, body: bytes, held: Sequence[int]) -> None:
        try:
            (initializer, arguments), _ = unpack(body, self._held(held))
            with entered():
                namespaces.run_initializer(lambda: initializer(*arguments))
        except BaseException as error:  # noqa: BLE001 - the parent says what it means
            self.wire.send(("broken", *_packed(error)))

    def _counter(self, plan: PlanMessage, descriptors: list[int]) -> OffsetTickets | LockTickets:
        """The counter of the plan; its descriptor, if it came, is taken off the list."""
        if plan.counter in self.counters:
            return self.counters[plan.counter]
        counter = open_tickets(plan.tickets, descriptors.pop(0))
        if plan.counter >= 0:
            self.counters[plan.counter] = counter
        return counter

    def _run(self, message: PlanMessage, counter: Tickets) -> None:
        said: Any = None
        had: tuple[int, int | None, float] = (0, None, 0.0)
        kept: Sequence[Array] = ()
        try:
            if message.environment is not None:
                self._enter(message.environment)
            function, kept = self._load(message)
            ledger = self._ledger(message)
            assignment = self._assignment(message, function, counter, ledger)
            channel = _SocketChannel(self, message.run, ledger if message.scratch else None)
            work(assignment, channel)
            had = assignment.claimed, assignment.handed, assignment.spent
            channel.flush()
            said = channel.said.pack() if channel.said else None
        except _Unloadable as error:
            self.wire.send(("refused", message.run, *_packed(error.args[0])))
        finally:
            if kept:
                namespaces.forget(kept)
        self.wire.send(("drained", message.run, message.generation, *had, said))

    def _load(self, message: PlanMessage) -> tuple[Function, Sequence[Array]]:
        try:
            return unpack(message.function, self._held(message.held))
        except BaseException as error:
            raise _Unloadable(error) from error

    def _ledger(self, message: PlanMessage) -> Ledger:
        memory = self.segments[message.ledger].mapping
        return Ledger(memory, workers=message.workers, chunks=message.chunks)

    def _assignment(
        self, message: PlanMessage, function: Function, tickets: Tickets, ledger: Ledger
    ) -> Assignment:
        plan = _plan(message.plan)
        outputs = message.outputs
        return Assignment(
            plan=plan,
            function=function,
            arrays=[self.view(reference, writable=False) for reference in message.arrays],
            outputs=None if outputs is None else [self.view(one, writable=True) for one in outputs],
            several=message.several,
            tickets=tickets,
            todo=message.todo,
            generation=message.generation,
            slot=ledger.slot(self.number),
            status=ledger.status,
            workers=message.workers,
        )

    def view(self, reference: Reference, *, writable: bool) -> Array:
        """The array that lies where the parent says."""
        key, offset, shape, strides, dtype = reference
        segment = self.segments[key]
        return segment.ndarray(offset, shape, strides, np.dtype(dtype), writable=writable)

    def await_outputs(self, run: int) -> tuple[Sequence[Reference], bool]:
        """Take messages until the one that says where the outputs are."""
        for item in list(self.backlog):
            if item[0][0] in {"outputs", "abandon"} and item[0][1] == run:
                self.backlog.remove(item)
                return self._outputs(*item)
        while True:
            message, descriptors = self._next()
            if message[0] in {"outputs", "abandon"} and message[1] == run:
                return self._outputs(message, descriptors)
            self.backlog.append((message, descriptors))

    def _outputs(self, message: Any, descriptors: list[int]) -> tuple[Sequence[Reference], bool]:
        if message[0] == "abandon":
            raise Abandoned
        _, _, references, several, records = message
        self._adopt(records, descriptors)
        return references, several

    def _enter(self, environment: Environment) -> None:
        with contextlib.suppress(OSError):  # a directory that is gone is no reason to fail
            if environment.directory is not None:
                os.chdir(environment.directory)
        if environment.path is not None:
            sys.path[:] = environment.path
        np.seterr(**environment.errors)
        if environment.filters is not None:
            warnings.filters[:] = unpack(environment.filters)[0]  # type: ignore[index]
            warnings._filters_mutated()  # type: ignore[attr-defined]  # noqa: SLF001


@functools.lru_cache(maxsize=32)
def _plan(body: bytes) -> Plan:
    """Keep the plans of calls that are made again and again; they do not change."""
    plan: Plan = pickle.loads(body)
    return plan


class _Unloadable(Exception):
    """The function, or what it holds, did not unpickle."""


class _SocketChannel:
    """A worker process' channel to the run."""

    interruptible = False

    def enough(self) -> bool:
        """Never: the parent is told of the end."""
        return False

    def __init__(self, process: WorkerProcess, run: int, scratch: Ledger | None) -> None:
        self._process = process
        self._run = run
        self._scratch = scratch
        self._values: list[tuple[int, bytes, list[SegmentRecord]]] = []
        self._descriptors: list[int] = []
        self._parcels: list[Parcel] = []
        self.said: Announcement | None = None

    def allocate(self, announcement: Announcement) -> tuple[Sequence[Array], bool]:
        """Say what the outputs must be, and wait until the parent has made them.

        Small ones lie in the scratch, and what they must be is said at the end.
        """
        if self._scratch is not None:
            arrays = self._scratch.carve(announcement.outputs)
            if arrays is not None:
                self.said = announcement
                # For the case that this process does not live to say it.
                self._scratch.slot(self._process.number)[SAID] = announcement.digest()
                return arrays, announcement.several
        self._process.wire.send(("announce", self._run, announcement.pack()))
        references, several = self._process.await_outputs(self._run)
        views = [self._process.view(reference, writable=True) for reference in references]
        return views, several

    def failed(self, failure: Failure) -> None:
        """Report a chunk that failed, with the exception if it pickles."""
        body, text = _packed(failure.error)
        self._process.wire.send(("failed", self._run, failure.chunk, failure.shape, body, text))

    def values(self, values: Sequence[tuple[int, Any]]) -> None:
        """Keep results until the claim is finished; one that does not pickle fails its chunk."""
        for chunk, value in values:
            try:
                parcel = pack_result(value)
            except PlanError as error:
                raise _unpicklable(value) from error
            if len(self._descriptors) + len(parcel.segments) > MAX_DESCRIPTORS:
                self.flush()
            records, descriptors = _lent(parcel)
            self._values.append((chunk, parcel.body, records))
            self._descriptors += descriptors
            self._parcels.append(parcel)

    def flush(self) -> None:
        """Send the results; the kernel keeps them if this process dies now."""
        values, self._values = self._values, []
        descriptors, self._descriptors = self._descriptors, []
        if values:
            self._process.wire.send(("values", self._run, values), descriptors)
        self._parcels.clear()


def _lent(parcel: Parcel) -> tuple[list[SegmentRecord], list[int]]:
    """Records and descriptors of the segments that a result speaks of."""
    records = [
        SegmentRecord(one.key, one.size, one.kind, one.writable, private=False)
        for one in parcel.segments
    ]
    return records, [one.fileno() for one in parcel.segments]


def _unpicklable(value: Any) -> ResultError:
    return ResultError(f"the function returned a {type(value).__qualname__}, which does not pickle")


def _packed(error: BaseException) -> tuple[bytes | None, str]:
    """The exception as a pickle, if it makes one, and its traceback as text."""
    text = "".join(traceback.format_exception(type(error), error, _of_user(error.__traceback__)))
    try:
        return pack_error(error), text
    except Exception:  # noqa: BLE001 - whatever it raises, the text has to do
        return None, text


def _of_user(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the user's function on: the frames above it are ours."""
    below = trace
    while below is not None and below.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        below = below.tb_next
    return below or trace


def main(fd: int, bell: int, number: int) -> None:
    """Serve the parent at the other end of the socket `fd` until it says that it was the last.

    Parameters
    ----------
    fd, bell, number : int
        Of :class:`WorkerProcess`.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the parent raises its own late
    if sys.stdout is not None:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    wire = Wire(socket.socket(fileno=fd))
    wire.send(("hello", importlib.util.MAGIC_NUMBER))
    with contextlib.closing(wire), contextlib.suppress(EOFError, BrokenPipeError):
        WorkerProcess(wire, bell, number).serve()
