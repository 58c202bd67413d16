"""A worker process: receives messages from its socket and memory by descriptor, and works.

Its parent starts it with :data:`shmpar.engines.launch.BOOT`.

Guarantees
----------
- It is idle only in one place, the read of the next message. It holds nothing there but the
  segments that the parent has not told it to forget, its latest plan, and its latest stateless
  function.
- A message that is not for the step at hand is kept for the next one; none is dropped.
- It exits when its parent does: :func:`shmpar.worker.parent_watch.exit_with_parent`.
"""

from __future__ import annotations

import _socket
import atexit
import contextlib
import errno
import faulthandler
import gc
import os
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from shmpar import tracebacks
from shmpar.errors import PlanError, ShmparError, shortened, summarize
from shmpar.ipc import protocol
from shmpar.ipc.ledger import FINGERPRINT, Ledger
from shmpar.ipc.protocol import (
    UNCHANGING,
    Environment,
    PackedError,
    PackedValue,
    SegmentRecord,
    Work,
)
from shmpar.ipc.tickets import Tickets, open_tickets
from shmpar.ipc.wire import MAX_DESCRIPTORS, Wire
from shmpar.memory import limits
from shmpar.memory.layout import byte_bounds, protected
from shmpar.memory.segment import Segment
from shmpar.memory.system import keep_freed_blocks, return_freed_blocks
from shmpar.pickling.plain import pack_plain
from shmpar.pickling.unpack import namespaces, unpack
from shmpar.plan import Announcement, Function, ResultError
from shmpar.stores.store import OpenStores, Part, Store, traffic
from shmpar.worker import items, logs, loop
from shmpar.worker.compute import Abandoned, Assignment, bind_inputs
from shmpar.worker.environment import (
    SharesMultiprocessing,
    WarningReporter,
    apply_environment,
    exit_if_forked,
    flush_streams,
    has_changed,
    inside_worker,
    keep_folders,
)
from shmpar.worker.items import call_each, picklable

if TYPE_CHECKING:
    from shmpar.pickling.pack import Payload

Array = np.ndarray[Any, Any]
_FLUSH_SECONDS = 0.01
_KEPT_BLOCK = 32 << 20  # bytes; Why: malloc itself keeps no larger ones
_KEPT_BESIDE_STORES = 16 << 20  # Why less: threads of their libraries have blocks of their own
_SMALL = 1024  # bytes of a result that travels in a message as it is
# Why the reset: a send raises it if the parent has closed the socket with unread messages.
_PARENT_GONE = EOFError, BrokenPipeError, ConnectionResetError


class SocketChannel:
    """A worker process' channel to a run.

    Attributes
    ----------
    announcement : Announcement or None
        The outputs that lie in the ledger's spare memory.
    """

    interruptible = False

    def __init__(self, process: WorkerProcess, run: int, spare: Ledger | None) -> None:
        self._process, self._run, self._spare = process, run, spare
        self._returned: list[tuple[int, Any]] = []
        self._held: list[Segment] = []  # of the results that were not sent
        self._flushed = time.monotonic()
        self.announcement: Announcement | None = None

    def enough(self) -> bool:
        """Return False: this worker reports by messages."""
        return False

    def allocate(self, announcement: Announcement) -> tuple[Sequence[Array], bool]:
        """Return the outputs: in the ledger if they are small, else made by the parent."""
        process, spare = self._process, self._spare
        if spare is not None and (arrays := spare.carve(announcement.outputs)) is not None:
            self.announcement = announcement
            # Why: the parent reads it if this process dies before it can send it.
            spare.slot(process.number)[FINGERPRINT] = announcement.digest()
            return arrays, announcement.is_tuple
        process.send(protocol.OutputsNeeded(process.number, self._run, announcement.pack()))
        reply = process.await_outputs(self._run)
        return [process.output(one) for one in reply.outputs], reply.is_tuple

    def reject(self, error: BaseException) -> None:
        """Report that the run cannot go on."""
        self._process.send(protocol.PlanRejected(self._run, pack_exception(error)))

    def failed(self, chunk: int, error: BaseException, shape: tuple[int, ...] | None) -> None:
        """Report a chunk that failed, with the exception if it can be pickled."""
        self._process.send(protocol.ChunkFailed(self._run, chunk, pack_exception(error), shape))

    def values(self, values: Sequence[tuple[int, Any]]) -> None:
        """Keep results until the claim is finished; one that cannot be pickled fails its chunk."""
        for chunk, value in values:
            if type(value) in UNCHANGING:
                self._returned.append((chunk, value))
                continue
            payload = _pack_result(value)
            if len(self._held) + len(payload.segments) > MAX_DESCRIPTORS:
                self.flush()
            self._returned.append((chunk, _pack_value(payload)))
            self._held += payload.segments
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()  # Why: results come as they are computed, and few die with this process.

    def finished(self, generation: int, first: int, last: int) -> None:
        """Report that the tickets ``first <= t < last`` are done, or have failed."""
        self._process.send(protocol.ClaimFinished(self._run, generation, first, last))

    def flush(self) -> None:
        """Send the results; the kernel keeps them if this process dies now."""
        returned, self._returned, self._flushed = self._returned, [], time.monotonic()
        held, self._held = self._held, []
        if returned:
            descriptors = [one.fileno() for one in held]
            self._process.send(protocol.ObjectsReturned(self._run, returned), descriptors)


def _pack_result(value: Any) -> Payload:
    from shmpar.pickling.pack import pack_result  # Why here: many results need no pickle.

    try:
        return pack_result(value)
    except PlanError as error:
        from shmpar.pickling.explain import reason

        name, why = type(value).__qualname__, reason(error.__cause__ or error)
        raise ResultError(
            f"the function returned a {name}, which cannot be pickled ({why})"
        ) from error


def _pack_outcome(value: Any, *, is_list: bool) -> Payload:
    """Pickle the result of a call; of a list, those results before one that does not pickle."""
    from shmpar.pickling.pack import Payload, pack_result

    plain = pack_plain(value)
    try:
        return pack_result(value) if plain is None else Payload(plain)
    except (ShmparError, OSError):
        if not is_list:
            raise
    values = value.values if type(value) is protocol.Slice else value
    found = picklable(values, pack_result)
    if found.error is None:  # Why again: each value pickles now, so the failure has passed.
        return pack_result(value)
    return pack_result(found._replace(error=pack_exception(found.error)))


def _pack_value(payload: Payload) -> PackedValue:
    """Return the message part of a result, whose segments become the parent's."""
    records = [
        SegmentRecord(one.key, one.size, one.kind, one.writable, private=False)
        for one in payload.segments
    ]
    return PackedValue(payload.body, records)


def pack_exception(error: BaseException) -> PackedError:
    """Pickle an exception, if it can be, and write its traceback as text."""
    # Why here: most workers meet no exception.
    import traceback

    from shmpar.pickling.exceptions import pack_error

    summary = summarize(error)
    try:
        tracebacks.shorten(error)
        text = "".join(traceback.format_exception(error))
    except BaseException:  # noqa: BLE001 - the class is the user's code
        text = summary
    try:
        body = pack_error(error)
    except BaseException:  # noqa: BLE001 - whatever pickling raises, the text has to do
        body = None
    return PackedError(body, shortened(text), summary)


class WorkerProcess:
    """The state of a worker process.

    Attributes
    ----------
    wire : Wire
        Connection to the parent.
    number : int
        Number of the worker, and of its slot in a ledger.
    segments : dict of int to Segment
        Segments that the parent has not released, by its key. They stay mapped between plans, so
        that no page faults twice.
    private : dict of int to list of Segment
        Segments that payloads in the backlog map copy on write. Two of them may have the same one.
    backlog : deque
        Messages that arrived while a plan was running, each with the descriptor of its counter, or
        -1.
    broken : bool
        The initializer has failed: no function is called any more.
    environment : Environment or None
        The parent's state that was sent last.
    tasks_left : int
        Chunks and calls until this process exits.
    calls : Tickets or None
        The counter of its calls: a ticket is the right to make one.
    ledger : tuple of (int, Ledger) or None
        The latest ledger, with the key of its segment. The next run often has the same one.
    plan : tuple of (bytes, Plan)
        The latest plan with its pickle. The next call often has an equal one.
    function : tuple of (bytes, Function)
        The latest payload and its function, if it is stateless. Any other payload replaces it,
        since another payload may set globals of the function's module.
    stores : OpenStores
        Those of the run in progress.
    """

    def __init__(self, wire: Wire, number: int) -> None:
        self.wire, self.number = wire, number
        self.segments: dict[int, Segment] = {}
        self.private: dict[int, list[Segment]] = {}
        self.backlog: deque[tuple[Any, int]] = deque()
        self.broken = False
        self.environment: Environment | None = None
        self.tasks_left = sys.maxsize
        self.ledger: tuple[int, Ledger] | None = None
        self.plan: tuple[bytes, Any] = (b"", None)
        self.function: tuple[bytes, Any] = (b"", None)
        self.calls: Tickets | None = None
        self.stores = OpenStores()
        self._ticket = 0  # of the latest call
        items.is_stopped = self._is_stopped
        self._environment_ahead: Environment | None = None  # of a call that was withdrawn
        self._socket = os.fstat(wire.fileno())
        self.warnings = WarningReporter(self.send)
        logs.begin(self.send)

    def abandon(self) -> None:
        """Close the socket, in a child that the user's code has forked."""
        self.wire.close()
        logs.end()
        faulthandler.enable(2)  # Why: the parent takes the stack of this worker alone.

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send a message to the parent."""
        self._check_socket()
        self.wire.send(message, descriptors)

    def _check_socket(self) -> None:
        """Raise `OSError` if the user's code has closed the socket, or opened another file there.

        Why: the parent would wait for a message, and this process would wait for another file.
        """
        if not os.path.samestat(os.fstat(self.wire.fileno()), self._socket):
            raise OSError(errno.EBADF, "another file has the number of the worker's socket")

    def serve(self) -> None:
        """Handle messages until the parent asks for the exit, or no tasks are left."""
        while self.tasks_left > 0:
            message, counter = self.backlog.popleft() if self.backlog else self._next()
            match message:
                case protocol.RunPlan():
                    work = Work._make(pickle.loads(message.body))
                    self.warnings.begin(run=work.run)
                    self._run(message.environment, work, open_tickets(work.tickets, counter))
                case protocol.RunCall():
                    self.warnings.begin(call=message.call)
                    self._call(message)
                case protocol.Initialize():
                    self.warnings.begin()
                    self._initialize(message)
                case protocol.SetTaskLimit(tasks):
                    self.tasks_left = tasks
                case protocol.ForgetSegment(key):
                    self._forget(key)
                case protocol.ExitNow():
                    return
            self.warnings.end()
        self.send(protocol.WorkerExiting(self.number))

    def _next(self) -> tuple[Any, int]:
        """Return the next message that needs its turn, and the descriptor of its counter."""
        while True:
            self._check_socket()
            message, descriptors = self.wire.receive()
            counts = isinstance(message, protocol.RunPlan | protocol.CountCalls)
            counter = descriptors.pop(0) if counts else -1
            # Invariant: segments are adopted in the order in which messages arrive, even if a
            # message waits in the backlog: a later message may name a segment that it is not sent.
            self._adopt(getattr(message, "segments", ()), descriptors)
            match message:
                case protocol.AddSegments():
                    pass
                case protocol.CountCalls(kind):
                    self.calls = open_tickets(kind, counter)
                # Why: a plan in the backlog may still name the segment.
                case protocol.ForgetSegment(key) if not self.backlog:
                    self._forget(key)
                case _:
                    return message, counter

    def _forget(self, key: int) -> None:
        """Drop a segment; the mapping lives as long as a view in the user's code."""
        if (segment := self.segments.pop(key, None)) is not None:
            segment.drop_mappings()
        if self.ledger is not None and self.ledger[0] == key:
            self.ledger = None

    def _adopt(self, records: Sequence[SegmentRecord], descriptors: Sequence[int]) -> None:
        for record, fd in zip(records, descriptors, strict=True):
            segment = Segment.adopt(fd, **record._asdict())
            if record.private:
                self.private.setdefault(record.key, []).append(segment)
            else:
                self.segments[record.key] = segment
                segment.keep_mapped()

    def _held(self, keys: Sequence[int]) -> list[Segment]:
        return [self.segments[key] if key >= 0 else self._private(~key) for key in keys]

    def _private(self, key: int) -> Segment:
        """Take a segment that came for a payload."""
        waiting = self.private[key]
        segment = waiting.pop()
        if not waiting:
            del self.private[key]
        return segment

    def _initialize(self, message: protocol.Initialize) -> None:
        try:
            (initializer, arguments), _ = self._unpack(message.payload, self._held(message.held))
            before = sys.path.copy()
            with inside_worker():
                namespaces.run_initializer(lambda: initializer(*arguments))
            keep_folders(before)
            exit_if_forked()
        except BaseException as error:  # noqa: BLE001 - the parent reports it
            exit_if_forked(error)
            self.broken = True
            self.send(protocol.InitializerFailed(pack_exception(error)))

    def _call(self, message: protocol.RunCall) -> None:
        private: Sequence[Array] = ()
        descriptors: list[int] = []
        started = False
        try:
            held = self._held(message.held)
            # Invariant: the claim comes before anything of the user's, so a call that was not
            # begun can be made elsewhere.
            self._ticket = message.ticket
            if self.calls is None or self.calls.claim(1) != message.ticket:
                self._environment_ahead = message.environment or self._environment_ahead
                return
            if self.broken:
                self.send(protocol.CallFinished(message.call, started=False))
                return
            self._apply(message.environment)
            function, private = self._unpack_call(message, held)
            started = True
            with inside_worker():
                value = function.call(*function.values, *message.more, **function.keywords)
            exit_if_forked()
            if type(value) is protocol.Slice:
                value = value._replace(error=pack_exception(value.error))
            if not (type(value) in UNCHANGING and sys.getsizeof(value) <= _SMALL):
                payload = _pack_outcome(value, is_list=bool(message.more))
                descriptors = [one.fileno() for one in payload.segments]
                value = _pack_value(payload)
            reply = protocol.CallFinished(message.call, value)
        except BaseException as error:  # noqa: BLE001 - it is the call's outcome
            exit_if_forked(error)
            packed = pack_exception(error)
            reply = protocol.CallFinished(message.call, error=packed, started=started)
            # Why: the user's code may keep the exception, and its frames hold the memory.
            BaseException.with_traceback(error, None)
        finally:
            if private:
                namespaces.forget(private)
        self.tasks_left -= 1
        self.send(reply, descriptors)

    def _run(self, environment: Environment | None, work: Work, tickets: Tickets) -> None:
        received = time.perf_counter()
        end = protocol.CounterExhausted(self.number, work.run, work.generation)
        private: Sequence[Array] = ()
        try:
            try:
                held = self._held(work.held)
                if self.broken:
                    raise RuntimeError("the initializer failed")  # noqa: TRY301 - as any other reason
                self._apply(environment)
                function, private = self._unpack(work.function, held, stateless=work.stateless)
                assignment = self._assign(work, function, tickets)
            except BaseException as error:  # noqa: BLE001 - the run is told
                self.send(protocol.PlanRejected(work.run, pack_exception(error)))
                # Why: the user's code may keep the exception, and its frames hold the memory.
                BaseException.with_traceback(error, None)
            else:
                assignment.received = received
                end = self._work(assignment, work, end)
        finally:
            if private:
                namespaces.forget(private)
            if self.stores.drop():
                return_freed_blocks()
        self.send(end)

    def _work(
        self, assignment: Assignment, work: Work, end: protocol.CounterExhausted
    ) -> protocol.CounterExhausted:
        """Compute chunks; return the event that ends the work."""
        spare = assignment.ledger if work.small_outputs else None
        channel = SocketChannel(self, work.run, spare)
        exhausted, moved = traffic.counted(loop.work, assignment, channel)
        self.tasks_left -= assignment.claimed
        channel.flush()
        made = [(key, one.huge_bytes) for key, one in self.segments.items() if one.huge_bytes]
        for key, _ in made:
            self.segments[key].huge_bytes = 0
        return end._replace(
            claimed=assignment.claimed,
            handed_out=assignment.handed_out,
            left=assignment.left,
            announcement=channel.announcement and channel.announcement.pack(),
            exiting=not exhausted,
            huge_bytes=made,
            traffic=moved,
        )

    def _assign(self, work: Work, function: Function, tickets: Tickets) -> Assignment:
        """Return the work in the memory of this process."""
        ledger, outputs, sums = self._ledger(work), work.outputs, work.checksums
        if any(isinstance(one, Store) for one in work.arrays):
            keep_freed_blocks(_KEPT_BESIDE_STORES)
        if work.plan != self.plan[0]:
            self.plan = work.plan, pickle.loads(work.plan)
        return Assignment(
            plan=self.plan[1],
            function=function,
            arrays=bind_inputs(
                self.plan[1], work.arrays, lambda one: self._input(one, work), self.stores
            ),
            outputs=None if outputs is None else [self.output(one) for one in outputs],
            is_tuple=work.is_tuple,
            tickets=tickets,
            todo=work.todo,
            generation=work.generation,
            ledger=ledger,
            worker=self.number,
            slot=ledger.slot(self.number),
            workers=work.workers,
            reports=work.reports,
            sums=None if sums is None else self.output(sums),
            origin=work.origin,
            max_tickets=self.tasks_left,
        )

    def _unpack(
        self, body: bytes, held: Sequence[Segment], *, stateless: bool = False
    ) -> tuple[Any, Sequence[Array]]:
        """Return the value of a payload and its private arrays; reuse a stateless value."""
        if stateless and body == self.function[0]:
            return self.function[1], ()
        self.function = b"", None
        value, private = unpack(body, held)
        if stateless:
            self.function = body, value
        return value, private

    def _is_stopped(self) -> bool:
        """Return whether the parent has ended the call over items that is in progress."""
        return self.calls is not None and self.calls.claim(0) - self._ticket >= items.STOP

    def _unpack_call(
        self, message: protocol.RunCall, held: Sequence[Segment]
    ) -> tuple[Function, Sequence[Array]]:
        if not message.function:
            # Why: another slice of the same items may follow. Private memory serves one call.
            again = bool(message.more) and not held
            return self._unpack(message.payload, held, stateless=again)
        function, _ = self._unpack(message.function, (), stateless=True)
        keywords, *values = pickle.loads(message.payload)
        call, first = (call_each, [function.call]) if message.more else (function.call, [])
        return Function(call, keywords or {}, (*first, *values)), ()

    def _ledger(self, work: Work) -> Ledger:
        key, known = self.ledger or (0, None)
        # Why the chunks: the segment of a ledger also serves one of more chunks, or fewer.
        if known is None or (key, known.chunks) != (work.ledger, work.chunks):
            memory = self.segments[work.ledger].memory
            known = Ledger(memory, workers=work.workers, chunks=work.chunks)
            self.ledger = work.ledger, known
        return known

    def output(self, reference: protocol.Input) -> Any:
        """Return the array, the part or the store that lies at a reference, writable."""
        if isinstance(reference, Store):
            keep_freed_blocks(_KEPT_BESIDE_STORES)
            return self.stores.bind(reference)
        if isinstance(reference, protocol.PartReference):
            return Part(self.output(reference.memory), *reference[1:])
        key, offset, shape, strides, dtype = reference
        return self.segments[key].ndarray(offset, shape, strides, np.dtype(dtype))

    def _input(self, reference: protocol.Reference | protocol.PartReference, work: Work) -> Any:
        """Return the array or the part that lies at a reference, protected from writes."""
        if isinstance(reference, protocol.PartReference):
            return Part(self._input(reference.memory, work), *reference[1:])
        key, offset, shape, strides, dtype = reference
        if _is_written(reference, work):
            # Why: a second mapping would hide from NumPy that an output overlaps its input.
            return protected(self.output(reference))
        return self.segments[key].ndarray(
            offset, shape, strides, np.dtype(dtype), writable=False, protect=True
        )

    def await_outputs(self, run: int) -> protocol.UseOutputs:
        """Receive messages until the answer to ``OutputsNeeded``; keep the others."""
        while True:
            message, counter = self._next()
            match message:
                case protocol.UseOutputs() if message.run == run:
                    return message
                case protocol.AbandonRun() if message.run == run:
                    raise Abandoned
                case _:
                    self.backlog.append((message, counter))

    def _apply(self, environment: Environment | None) -> None:
        """Apply the parent's state, if it is new or a function has changed it here."""
        environment, self._environment_ahead = environment or self._environment_ahead, None
        if environment is not None:
            self.environment = environment
            apply_environment(environment)
        elif self.environment is not None and has_changed(self.environment):
            apply_environment(self.environment)


def _is_written(reference: Any, work: Work) -> bool:
    """Return whether an output may overlap an input in its memory."""
    if work.outputs is None:
        return work.in_place
    low, high = _bounds(reference)
    for output in work.outputs:
        if isinstance(output, tuple) and output[0] == reference[0]:
            begin, end = _bounds(output)
            if low < end and begin < high:
                return True
    return False


def _bounds(reference: Any) -> tuple[int, int]:
    """Return the bytes [low, high) of a segment that an array spans."""
    _, offset, shape, strides, dtype = reference
    low, high = byte_bounds(shape, strides, np.dtype(dtype).itemsize)
    return offset + low, offset + high


def _ask(parent: Wire, part: str) -> Any:
    """Return the key or the descriptor that the parent hands on; None if it does not."""
    # Why suppressed: after the end of the parent or of the pool, no one answers.
    with contextlib.suppress(EOFError, OSError), contextlib.ExitStack() as ends:
        theirs, mine = map(ends.enter_context, map(contextlib.closing, Wire.pair()))
        parent.send(protocol.Inherit(part), [theirs.fileno()])
        theirs.close()
        key, descriptors = Wire(mine).receive()
        return key or descriptors[0]
    return None


def main(fd: int, life: int, number: int) -> None:
    """Serve the parent at the other end of the socket `fd`, as the worker with this number."""
    limits.raise_descriptor_limit()  # Why: the parent raises its own late.
    if sys.stdout is not None:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if sys.breakpointhook is sys.__breakpointhook__:
        sys.breakpointhook = partial(_break, sys.breakpointhook)
    # Why first: the exit functions of the user's code run before it, in a whole interpreter.
    atexit.register(_drop_objects)
    wire = Wire(_socket.socket(fileno=fd))
    SharesMultiprocessing(partial(_ask, wire), number, life)
    faulthandler.enable(fd)  # The parent reads its text from the socket too.
    process = WorkerProcess(wire, number)
    keep_freed_blocks(_KEPT_BLOCK)
    with contextlib.closing(wire), contextlib.suppress(*_PARENT_GONE):
        process.send(protocol.WorkerReady(number))
        try:
            with inside_worker(process):
                process.serve()
        except BaseException as error:
            exit_if_forked(error)
            if isinstance(error, _PARENT_GONE):
                raise
            lost = getattr(error, "errno", None) in {errno.EBADF, errno.ENOTSOCK, errno.ESPIPE}
            if not lost:
                import traceback

                traceback.print_exception(error)
            flush_streams()
            # Why: threads of the user's code may hold up another exit.
            os._exit(protocol.SOCKET_LOST if lost else 1)
        exit_if_forked()


def _break(otherwise: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """Take the place of :func:`sys.breakpointhook`, unless the user has chosen another debugger."""
    if os.environ.get("PYTHONBREAKPOINT"):
        return otherwise(*args, **keywords)
    raise RuntimeError('breakpoint() needs a terminal, and a worker has none: use engine="serial"')


def _drop_objects() -> None:
    """Drop the user's objects while their finalizers still find the modules that they need."""
    namespaces.clear()
    gc.collect()
