"""The side of a host: it serves spans and calls with a local pool, in a process of any engine.

::

    client                                   host (one process)            its local workers
    ──────                                   ──────────────────            ─────────────────
    Span: chunk numbers, windows  ─────────▶ serve(): a run of these   ──▶ claim tickets, call
    SpanResult: marks, windows    ◀───────── chunks on the local loop  ◀── the function

:func:`serve` is the function that the other engine is asked to call, with arguments that pickle.

Guarantees
----------
- A host runs no code of the user: it passes the pickled function on to its workers.
- A process has one local pool per client's pool, which starts with the first span. It ends when the
  client says so, and with the client's process on the same machine. Without work it also ends if
  the parent of its process has ended, and after :data:`IDLE_SECONDS` if the client is not watched.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import cloudpickle
import numpy as np

from shmpar.cluster import spans
from shmpar.cluster.messages import (
    BoxResult,
    CallResult,
    File,
    Head,
    Located,
    Memory,
    Missing,
    Probe,
    Refused,
    Settings,
    Span,
    SpanBox,
    SpanResult,
    Submitted,
    Versions,
    Window,
    machine,
)
from shmpar.engines.launch import Launcher
from shmpar.engines.packing import PreparedCall, PreparedRun
from shmpar.engines.processes import ProcessesEngine
from shmpar.errors import ShmparError, summarize
from shmpar.ipc import protocol
from shmpar.memory.copying import share
from shmpar.memory.limits import available_cpus
from shmpar.memory.names import remove_stale
from shmpar.memory.segment import Segment, new_output
from shmpar.pickling.pack import Payload
from shmpar.plan import Announcement, Function, Plan, ResultError
from shmpar.runtime.calls import Call
from shmpar.runtime.execution import Execution, Policy
from shmpar.runtime.loop import AT_ONCE, Loop
from shmpar.runtime.outputs import Outputs
from shmpar.runtime.run import Run
from shmpar.stores.store import Part
from shmpar.worker.main import pack_exception

Array = np.ndarray[Any, Any]

IDLE_SECONDS = 60.0
"""A host whose client cannot be watched ends its pool after so long without work."""
_LOOK_SECONDS = 0.1  # between two looks at the client's control memory
_HEAD_SECONDS = 5.0  # a head without spans is dropped after so long
CLOSED = 0  # index of the flag in the control memory; behind it are the runs that were stopped
STOPS = 32  # runs that were stopped last
_MOST_STOPPED = 1000  # runs and calls that a host remembers as stopped


class _NoMemoryError(Exception):
    """The memory of the client cannot be opened here."""


def probe() -> Probe:
    """Return the facts of this process."""
    return Probe(Versions.here(), machine(), available_cpus(), socket.gethostname())


def serve(settings: Settings, work: Span | Submitted, head: Head | None) -> Any:
    """Do the work with the local pool of this process; return the result.

    Parameters
    ----------
    settings : Settings
        Those of the client's pool.
    work : Span or Submitted
        Chunks, or a call.
    head : Head or None
        The head of the span's run, if this process may not have it.

    Returns
    -------
    SpanResult, CallResult, Missing or Refused
        The result, or the reason why there is none. It raises nothing.
    """
    difference = settings.versions.disagrees(Versions.here())
    if difference is not None:
        return Refused(difference)
    try:
        with _working(settings) as host:
            return host.span(work, head) if isinstance(work, Span) else host.call(work)
    except _NoMemoryError:
        return Missing("memory")
    except Exception as error:  # noqa: BLE001 - the client is told
        return Refused(summarize(error))


# Lock: held while a host is made or taken away.
_lock = threading.Lock()
_hosts: dict[tuple[str, int], Host] = {}


@contextlib.contextmanager
def _working(settings: Settings) -> Iterator[Host]:
    """Keep the host for a client's pool from its end; make one if there is none."""
    key = settings.pool, os.getpid()  # Why the pid: a forked child has none of the hosts
    with _lock:
        host = _hosts.get(key)
        if host is None or not host.begin():
            host = _hosts[key] = Host(settings, key)
    try:
        yield host
    finally:
        host.end()


def stop(pool: str, run: int, *, kill: bool = False) -> None:
    """Stop a run on the hosts in this process; `kill` the workers of its chunks in progress."""
    for host in _of_pool(pool):
        host.stop(run, kill=kill)


def close(pool: str) -> None:
    """End the pools in this process that serve a client's pool; return when they have ended."""
    for host in _of_pool(pool):
        host.close()


def _of_pool(pool: str) -> list[Host]:
    """Return the hosts of a pool in this process; some are several (``name@host``)."""
    here = [(name, host) for (name, pid), host in list(_hosts.items()) if pid == os.getpid()]
    return [host for name, host in here if pool in {name, name.partition("@")[0]}]


class HostEngine(ProcessesEngine):
    """The local workers of a host: functions come pickled, inputs in shared memory."""

    def __init__(self, settings: Settings) -> None:
        launcher = Launcher(None, settings.env, settings.threads)
        call = None if settings.initializer is None else pickle.loads(settings.initializer)
        super().__init__(settings.workers, launcher, call, settings.tasks)
        self.slab = None  # Why: outputs are windows, which do not fit into spare memory.

    def prepare(
        self, plan: Plan, function: Function, arrays: list[Any], *, frozen: bool
    ) -> PreparedRun:
        """Make a run ready; the state of the client replaces that of this process."""
        prepared = super().prepare(plan, function, arrays, frozen=frozen)
        prepared.environment = _merged(prepared.environment, function)
        return prepared

    def prepare_call(self, call: Function) -> PreparedCall:
        """Make a call ready."""
        prepared = super().prepare_call(call)
        prepared.environment = _merged(prepared.environment, call)
        return prepared


def _merged(own: protocol.Environment, function: Function) -> protocol.Environment:
    """Return the state for workers: paths and variables of this host, the rest of the client."""
    client: protocol.Environment = function.keywords["environment"]
    return own._replace(errors=client.errors, filters=client.filters, error_call=client.error_call)


class HostOutputs(Outputs):
    """Outputs of a box of chunks: windows of the whole outputs, or stores that the workers write.

    Parameters
    ----------
    plan : Plan
        The plan of the call.
    box : Box
        The chunks.
    stores : sequence of (Store or ndarray) or None
        Outputs that the workers write themselves.
    """

    def __init__(self, plan: Plan, box: spans.Box, stores: Sequence[Any] | None) -> None:
        super().__init__(None, returns_objects=plan.returns_objects)
        self._plan, self._box, self._stores = plan, box, stores
        self.announced: Announcement | None = None

    def allocate(self, announcement: Announcement) -> list[Any]:
        """Allocate the windows."""
        self.announced = announcement
        arrays: list[Any] = []
        if self._stores is not None:
            arrays = list(self._stores)
        elif not self._plan.returns_objects:
            for shape, dtype in announcement.outputs:
                window = spans.output_window(self._plan, shape, self._box)
                part = new_output(tuple([one.stop - one.start for one in window]), dtype)
                arrays.append(Part(part, [one.start for one in window], shape))
        self.is_tuple, self.arrays = announcement.is_tuple, arrays
        return arrays

    def shared_nbytes(self) -> list[int]:
        """Return none: the client has checked the room for its whole outputs."""
        return []


class HostExecution(Execution):
    """The execution of a box of chunks on a host.

    Its ledger and its scheduler number the chunks from 0, since the first chunk of the box is the
    base of its plan. Failures are kept with the numbers of the whole call.

    Attributes
    ----------
    failures : list of (int, PackedError, tuple or None, bool)
        As in :class:`BoxResult`.
    values : list of (int, bytes)
        Results that are objects, pickled.
    """

    result: BoxResult | None = None
    compute_seconds = 0.0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.failures: list[tuple[int, protocol.PackedError, Any, bool]] = []
        self.values: list[tuple[int, bytes]] = []

    def handle(self, event: protocol.Event) -> None:
        """Take an event; keep objects for the client."""
        if not isinstance(event, protocol.ObjectsReturned):
            super().handle(event)
            return
        for chunk, value in event.values:
            try:
                self.values.append((chunk, cloudpickle.dumps(value, 5)))
            except Exception as cause:  # noqa: BLE001 - it is the chunk's outcome
                name, why = type(value).__qualname__, summarize(cause)
                text = f"the function returned a {name} that its host cannot pickle ({why})"
                error = ResultError(text)
                self._chunk_failed(protocol.ChunkFailed(event.run, chunk, error))

    def _chunk_failed(self, event: protocol.ChunkFailed) -> None:
        local = event.chunk - self.plan.base
        if local not in self.errors:
            self.errors[local] = ShmparError("a chunk failed")
            self.failures.append((event.chunk, pack_exception(event.error), event.shape, False))
            self._feed(event._replace(chunk=local))

    def _death(self, chunk: int, *, timed_out: bool) -> ShmparError:
        error = super()._death(chunk + self.plan.base, timed_out=timed_out)
        self.failures.append((chunk + self.plan.base, pack_exception(error), None, True))
        return error

    def _finalize(self, done: list[int] | None) -> Any:
        """Collect the result for the client."""
        ledger, base = self.ledger, self.plan.base
        assert ledger is not None, "it has begun"
        every = range(base, base + self.plan.chunks)
        chunks: Sequence[int] = every if self._todo is None else [base + one for one in self._todo]
        if done is not None:
            finished = {base + one for one in done}
            chunks = [chunk for chunk in chunks if chunk in finished]
        self.compute_seconds = float(ledger.times.seconds.sum())
        outputs, sums = self.outputs, cast("Part | None", self.outputs.checksums)
        assert isinstance(outputs, HostOutputs)
        arrays = outputs.arrays or ()
        parts = [(one.array, one.origin) for one in arrays if isinstance(one, Part)]
        self.result = BoxResult(
            done=chunks,
            failed=self.failures,
            fatal=None if self.fatal is None else pack_exception(self.fatal),
            announcement=outputs.announced,
            parts=parts or None,
            values=self.values,
            sums=None if sums is None else sums.array,
        )
        return None

    def arrays(self) -> tuple[Any, Any]:
        """Return nothing: no report is made of it."""
        return [], []


class _Loaded:
    """A run on this host: the parts that its spans share.

    Attributes
    ----------
    payload : Payload
        The function, with segments of this host.
    outputs : list or None
        Outputs that the workers write themselves.
    """

    def __init__(self, head: Head) -> None:
        self.head = head
        self.payload = _payload(head.function, head.held)
        self._inputs: dict[int, Any] = {}
        self.outputs = None if head.outputs is None else [_opened(one) for one in head.outputs]
        self.used = time.monotonic()
        self.runs: set[Run] = set()

    def input(self, number: int) -> Any:
        """Return an input of which the head has the address; it is opened once."""
        # Why not all of them: the client's memory cannot be opened on another machine.
        if number not in self._inputs:
            self._inputs[number] = _opened(self.head.inputs[number])
        return self._inputs[number]


def _payload(body: bytes, held: Sequence[Array]) -> Payload:
    segments = [share(values, "argument")[0] for values in held]
    return Payload(body, tuple(segments), (True,) * len(segments))


def _opened(given: Any) -> Any:
    """Return the array of an input or output that travels as its address."""
    if isinstance(given, Located):
        segment = open_memory(given.memory)
    elif isinstance(given, File):
        mode = os.O_RDWR if given.writable else os.O_RDONLY
        fd = os.open(given.path, mode | os.O_CLOEXEC)
        size = os.fstat(fd).st_size
        segment = Segment.adopt(fd, size, kind="file", writable=given.writable)
        segment.path = given.path
    else:
        return given
    return segment.ndarray(given.offset, given.shape, given.strides, given.dtype)


def open_memory(memory: Memory) -> Segment:
    """Map memory of the client, which must be on this machine."""
    if memory.machine != machine():
        raise _NoMemoryError
    try:
        fd = os.open(f"/proc/{memory.pid}/fd/{memory.fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _NoMemoryError from error
    found = os.fstat(fd)
    if (found.st_dev, found.st_ino) != (memory.device, memory.inode):
        os.close(fd)
        raise _NoMemoryError
    return Segment.adopt(fd, memory.size, kind=memory.kind, writable=False)


def placed(window: Window) -> Part:
    """Copy a window into a segment, with the order of axes and the gaps of the whole array.

    Why: a function adds numbers in the order in which they lie in memory. So its result is the same
    bit for bit only if the block has strides like those of a view of the whole array.
    """
    stored, order = window.values.shape, window.order
    room = [n + gap for n, gap in zip(stored, window.gaps, strict=True)]
    memory = new_output((*room, 1 + window.sparse), window.dtype)
    where: Any = (*[slice(n) for n in stored], 0, ...)
    inside = memory[where]
    inside[...] = window.values
    array = inside.transpose(np.argsort(order)) if order else inside
    steps = [-1 if k in window.backward else 1 for k in range(array.ndim)]
    turned: Any = (*[slice(None, None, step) for step in steps], ...)
    return Part(np.broadcast_to(array[turned], window.lengths), window.origin, window.shape)


class Host:
    """The local pool of this process for one pool of a client; made for its first work."""

    def __init__(self, settings: Settings, key: tuple[str, int]) -> None:
        remove_stale()  # Why: those of hosts that were killed.
        self.settings, self._key = settings, key
        self.closed = self._leaves = False
        self._loop = Loop(partial(HostEngine, settings))
        self._loaded: dict[int, _Loaded] = {}
        # Lock: held while a head is opened, and for a look at the runs and the flags below.
        self._state = threading.Lock()
        self._working, self._idle_since = 1, time.monotonic()
        self._stopped: dict[int, bool] = {}
        self._calls: dict[int, Call] = {}
        self._parent = os.getppid()
        self._control: Array | None = None
        self._client = -1
        if settings.control is not None:
            with contextlib.suppress(_NoMemoryError):
                self._watch_client(settings.control)
        threading.Thread(target=self._watch, name="shmpar-host", daemon=True).start()

    def _watch_client(self, control: Memory) -> None:
        self._control = open_memory(control).ndarray(0, (1 + 2 * STOPS,), None, np.dtype("i8"))
        with contextlib.suppress(OSError, AttributeError):
            self._client = os.pidfd_open(control.pid)

    def begin(self) -> bool:
        """Note that work begins; return False if the host takes none any more."""
        with self._state:
            self._working += not self._leaves
            return not self._leaves

    def end(self) -> None:
        """Note that work has ended."""
        with self._state:
            self._working -= 1
            self._idle_since = time.monotonic()

    # Spans

    def span(self, span: Span, head: Head | None) -> SpanResult | Missing:
        """Compute the chunks of a span."""
        loaded = self._load(span.run, head)
        if loaded is None:
            return Missing("head")
        runs = [self._start(loaded, box, span) for box in span.boxes]
        results, warned, seconds, deaths = [], {}, 0.0, 0
        traffic = protocol.NO_TRAFFIC
        for run in runs:
            run.resolved.wait()
            execution = run.execution
            assert isinstance(execution, HostExecution)
            results.append(execution.result or _nothing_done(run))
            seconds, deaths = seconds + execution.compute_seconds, deaths + execution.deaths
            warned.update(run.warned or {})
            traffic = protocol.add_traffic(traffic, execution.traffic)
        with self._state:
            loaded.runs.difference_update(runs)
            loaded.used = time.monotonic()
        each = seconds / self.settings.workers
        return SpanResult(results, each, deaths, [*warned.values()], traffic)

    def _load(self, number: int, head: Head | None) -> _Loaded | None:
        with self._state:
            found = self._loaded.get(number)
            if found is None and head is not None:
                found = self._loaded[number] = _Loaded(head)
            if found is not None:
                found.used = time.monotonic()
            return found

    def _start(self, loaded: _Loaded, box: SpanBox, span: Span) -> Run:
        head, base = loaded.head, box.chunks[0]
        count = box.chunks[-1] - base + 1
        dense = isinstance(box.chunks, range)
        todo = None if dense else tuple([chunk - base for chunk in box.chunks])
        arrays = [
            loaded.input(number) if one is None else placed(one)
            for number, one in enumerate(box.inputs)
        ]
        outputs = HostOutputs(head.plan, box.box, loaded.outputs)
        if span.announcement is not None:
            outputs.expected = span.announcement
        if head.sums:
            sums: Any = Part(new_output((count,), np.dtype("u4")), (base,), (base + count,))
            outputs.checksums = sums
        policy = Policy(
            on_error="raise" if head.plan.fail_fast else "collect",
            retries=head.retries,
            task_timeout=head.task_timeout,
        )
        packed: Any = loaded.payload
        function = Function(packed, {"environment": head.environment}, ())
        plan = head.plan._replace(base=base, span=count)
        run = Run(HostExecution(plan, function, arrays, outputs, policy, todo))
        with self._state:
            loaded.runs.add(run)
            stopped = self._stopped.get(span.run)
        self._loop.launch(run)
        if stopped is not None:
            self._loop.cancel(run, 0.0 if stopped else None)
        return run

    def stop(self, number: int, *, kill: bool) -> None:
        """Stop the spans of a run, those that come later too; or a call over items."""
        with self._state:
            if number in self._stopped and self._stopped[number] >= kill:
                return
            self._stopped[number] = kill
            if len(self._stopped) > _MOST_STOPPED:
                del self._stopped[next(iter(self._stopped))]
            loaded = self._loaded.get(number)
            runs = [] if loaded is None else list(loaded.runs)
            call = self._calls.get(number)
        for run in runs:
            self._loop.cancel(run, 0.0 if kill else None)
        _end_early(call)

    # Calls

    def call(self, work: Submitted) -> CallResult:
        """Make a submitted call."""
        payload: Any = _payload(work.function, work.held)
        function = Function(payload, {"environment": work.environment}, ())
        prepared = self._loop.prepare_call(function)
        # Why unwanted: the client has the items computed that the call leaves.
        call = self._loop.add_call(work.name, prepared, work.retries, work.more, unwanted=True)
        with self._state:
            self._calls[work.number] = call
            stopped = work.number in self._stopped
        _end_early(call if stopped else None)
        call.resolved.wait()
        with self._state:
            del self._calls[work.number]
            self._stopped.pop(work.number, None)
        warned = [*(call.warned or {}).values()]
        call.warned = None
        error = call.exception()
        if error is not None:
            return CallResult(None, pack_exception(error), warned)
        try:
            value = call.result()
            if type(value) is protocol.Slice:
                value = value._replace(error=pack_exception(value.error))
            return CallResult(cloudpickle.dumps(value, 5), None, warned)
        except Exception as failure:  # noqa: BLE001 - it is the call's outcome
            return CallResult(None, pack_exception(failure), warned)

    # The end

    def _watch(self) -> None:
        """End the pool with its client; tell it of the runs that the client has stopped."""
        poll = select.poll()
        if self._client >= 0:
            poll.register(self._client, select.POLLIN)
        while not self.closed:
            ended = bool(poll.poll(1000 * _LOOK_SECONDS))
            if ended or self._is_abandoned():
                break
            self._read_control()
            self._drop_heads()
        self.close()
        with _lock:  # Why: the heads and the memory of the client are kept no longer.
            if _hosts.get(self._key) is self:
                del _hosts[self._key]

    def _is_abandoned(self) -> bool:
        if self._control is not None and self._control[CLOSED]:
            return True
        with self._state:
            idle = time.monotonic() - self._idle_since > IDLE_SECONDS and self._client < 0
            # Why not while it works: the parent may be the shell that has started this process.
            self._leaves |= not self._working and (idle or os.getppid() != self._parent)
            return self._leaves

    def _read_control(self) -> None:
        if self._control is not None:
            for run, kill in self._control[1:].reshape(-1, 2).tolist():
                if run:
                    self.stop(run - 1, kill=bool(kill))

    def _drop_heads(self) -> None:
        before = time.monotonic() - _HEAD_SECONDS
        with self._state:
            for number, loaded in list(self._loaded.items()):
                if not loaded.runs and loaded.used < before:
                    del self._loaded[number]

    def close(self) -> None:
        """End the local workers."""
        with self._state:
            closed, self.closed, self._leaves = self.closed, True, True
        if not closed:
            with contextlib.suppress(Exception):
                self._loop.close(AT_ONCE)
            if self._client >= 0:
                os.close(self._client)


def _end_early(call: Call | None) -> None:
    """Begin no further item of a call over items."""
    if call is not None and call.stop is not None:
        call.stop(call)


def _nothing_done(run: Run) -> BoxResult:
    """Return the result of a run that ended before it began, or with its engine."""
    error = None if run.cancelled() else run.exception()
    fatal = None if error is None else pack_exception(error)
    return BoxResult([], [], fatal, None, None, [], None)
