"""The processes engine: workers are executed interpreters that take numbers and share memory.

::

      parent                                            worker (one of n)
    ┌───────────────┐  RunPlan, UseOutputs, RunCall   ┌────────────────┐
    │ pool thread:  │ ────────── socket ────────────▶ │ main, loop     │
    │ loop, engine  │ ◀──────────────────────────────  │                │
    └──────┬────────┘  WorkerReady, OutputsNeeded,    └──────┬─────────┘
           │           ChunkFailed, CounterExhausted         │
           │                                                 │
           │     segments: inputs, outputs, ledger           │
           └───────────────▶ (mapped by all) ◀───────────────┘
                  ticket counter: a file offset

Guarantees
----------
- At most two generations and two calls are outstanding at a worker, and no send blocks.
- A call that a worker has not begun can be withdrawn at any time.
- A worker that sends messages without end keeps neither other workers nor requests waiting.
- A segment's descriptor is sent to a worker once. The worker is told to forget it after the last
  array in it is dropped here.
- A worker's death is known from its pidfd, and reported after all of its messages. On a system
  without pidfds the engine looks ten times a second.
- :meth:`ProcessesEngine.shutdown` leaves no process, descriptor or segment.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
import weakref
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np

from shmpar.engines import packing
from shmpar.engines.engine import ActivePlan, Engine, Generation, take_back
from shmpar.engines.launch import Launcher, hand_on
from shmpar.engines.packing import PreparedCall, PreparedRun
from shmpar.engines.segments import Ledgers, SegmentTracker, WakeUp
from shmpar.engines.worker_handle import EXIT_SECONDS, MAX_OUTSTANDING, Attached, WorkerHandle
from shmpar.ipc import protocol
from shmpar.ipc.ledger import Ledger
from shmpar.ipc.tickets import Counters, Tickets
from shmpar.memory import allocate, limits
from shmpar.memory.copying import copied_nbytes
from shmpar.memory.locate import locate
from shmpar.memory.segment import Segment, Slab
from shmpar.pickling.pack import pack
from shmpar.plan import Announcement, Function, Plan
from shmpar.stores.store import Part

Array = np.ndarray[Any, Any]

_RETRY_SECONDS = 0.01  # until a full socket is tried again
_STACK_CHARACTERS = 16 * 1024  # of the stack of a worker that dies
_LOOK_SECONDS = 0.1  # between two looks at workers that have no pidfd
_TURN_SECONDS = 0.01  # in which the messages of one worker are taken, before those of others


class ProcessesEngine(Engine):
    """Worker processes.

    Parameters
    ----------
    workers : int
        How many; they are started at once, and are not waited for.
    launcher : Launcher
        Starts them.
    initializer : tuple of (callable, tuple), optional
        Called with its arguments in each worker before anything else.
    tasks : int, optional
        Chunks and calls after which a worker exits and is replaced.
    logs : bool
        Workers send the logging records that they have no handler for.
    """

    name = "processes"

    def __init__(
        self,
        workers: int,
        launcher: Launcher,
        initializer: tuple[Callable[..., object], tuple[Any, ...]] | None = None,
        tasks: int | None = None,
        *,
        logs: bool = True,
    ) -> None:
        limits.keep_standard_streams()
        self.workers = workers
        self.slab = Slab()
        self._launcher = launcher
        self._initializer = None
        if initializer is not None:
            self._initializer = pack(initializer, launcher.interpreter, frozen=True)
        self._state = packing.State(
            own_path=launcher.own_path, fixed=launcher.env, behind=launcher.behind, logs=logs
        )
        self._tasks = tasks
        self._handles: dict[int, WorkerHandle] = {}
        self._runs: dict[int, ActivePlan] = {}
        self._events: list[protocol.Event] = []
        # Until when a worker may take to exit, or to load the plan of a run that is over.
        self._late: list[tuple[float, WorkerHandle, int | None]] = []
        self._ledgers = Ledgers(workers)
        self._counters = Counters()
        self._wake: WakeUp | None = WakeUp()
        self._tracker = SegmentTracker(self._wake)
        if self._initializer is not None:
            self._tracker.note(self._initializer.segments)
        self._without_pidfd = False
        self._broken: BaseException | None = None
        self._selector = limits.open_with_retry(selectors.DefaultSelector)
        self._selector.register(self._wake, selectors.EVENT_READ)
        _engines.add(self)
        try:
            for number in range(workers):
                self.replace(number)
        except BaseException:
            self.shutdown()
            raise

    # Any thread

    def pids(self) -> list[int]:
        """Return the process ids of the workers, in the order of their numbers."""
        return [handle.launched.process.pid for _, handle in sorted(self._handles.items())]

    def prepare(
        self, plan: Plan, function: Function, arrays: list[Array], *, frozen: bool
    ) -> PreparedRun:
        """Pickle the function, and copy inputs that are not in shared memory."""
        self._check()
        python = self._launcher.interpreter
        run = packing.pack_run(plan, function, arrays, self._state, python, frozen=frozen)
        self._tracker.note(run.payload.segments)
        return run

    def prepare_call(self, call: Function) -> PreparedCall:
        """Pickle a call; large arrays are put into segments."""
        self._check()
        prepared = packing.pack_call(call, self._state, self._launcher.interpreter)
        if prepared.payload is not None:
            self._tracker.note(prepared.payload.segments)
        return prepared

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken.with_traceback(None)

    def bytes_to_copy(self, arrays: Sequence[Any]) -> list[int]:
        """Return the bytes of each input that lies in no segment and no mapped file."""
        plain = [one.array if isinstance(one, Part) else one for one in arrays]
        arrays = [array for array in plain if isinstance(array, np.ndarray)]
        return [copied_nbytes(array) for array in arrays if locate(array) is None]

    def segments(self) -> list[Segment]:
        """Return the segments of arrays, arguments, results and ledgers that have not ended."""
        slab = self.slab
        return [*self._tracker.live(), *(() if slab is None else slab.segments())]

    def wake(self) -> None:
        """End the owner's :meth:`wait`."""
        wake = self._wake
        if wake is not None:
            wake.set()

    # Workers

    def replace(self, worker: int) -> None:
        """Start a worker with this number, unless there is one."""
        if worker in self._handles:
            return
        with _starting:
            begun = self._counters.new()
            launched = self._launcher.start(worker)
            handle = self._handles[worker] = WorkerHandle(worker, launched, begun)
        try:
            self._set_up(handle)
        except BaseException:
            # Why: nobody would hear of this worker, or it would serve without its initializer.
            launched.kill()
            self._unlink(handle)
            handle.close()
            launched.wait()
            raise

    def _set_up(self, handle: WorkerHandle) -> None:
        launched = handle.launched
        self._selector.register(launched.wire.fileno(), selectors.EVENT_READ, (handle, False))
        if launched.pidfd >= 0:
            self._selector.register(launched.pidfd, selectors.EVENT_READ, (handle, True))
        else:
            self._without_pidfd = True
        handle.notify(protocol.CountCalls(handle.begun.kind), [handle.begun.fileno()])
        if self._tasks is not None:
            handle.notify(protocol.SetTaskLimit(self._tasks))
        if self._initializer is not None:
            handle.attach_payload(self._initializer, attached := Attached())
            held = packing.held_keys(self._initializer)
            message = protocol.Initialize(self._initializer.body, held, attached.records)
            handle.notify(message, attached.descriptors)

    def restart(self) -> None:
        """Let each worker exit after the work that it has; the next run or call starts another."""
        self._broken = None
        for handle in self._handles.values():
            handle.notify(protocol.SetTaskLimit(0))
            handle.set_exiting()

    def kill(self, worker: int, run: int) -> None:
        """Kill a worker for a run."""
        if worker in self._handles:
            self._handles[worker].kill(run)

    def _reap(self, handle: WorkerHandle) -> None:
        """Take the last messages of a dead worker, then report its death."""
        self._read(handle, last=True)
        self._unlink(handle)
        self._events.append(handle.reap())
        handle.close()

    def _end_late(self) -> list[float]:
        """Kill the workers that are late; return the seconds that the others have.

        Why: the user's code may hold up the exit, or the load of a function, for ever.
        """
        now, late, self._late = time.monotonic(), self._late, []
        for due, handle, run in late:
            if self._handles.get(handle.number) is not handle or not handle.is_late(run):
                continue
            if due <= now:
                handle.kill(run)
            else:
                self._late.append((due, handle, run))
        return [due - now for due, *_ in self._late]

    def _unlink(self, handle: WorkerHandle) -> None:
        del self._handles[handle.number]
        self._stop_reading(handle)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(handle.launched.pidfd)

    def _stop_reading(self, handle: WorkerHandle) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(handle.launched.wire.fileno())

    # Runs

    def ledger(self, chunks: int) -> Ledger:
        """Return a zeroed ledger in shared memory."""
        return self._ledgers.take(chunks)

    def tickets(self) -> Tickets:
        """Return a counter at 0."""
        return self._counters.new()

    def open(self, active: ActivePlan) -> list[int]:
        """Start workers where one is missing; return those that are ready."""
        self._check()
        prepared: PreparedRun = active.prepared
        prepared.open(active, self._ledgers.segment(active.ledger))
        self._runs[active.number] = active
        for number in range(self.workers):
            self.replace(number)
        return [number for number, handle in self._handles.items() if handle.ready]

    def assign(self, worker: int, active: ActivePlan, generation: Generation) -> None:
        """Send a generation to a worker, or queue it behind the work that it has."""
        handle = self._handles.get(worker)
        # Why the look: if its loss is about to be told, its successor may be there already.
        if handle is not None and (handle.ready or handle.exiting):
            handle.queue.append((active, generation))
            self._feed(handle)

    def stop(self, active: ActivePlan) -> list[protocol.CounterExhausted]:
        """Take back the plans that no worker was sent."""
        active.stopped = True
        return [
            protocol.CounterExhausted(handle.number, active.number, generation.number)
            for handle in self._handles.values()
            for generation in take_back(handle.queue, active)
        ]

    def close(self, active: ActivePlan) -> None:
        """Release the memory of a run; keep its ledger for the next one."""
        self._runs.pop(active.number, None)
        for handle in self._handles.values():
            take_back(handle.queue, active)
            # Why not in a worker that may be in its initializer: that serves later runs too.
            up = handle.worked or self._initializer is None
            if active.interrupted and up and handle.is_late(active.number):
                self._late.append((time.monotonic() + EXIT_SECONDS, handle, active.number))
        for generation in active.generations:
            generation.tickets.close()
        self._ledgers.give_back(active.ledger)
        allocate.note_shared_end()

    # Calls

    def free_worker(self) -> int | None:
        """Return the worker that has least to do, if it has no call."""
        least, found = MAX_OUTSTANDING, None
        for handle in self._handles.values():
            if handle.ready and not handle.calls and len(handle.outstanding) < least:
                least, found = len(handle.outstanding), handle.number
        return found

    def worker_ahead(
        self, prepared: PreparedCall | None, without: Container[int | None]
    ) -> int | None:
        """Return a worker that has one call and nothing else."""
        if prepared is not None and prepared.payload is not None:
            # Why: a message with descriptors may fail, and then its worker is killed.
            return None
        for handle in self._handles.values():
            alone = len(handle.calls) == 1 and not handle.outstanding
            if handle.ready and alone and handle.number not in without:
                return handle.number
        return None

    def has_plan(self, worker: int) -> bool:
        """Return whether a worker has a plan, behind which a call may wait."""
        handle = self._handles.get(worker)
        return handle is not None and bool(handle.outstanding)

    def in_calls(self) -> list[int]:
        """Return the workers that have begun a call."""
        return [handle.number for handle in self._handles.values() if handle.is_calling()]

    def withdraw(self, worker: int, *, stop: bool = False) -> list[int]:
        """Take back the calls that a worker has not begun; return their numbers."""
        handle = self._handles.get(worker)
        return [] if handle is None else handle.withdraw_calls(stop=stop)

    def call(
        self, worker: int, number: int, prepared: PreparedCall, more: tuple[Any, ...] = ()
    ) -> None:
        """Send a call."""
        handle, payload, attached = self._handles[worker], prepared.payload, Attached()
        held: tuple[int, ...] = ()
        if payload is not None:
            pairs = zip(payload.segments, payload.private, strict=True)
            self._tracker.add(one for one, private in pairs if not private)
            handle.attach_payload(payload, attached)
            held = packing.held_keys(payload)
        ticket, function = handle.take_ticket(number), prepared.function
        changed = handle.changed(prepared.environment)
        message = protocol.RunCall(
            number, function, prepared.body, more, ticket, held, changed, attached.records
        )
        handle.send(message, attached.descriptors)

    # Events

    def wait(self, timeout: float | None) -> list[protocol.Event]:
        """Wait until a worker has sent something or is gone; return the events."""
        gone: dict[int, WorkerHandle] = {}
        for key, _ in self._selector.select(self._until_due(timeout)):
            if isinstance(key.fileobj, WakeUp):
                key.fileobj.clear()
                continue
            handle, dead = key.data
            if handle.number not in gone and (dead or not self._read(handle)):
                gone[handle.number] = handle
        if self._without_pidfd:
            gone |= {one.number: one for one in self._handles.values() if one.launched.has_exited()}
        for handle in gone.values():
            self._reap(handle)
        # Why here: a worker drops the memory that is gone before the next plan comes.
        self._forget_segments()
        events, self._events = self._events, []
        return events

    def _until_due(self, timeout: float | None) -> float | None:
        """Send messages, kill late workers; return the seconds until there is more to do."""
        waits = [] if timeout is None else [timeout]
        for handle in self._handles.values():
            if handle.outbox:
                handle.flush()
                waits.append(_RETRY_SECONDS)
        if self._events:
            waits.append(0.0)
        if self._without_pidfd:
            waits.append(_LOOK_SECONDS)
        if self._late:
            waits += self._end_late()
        return min(waits, default=None)

    def _forget_segments(self) -> None:
        for segment in self._tracker.take_gone():
            for handle in self._handles.values():
                handle.forget(segment)

    def _read(self, handle: WorkerHandle, *, last: bool = False) -> bool:
        """Take the messages of a worker; False if only their end shows that it is dead.

        If they come faster than they are taken, some are left to the next time. The `last` ones of
        a dead worker are taken up to their end.
        """
        until = time.monotonic() + _TURN_SECONDS
        while True:
            try:
                message, descriptors = handle.launched.wire.receive(wait=False)
            except BlockingIOError:
                return True
            except (EOFError, OSError):
                # Why: the end of a file would be reported again and again; the pidfd decides.
                self._stop_reading(handle)
                return handle.launched.pidfd >= 0
            if isinstance(message, str):
                handle.stack = (handle.stack + message)[:_STACK_CHARACTERS]
                continue
            self._take(handle, message, descriptors)
            # Why: an idle worker sends nothing more; this saves a system call.
            idle = not handle.outstanding and not handle.calls and type(message) in _LAST
            if not last and (idle or time.monotonic() >= until):
                return True

    def _take(self, handle: WorkerHandle, message: Any, descriptors: list[int]) -> None:
        """Turn a message into events."""
        events = self._events
        match message:
            case protocol.CallFinished():
                handle.calls.pop(message.call, None)
                handle.worked = True
                own_path, adopt = self._launcher.own_path, self._tracker.adopt
                end = packing.unpack_call(
                    message, descriptors, self._broken, adopt=adopt, own_path=own_path
                )
                events.append(end)
            case protocol.CounterExhausted():
                self._exhausted(handle, message)
            case protocol.WorkerReady():
                handle.ready = not handle.exiting
                events.append(message)
            case protocol.Inherit():
                hand_on(message.part, descriptors[0])
            case protocol.OutputsNeeded():
                self._outputs_needed(handle, message)
            case protocol.ChunkFailed():
                events.append(message._replace(error=packing.unpack_error(message.error)))
            case protocol.ObjectsReturned():
                events.extend(packing.unpack_objects(message, descriptors, self._tracker.adopt))
            case protocol.WorkerExiting():
                handle.set_exiting()
                handle.announced = True
                self._late.append((time.monotonic() + EXIT_SECONDS, handle, None))
            case protocol.PlanRejected() | protocol.InitializerFailed():
                self._refused(message)
            case _:
                events.append(message)

    def _refused(self, event: protocol.PlanRejected | protocol.InitializerFailed) -> None:
        cause = packing.unpack_error(event.error)
        if isinstance(event, protocol.PlanRejected):
            rejected = packing.rejection(cause, own_path=self._launcher.own_path)
            self._events.append(event._replace(error=rejected))
        else:
            self._broken = packing.initializer_failed(cause)
            self._events.extend([protocol.PlanRejected(run, self._broken) for run in self._runs])

    def _exhausted(self, handle: WorkerHandle, event: protocol.CounterExhausted) -> None:
        if event.exiting:
            handle.set_exiting()
        else:
            handle.outstanding.remove((event.run, event.generation))
        handle.worked = True
        self._tracker.note_huge(event.huge_bytes)
        if event.run in self._runs:
            self._events.append(event)
        self._feed(handle)

    def _outputs_needed(self, handle: WorkerHandle, event: protocol.OutputsNeeded) -> None:
        # Invariant: each question gets one answer, so no answer is left for a later plan.
        active = self._runs.get(event.run)
        if active is None or active.stopped:
            handle.notify(protocol.AbandonRun(event.run))
            return
        try:
            if active.outputs is None:
                with allocate.telling(self._forget_segments):
                    active.allocate(Announcement.unpack(event.announcement))
            self._send_outputs(handle, active)
        except Exception as error:  # noqa: BLE001 - the run is told, and stops
            handle.notify(protocol.AbandonRun(event.run))
            self._events.append(protocol.PlanRejected(event.run, error))

    # Sending

    def _feed(self, handle: WorkerHandle) -> None:
        while handle.queue and handle.takes_plan():
            active, generation = handle.queue.popleft()
            handle.outstanding.append((active.number, generation.number))
            try:
                self._send_plan(handle, active, generation)
            except Exception as error:  # noqa: BLE001 - a closed segment is that run's fault
                handle.outstanding.remove((active.number, generation.number))
                self._events.append(protocol.PlanRejected(active.number, error))
                self._events.append(
                    protocol.CounterExhausted(handle.number, active.number, generation.number)
                )

    def _send_plan(self, handle: WorkerHandle, active: ActivePlan, generation: Generation) -> None:
        prepared: PreparedRun = active.prepared
        attached = Attached()
        body, segments = prepared.work(active, generation)
        self._tracker.add(segments.values())
        handle.attach(segments.values(), attached)
        handle.attach_payload(prepared.payload, attached)
        message = protocol.RunPlan(body, handle.changed(prepared.environment), attached.records)
        handle.send(message, [generation.tickets.fileno(), *attached.descriptors])

    def _send_outputs(self, handle: WorkerHandle, active: ActivePlan) -> None:
        attached = Attached()
        prepared: PreparedRun = active.prepared
        references, segments = prepared.outputs(active)
        self._tracker.add(segments.values())
        handle.attach(segments.values(), attached)
        message = protocol.UseOutputs(
            active.number, references or (), bool(active.is_tuple), attached.records
        )
        handle.notify(message, attached.descriptors)

    # The end

    def shutdown(self) -> None:
        """End the workers: idle ones by asking, others with SIGKILL."""
        for handle in self._handles.values():
            busy = handle.calls or any(run in self._runs for run, _ in handle.outstanding)
            if handle.ready and not busy:
                handle.notify(protocol.ExitNow())
            elif not handle.exiting:
                handle.launched.kill()
        deadline = time.monotonic() + EXIT_SECONDS
        for handle in list(self._handles.values()):
            # Why suppressed: after a setuid we may not kill; the end of its life pipe does.
            with contextlib.suppress(PermissionError):
                handle.launched.wait(deadline)
            self._unlink(handle)
            handle.close()
            handle.launched.wait()
        self._selector.close()
        self._wake = self._tracker.wake = None
        self._ledgers.clear()
        self._counters = Counters()
        self.slab = None
        self._events.clear()

    def abandon_in_child(self) -> None:
        """In a forked child of the user: close the descriptors; the workers are the parent's."""
        for handle in self._handles.values():
            handle.launched.process.returncode = 0  # Why: it is not a child of this process.
            handle.close()


_LAST = {
    protocol.CounterExhausted,
    protocol.CallFinished,
}  # the types that a worker sends last before it is idle


_engines: weakref.WeakSet[ProcessesEngine] = weakref.WeakSet()
# Lock: held while a worker is started, and during a fork of the user's in another thread. A child
# that is forked in between would have a descriptor of which it does not know.
_starting = threading.Lock()


def _after_fork() -> None:
    _starting.release()
    for engine in list(_engines):
        engine.abandon_in_child()
    _engines.clear()


# Why: a child that kept the write end of a life pipe would keep the workers from exiting.
os.register_at_fork(
    before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_after_fork
)
