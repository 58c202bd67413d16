"""The bell: what a worker process waits for while there is no message.

Imports the standard library.

To be put to sleep and woken again costs a worker, and its parent, more than all else of a small
call. Who makes one such call most often makes the next at once; so after one a worker looks for
the bell again and again for :data:`BRISK_SECONDS` before it goes to sleep.

Guarantees
----------
- Only a worker that has computed a small run alone looks out, so that a pool keeps one processor
  busy at most; with a single processor none does.

How a worker process tells its parent of outputs, results and failures.

Imports the neighbours in this package, ledger, plan, travel and wire.

A worker process: takes plans from its socket, memory by descriptor, and works.

Imports layers 0 to 2.  Its parent starts it with :data:`shmpar.engines.launch.BOOT`.

Guarantees
----------
- It is idle only in one place, the read of the next message, and holds nothing there but the
  segments that the parent has not told it to forget, and what it has made of the latest plan over
  them.
- A message that is not for the step at hand is kept for the next one; none is dropped.
- It ends when its parent does: :func:`shmpar.worker.parent_watch.end_with_parent`.
"""

from __future__ import annotations

import _socket
import contextlib
import functools
import importlib.util
import os
import pickle
import resource
import select
import sys
import time
import traceback
from collections import deque
from collections.abc import Sequence
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shmpar.errors import PlanError
from shmpar.ipc.ledger import SAID, Ledger
from shmpar.ipc.protocol import Environment, PlanMessage, Reference, SegmentRecord, Standing
from shmpar.ipc.tickets import LockTickets, OffsetTickets, Tickets, open_tickets
from shmpar.ipc.wire import MAX_DESCRIPTORS, Wire
from shmpar.memory.segment import Mapping, Segment
from shmpar.pickling.unpack import namespaces, unpack
from shmpar.plan import Announcement, Failure, Function, Plan, ResultError
from shmpar.worker.compute import Abandoned, Assignment, Chunks
from shmpar.worker.context import drifted, end_offspring, enter, entered, watch
from shmpar.worker.loop import work

if TYPE_CHECKING:
    from shmpar.pickling.pack import Parcel

__all__ = ["Bell", "SocketChannel", "WorkerProcess", "lent", "main", "packed"]

BRISK_SECONDS = 1e-3
"""How long a worker looks for the next call after a small one."""

SMALL_SECONDS = 0.2e-3
"""What all chunks of a small call take together."""


class Bell:
    """Waits for messages to be told of.

    Parameters
    ----------
    fd : int
        An event counter, which counts the messages; -1: there is none, wait on the socket.
    """

    __slots__ = ("_brisk", "_due", "_fd", "_poll", "_several")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._due = 0
        self._brisk = False
        self._several = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1
        self._poll = select.poll()
        if fd >= 0:
            self._poll.register(fd, select.POLLIN)

    def computed(self, seconds: float, *, alone: bool) -> None:
        """A run is through here, after so long in its chunks; perhaps no other worker had any."""
        self._brisk = alone and seconds < SMALL_SECONDS and self._several

    def await_message(self) -> None:
        """Return when there is a message to receive."""
        if self._fd < 0:
            return
        if not self._due:
            if self._brisk:
                self._look_out()
            self._due = os.eventfd_read(self._fd)
        self._due -= 1

    def _look_out(self) -> None:
        self._brisk, until = False, perf_counter() + BRISK_SECONDS
        while not self._poll.poll(0) and perf_counter() < until:
            pass


Array = np.ndarray[Any, Any]
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class SocketChannel:
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
        body, text = packed(failure.error)
        self._process.wire.send(("failed", self._run, failure.chunk, failure.shape, body, text))

    def values(self, values: Sequence[tuple[int, Any]]) -> None:
        """Keep results until the claim is finished; one that does not pickle fails its chunk."""
        from shmpar.pickling.pack import pack_result

        for chunk, value in values:
            try:
                parcel = pack_result(value)
            except PlanError as error:
                raise _unpicklable(value) from error
            if len(self._descriptors) + len(parcel.segments) > MAX_DESCRIPTORS:
                self.flush()
            records, descriptors = lent(parcel)
            self._values.append((chunk, parcel.body, records))
            self._descriptors += descriptors
            self._parcels.append(parcel)

    def finished(self, generation: int, first: int, last: int) -> None:
        """Say that the tickets ``first <= t < last`` are done, or have failed."""
        self._process.wire.send(("finished", self._run, generation, first, last))

    def flush(self) -> None:
        """Send the results; the kernel keeps them if this process dies now."""
        values, self._values = self._values, []
        descriptors, self._descriptors = self._descriptors, []
        if values:
            self._process.wire.send(("values", self._run, values), descriptors)
        self._parcels.clear()


def lent(parcel: Parcel) -> tuple[list[SegmentRecord], list[int]]:
    """Records and descriptors of the segments that a result speaks of."""
    records = [
        SegmentRecord(one.key, one.size, one.kind, one.writable, private=False)
        for one in parcel.segments
    ]
    return records, [one.fileno() for one in parcel.segments]


def _unpicklable(value: Any) -> ResultError:
    return ResultError(f"the function returned a {type(value).__qualname__}, which does not pickle")


def packed(error: BaseException) -> tuple[bytes | None, str]:
    """The exception as a pickle, if it makes one, and its traceback as text."""
    text = "".join(traceback.format_exception(type(error), error, _of_user(error.__traceback__)))
    try:
        from shmpar.pickling.pack import pack_error  # most workers meet none

        return pack_error(error), text
    except BaseException:  # noqa: BLE001 - whatever it raises, the text has to do
        return None, text


def _of_user(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the user's function on: the frames above it are ours."""
    below = trace
    while below is not None and below.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        below = below.tb_next
    return below or trace


class Bound(NamedTuple):
    """A plan in the memory of this process.

    Attributes
    ----------
    standing : bytes
        What the parent said of it.
    chunks : Chunks
        What computes it, with all that it needs at hand.
    scratch : bool
        Small outputs lie in the ledger.
    """

    standing: bytes
    chunks: Chunks
    scratch: bool


class WorkerProcess:
    """The state of a worker process.

    Attributes
    ----------
    wire : Wire
        To the parent.
    segments : dict of int to Segment
        Those that the parent has lent, by its key.
    mappings : dict of int to Mapping
        Of segments in use: they stay mapped between plans, so that no page faults twice.
    backlog : deque
        Messages that came before their time.
    bell : Bell
        Tells of messages.
    number : int
        The worker's, which is that of its slot.
    counters : dict of int to Tickets
        Counters that are used again.
    unready : bool
        Whether the initializer has failed: nothing is called any more.
    environment : Environment or None
        What the parent has told of its state.
    unentered : BaseException or None
        Why the environment that the parent was told of last could not be taken on.
    left : int or None
        Chunks and tasks until it ends; None: it does not.
    ledger : tuple of (int, Ledger) or None
        The latest, with its segment's key: the next run's is most often the same.
    bound : Bound or None
        The latest plan that may come again, if no segment was forgotten since and no other
        function opened.
    opened : tuple of (bytes, Function)
        The latest function, if it is plain and no other was opened since: what another brings may
        be globals of its module too.
    """

    def __init__(self, wire: Wire, bell: Bell, number: int) -> None:
        self.wire = wire
        self.bell = bell
        self.number = number
        self.counters: dict[int, OffsetTickets | LockTickets] = {}
        self.unready = False
        self.environment: Environment | None = None
        self.unentered: BaseException | None = None
        self.segments: dict[int, Segment] = {}
        self.mappings: dict[int, Mapping] = {}
        self.private: dict[int, Segment] = {}
        self.backlog: deque[tuple[Any, list[int]]] = deque()
        self.left: int | None = None
        self.ledger: tuple[int, Ledger] | None = None
        self.bound: Bound | None = None
        self.opened: tuple[bytes, Any] = (b"", None)

    def serve(self) -> None:
        """Handle messages until the parent says that it was the last, or enough is done."""
        while self.left is None or self.left > 0:
            message, descriptors = self.backlog.popleft() if self.backlog else self._next()
            match message:
                case ("plan", fields, records):
                    plan = PlanMessage(*fields)
                    counter = self._counter(plan, descriptors)
                    self._adopt(records, descriptors)
                    self._run(plan, counter)
                case ("limit", tasks):
                    self.left = tasks
                case ("initialize", body, held, records):
                    self._adopt(records, descriptors)
                    self._initialize(body, held)
                case ("task", number, body, held, environment, records):
                    self._adopt(records, descriptors)
                    self._task(number, body, held, environment)
                case ("outputs", _, _, _, records):  # of a run that had no need of them here
                    self._adopt(records, descriptors)
                case ("forget", key):
                    self._forget(key)
                case ("exit",):
                    return
        self.wire.send(("leaving",))

    def _next(self) -> tuple[Any, list[int]]:
        while True:
            message, descriptors = self._receive()
            if not self._at_once(message, descriptors):
                return message, descriptors

    def _receive(self) -> tuple[Any, list[int]]:
        self.bell.await_message()
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
        self.mappings.pop(key, None)
        self.bound = None
        if self.ledger is not None and self.ledger[0] == key:
            self.ledger = None

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

    def _mapped(self, key: int) -> Segment:
        """Return a segment, which stays mapped until the parent has it forgotten."""
        segment = self.segments[key]
        self.mappings[key] = segment.mapping
        return segment

    def _held(self, keys: Sequence[int]) -> list[Segment]:
        return [self._mapped(key) if key >= 0 else self.private.pop(~key) for key in keys]

    def _initialize(self, body: bytes, held: Sequence[int]) -> None:
        try:
            (initializer, arguments), _ = self._open(body, self._held(held))
            with entered():
                namespaces.run_initializer(lambda: initializer(*arguments))
            end_offspring()
        except BaseException as error:  # noqa: BLE001 - the parent says what it means
            end_offspring(error)
            self.unready = True
            self.wire.send(("broken", *packed(error)))

    def _task(
        self, number: int, body: bytes, held: Sequence[int], environment: Environment | None
    ) -> None:
        from shmpar.pickling.pack import pack_result  # most workers have no tasks

        if self.unready:
            self._held(held)
            self.wire.send(("uncalled", number, None, ""))
            return
        kept: Sequence[Array] = ()
        try:
            private = self._held(held)
            self._take_on(environment)
            function, kept = self._open(body, private)
            with entered():
                value = function.call(*function.values, **function.keywords)
            end_offspring()
            parcel = pack_result(value)
            records, descriptors = lent(parcel)
            message: tuple[Any, ...] = ("returned", number, parcel.body, records)
        except BaseException as error:  # noqa: BLE001 - it is the task's outcome
            end_offspring(error)
            message, descriptors = ("raised", number, *packed(error)), []
            error.__traceback__ = None  # it may be kept, and its frames hold the memory
        finally:
            if kept:
                namespaces.forget(kept)
        self._has_done(1)
        self.wire.send(message, descriptors)

    def _has_done(self, tasks: int) -> None:
        if self.left is not None:
            self.left -= tasks

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
        exhausted, joined = True, time.perf_counter()
        had: tuple[int, int | None, float] = (0, None, 0.0)
        kept: Sequence[Array] = ()
        try:
            bound, kept = self._bind(message, counter)
            assignment = bound.chunks.assignment
            assignment.joined = joined
            watch(assignment.slot)
            channel = SocketChannel(self, message.run, assignment.ledger if bound.scratch else None)
            exhausted = work(bound.chunks, channel)
            self._has_done(assignment.claimed)
            alone = assignment.claimed == assignment.count
            self.bell.computed(assignment.spent, alone=alone)
            had = assignment.claimed, assignment.handed, assignment.spent
            channel.flush()
            said = channel.said.pack() if channel.said else None
        except _Unloadable as error:
            self.wire.send(("refused", message.run, *packed(error.args[0])))
            error.args[0].__traceback__ = None  # it may be kept, and its frames hold the memory
        finally:
            if kept:
                namespaces.forget(kept)
        leaves = not exhausted
        self.wire.send(("drained", message.run, message.generation, *had, said, leaves))

    def _bind(self, message: PlanMessage, counter: Tickets) -> tuple[Bound, Sequence[Array]]:
        """The plan in the memory of this process: that of the call before, if it is the same."""
        bound = self.bound
        if bound is not None and message.todo is None and bound.standing == message.standing:
            with _loading():
                self._take_on(message.environment)
            bound.chunks.assignment.again(counter, message.generation, message.origin, self.left)
            return bound, ()
        standing = Standing(*pickle.loads(message.standing))
        held = self._held(standing.held)
        with _loading():
            if self.unready:  # the run has been told why
                raise RuntimeError("the initializer failed")
            self._take_on(message.environment)
            body, plain = message.function or standing.function, standing.function is not None
            function, kept = self._open(body or b"", held, plain=plain)
        assignment = self._assignment(message, standing, function, counter)
        bound = Bound(message.standing, Chunks(assignment), standing.scratch)
        if plain and message.todo is None:
            self.bound = bound
        return bound, kept

    def _open(
        self, body: bytes, held: Sequence[Segment], *, plain: bool = False
    ) -> tuple[Any, Sequence[Array]]:
        """Open a parcel, unless it is plain and was the last that was opened."""
        if plain and body == self.opened[0]:
            return self.opened[1], ()
        self.opened, self.bound = (b"", None), None
        value, kept = unpack(body, held)
        if plain:
            self.opened = body, value
        return value, kept

    def _ledger(self, standing: Standing) -> Ledger:
        if self.ledger is None or self.ledger[0] != standing.ledger:
            memory = self.segments[standing.ledger].mapping
            ledger = Ledger(memory, workers=standing.workers, chunks=standing.chunks)
            self.ledger = standing.ledger, ledger
        return self.ledger[1]

    def _assignment(
        self, message: PlanMessage, standing: Standing, function: Function, tickets: Tickets
    ) -> Assignment:
        ledger, outputs = self._ledger(standing), standing.outputs
        return Assignment(
            plan=_plan(standing.plan),
            function=function,
            arrays=[self.view(reference, writable=False) for reference in standing.arrays],
            outputs=None if outputs is None else [self.view(one, writable=True) for one in outputs],
            several=standing.several,
            origin=message.origin,
            tickets=tickets,
            todo=message.todo,
            generation=message.generation,
            ledger=ledger,
            worker=self.number,
            slot=ledger.slot(self.number),
            workers=standing.workers,
            reports=standing.reports,
            sums=None if standing.sums is None else self.view(standing.sums, writable=True),
            most=self.left,
        )

    def view(self, reference: Reference, *, writable: bool) -> Array:
        """The array that lies where the parent says."""
        key, offset, shape, strides, dtype = reference
        return self._mapped(key).ndarray(offset, shape, strides, np.dtype(dtype), writable=writable)

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

    def _take_on(self, environment: Environment | None) -> None:
        """Have the parent's state; it sends that once, so what fails now fails until it changes."""
        if environment is not None:
            self.environment = environment
        elif self.environment is not None and drifted(self.environment):
            environment = self.environment  # a function has changed it, here alone
        if environment is not None:
            try:
                self.unentered = None
                enter(environment)
            except Exception as error:  # noqa: BLE001 - classes of the user's are imported
                self.unentered = PlanError(
                    "the warning filters of the calling process do not load in a worker "
                    f"({type(error).__name__}: {error}); their categories must be importable there"
                )
                self.unentered.__cause__ = error.with_traceback(None)
        if self.unentered is not None:
            raise self.unentered.with_traceback(None)


@functools.lru_cache(maxsize=32)
def _plan(body: bytes) -> Plan:
    """Keep the plans of calls that are made again and again; they do not change."""
    plan: Plan = pickle.loads(body)
    return plan


class _Unloadable(Exception):
    """The function, what it holds or what it is called in did not unpickle."""


class _loading:  # noqa: N801 - reads as a verb: with _loading()
    """What is raised in the block says that the plan does not load."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            raise _Unloadable(error) from error


def main(fd: int, bell: int, number: int) -> None:
    """Serve the parent at the other end of the socket `fd` until it says that it was the last.

    Parameters
    ----------
    fd, bell, number : int
        Of the socket, of :class:`shmpar.worker.main.Bell`, and the worker's.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the parent raises its own late
    if sys.stdout is not None:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    wire = Wire(_socket.socket(fileno=fd))
    wire.send(("hello", importlib.util.MAGIC_NUMBER))
    with contextlib.closing(wire), contextlib.suppress(EOFError, BrokenPipeError):
        watch(memoryview(b""))  # a function that is no run's has no slot
        WorkerProcess(wire, Bell(bell), number).serve()
